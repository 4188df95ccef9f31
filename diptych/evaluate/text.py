"""Numbers as a person reads them in a terminal, one look for the summaries of all tasks."""

from collections.abc import Sequence

import numpy as np

from diptych.evaluate.metrics import Interval


def cell(interval: Interval, times: int = 100, digits: int = 1) -> str:
    """A number and its interval, such as "41.2 [38.0, 44.3]" for a share in percent."""
    value, low, high = (times * number for number in (interval.value, interval.low, interval.high))
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def plain(number: float) -> str:
    """Three significant digits without an exponent, such as 100, 8.33 or 0.00001."""
    return np.format_float_positional(number, precision=3, unique=False, fractional=False, trim="-")


def line(name: str, cells: Sequence[str], width: int = 22) -> str:
    """One row of a table: a name in 20 columns, then the cells."""
    return (f"{name:<20}" + "".join(f"{text:<{width}}" for text in cells)).rstrip()
