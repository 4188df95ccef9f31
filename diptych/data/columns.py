"""Which column holds the picture, which the caption, and which rows a condition keeps."""

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
    """What of these values a sample keeps: text and numbers (a truth value is 0 or 1)."""
    kept: dict[str, str | int | float] = {}
    for name, value in values.items():
        if isinstance(value, bool):
            kept[name] = int(value)
        elif isinstance(value, str | int | float) and value == value and value != "":
            kept[name] = value
    return kept


def rows_where(table: pa.Table, condition: str) -> Int64[np.ndarray, " kept"]:
    """Numbers of the rows that an SQL condition keeps, in order.

    The condition sees every column of text, numbers or truth values, and runs in an SQLite
    database in memory that holds nothing else, may not attach files, and is thrown away.

    Raises:
        RequestError: The condition is not SQL or names a column that is not there.
    """
    columns: dict[str, list[Any]] = {}
    for name in plain_columns(table):
        try:
            columns[name] = table.column(name).to_pylist()
        except UnicodeDecodeError:
            columns[name] = [plain_value(cell) for cell in table.column(name)]
    return rows_of_columns_where(columns, condition)


def rows_of_columns_where(
    columns: Mapping[str, list[Any]], condition: str
) -> Int64[np.ndarray, " kept"]:
    """The same for columns of text, numbers, truth values and None, all of one length."""
    if not columns:
        raise RequestError(
            f"no column can be used in the condition {condition!r}: none holds text or numbers. "
            "Leave --where out."
        )
    try:
        numbers = _select(condition, columns)
    except (sqlite3.Error, sqlite3.Warning, ValueError, KeyError, OverflowError) as error:
        raise RequestError(
            f"the condition {condition!r} cannot be used: {str(error).rstrip('.')}. "
            f"Columns are {', '.join(columns)}; write it as SQL, "
            f"such as {next(iter(columns))} = 'x'."
        ) from None
    return np.array(numbers, dtype=np.int64)


def _select(condition: str, columns: Mapping[str, list[Any]]) -> list[int]:
    """Numbers of the rows for which the condition is true, as SQLite says."""
    quoted = ['"' + name.replace('"', '""') + '"' for name in columns]
    holes = ", ".join("?" * len(quoted))
    count = len(next(iter(columns.values())))
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as database:
        database.execute(
            f"CREATE TABLE rows ({ROW_NUMBER} INTEGER PRIMARY KEY, {', '.join(quoted)})"
        )
        database.executemany(
            f"INSERT INTO rows VALUES (?, {holes})",
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


def _as_sql(value: Any) -> Any:
    """SQLite's whole numbers have 63 bits; it reads larger ones as floating point, and so do we."""
    return float(value) if type(value) is int and value >= 1 << 63 else value


def _read_only(action: int, *_: str | None) -> int:
    """Let a condition read and compute, and nothing else."""
    allowed = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION}
    return sqlite3.SQLITE_OK if action in allowed else sqlite3.SQLITE_DENY
