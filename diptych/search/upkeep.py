"""What a library remembers of folders, and what becomes of pictures whose files are gone."""

from collections.abc import Iterable
from pathlib import Path

from diptych.data.folder import pictures_below
from diptych.search.embedder import Embedder
from diptych.search.intake import Changes
from diptych.search.items import Item, Items, is_gone, items_of_folder, joined
from diptych.search.rows import Rows


def below(column: str) -> str:
    """The condition that a column holds `:path`, or a path below it."""
    return f"({column} = :path OR ({column} > :path || '/' AND {column} < :path || '0'))"


def remember(rows: Rows, model: Embedder, folders: Iterable[Path]) -> None:
    """Note the folders for `update`, and where the model is now; inside a transaction."""
    execute = rows.database.execute
    execute("UPDATE about SET value = ? WHERE name = 'model'", (str(model.path.resolve()),))
    for folder in folders:
        execute("INSERT OR IGNORE INTO roots VALUES (?)", (str(folder),))


def items_to_update(rows: Rows, roots: list[Path]) -> tuple[Items, list[Path]]:
    """What was added and is still there, and the folders to look for what is gone.

    Files that were added without their folder are looked for in it.
    """
    several = [items_of_folder(root) for root in roots if _has_pictures(root)]
    with rows.speaking():
        found = rows.database.execute("SELECT path FROM pictures WHERE path IS NOT NULL")
        alone = [path for (path,) in found if not any(root in Path(path).parents for root in roots)]
    several.append(
        Items(len(alone), [Item(path, Path(path)) for path in alone if not is_gone(path)])
    )
    return joined(several), list(dict.fromkeys([*roots, *(Path(path).parent for path in alone)]))


def drop_gone(rows: Rows, folders: list[Path], changes: Changes, *, prune: bool) -> None:
    """Drop or count the pictures below folders whose files are gone.

    A picture stays if it may lie on a drive that is not there: if the added folder that holds it
    is missing, or the nearest folder above it that is there is empty, as a mount point is.
    """
    for folder in folders:
        if not set(folders).isdisjoint(folder.parents):
            continue  # looked through with the folder above it
        with rows.speaking():
            found = rows.database.execute(
                f"SELECT path FROM pictures WHERE path IS NOT NULL AND {below('path')}",
                {"path": str(folder)},
            ).fetchall()
        gone = [(path,) for (path,) in found if is_gone(path)]
        if not prune:
            changes.gone += len(gone)
            continue
        parents = {Path(path).parent for (path,) in gone}
        lost = {parent for parent in parents if _may_return(parent, folders)}
        dropped = [(path,) for (path,) in gone if Path(path).parent not in lost]
        changes.gone += len(gone) - len(dropped)
        with rows.transaction():
            rows.database.executemany("DELETE FROM pictures WHERE key = ?", dropped)
            bad = rows.database.execute(
                f"SELECT key FROM unreadable WHERE modified_ns IS NOT NULL AND {below('key')}",
                {"path": str(folder)},
            ).fetchall()
            rows.database.executemany(
                "DELETE FROM unreadable WHERE key = ?",
                [
                    (key,)
                    for (key,) in bad
                    if is_gone(key) and not _may_return(Path(key).parent, folders)
                ],
            )
        changes.removed += len(dropped)


def _may_return(parent: Path, folders: list[Path]) -> bool:
    """Whether the pictures that were in a folder may come back with a drive."""
    above = [parent, *parent.parents]
    added = next((folder for folder in above if folder in folders), parent)
    if not _holds_anything(added):
        return True
    return not _holds_anything(next(folder for folder in above if folder.exists()))


def _holds_anything(folder: Path) -> bool:
    """Whether a folder is there, can be listed, and is not empty."""
    try:
        return any(folder.iterdir())
    except OSError:
        return False


def _has_pictures(folder: Path) -> bool:
    """Whether a folder is there and has something to take."""
    return folder.is_dir() and bool(pictures_below(folder))
