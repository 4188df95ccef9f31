"""Which column holds the picture, which the caption, and which rows a condition keeps."""

import math
import re
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from diptych.errors import RequestError, nearest

IMAGE_NAMES = (
    *("image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp"),
    *("image_path", "path", "filepath", "file_path", "file_name", "filename", "file", "url"),
)
TEXT_NAMES = (
    *("caption", "captions", "text", "texts", "txt", "sentence", "sentences"),
    *("title", "label", "name", "description", "alt", "alt_text"),
)

PAIR_TEXT_NAMES = ("change_text", "change", *TEXT_NAMES)
"""Of tables that have a picture before."""

PAIRS = (
    *(("before", "after"), ("image_before", "image_after"), ("before_image", "after_image")),
    *(
        ("image1", "image2"),
        ("left", "right"),
        ("image_before", "image"),
        ("before_image", "image"),
    ),
)
"""Names of a column of pictures before, each with that of the pictures after."""

SHOWN = 10
"""Columns that a refused condition lists."""

ROW_NUMBER = '"number of the row"'
"""Of the table a condition is asked of: a name of our own, since data may have a column rowid."""


def find_column(columns: Sequence[str], asked: str | None, usual: Sequence[str], what: str) -> str:
    """The column the user named, or the first usual name that is there.

    Raises:
        RequestError: No such column; the message lists the columns seen.
    """
    if asked is not None:
        if asked not in columns:
            raise RequestError(f"there is no column {asked!r} ({what}). {nearest(asked, columns)}")
        return asked
    lower = {column.lower(): column for column in reversed(columns)}
    for name in usual:
        if name in lower:
            return lower[name]
    raise RequestError(
        f"no column looks like the {what}; the columns are {', '.join(columns)}. "
        f"Name it with --{what}-column."
    )


def image_columns(
    schema: pa.Schema, image: str | None, before: str | None
) -> tuple[str, str | None]:
    """The column of the picture, and that of the picture before it if there is one.

    A pair of usual names counts where both columns hold the bytes of pictures, or where no other
    column looks like the image: `left` and `right` may also be words beside a picture.

    Args:
        schema: Of the table.
        image: What the user named, or None.
        before: What the user named, or None.

    Raises:
        RequestError: No such column; the message lists the columns seen.
    """
    names = schema.names
    if before is not None:
        before = find_column(names, before, (), "before")
    pairs = _usual_pairs(schema)
    if image is not None:
        image = find_column(names, image, (), "image")
        partners = [one for one, after in pairs if after == image]
        return image, before or next(iter(partners), None)
    if before is not None:
        partners = [after.lower() for one, after in pairs if one == before]
        others = [name for name in names if name != before]
        usual = (*partners, *IMAGE_NAMES, *(after for _, after in PAIRS))
        return find_column(others, None, usual, "image"), before
    encoded = [pair for pair in pairs if all(map(_holds_bytes, map(schema.field, pair)))]
    if not encoded and not _has_any(names, IMAGE_NAMES):
        encoded = pairs
    if encoded:
        return encoded[0][1], encoded[0][0]
    image = find_column(names, None, IMAGE_NAMES, "image")
    return image, next((one for one, after in pairs if after == image), None)


def _usual_pairs(schema: pa.Schema) -> list[tuple[str, str]]:
    """The columns with a pair of usual names that could hold pictures or paths."""
    lower = {name.lower(): name for name in reversed(schema.names)}
    found = [(lower[one], lower[after]) for one, after in PAIRS if one in lower and after in lower]
    kinds = {name: schema.field(name).type for name in schema.names}
    return [
        (one, after)
        for one, after in found
        if may_hold_pictures(element(kinds[one])) and may_hold_pictures(kinds[after])
    ]


def may_hold_pictures(kind: pa.DataType) -> bool:
    """Whether pictures or paths may be in a column of this type: no numbers, times or lists."""
    return not pa.types.is_primitive(kind) and (
        pa.types.is_struct(kind) or not pa.types.is_nested(kind)
    )


def element(kind: pa.DataType) -> pa.DataType:
    """What lists of this type hold; the type itself if it is no list."""
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return kind.value_type if any(holds(kind) for holds in lists) else kind


def _has_any(columns: Sequence[str], usual: Sequence[str]) -> bool:
    """Whether a column has one of these names."""
    return bool({column.lower() for column in columns} & set(usual))


def _holds_bytes(field: pa.Field) -> bool:
    """Whether a column holds bytes, Hugging Face's pictures, or lists of either."""
    kind = element(field.type)
    return bool(
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_struct(kind)
    )


