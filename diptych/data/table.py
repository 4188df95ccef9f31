"""Samples from tables: parquet, csv, tsv and jsonl files, or the caption file of a folder.

A picture is a cell of bytes, a path (relative to the table's folder), or Hugging Face's
{"bytes", "path"}; in a column of pictures before it may be a list of these. A caption is a string
or a list of strings, in one column or in several. Rows that name the same path, or the same paths
where pictures come before, are one sample with several captions. Other columns of text or
numbers are the sample's metadata, dates among them as text; of the first row where several are one.
Pictures in parquet are held in memory as they are encoded, those of the rows that are used.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from diptych.data.boxes import BOXES, holds_boxes, mask_of
from diptych.data.columns import (
    PAIR_TEXT_NAMES,
    TEXT_NAMES,
    Condition,
    element,
    image_columns,
    may_hold_pictures,
    metadata_of,
    plain_columns,
    plain_value,
    text_columns,
)
from diptych.data.source import Sample, SourceOptions
from diptych.errors import DataError, RequestError
from diptych.files import fingerprint


@dataclass(frozen=True)
class _Columns:
    """Which columns of a table hold what."""

    image: str
    before: str | None
    texts: list[str]

    @property
    def wanted(self) -> list[str]:
        """All of them."""
        return [self.image, *([self.before] if self.before else []), *self.texts]


class TableSource:
    """Rows of one or several tables of the same shape."""

    def __init__(
        self, paths: list[Path], options: SourceOptions, *, name: str, captions_needed: bool = True
    ) -> None:
        self.name = name
        self._cells: list[pa.ChunkedArray] = []
        self._before: list[pa.ChunkedArray | None] = []
        self._boxes: list[pa.ChunkedArray | None] = []
        self._others: list[dict[str, pa.ChunkedArray]] = []  # the columns of metadata
        self._rows: list[tuple[int, int, Path, str]] = []  # table, place in it, folder, key
        self._captions: list[tuple[str, ...]] = []
        self._by_path: dict[str, int] = {}
        self._root = common_folder(paths)
        columns, rows, without = _Columns("", None, []), 0, 0
        condition = Condition(options.where) if options.where else None
        for path in paths:  # one whole table in memory at a time
            table = _plain(read_table(path))
            if path == paths[0]:
                columns = _columns(table.schema, options, captions_needed)
            texts = columns.texts
            _check_columns(path, table, columns.wanted)
            if path.suffix.lower() in (".csv", ".tsv"):
                guessed = [text for text in texts if not _is_text(table.schema.field(text).type)]
                if guessed:  # a caption may look like a number: 007
                    table = _plain(read_table(path, as_text=guessed))
            without += self._add(path, table, columns, condition, captions_needed)
            rows += len(table)
        if condition is not None:
            condition.check()
        self.size: int | None = len(self._rows)
        if not self._rows:
            where = f", where {options.where}" if options.where else ""
            remedy = "Check the columns and the condition."
            if without:
                looked = f"Captions were looked for in {', '.join(map(repr, texts))}"
                there = ", ".join(table.column_names)
                remedy = f"{looked} of the columns {there}; name another with --text-column."
            raise DataError(
                f"{name} has no usable sample ({rows:,} rows, {without:,} without caption{where}). "
                + remedy
            )
        self.fingerprint = fingerprint(
            *(file_mark(path) for path in paths),
            *(self._mark(index) for index in range(self.size)),
            *([columns.before] if columns.before else []),
        )
        notes = [f"{name}: {self.size:,} pictures; picture in {columns.image!r}"]
        if columns.before:
            notes[0] += f", what came before in {columns.before!r}"
        if texts:
            count = sum(map(len, self._captions))
            notes[0] += f", {count:,} captions in {', '.join(map(repr, texts))}"
        if without:
            notes.append(f"{without:,} rows without a caption were left out")
        if columns.before and not self._says_what_changed():
            notes.append(
                f"{name}: its column 'changed' holds neither true or false nor 1 or 0, so nobody "
                "knows of any pair whether something changed; write one of these"
            )
        self.notes = tuple(notes)

    def _add(
        self,
        path: Path,
        table: pa.Table,
        columns: _Columns,
        condition: Condition | None,
        captions_needed: bool,
    ) -> int:
        """Take up the rows of one table; how many were left out for want of a caption."""
        rows = np.arange(len(table))
        others = [column for column in plain_columns(table) if column not in columns.wanted]
        boxes = [BOXES] if columns.before and _has_boxes(table.schema) else []
        if condition is not None:
            rows = np.unique(condition.rows_of_table(table))
            table = table.select(list(dict.fromkeys([*columns.wanted, *others, *boxes])))
            table = table.filter(np.isin(np.arange(len(table)), rows))
        cells = table.column(
            columns.image
        )  # in its chunks: one array holds no more than 2 GiB of bytes
        _check_pictures(path, columns.image, cells.type, "image")
        before = table.column(columns.before) if columns.before else None
        if before is not None:
            _check_pictures(path, str(columns.before), element(before.type), "before")
        folder, start = path.parent.resolve(), start_of_keys(path, self._root)
        words = [table.column(column).to_pylist() for column in columns.texts]
        without = 0
        for place, row in enumerate(map(int, rows)):
            captions = tuple(text for column in words for text in as_texts(column[place]))
            if captions_needed and not captions:
                without += 1
                continue
            key = f"{start}{path.stem}:{row}"
            named = _named(cells[place], before and before[place])
            if named:
                key = start + named
                if key in self._by_path:
                    self._captions[self._by_path[key]] += captions
                    continue
                self._by_path[key] = len(self._rows)
            self._rows.append((len(self._cells), place, folder, key))
            self._captions.append(captions)
        self._cells.append(cells)
        self._before.append(before)
        self._boxes.append(table.column(BOXES) if boxes else None)
        self._others.append({column: table.column(column) for column in others})
        return without

    def _mark(self, index: int) -> str:
        """What the fingerprint takes in of a sample; the file's size where the picture is one."""
        table, place, folder, key = self._rows[index]
        column, sizes = self._before[table], list[str]()
        for cell in [*_items(column and column[place]), self._cells[table][place]]:
            name = _path_in(cell)
            if name is not None:
                with suppress(OSError, DataError):
                    sizes.append(str(inside(folder, name).stat().st_size))
        return f"{key}\n{self._captions[index]}\n{' '.join(sizes)}"

    def _says_what_changed(self) -> bool:
        """Whether any row says if something changed, or no table has a column for it."""
        columns = [column for others in self._others if (column := _of_change(others)) is not None]
        return not columns or any(
            _truth(plain_value(cell)) is not None for column in columns for cell in column
        )

    def captions(self, index: int) -> tuple[str, ...]:
        """Captions of a sample, without touching its picture."""
        return self._captions[index]

    def sample(self, index: int) -> Sample:
        """The sample.

        Raises:
            DataError: The cell is empty, or its path leads out of the table's folder.
        """
        table, place, folder, key = self._rows[index]
        column = self._before[table]
        picture = self._picture(self._cells[table][place].as_py(), folder, key)
        items = [cell.as_py() for cell in _items(column and column[place])]
        before = tuple(self._picture(item, folder, key) for item in items)
        others = {name: plain_value(column[place]) for name, column in self._others[table].items()}
        changed = _truth(_of_change(others)) if before else None
        places = self._boxes[table]
        boxes = None if places is None else places[place].as_py()
        if places is not None and boxes is None and changed is False:
            boxes = []  # nothing changed anywhere
        return Sample(
            key,
            picture,
            self._captions[index],
            metadata_of(others),
            before=before,
            changed=changed,
            mask=None if boxes is None else mask_of(boxes, picture, key),
        )

    def _picture(self, cell: Any, folder: Path, key: str) -> bytes | Path:
        """The picture of a cell."""
        if isinstance(cell, dict):
            cell = cell.get("bytes") or cell.get("path")
        if not cell:
            raise DataError(f"{key} of {self.name} has no picture. Fill the cell or drop the row.")
        return cell if isinstance(cell, bytes) else inside(folder, cell)


