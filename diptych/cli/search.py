"""`diptych search`: ask a library, or a folder of vectors."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diptych.cli.common import Device, Json, Offline, Seed, answer, load_model, tell
from diptych.errors import RequestError

if TYPE_CHECKING:
    from diptych.predict.model import Model
    from diptych.search.hit import Hit

Picture = Annotated[
    str | None,
    typer.Option(
        "--image", help="A picture to look for; in a library also the key of a stored one."
    ),
]
Condition = Annotated[
    str | None,
    typer.Option("--where", help="Pictures to look at, as an SQL condition: \"date >= '2020'\"."),
]
EMBED_AGAIN = "embed again into a new folder: diptych embed MODEL --data DIR --out NEW"
INDEX_AGAIN = "build a new library: diptych index MODEL DIR --library NEW"


def search(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="LIBRARY",
            help="What `diptych index` wrote, or a folder of vectors from `diptych embed`.",
        ),
    ],
    text: Annotated[str | None, typer.Argument(help="What to look for, in words.")] = None,
    image: Picture = None,
    count: Annotated[int, typer.Option("-k", "--count", min=1, help="How many to show.")] = 10,
    where: Condition = None,
    text_weight: Annotated[
        float,
        typer.Option(
            "--text-weight", min=0, max=1, help="Share of the words in a query with --image."
        ),
    ] = 0.5,
    model: Annotated[
        str | None,
        typer.Option("--model", help="The model that made the vectors, if it was moved."),
    ] = None,
    offline: Offline = False,
    as_json: Json = False,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Find pictures by words, by a picture, or by both.

    Example: diptych search photos.library "a red bicycle" -k 5 --where "date >= '2020'"
    """
    from diptych.search.rows import FILE

    if text is not None and not text.strip():
        raise RequestError(
            f"a search takes words, and {text!r} holds none. "
            f'Write: diptych search {path} "a red bicycle".'
        )
    if text is None and image is None:
        raise RequestError(
            "a search takes words or --image, and neither was given. "
            f'Write: diptych search {path} "a red bicycle".'
        )
    if (path / "embedding.json").is_file():
        hits, empty = _ask_vectors(path, text, image, count, where, model, device, offline), ""
    elif (path / FILE).is_file():
        hits, empty = _ask_library(
            path, text, image, count, where, text_weight, model, device, offline
        )
    else:
        raise RequestError(
            f"{path} holds no library and no vectors. "
            f"Make a library with: diptych index MODEL DIR --library {path}."
        )
    rows = [asdict(hit) | {"caption": hit.caption} for hit in hits]
    lines = [_line(place, hit) for place, hit in enumerate(hits, 1)]
    answer(as_json, {"hits": rows}, "\n".join(lines) or empty)


def _ask_library(
    path: Path,
    text: str | None,
    image: str | None,
    count: int,
    where: str | None,
    text_weight: float,
    model: str | None,
    device: str,
    offline: bool,
) -> tuple[list["Hit"], str]:
    """Hits of a library, and what to say if there are none."""
    from diptych.search.library import Library

    with Library.open(path) as library:
        if not len(library):
            return [], _empty(path)
        library.use_model(_load(path, library.model_path, model, device, offline, INDEX_AGAIN))
        if where is None and (waiting := library.waiting):
            tell(f"the index takes in {waiting:,} pictures first")
        hits = library.search(text, count, where=where, image=image, text_weight=text_weight)
    return hits, f"no picture of {path} fits the condition {where}"


def _ask_vectors(
    path: Path,
    text: str | None,
    image: str | None,
    count: int,
    where: str | None,
    model: str | None,
    device: str,
    offline: bool,
) -> list["Hit"]:
    """Hits of a folder of vectors."""
    from diptych.data.vectors import read_vectors
    from diptych.search.exact import search as find

    if text is not None and image is not None:
        raise RequestError(
            "in a folder of vectors a search takes words or --image, and both were given. "
            "Give one of them, or build a library: diptych index MODEL DIR --library PATH."
        )
    if where is not None:
        raise RequestError(
            f"{path} holds vectors without metadata, and --where was given. "
            "Leave it out, or build a library: diptych index MODEL DIR --library PATH."
        )
    stored = read_vectors(path)
    loaded = _load(path, Path(stored.header.model), model, device, offline, EMBED_AGAIN)
    if loaded.fingerprint != stored.header.model_fingerprint:
        raise RequestError(
            f"{path} was made by the model {stored.header.model_fingerprint}, and "
            f"{loaded.path} is {loaded.fingerprint}. Give that model with --model, "
            f"or {EMBED_AGAIN}."
        )
    query = loaded.encode_text([text]) if text is not None else loaded.encode_image([image or ""])
    return find(stored, query[0], count)


def _load(
    path: Path, maker: Path, given: str | None, device: str, offline: bool, remedy: str
) -> "Model":
    """The model that was given, or the one that made the vectors."""
    if given is None and not maker.exists():
        raise RequestError(
            f"the model that made {path} is no longer at {maker}: it was moved or removed. "
            f"Give it with --model, or {remedy}."
        )
    return load_model(given or str(maker), device, offline)


def _empty(path: Path) -> str:
    """What to say of a library without pictures."""
    return f"{path} holds no pictures yet. Add some: diptych index MODEL DIR --library {path}."


def _line(place: int, hit: "Hit") -> str:
    """A hit for people."""
    date = f"  {hit.metadata['date']}" if "date" in hit.metadata else ""
    caption = f"  ({hit.caption})" if hit.caption else ""
    return f"{place:>3}  {hit.score:.3f}  {hit.path or hit.key}{date}{caption}"
