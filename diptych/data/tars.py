"""WebDataset shards as a source: tars in which files of one name make a sample.

    a/000.jpg  a/000.txt  a/000.json  a/000.cls

The picture is found by its ending. Captions are the lines of `.txt`, a field of `.json`, or the
class of `.cls`: a name, or a number of a line in the `classnames.txt` beside the tars or one
folder above (the layout of CLIP_benchmark). All of these are the columns of a sample, found by
their usual names or named, as in tables: an ending such as `txt`, or a field of the `.json`.
Captions are held in memory; pictures are read from the tar by their place, in any order.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from diptych.data.columns import TEXT_NAMES, Condition, metadata_of, text_columns
from diptych.data.folder import PICTURE_ENDINGS
from diptych.data.side_texts import caption_lines
from diptych.data.source import Sample, SourceOptions
from diptych.data.table import as_texts, common_folder, file_mark, start_of_keys
from diptych.data.tar_index import Place, read_index, reading
from diptych.errors import DataError, RequestError
from diptych.files import fingerprint

TEXT_ENDINGS = ("txt", "cls")
"""Members that are read as columns beside the fields of `json`."""

TEXT_LIMIT = 1_000_000
"""Bytes of the longest member that is read as columns."""

TAR_TEXT_NAMES = ("txt", *TEXT_NAMES, "cls")
"""Columns that may hold the caption, the first that is there."""


class _Entry(NamedTuple):
    """Where one sample lies."""

    key: str
    shard: Path
    picture: Place
    texts: tuple[tuple[str, Place], ...]
    """Ending and place of the members that hold columns."""


class TarSource:
    """The samples of one or several tars, in the order of the tars."""

    def __init__(
        self, paths: list[Path], options: SourceOptions, *, name: str, captions_needed: bool = True
    ) -> None:
        if options.before_column:
            raise RequestError(
                f"{name} is made of tars, and pictures before are read from tables only. "
                "Leave --before-column out, or give a table."
            )
        self.name = name
        self._entries: list[_Entry] = []
        self._captions: list[tuple[str, ...]] = []
        self._image, self._texts = "", list[str]()
        self._options, self._captions_needed = options, captions_needed
        condition = Condition(options.where) if options.where else None
        self._class_names = {path.parent: _class_names(path.parent) for path in paths}
        self._left_out = Counter[str]()
        self._endings: dict[str, None] = {}  # seen so far, in their order
        notes: list[str] = []
        root = common_folder(paths)
        for path in paths:
            index = read_index(path, skip_damaged=options.skip_damaged)
            notes += index.notes
            long = self._add(path, index.samples, start_of_keys(path, root), condition)
            if long:
                notes.append(f"{path.name}: {long:,} texts of more than 1 MB, left out")
        if condition is not None:
            condition.check()
        self.size: int | None = len(self._entries)
        said = [f"{count:,} samples {what} were left out" for what, count in self._left_out.items()]
        if not self._entries:
            raise DataError(
                f"{name} has no usable sample{''.join(f'; {note}' for note in (*said, *notes))}. "
                f"Endings seen: {', '.join(map(repr, [*self._endings][:10])) or 'none'}. Name "
                "others with --image-column and --text-column, or widen the condition."
            )
        self.fingerprint = fingerprint(
            *(file_mark(path) for path in paths),
            *(
                f"{entry.key}\n{captions}\n{entry.picture}"
                for entry, captions in zip(self._entries, self._captions, strict=True)
            ),
        )
        first = f"{name}: {self.size:,} pictures in {len(paths):,} tars"
        if self._texts:
            count = sum(map(len, self._captions))
            first += f", {count:,} captions in {', '.join(map(repr, self._texts))}"
        self.notes = (first, *said, *notes)

    def captions(self, index: int) -> tuple[str, ...]:
        """Captions of a sample, without touching its picture."""
        return self._captions[index]

    def sample(self, index: int) -> Sample:
        """The sample, its bytes read from the tar.

        Raises:
            DataError: The tar has changed or cannot be read.
        """
        entry = self._entries[index]
        with reading(entry.shard) as read:
            columns = self._columns(entry.shard, read, entry.texts)
            picture = read(entry.picture)
        others = {name: value for name, value in columns.items() if name not in self._texts}
        metadata = metadata_of(_joined(others))
        return Sample(entry.key, picture, self._captions[index], metadata)

    def _add(
        self,
        path: Path,
        samples: dict[str, dict[str, Place]],
        start: str,
        condition: Condition | None,
    ) -> int:
        """Take up the samples of one tar; how many of their texts are too long and left out."""
        found: list[tuple[_Entry, dict[str, Any]]] = []
        long = 0
        with reading(path) as read:
            for key, members in samples.items():
                self._endings.update(dict.fromkeys(members))
                picture = self._picture_ending(members)
                if picture is None:
                    self._left_out["without a picture"] += 1
                    continue
                texts = tuple(
                    (end, place) for end, place in members.items() if self._is_column(end)
                )
                short = tuple((end, place) for end, place in texts if place[1] <= TEXT_LIMIT)
                long += len(texts) - len(short)
                entry = _Entry(f"{start}{path.stem}:{key}", path, members[picture], short)
                found.append((entry, self._columns(path, read, short)))
        if not self._texts and found:
            self._find_texts([columns for _, columns in found])
        if condition is not None and found:
            found = [found[row] for row in _rows_where([row for _, row in found], condition)]
        for entry, columns in found:
            captions = tuple(text for name in self._texts for text in as_texts(columns.get(name)))
            if self._captions_needed and not captions:
                self._left_out["without a caption"] += 1
                continue
            self._entries.append(entry)
            self._captions.append(captions)
        return long

    def _is_column(self, ending: str) -> bool:
        """Whether a member holds a column: text that is usual, or that the user named."""
        asked = (self._options.text_column or "").split(",")
        return ending in ("json", *TEXT_ENDINGS) or ending in [name.strip() for name in asked]

    def _picture_ending(self, members: dict[str, Place]) -> str | None:
        """Which member of a sample is its picture."""
        asked = self._options.image_column
        if asked is not None:
            return asked if asked in members else None
        return next((ending for ending in members if f".{ending}" in PICTURE_ENDINGS), None)

    def _find_texts(self, rows: list[dict[str, Any]]) -> None:
        """Choose the columns of the captions, from the first tar that has samples."""
        names = list(dict.fromkeys([*(name for row in rows for name in row), *self._endings]))
        names = [name for name in names if name != "json"]
        self._texts = text_columns(
            names, self._options.text_column, TAR_TEXT_NAMES, needed=self._captions_needed
        )

    def _columns(
        self, path: Path, read: Callable[[Place], bytes], texts: Iterable[tuple[str, Place]]
    ) -> dict[str, Any]:
        """What the text members say, with the name of the class for its number, if it is known."""
        columns = _columns(read, texts)
        names, number = self._class_names[path.parent], columns.get("cls")
        if names and isinstance(number, int):
            columns["cls"] = names[number] if 0 <= number < len(names) else None
        return columns


def _columns(read: Callable[[Place], bytes], texts: Iterable[tuple[str, Place]]) -> dict[str, Any]:
    """What the text members of a sample say.

    Fields of `json` as they are, a tuple of the lines of others, a number if `cls` is one.
    """
    columns: dict[str, Any] = {}
    for ending, place in texts:
        data = read(place)
        if ending == "json":
            with suppress(ValueError, RecursionError):  # damaged: the sample has no such columns
                said = json.loads(data)
                columns = (said if isinstance(said, dict) else {}) | columns
        else:
            lines = caption_lines(data)
            is_number = ending == "cls" and re.fullmatch(r"[0-9]{1,9}", "\n".join(lines))
            columns[ending] = int(lines[0]) if is_number else lines
    return columns


def _rows_where(found: list[dict[str, Any]], condition: Condition) -> list[int]:
    """Numbers of the samples of one tar that a condition keeps."""
    joined = [_joined(columns) for columns in found]
    rows = [metadata_of(row) for row in joined]
    names = dict.fromkeys(
        name
        for row in joined
        for name, value in row.items()
        if isinstance(value, str | int | float)
    )
    columns = {name: [row.get(name) for row in rows] for name in names}
    return [int(row) for row in condition.rows(columns, len(rows))]


def _joined(columns: dict[str, Any]) -> dict[str, Any]:
    """The columns with the lines of a member as one text."""
    return {
        name: "\n".join(value) if isinstance(value, tuple) else value
        for name, value in columns.items()
    }


def _class_names(folder: Path) -> list[str]:
    """The lines of `classnames.txt` in the tars' folder or the one above; none without it."""
    for place in (folder, folder.resolve().parent):
        with suppress(OSError):
            text = (place / "classnames.txt").read_text(encoding="utf-8", errors="replace")
            return [line.strip() for line in text.splitlines()]
    return []
