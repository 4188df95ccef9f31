"""What all commands share: their common options, how they answer, how they show progress."""

import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from diptych.predict.model import Model as LoadedModel

Json = Annotated[
    bool, typer.Option("--json", help="Answer with one JSON object on standard output.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")]
Model = Annotated[
    str,
    typer.Argument(
        help="Folder of a run, or a model of open_clip or transformers, hf:org/name, or a short "
        "name such as clip-b32."
    ),
]
Offline = Annotated[
    bool, typer.Option("--offline", help="Never ask the hub; use models that are cached.")
]
Data = Annotated[
    list[str],
    typer.Option(
        "--data",
        help="SOURCE: a folder of pictures with captions, 'FILES.parquet', 'FILES.tar', or "
        "scenes:shapes. Give it again for more; for training SOURCE@3 says how often each comes.",
    ),
]
ImageColumn = Annotated[
    str | None,
    typer.Option(
        "--image-column",
        help="Column of the picture, of pairs the one after, if not found by name.",
    ),
]
BeforeColumn = Annotated[
    str | None,
    typer.Option("--before-column", help="Column of the picture before, if not found by name."),
]
TextColumn = Annotated[
    str | None,
    typer.Option("--text-column", help="Column of the caption; several divided by commas."),
]
Where = Annotated[
    str | None,
    typer.Option("--where", help="Rows to use, as an SQL condition: \"split = 'train'\"."),
]
SkipDamaged = Annotated[
    bool,
    typer.Option("--skip-damaged", help="Of a damaged or cut tar, use what is before the damage."),
]


def wants_json(arguments: Sequence[str]) -> bool:
    """True if the request asks for JSON."""
    return "--json" in arguments


def load_model(spec: str, device: str, offline: bool) -> "LoadedModel":
    """A model ready for use; what was assumed about its files is told."""
    from diptych.predict.model import load

    loaded = load(spec, device=device, offline=offline)
    for note in loaded.notes:
        tell(note)
    return loaded


def answer(as_json: bool, values: dict[str, Any], text: str) -> None:
    """Print the result of a command: one JSON object, or lines for people."""
    print(json.dumps(values) if as_json else text)


def tell(text: str) -> None:
    """Print progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


def counter(what: str) -> Callable[[int, int], None]:
    """A progress line rewritten in place on a terminal; silent elsewhere."""

    def show(done: int, total: int) -> None:
        if sys.stderr.isatty():
            end = "\n" if done >= total else ""
            print(f"\r{what} {done:,} of {total:,}", end=end, file=sys.stderr, flush=True)

    return show
