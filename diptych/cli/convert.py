"""`diptych convert`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diptych.cli.common import Device, Json, Offline, Seed, answer, tell
from diptych.errors import RequestError

if TYPE_CHECKING:
    from diptych.checkpoint import Bundle
    from diptych.models.kinds import AnyModel


def convert(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="Folder, file of weights, hf:org/name, short name.")
    ],
    target: Annotated[Path, typer.Argument(metavar="DST", help="Folder to write.")],
    layout: Annotated[str, typer.Option("--to", help="diptych, open_clip or transformers.")],
    architecture: Annotated[
        str | None,
        typer.Option("--architecture", help="What bare weights are, such as ViT-B-32-quickgelu."),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option("--tokenizer", help="Vocabulary of bare weights: a spiece.model or folder."),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option("--image-size", min=1, help="Resize positions to so many pixels.")
    ] = None,
    offline: Offline = False,
    as_json: Json = False,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Write a model in another library's layout: weights, preprocessing and tokenizer.

    Example: diptych convert hf:openai/clip-vit-base-patch32 models/clip --to diptych
    """
    from diptych.pretrained.convert import convert as carry_out

    bundle = _open(source, architecture, tokenizer, image_size, offline)
    for note in bundle.notes:
        tell(note)
    notes = carry_out(bundle, target, layout)
    for note in notes:
        tell(note)
    parameters = sum(weight.numel() for weight in bundle.model.parameters())
    values = {
        "out": str(target),
        "layout": layout,
        "made_by": bundle.made_by,
        "parameters": parameters,
        "fingerprint": bundle.fingerprint,
        "notes": [*bundle.notes, *notes],
    }
    answer(
        as_json,
        values,
        f"{target}: {parameters / 1e6:.1f} M parameters made by {bundle.made_by}, "
        f"written for {layout}",
    )


def _open(
    source: str,
    architecture: str | None,
    tokenizer: Path | None,
    image_size: int | None,
    offline: bool,
) -> "Bundle[AnyModel]":
    """The model to write, of any kind."""
    from diptych.checkpoint import load_change_bundle
    from diptych.contract import is_change_model
    from diptych.pretrained.opening import find, open_model

    found, _ = find(source, offline=offline)
    if found.is_dir() and is_change_model(found):
        if (architecture, tokenizer, image_size) != (None, None, None):
            raise RequestError(
                f"{found} is a change model, which is written as it is. Leave --architecture, "
                "--tokenizer and --image-size out."
            )
        return load_change_bundle(found)
    return open_model(
        source,
        architecture=architecture,
        tokenizer=tokenizer,
        image_size=image_size,
        offline=offline,
    )
