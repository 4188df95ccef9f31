"""`diptych embed` and `diptych search`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from diptych.cli.common import (
    Data,
    Device,
    ImageColumn,
    Json,
    ModelFolder,
    Seed,
    TextColumn,
    Where,
    answer,
    counter,
    tell,
)
from diptych.errors import RequestError


def embed(
    model: ModelFolder,
    data: Data,
    out: Annotated[Path, typer.Option("--out", help="Folder for the vectors.")],
    image_column: ImageColumn = None,
    text_column: TextColumn = None,
    where: Where = None,
    as_json: Json = False,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Write the vectors of every picture of a source.

    Parquet files, in parts; a stopped run goes on where it was.

    Example: diptych embed runs/photos --data photos/ --out photos.vectors
    """
    from diptych.data.opening import open_source
    from diptych.data.source import SourceOptions
    from diptych.predict.embed import embed as carry_out
    from diptych.predict.model import load

    options = SourceOptions(image_column=image_column, text_column=text_column, where=where)
    source = open_source(data, options, captions_needed=False)
    for note in source.notes:
        tell(note)
    result = carry_out(load(model, device=device), source, out, progress=counter("embedded"))
    for key, reason in result.bad.items():
        tell(f"left out {key}: {reason}")
    kept = f"; {result.kept:,} were there already" if result.kept else ""
    if result.kept_without:
        kept += f" ({result.kept_without:,} pictures beside them could not be read then)"
    left_out = f"; {len(result.bad):,} could not be read" if result.bad else ""
    answer(
        as_json,
        {"out": str(out), **asdict(result)},
        f"{result.rows:,} vectors written to {out}{kept}{left_out}",
    )


def search(
    vectors: Annotated[Path, typer.Argument(help="Folder that `diptych embed` wrote.")],
    text: Annotated[str | None, typer.Argument(help="What to look for, in words.")] = None,
    image: Annotated[
        Path | None, typer.Option("--image", help="A picture to look for, instead of words.")
    ] = None,
    count: Annotated[int, typer.Option("-k", "--count", min=1, help="How many to show.")] = 10,
    model: Annotated[
        Path | None,
        typer.Option("--model", help="The model that made the vectors, if it was moved."),
    ] = None,
    as_json: Json = False,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Find embedded pictures by words or by a picture.

    Example: diptych search photos.vectors "a red bicycle" -k 5
    """
    if (text is None) == (image is None):
        given = "both" if text is not None else "neither"
        raise RequestError(
            f"a search takes words or --image, and {given} was given. "
            'Write: diptych search FOLDER "a red bicycle".'
        )
    if text is not None and not text.strip():
        raise RequestError(
            f"a search takes words, and {text!r} holds none. "
            'Write: diptych search FOLDER "a red bicycle".'
        )
    from diptych.data.vectors import read_vectors
    from diptych.predict.model import load
    from diptych.search.exact import search as find

    stored = read_vectors(vectors)
    maker = Path(stored.header.model)
    if model is None and not maker.is_dir():
        raise RequestError(
            f"the model that made {vectors} is no longer at {maker}: it was moved or removed. "
            "Give it with --model, or embed again into a new folder."
        )
    loaded = load(model or maker, device=device)
    if loaded.fingerprint != stored.header.model_fingerprint:
        raise RequestError(
            f"{vectors} was made by the model {stored.header.model_fingerprint}, and "
            f"{loaded.path} is {loaded.fingerprint}. Give that model with --model, "
            "or embed again into a new folder."
        )
    query = loaded.encode_text([text]) if text is not None else loaded.encode_image([image or ""])
    hits = find(stored, query[0], count)
    lines = [
        f"{place:>3}  {hit.score:.3f}  {hit.path or hit.key}"
        + (f"  ({hit.captions[0]})" if hit.captions else "")
        for place, hit in enumerate(hits, 1)
    ]
    answer(as_json, {"hits": [asdict(hit) for hit in hits]}, "\n".join(lines))
