"""`diptych index`: build a library of pictures, or bring one up to date."""

import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diptych.cli.common import (
    Device,
    ImageColumn,
    Json,
    Model,
    Offline,
    Seed,
    SkipDamaged,
    TextColumn,
    Where,
    answer,
    load_model,
    tell,
)
from diptych.errors import RequestError

if TYPE_CHECKING:
    from diptych.data.source import SourceOptions
    from diptych.search.intake import Changes
    from diptych.search.library import Library

Sources = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="DIR...",
        help="Folders, pictures, 'FILES.parquet' or another SOURCE; none: look again at every "
        "folder that was added.",
    ),
]
SHOWN = 10
"""Unreadable pictures that are named; --json names all."""


def index(
    model: Model,
    sources: Sources = None,
    library: Annotated[
        Path, typer.Option("--library", help="The library; made if it is not there.")
    ] = Path("photos.library"),
    prune: Annotated[
        bool,
        typer.Option("--prune", help="Drop pictures whose files are gone; otherwise they stay."),
    ] = False,
    retry: Annotated[
        bool, typer.Option("--retry", help="Try pictures again that could not be read.")
    ] = False,
    image_column: ImageColumn = None,
    text_column: TextColumn = None,
    where: Where = None,
    skip_damaged: SkipDamaged = False,
    offline: Offline = False,
    as_json: Json = False,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Build a library of pictures, or bring it up to date.

    Files that did not change are not embedded again, moved ones are recognised by their content.

    Example: diptych index runs/photos photos/ --library photos.library
    """
    from diptych.data.source import SourceOptions
    from diptych.search.intake import Changes
    from diptych.search.library import Library

    options = SourceOptions(
        image_column=image_column, text_column=text_column, where=where, skip_damaged=skip_damaged
    )
    changes = Changes()
    with Library.open(library, model=load_model(model, device, offline)) as opened:
        if not sources:
            if not opened.roots:
                raise RequestError(
                    f"no folder is given, and none was added to {library} before. "
                    f"Write: diptych index {model} DIR --library {library}."
                )
            changes = opened.update(prune=prune, retry=retry, progress=_progress())
        for name in sources or []:
            changes += _take(opened, name, options, prune, retry)
        size, remembered = len(opened), opened.unreadable
    for key, reason in list(changes.unreadable.items())[:SHOWN]:
        tell(f"left out {key}: {reason}")
    if len(changes.unreadable) > SHOWN:
        tell(f"left out {len(changes.unreadable) - SHOWN:,} more; --json names all")
    if not retry and not remembered.keys().isdisjoint(changes.unreadable):
        tell("pictures that cannot be used are tried again when they change, or with --retry")
    answer(
        as_json,
        {"library": str(library), "pictures": size, **asdict(changes)},
        _summary(library, size, changes),
    )


def _take(
    library: "Library", name: str, options: "SourceOptions", prune: bool, retry: bool
) -> "Changes":
    """Add a folder, a picture or a source."""
    from diptych.data.folder import PICTURE_ENDINGS
    from diptych.data.opening import open_source
    from diptych.data.source import SourceOptions

    path = Path(name)
    plain = options.model_copy(update={"skip_damaged": False}) == SourceOptions()
    if plain and (path.is_dir() or (path.is_file() and path.suffix.lower() in PICTURE_ENDINGS)):
        return library.add([path], prune=prune, retry=retry, progress=_progress())
    source = open_source(name, options, captions_needed=False, weights_allowed=False)
    for note in source.notes:
        tell(note)
    return library.add_source(source, retry=retry, progress=_progress())


def _progress() -> Callable[[int, int], None]:
    """A line with the speed, rewritten in place on a terminal; silent elsewhere."""
    started = time.perf_counter()

    def show(done: int, total: int) -> None:
        if sys.stderr.isatty():
            speed = done / (time.perf_counter() - started)
            end = "\n" if done >= total else ""
            line = f"\rindexed {done:,} of {total:,}, {speed:,.0f} pictures/s "
            print(line, end=end, file=sys.stderr, flush=True)

    return show


def _summary(library: Path, size: int, changes: "Changes") -> str:
    """What was done, in a line or two."""
    counts = {
        "added": changes.added,
        "updated": changes.updated,
        "moved": changes.moved,
        "unchanged": changes.unchanged,
        "removed": changes.removed,
        "could not be read": len(changes.unreadable),
    }
    said = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
    line = f"{library} holds {size:,} pictures: {said or 'nothing to do'}"
    if changes.embedded:
        speed = changes.embedded / max(changes.seconds, 1e-9)
        line += f" ({changes.embedded:,} embedded, {speed:,.0f} pictures/s)"
    if changes.gone:
        line += f"\n{changes.gone:,} of them have lost their files; --prune drops those, except "
        line += "in a folder that is missing or empty"
    return line