def text_columns(
    columns: Sequence[str], asked: str | None, usual: Sequence[str], *, needed: bool
) -> list[str]:
    """The caption columns: those the user named, divided by commas, or the first usual one.

    Raises:
        RequestError: No such column, and captions are needed or were asked for.
    """
    if asked is not None:
        return [find_column(columns, part.strip(), usual, "text") for part in asked.split(",")]
    try:
        return [find_column(columns, None, usual, "text")]
    except RequestError:
        if needed:
            raise
        return []


def plain_columns(table: pa.Table) -> list[str]:
    """The columns of text, numbers or truth values."""
    return [
        field.name
        for field in table.schema
        if pa.types.is_string(field.type)
        or pa.types.is_large_string(field.type)
        or pa.types.is_integer(field.type)
        or pa.types.is_floating(field.type)
        or pa.types.is_boolean(field.type)
    ]


def plain_value(cell: pa.Scalar) -> Any:
    """What is in a cell; None for text that is no UTF-8."""
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        return None


def metadata_of(values: Mapping[str, Any]) -> dict[str, str | int | float]:
    """What of these values a sample keeps: text and numbers (a truth value is 0 or 1).

    Numbers that are not finite or need more than 64 bits are left out, and what no UTF-8 can hold.
    """
    kept: dict[str, str | int | float] = {}
    for name, value in values.items():
        if not _is_utf_8(name):
            continue
        if isinstance(value, bool):
            kept[name] = int(value)
        elif isinstance(value, str):
            if value and _is_utf_8(value):
                kept[name] = value
        elif isinstance(value, int):
            if -(1 << 63) <= value < 1 << 64:
                kept[name] = value
        elif isinstance(value, float) and math.isfinite(value):
            kept[name] = value
    return kept


TOKEN = re.compile(
    r"""'(?:[^']|'')*' | "(?:[^"]|"")*" | `(?:[^`]|``)*` | \[[^\]]*\] | --[^\n]*"""
    r"""| /\*.*?(?:\*/|\Z) | [()]""",
    re.DOTALL | re.VERBOSE,
)
"""What SQL holds between quotes or as a remark, and the parentheses outside of them."""


class Condition:
    """An SQL condition that is asked of several tables, one after the other.

    A column that a table lacks is NULL there. The condition sees every column of text, numbers or
    truth values; of names that differ in case only, which are one to SQL, the first that is not
    NULL. It runs in an SQLite database in memory that holds nothing else, may not attach files,
    and is thrown away.
    """

    def __init__(self, condition: str) -> None:
        """Take the condition as the user wrote it."""
        self._condition = condition
        self._asked = False
        self._seen: dict[str, None] = {}  # columns, in their order
        self._lacking: dict[str, None] = {}  # columns asked for that some table lacks

    def rows_of_table(self, table: pa.Table) -> Int64[np.ndarray, " kept"]:
        """Numbers of the rows of a table that the condition keeps, in order; see `rows`."""
        columns: dict[str, list[Any]] = {}
        for name in plain_columns(table):
            self._seen[name] = None
            if not self._names(name):
                continue
            try:
                columns[name] = table.column(name).to_pylist()
            except UnicodeDecodeError:
                columns[name] = [plain_value(cell) for cell in table.column(name)]
        return self.rows(columns, len(table))

    def rows(self, columns: Mapping[str, list[Any]], count: int) -> Int64[np.ndarray, " kept"]:
        """The same for columns of text, numbers, truth values and None, all of length `count`.

        Raises:
            RequestError: The condition is no SQL.
        """
        self._asked = True
        self._seen.update(dict.fromkeys(filter(_is_utf_8, columns)))
        named = {name: column for name, column in columns.items() if self._names(name)}
        try:
            return np.array(self._select(_merged(named), count), dtype=np.int64)
        except (sqlite3.Error, sqlite3.Warning, ValueError, KeyError, OverflowError) as error:
            raise self._refusal(str(error)) from None

    def check(self) -> None:
        """Refuse what none of the tables has, if any was asked.

        Raises:
            RequestError: No table has a column that the condition names, or any column at all.
        """
        seen = {_folded(name) for name in self._seen}
        for name in self._lacking:
            if _folded(name) not in seen:
                raise self._refusal(f"no such column: {name}")
        if self._asked and not self._seen:
            raise self._refusal("")

    def _names(self, column: str) -> bool:
        """Whether the condition may name a column: the others need not be looked at."""
        quoted = column.replace('"', '""')
        return _is_utf_8(column) and quoted.lower() in self._condition.lower()

    def _select(self, columns: Mapping[str, list[Any]], count: int) -> list[int]:
        """Numbers of the rows for which the condition is true; columns that lack are added."""
        lacking = self._quoted_and_lacking(columns)
        condition = self._condition
        while True:
            nulls = {name: [None] * count for name in lacking}
            try:
                return _select(condition, {**columns, **nulls}, count)
            except sqlite3.OperationalError as error:
                reserved = re.fullmatch(r'near "(\w+)": syntax error', str(error))
                if reserved and _folded(reserved[1]) in map(_folded, columns):
                    before, condition = condition, _in_quotes(reserved[1], condition)
                    if condition != before:
                        continue
                found = re.fullmatch(r"no such column: (.+)", str(error), re.DOTALL)
                if found is None or found[1] in lacking:
                    raise
                lacking.append(found[1])
                self._lacking[found[1]] = None

    def _quoted_and_lacking(self, columns: Mapping[str, list[Any]]) -> list[str]:
        """Names in double quotes that are no column here: SQLite would take them for text."""
        there = {_folded(name) for name in columns}
        quoted = [token[1:-1] for token in TOKEN.findall(self._condition) if token[0] == '"']
        names = dict.fromkeys(name.replace('""', '"') for name in quoted)
        lacking = [name for name in names if _folded(name) not in there]
        self._lacking.update(dict.fromkeys(lacking))
        return lacking

    def _refusal(self, why: str) -> RequestError:
        """What to say of a condition that cannot be used."""
        if not self._seen:
            return RequestError(
                f"no column can be used in the condition {self._condition!r}: none holds text or "
                "numbers. Leave --where out."
            )
        names = list(self._seen)
        more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
        return RequestError(
            f"the condition {self._condition!r} cannot be used: {why.rstrip('.')}. "
            f"Columns are {', '.join(names[:SHOWN])}{more}; write it as SQL, "
            f"such as {names[0]} = 'x'."
        )


