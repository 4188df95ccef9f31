"""Which rows belong together because they share something, directly or through other rows.

The pipeline asks which rows of a batch are no negatives of each other; a division of a source
into parts asks which samples must stay together.
"""

from collections.abc import Hashable, Iterable


def linked(marks: Iterable[Iterable[Hashable]]) -> list[int]:
    """A number per row; rows have the same one if a chain of common marks links them.

    Example: `linked([["a"], ["b", "c"], ["c"], ["a", "d"]])` gives rows 0 and 3 one number and
    rows 1 and 2 another.
    """
    above: list[int] = []

    def root(row: int) -> int:
        while above[row] != row:
            above[row] = above[above[row]]
            row = above[row]
        return row

    first: dict[Hashable, int] = {}
    for row, of_row in enumerate(marks):
        above.append(row)
        for mark in of_row:
            above[root(row)] = root(first.setdefault(mark, row))
    return [root(row) for row in range(len(above))]
