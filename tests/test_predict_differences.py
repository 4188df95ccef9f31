"""Where two pictures differ: the definition in plain loops, moved cameras, every kind of tower."""

import numpy as np
import pytest
import torch
from small import picture_of, random_model, woken
from small_change import woken_state

from diptych.errors import RequestError
from diptych.models.timm_tower import TimmTower
from diptych.predict.differences import change_map, place_distances, place_vectors

RESNET = (
    'model.image={"kind":"resnet","layers":[1,1,1,1],"width":16,"heads":4,"image_size":64}',
    "data.transform.image_size=64",
)


def distances_oracle(before, after):
    """The definition, one place at a time."""
    rows, columns = before.shape[:2]

    def nearest(one, other, row, column):
        found = []
        for down in range(max(0, row - 1), min(rows, row + 2)):
            for right in range(max(0, column - 1), min(columns, column + 2)):
                x, y = one[row, column], other[down, right]
                found.append(1 - float(np.dot(x, y) / np.linalg.norm(x) / np.linalg.norm(y)))
        return min(found)

    distance = np.zeros((rows, columns))
    for row in range(rows):
        for column in range(columns):
            both = nearest(after, before, row, column), nearest(before, after, row, column)
            distance[row, column] = min(max(both), 1)
    return distance


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (3, 5), (6, 2)])
def test_distances_are_those_of_the_definition(shape):
    random = np.random.default_rng(sum(shape))
    before, after = random.normal(size=(2, 3, *shape, 4))
    after[0] = 0.8 * before[0] + 0.2 * after[0]
    found = place_distances(torch.tensor(before), torch.tensor(after)).numpy()
    expected = [distances_oracle(one, other) for one, other in zip(before, after, strict=True)]
    np.testing.assert_allclose(found, np.array(expected), atol=1e-6)


def test_what_has_gone_counts_as_what_has_come_does():
    empty, thing = torch.zeros(2, 1, 5, 5, 4)
    empty[..., 0] = thing[..., 0] = 1
    thing[0, 2, 3] = torch.tensor([0.0, 1, 0, 0])
    there = place_distances(empty, thing)[0]
    assert (there > 0.5).nonzero().tolist() == [[2, 3]]
    torch.testing.assert_close(place_distances(thing, empty)[0], there)


def test_a_camera_that_moved_by_a_place_changes_nothing_inside():
    vectors = torch.randn(1, 7, 7, 8, generator=torch.Generator().manual_seed(0))
    found = place_distances(vectors[:, :6, :6], vectors[:, 1:, 1:])[0]
    assert found[1:-1, 1:-1].max() < 1e-6


@pytest.mark.parametrize("settings", [(), ("model.image.pool=mean",), RESNET], ids=len)
def test_places_keep_their_order_and_equal_pictures_do_not_differ(tmp_path, settings):
    model = random_model(tmp_path, *settings)
    woken(model._net)
    size = model.transform.image_size
    pixels = np.asarray(picture_of(1, side=size))[None, :, :size].repeat(2, axis=0)
    changed = pixels.copy()
    changed[1, : size // 4, -size // 4 :] = 255  # the corner at the top right
    equal, found = model.differences(np.stack([pixels, changed]))
    assert equal.max() < 1e-5
    assert found.dtype == np.float32
    assert found.min() >= 0
    assert found[:, -1].max() == found.max()
    assert found[0].max() == found.max()


def test_the_vectors_of_places_are_those_that_are_pooled(tmp_path):
    tower = random_model(tmp_path, "model.image.pool=mean")._net.image
    image = torch.randn(2, 3, 64, 64)
    size = tower.config.image_size
    places = place_vectors(tower, image[:, :, :size, :size])
    pooled = tower(image[:, :, :size, :size])
    torch.testing.assert_close(places.mean(dim=(1, 2)), pooled)


def test_a_tower_without_places_is_refused():
    tower = torch.nn.Module.__new__(TimmTower)  # any timm model; timm itself is not needed here
    with pytest.raises(RequestError, match=r"a TimmTower gives no vectors of places.* Use a model"):
        change_map(tower, torch.zeros(1, 2, 3, 8, 8))


def test_a_stateful_encoder_tells_what_the_picture_before_did(tmp_path):
    settings = ('model.pair="difference"', "model.image.state=cross_ffn")
    model = random_model(tmp_path, *settings)
    tower, size = model._net.image, model.transform.image_size
    woken_state(model._net)
    random = np.random.default_rng(0)
    same = random.integers(0, 256, (1, 1, size, size, 3), np.uint8).repeat(2, axis=1)
    other = same.copy()
    other[0, 0] = 255 - other[0, 0]
    unchanged, changed = model.differences(np.concatenate([same, other]))
    assert unchanged.max() < 1e-9
    assert 0 < changed.min() <= changed.max() < 1
    assert changed.shape == (tower.config.side, tower.config.side)
