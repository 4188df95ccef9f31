"""Position tables on another grid: what stays, and what is refused."""

import pytest
import torch

from diptych.errors import CheckpointError
from diptych.pretrained.positions import resize_positions, resize_text_positions

METHODS = ("open_clip", "transformers", "big_vision")


def table_of(rows, width=5):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(rows))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("first", [0, 1])
def test_the_class_token_keeps_its_position_and_the_same_grid_every_bit(method, first):
    table = table_of(first + 36)
    assert resize_positions(table, 6, method=method) is table
    larger = resize_positions(table, 9, method=method)
    assert larger.shape == (first + 81, 5)
    assert torch.equal(larger[:first], table[:first])


@pytest.mark.parametrize("method", METHODS)
def test_a_table_that_is_the_same_everywhere_stays_so(method):
    table = torch.full((16, 3), 0.7)
    torch.testing.assert_close(
        resize_positions(table, 7, method=method), torch.full((49, 3), 0.7), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("grid", [1, 3, 5, 8])
def test_big_vision_reads_between_the_corners(grid):
    """The oracle walks over the points, one at a time."""
    table = table_of(16, 2)
    old = table.reshape(4, 4, 2)
    step = 3 / (grid - 1) if grid > 1 else 0
    expected = []
    for row in range(grid):
        for column in range(grid):
            y, x = row * step, column * step
            up, left = min(int(y + 1e-9), 2), min(int(x + 1e-9), 2)
            down, right = y - up, x - left
            expected.append(
                (1 - down) * (1 - right) * old[up, left]
                + (1 - down) * right * old[up, left + 1]
                + down * (1 - right) * old[up + 1, left]
                + down * right * old[up + 1, left + 1]
            )
    found = resize_positions(table, grid, method="big_vision")
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-6)


def test_positions_of_texts_are_read_between_neighbours():
    table = torch.arange(4.0)[:, None]
    found = resize_text_positions(table, 8)[:, 0].tolist()
    assert found == [0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]
    assert resize_text_positions(table, 4) is table


@pytest.mark.parametrize("rows", [0, 3, 23])
def test_a_table_that_is_no_grid_is_refused(rows):
    with pytest.raises(CheckpointError, match=f"a position table of {rows} rows is no square grid"):
        resize_positions(table_of(rows), 4, method="open_clip")
