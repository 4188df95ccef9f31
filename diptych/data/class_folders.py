"""A folder of class folders: each picture's caption is the name of the folder it lies in.

`pets/guinea_pig/1.jpg` has the caption "guinea pig". A picture deeper down belongs to the topmost
folder, whose name as it is written is kept as metadata `class`.
"""

import re
from pathlib import Path

from diptych.data.folder import PictureFolder

SPLITS = frozenset({"train", "val", "valid", "validation", "test"})
"""Names of folders that are parts of a data set and no classes."""


def are_classes(folder: Path, pictures: list[Path]) -> bool:
    """Whether all pictures lie in folders of the folder, at least two."""
    deep = all(len(picture.relative_to(folder).parts) > 1 for picture in pictures)
    return deep and len({_top(folder, picture) for picture in pictures}) > 1


def splits_of(folder: Path, pictures: list[Path]) -> list[str]:
    """The names of the topmost folders if all of them are splits that hold class folders."""
    tops = sorted({_top(folder, picture) for picture in pictures})
    deep = {
        _top(folder, picture) for picture in pictures if len(picture.relative_to(folder).parts) > 2
    }
    return tops if deep.issuperset(tops) and {top.lower() for top in tops} <= SPLITS else []


def class_folders(folder: Path, pictures: list[Path]) -> PictureFolder:
    """The pictures with the names of their classes."""
    class_of = {picture: _top(folder, picture) for picture in pictures}
    count = len(set(class_of.values()))
    note = (
        f"{folder}: {len(pictures):,} pictures in {count:,} classes; "
        "the caption is the name of the class folder"
    )
    captioned = [(picture, (readable(name),)) for picture, name in class_of.items()]
    return PictureFolder(folder, captioned, (note,), class_of=class_of)


def readable(name: str) -> str:
    """A class name as one would write it: "guinea_pig" is "guinea pig"."""
    return " ".join(re.split(r"[\s_-]+", name)).strip() or name


def _top(folder: Path, picture: Path) -> str:
    """Name of the folder just below `folder` that holds the picture."""
    return picture.relative_to(folder).parts[0]
