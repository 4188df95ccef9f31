"""Pictures are made ready in order and ahead, in threads; errors keep their place."""

import threading
import time

import pytest

from diptych.data.prepared import DECODERS, parts, prepared
from diptych.errors import DataError, RequestError


def slow_square(number):
    """Later items of a chunk are ready first."""
    time.sleep(0.002 * (5 - number % 5))
    if number % 7 == 3:
        raise DataError(f"{number} is bad")
    return number * number


@pytest.mark.parametrize("chunk", [1, 4, 10, 99])
def test_items_come_in_order_each_with_what_was_made_of_it_or_its_error(chunk):
    found = list(prepared(range(23), slow_square, chunk))
    assert [len(part) for part in found] == [len(part) for part in parts(range(23), chunk)]
    flat = [pair for part in found for pair in part]
    assert [item for item, _ in flat] == list(range(23))
    for item, ready in flat:
        if item % 7 == 3:
            assert isinstance(ready, DataError)
            assert str(ready) == f"{item} is bad"
        else:
            assert ready == item * item


def test_several_items_are_prepared_at_a_time():
    together = threading.Barrier(DECODERS, timeout=60)  # broken unless all are inside at once
    assert len(next(prepared(range(DECODERS), lambda _: together.wait(), DECODERS))) == DECODERS


def test_only_the_next_chunk_is_prepared_ahead():
    begun = []
    ready = prepared(range(100), begun.append, 5)
    for done in range(1, 4):
        next(ready)
        assert len(begun) <= 5 * (done + 1)
    ready.close()
    assert len(begun) <= 20


def test_the_next_chunk_is_prepared_while_the_caller_works():
    begun = threading.Event()

    def prepare(number):
        if number == 2:
            begun.set()
        return number

    ready = prepared(range(4), prepare, 2)
    next(ready)
    assert begun.wait(10)


def test_an_error_that_is_no_data_error_is_raised():
    with pytest.raises(ZeroDivisionError):
        list(prepared([1, 0], lambda number: 1 / number, 1))


@pytest.mark.parametrize("chunk", [0, -1])
def test_a_chunk_below_one_is_refused(chunk):
    with pytest.raises(RequestError, match=f"chunk is {chunk}: .* Use 1 or more, such as 64"):
        list(prepared([1], str, chunk))
