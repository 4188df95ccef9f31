"""One library's folder to another's: what is written is what that library itself loads."""

from collections.abc import Callable
from pathlib import Path

from diptych.checkpoint import Bundle, save_bundle
from diptych.errors import RequestError, nearest
from diptych.files import whole_folder
from diptych.pretrained.open_clip import write_open_clip
from diptych.pretrained.transformers import write_transformers


def _write_diptych(bundle: Bundle, folder: Path) -> tuple[str, ...]:
    """Our own layout."""
    save_bundle(
        folder,
        bundle.model,
        bundle.tokenizer,
        bundle.transform,
        trained_on=bundle.trained_on,
        made_by=bundle.made_by,
    )
    return ()


WRITERS: dict[str, Callable[[Bundle, Path], tuple[str, ...]]] = {
    "diptych": _write_diptych,
    "open_clip": write_open_clip,
    "transformers": write_transformers,
}
"""Who writes each layout; each gives what is to be said about the result."""


def convert(bundle: Bundle, folder: str | Path, layout: str) -> tuple[str, ...]:
    """Write a model as a folder of another library; whole, or not at all.

    Args:
        bundle: The model, with its contract.
        folder: Where to; must not hold anything yet.
        layout: One of `WRITERS`.

    Returns:
        What to say to the user: what the layout does not carry.

    Raises:
        RequestError: There is no such layout, `folder` holds something, or the layout cannot
            express the model.
        StorageError: The disk refused; nothing is left behind.
    """
    folder = Path(folder)
    if layout not in WRITERS:
        raise RequestError(f"there is no layout {layout!r}. {nearest(layout, WRITERS)}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RequestError(f"{folder} holds something already. Give a new folder.")
    with whole_folder(folder) as temporary:
        return WRITERS[layout](bundle, temporary)