def _named(cell: pa.Scalar, before: pa.Scalar | None) -> str:
    """What names a sample whose pictures are paths: rows that name the same are one sample."""
    cells = [*_items(before), cell]
    names = [one.as_py() if _is_text(one.type) else "" for one in cells]
    return " > ".join(names) if all(names) else ""


def _items(before: pa.Scalar | None) -> list[pa.Scalar]:
    """The cells of the pictures before: those of a list, one, or none."""
    if before is None or not before.is_valid:
        return []
    return list(before) if element(before.type) != before.type else [before]


def _has_boxes(schema: pa.Schema) -> bool:
    """Whether the table says where its pictures changed."""
    return BOXES in schema.names and holds_boxes(schema.field(BOXES).type)


def _of_change(others: Mapping[str, Any]) -> Any:
    """What is there under the name `changed`, in capitals or not; None if nothing is."""
    return next((value for name, value in others.items() if name.lower() == "changed"), None)


def _truth(value: Any) -> bool | None:
    """What a truth value says, or a number that is 0 or 1; None of anything else."""
    return bool(value) if isinstance(value, bool | int | float) and value in (0, 1) else None


def common_folder(paths: Sequence[Path]) -> Path:
    """The folder that holds all of the files, links resolved."""
    return Path(os.path.commonpath([path.parent.resolve() for path in paths]))


