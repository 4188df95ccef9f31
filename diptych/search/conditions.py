"""Which pictures of a library a condition keeps: SQL over their metadata, which can only read."""

import re
import sqlite3
import time

from diptych.data.columns import TOKEN
from diptych.errors import RequestError, nearest
from diptych.search.rows import Rows

COLUMNS = (
    *("path", "folder", "name", "date", "latitude", "longitude", "width", "height"),
    *("size_bytes", "camera", "caption", "key"),
)
"""Names in a condition; the extra metadata come beside them."""

LONGEST = 10_000_000
"""Bytes of the longest text that a condition may make."""

LONGEST_S = 60.0
"""Seconds that a condition may take."""

OF_THE_FILE = ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_IOERR", "SQLITE_BUSY")
"""Errors that no other condition would mend."""


def pictures_where(rows: Rows, condition: str) -> dict[int, int]:
    """Picture numbers that a condition keeps, each with the number of its vector.

    Example: `date >= '2020' AND caption LIKE '%dog%'`. Columns are path, folder, name, date,
    latitude, longitude, width, height, size_bytes, camera, caption (all captions, one per line),
    key, and the names of the extra metadata; of one name, what the file says goes first.

    Raises:
        RequestError: The condition is not SQL, names an unknown column, or would do more than
            read the metadata.
    """
    with rows.speaking():
        extra = [name for (name,) in rows.database.execute("SELECT name FROM fields")]
    columns = _sources(extra)
    _check_form(condition, list(columns))
    shown = ", ".join(f'{source} AS "{name}"' for name, source in columns.items())
    statement = (
        'SELECT "number of the row", "number of the vector" FROM (SELECT id AS '
        f'"number of the row", vector AS "number of the vector", {shown} FROM pictures) '
        f"WHERE ({condition}\n)"
    )
    with rows.speaking():
        try:
            rows.database.set_authorizer(_read_only)
            before = rows.database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST)
            end = time.monotonic() + LONGEST_S
            rows.database.set_progress_handler(lambda: time.monotonic() > end, 10_000)
            found = rows.database.execute(statement).fetchall()
        except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
            if getattr(error, "sqlite_errorname", "").startswith(OF_THE_FILE):
                raise
            if str(error) in {f"no such column: {name}" for name in COLUMNS}:
                raise rows.damaged(str(error)) from None
            said = str(error).rstrip(".")
            if said == "interrupted":
                said = f"it takes longer than {LONGEST_S:g} s"
            raise _refused(condition, said, list(columns)) from None
        finally:
            rows.database.set_progress_handler(None, 0)
            rows.database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, before)
            rows.database.set_authorizer(None)
    if any(type(value) is not int for row in found for value in row):
        raise _refused(condition, "it selects something else than pictures", list(columns))
    return dict(found)


def _sources(extra: list[str]) -> dict[str, str]:
    """Names in a condition with the SQL that gives their values.

    Names that differ in case only are one: what the picture's file says, then the metadata.
    """
    names = {name: name for name in COLUMNS}
    sources: dict[str, list[str]] = {name: [name] for name in COLUMNS}
    for name in extra:
        if '"' not in name:
            shown = names.setdefault(name.lower(), name)
            place = "$." + f'"{name}"'
            sources.setdefault(shown, []).append(f"json_extract(metadata, {_quoted(place)})")
    return {
        name: several[0] if len(several) == 1 else f"coalesce({', '.join(several)})"
        for name, several in sources.items()
    }


def _check_form(condition: str, columns: list[str]) -> None:
    """Refuse a condition that leaves its parentheses, and a quoted name that is no column.

    SQLite takes the latter for a text.
    """
    known, depth = {name.lower() for name in columns}, 0
    for token in TOKEN.findall(condition):
        if token in "()":
            depth += 1 if token == "(" else -1
            if depth < 0:
                raise _refused(condition, "it closes a parenthesis that it never opens", columns)
        elif token[0] == '"' and token[1:-1].lower() not in known:
            hint = nearest(token[1:-1], columns)
            raise RequestError(
                f"there is no column {token[1:-1]!r} in the library. {hint} "
                "Text stands between single quotes: 'x'."
            )


def _refused(condition: str, said: str, columns: list[str]) -> RequestError:
    """What to say of a condition that cannot be used."""
    unknown = re.fullmatch(r"no such column: (.+)", said)
    if unknown:
        hint = nearest(unknown[1], columns)
        return RequestError(f"there is no column {unknown[1]!r} in the library. {hint}")
    return RequestError(
        f"the condition {condition!r} cannot be used: {said}. Columns are {', '.join(columns)}; "
        "write it as SQL, such as date >= '2020'."
    )


def _quoted(text: str) -> str:
    """A string of SQL."""
    return "'" + text.replace("'", "''") + "'"


def _read_only(action: int, table: str | None, *_: str | None) -> int:
    """Let a condition read pictures and compute, and nothing else."""
    allowed = action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_FUNCTION) or (
        action == sqlite3.SQLITE_READ and table in ("pictures", "", None)
    )
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY
