"""One library's folder to another's: what is written is what that library itself loads."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

from diptych.checkpoint import Bundle, save_again
from diptych.errors import RequestError, nearest
from diptych.files import whole_folder
from diptych.models.change import ChangeModel
from diptych.models.kinds import AnyModel
from diptych.pretrained.open_clip import write_open_clip
from diptych.pretrained.transformers import write_transformers


def _write_diptych(bundle: Bundle[AnyModel], folder: Path) -> tuple[str, ...]:
    """Our own layout."""
    save_again(folder, bundle)
    return ()


WRITERS: dict[str, Callable[[Bundle, Path], tuple[str, ...]]] = {
    "diptych": _write_diptych,
    "open_clip": write_open_clip,
    "transformers": write_transformers,
}
"""Who writes each layout; each gives what is to be said about the result."""


def convert(bundle: Bundle[AnyModel], folder: str | Path, layout: str) -> tuple[str, ...]:
    """Write a model as a folder of another library; whole, or not at all.

    Args:
        bundle: The model, with its contract.
        folder: Where to; must not hold anything yet.
        layout: One of `WRITERS`.

    Returns:
        What to say to the user: what the layout does not carry.

    Raises:
        RequestError: There is no such layout, `folder` holds something, or the layout cannot
            express the model: no other library has one of pictures in a row.
        StorageError: The disk refused; nothing is left behind.
    """
    folder = Path(folder)
    if layout not in WRITERS:
        raise RequestError(f"there is no layout {layout!r}. {nearest(layout, WRITERS)}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RequestError(f"{folder} holds something already. Give a new folder.")
    if layout != "diptych":
        if isinstance(bundle.model, ChangeModel):
            raise RequestError(
                f"it is a change model, which writes what changed, and {layout} has no such model. "
                "Use --to diptych."
            )
        pair = bundle.model.config.pair
        if pair != "none":
            raise RequestError(
                f"the model reads pictures in a row (pair {pair!r}), and {layout} has no such "
                "model. Use --to diptych."
            )
    with whole_folder(folder) as temporary:
        return WRITERS[layout](cast(Bundle, bundle), temporary)  # a change model only to ours