def start_of_keys(path: Path, root: Path) -> str:
    """What tells the keys of a file from those of a file of its name in another folder."""
    folder = path.parent.resolve().relative_to(root).as_posix()
    return "" if folder == "." else f"{folder}/"


def inside(folder: Path, name: str) -> Path:
    """The path of a picture that a table names.

    Args:
        folder: The table's folder, with links resolved.
        name: What the table says.

    Raises:
        DataError: The name is an address, or leads out of the folder.
    """
    if "://" in name:
        raise DataError(
            f"{name!r} is an address, and nothing is fetched while training. "
            "Download the pictures and name their files."
        )
    try:
        path = (folder / name).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # a null character, a ring of links
        raise DataError(f"{name!r} is no path: {error}. Mend the row or drop it.") from None
    if not path.is_relative_to(folder):
        raise DataError(
            f"{name!r} leads out of the folder {folder}. Move the picture into the folder."
        )
    return path


def read_table(path: Path, *, as_text: Sequence[str] = ()) -> pa.Table:
    """A parquet, csv, tsv or jsonl file.

    Args:
        path: The file.
        as_text: Columns that are text, whatever they look like; parquet has its own types.

    Raises:
        DataError: The file is damaged, or has two columns of one name.
        RequestError: The ending is none of these.
    """
    types: dict[str, pa.DataType] = dict.fromkeys(as_text, pa.string())
    table = _read(path, types)
    written = {field: _as_written(field.type) for field in table.schema}
    dates = {field.name: kind for field, kind in written.items() if kind != field.type}
    if dates and path.suffix.lower() != ".parquet":
        table = _read(path, types | dates)  # text that looks like a date stays as it is
    twice = [name for name in table.column_names if table.column_names.count(name) > 1]
    if twice:
        raise DataError(
            f"{path.name} has {len(twice)} columns {twice[0]!r}. Give each a name of its own."
        )
    return table


def _as_written(kind: pa.DataType) -> pa.DataType:
    """The type with text in place of dates, in lists and dictionaries too."""
    if pa.types.is_temporal(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_as_written(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _as_written(field.type)) for field in kind])
    return kind


