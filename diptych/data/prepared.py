"""Pictures made ready for a model: decoded ahead in threads, handed over in order, in chunks.

What encodes pictures (`predict/`, `evaluate/`) takes them from here; training has its own
processes (`pipeline.py`).
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from diptych.errors import DataError, RequestError

Item = TypeVar("Item")
Ready = TypeVar("Ready")

DECODERS = 4
"""Threads that decode pictures while the model works."""


def prepared(
    items: Iterable[Item], prepare: Callable[[Item], Ready], chunk: int
) -> Iterator[list[tuple[Item, Ready | DataError]]]:
    """Each item with what `prepare` makes of it, or with the DataError it raised.

    While the caller works on one chunk, the next is being prepared; no more is held than these two.

    Args:
        items: Pictures, or the numbers of samples.
        prepare: Called in several threads at a time.
        chunk: Items handed over at a time; the last chunk may have fewer.

    Raises:
        RequestError: `chunk` is below 1.
    """
    pool = ThreadPoolExecutor(DECODERS)
    ahead: list[list[tuple[Item, Future[Ready]]]] = []
    try:
        for part in parts(items, chunk):
            ahead.append([(item, pool.submit(prepare, item)) for item in part])
            if len(ahead) > 1:
                yield _outcomes(ahead.pop(0))
        for tasks in ahead:
            yield _outcomes(tasks)
    finally:
        pool.shutdown(cancel_futures=True)


def parts(items: Iterable[Item], chunk: int) -> Iterator[list[Item]]:
    """Consecutive lists of at most `chunk` items.

    Raises:
        RequestError: `chunk` is below 1.
    """
    if chunk < 1:
        raise RequestError(f"chunk is {chunk}: nothing would be taken. Use 1 or more, such as 64.")
    rest = iter(items)
    while part := list(islice(rest, chunk)):
        yield part


def _outcomes(
    tasks: Iterable[tuple[Item, Future[Ready]]],
) -> list[tuple[Item, Ready | DataError]]:
    """What each task made, or why its picture cannot be used."""
    found: list[tuple[Item, Ready | DataError]] = []
    for item, task in tasks:
        try:
            found.append((item, task.result()))
        except DataError as error:
            found.append((item, error))
    return found
