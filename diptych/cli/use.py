"""`diptych embed`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from diptych.cli.common import (
    Data,
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
    counter,
    load_model,
    tell,
)


def embed(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option("--out", help="Folder for the vectors.")],
    image_column: ImageColumn = None,
    text_column: TextColumn = None,
    where: Where = None,
    skip_damaged: SkipDamaged = False,
    offline: Offline = False,
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

    options = SourceOptions(
        image_column=image_column, text_column=text_column, where=where, skip_damaged=skip_damaged
    )
    source = open_source(data, options, captions_needed=False, weights_allowed=False)
    for note in source.notes:
        tell(note)
    loaded = load_model(model, device, offline)
    result = carry_out(loaded, source, out, progress=counter("embedded"))
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