def _read(path: Path, types: Mapping[str, pa.DataType]) -> pa.Table:
    """The table as the file has it, with these types for some columns."""
    try:
        match path.suffix.lower():
            case ".parquet":
                return pyarrow.parquet.ParquetFile(path).read()
            case ".csv" | ".tsv":
                parse = pyarrow.csv.ParseOptions(
                    delimiter="\t" if path.suffix.lower() == ".tsv" or _has_tabs(path) else ",",
                    newlines_in_values=True,
                )
                convert = pyarrow.csv.ConvertOptions(column_types=types)
                return pyarrow.csv.read_csv(path, parse_options=parse, convert_options=convert)
            case ".jsonl":
                schema = pa.schema(list(types.items()))
                return pyarrow.json.read_json(
                    path, parse_options=pyarrow.json.ParseOptions(explicit_schema=schema)
                )
    except (pa.ArrowException, OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise DataError(
            f"{path.name} cannot be read: {first}. Write the file again or leave it out."
        ) from error
    raise RequestError(
        f"{path.name} is no table that can be read. Use .parquet, .csv, .tsv or .jsonl."
    )


def _has_tabs(path: Path) -> bool:
    """Whether the first line of a file divides its columns by tabs, whatever its ending says."""
    with path.open("rb") as file:
        first = file.readline(1 << 20)
    return b"\t" in first and b"," not in first


def as_texts(value: Any) -> list[str]:
    """The captions in a cell: one string, a list of them, or a number; empty ones left out."""
    if value is None:
        return []
    if isinstance(value, list | tuple):
        return [text for item in value for text in as_texts(item)]
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    text = str(value).strip().encode("utf-8", "replace").decode()  # JSON may say half a character
    return [text] if text else []


def _columns(schema: pa.Schema, options: SourceOptions, captions_needed: bool) -> _Columns:
    """The columns of the picture, of what came before it, and of the captions."""
    image, before = image_columns(schema, options.image_column, options.before_column)
    names = schema.names
    if options.text_column is None:
        names = [name for name in names if name not in (image, before)]
    usual = PAIR_TEXT_NAMES if before else TEXT_NAMES
    texts = text_columns(names, options.text_column, usual, needed=captions_needed)
    return _Columns(image, before, texts)


def _check_columns(path: Path, table: pa.Table, wanted: list[str]) -> None:
    """Refuse a file that lacks a column the first file has."""
    missing = [column for column in wanted if column not in table.column_names]
    if missing:
        raise DataError(
            f"{path.name} has no column {missing[0]!r}; its columns are "
            f"{', '.join(table.column_names)}. Give files of the same shape."
        )


def _check_pictures(path: Path, column: str, kind: pa.DataType, what: str) -> None:
    """Refuse a picture column of numbers, times or lists."""
    if not may_hold_pictures(kind):
        raise RequestError(
            f"column {column!r} of {path.name} holds {kind}, no pictures or paths. "
            f"Name the column of the pictures with --{what}-column."
        )


def _is_text(kind: pa.DataType) -> bool:
    """Whether a column holds strings."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _path_in(cell: pa.Scalar) -> str | None:
    """The path a picture's cell gives; None where it holds the bytes, or nothing."""
    if pa.types.is_struct(cell.type) and cell.is_valid:
        parts = dict(cell)
        has_bytes = "bytes" in parts and parts["bytes"].is_valid
        cell = cell if has_bytes or "path" not in parts else parts["path"]
    return cell.as_py() if _is_text(cell.type) else None


def _plain(table: pa.Table) -> pa.Table:
    """The table with strings in place of pandas' categories, of dates and of times.

    Without the columns of which no strings can be made, such as times of an unknown zone.
    """
    for field in table.schema:
        place = table.schema.get_field_index(field.name)
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        if pa.types.is_temporal(kind) and not pa.types.is_duration(kind):
            kind = pa.string()
        if kind != field.type:
            try:
                table = table.set_column(place, field.name, table.column(place).cast(kind))
            except (pa.ArrowException, ValueError):
                table = table.remove_column(place)
    return table


def file_mark(path: Path) -> bytes:
    """Name, size, head and tail of a file: cheap, and different when a table is rewritten."""
    with path.open("rb") as file:
        head = file.read(1 << 20)
        file.seek(max(0, path.stat().st_size - (1 << 20)))
        return f"{path.name}:{path.stat().st_size}:".encode() + head + file.read()
