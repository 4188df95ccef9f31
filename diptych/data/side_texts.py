"""A folder in which each picture has a text file of the same name beside it.

`dog.jpg` goes with `dog.txt`; each line of it that is not empty is a caption.
"""

from pathlib import Path

from diptych.data.folder import PictureFolder
from diptych.errors import DataError


def has_side_texts(pictures: list[Path]) -> bool:
    """Whether any of the pictures has a text file beside it."""
    return any(_text_path(picture).is_file() for picture in pictures)


def side_texts(folder: Path, pictures: list[Path], *, captions_needed: bool) -> PictureFolder:
    """The pictures with the captions from beside them.

    Args:
        folder: What the keys are relative to.
        pictures: Picture files below the folder.
        captions_needed: Leave pictures out that have no caption.

    Raises:
        DataError: No picture is left, or a text cannot be read.
    """
    found = [(picture, lines_beside(picture)) for picture in pictures]
    kept = [(picture, lines) for picture, lines in found if lines or not captions_needed]
    if not kept:
        raise DataError(
            f"{folder} has {len(pictures):,} pictures and no caption: the .txt files beside them "
            "are empty. Write a caption on each line of dog.txt for dog.jpg."
        )
    notes = [
        f"{folder}: {len(kept):,} pictures, {sum(len(lines) for _, lines in kept):,} captions "
        "from the .txt files beside them"
    ]
    if len(kept) < len(found):
        notes.append(f"{len(found) - len(kept):,} pictures without a caption were left out")
    stems = {picture.with_suffix("") for picture in pictures}
    alone = sum(text.with_suffix("") not in stems for text in folder.rglob("*.txt"))
    if alone:
        notes.append(f"{alone:,} .txt files have no picture of their name beside them")
    return PictureFolder(folder, kept, tuple(notes))


def lines_beside(picture: Path) -> tuple[str, ...]:
    """The captions in the text file beside a picture; none if there is no such file.

    Raises:
        DataError: The file cannot be read.
    """
    path = _text_path(picture)
    try:
        return caption_lines(path.read_bytes())
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}. Check its permission, or remove it."
        ) from None


def caption_lines(text: bytes) -> tuple[str, ...]:
    """The lines of a text that are not empty; what is no UTF-8 becomes the sign for that."""
    lines = text.decode("utf-8-sig", "replace").splitlines()
    return tuple(line.strip() for line in lines if line.strip())


def _text_path(picture: Path) -> Path:
    """Where the captions of a picture would be."""
    return picture.with_suffix(".txt")