def _in_quotes(name: str, condition: str) -> str:
    """The condition with a column's name in double quotes wherever it stands bare.

    For names that are words of SQL, such as `group`.
    """
    return re.sub(
        rf"{TOKEN.pattern} | \b(?P<name>{name})\b",
        lambda found: f'"{found["name"]}"' if found["name"] else found[0],
        condition,
        flags=TOKEN.flags | re.IGNORECASE,
    )


def rows_where(table: pa.Table, condition: str) -> Int64[np.ndarray, " kept"]:
    """Numbers of the rows of one table that an SQL condition keeps, in order.

    Raises:
        RequestError: The condition is not SQL or names a column that is not there.
    """
    asked = Condition(condition)
    rows = asked.rows_of_table(table)
    asked.check()
    return rows


def _select(condition: str, columns: Mapping[str, list[Any]], count: int) -> list[int]:
    """Numbers of the rows for which the condition is true, as SQLite says."""
    quoted = ['"' + name.replace('"', '""') + '"' for name in columns]
    holes = ", ".join("?" * (len(quoted) + 1))
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as database:
        database.execute(
            f"CREATE TABLE rows ({', '.join([f'{ROW_NUMBER} INTEGER PRIMARY KEY', *quoted])})"
        )
        database.executemany(
            f"INSERT INTO rows VALUES ({holes})",
            zip(range(count), *(map(_as_sql, column) for column in columns.values()), strict=True),
        )
        database.set_authorizer(_read_only)
        found = database.execute(
            f"SELECT {ROW_NUMBER} FROM rows WHERE ({condition}) ORDER BY {ROW_NUMBER}"
        ).fetchall()
    numbers = [number for (number,) in found]
    if any(type(number) is not int or not 0 <= number < count for number in numbers):
        raise ValueError("it selects something else than rows of the table")
    return numbers


def _merged(columns: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """One column for all whose names differ in case only: the first value that is not None."""
    first: dict[bytes, str] = {}
    merged: dict[str, list[Any]] = {}
    for name, column in columns.items():
        known = first.setdefault(_folded(name), name)
        before = merged.get(known)
        merged[known] = (
            column
            if before is None
            else [b if a is None else a for a, b in zip(before, column, strict=True)]
        )
    return merged


def _folded(name: str) -> bytes:
    """A name without the case of its ASCII letters, as SQL compares names."""
    return name.encode("utf-8", "replace").lower()


def _as_sql(value: Any) -> Any:
    """What SQLite can hold: its whole numbers have 63 bits and larger ones are floating point.

    Text that is no UTF-8 and numbers beyond floating point are NULL.
    """
    if isinstance(value, str):
        return value if _is_utf_8(value) else None
    if type(value) is int and not -(1 << 63) <= value < 1 << 63:
        try:
            return float(value)
        except OverflowError:
            return None
    return value


def _is_utf_8(text: str) -> bool:
    """Whether UTF-8 can hold a text: JSON may name half a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_only(action: int, *_: str | None) -> int:
    """Let a condition read and compute, and nothing else."""
    allowed = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION}
    return sqlite3.SQLITE_OK if action in allowed else sqlite3.SQLITE_DENY
