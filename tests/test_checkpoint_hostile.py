"""Weights that were changed, cut short or made to harm are refused by text, and never run."""

import os
import pickle

import pytest
import torch
from model_folder import change_weights, copy_of, flip, make, refusal, seal
from safetensors.torch import load_file, save_file

from diptych.checkpoint import (
    find_model,
    load_bundle,
    save_bundle,
)
from diptych.errors import CheckpointError
from diptych.tensors import load_tensors, weights_mark


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    save_bundle(folder, *make())
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return copy_of(saved, tmp_path)


@pytest.mark.parametrize("place", [0.5, 0.9, -1])
def test_one_flipped_bit_of_the_weights_is_named(folder, place):
    flip(folder / "model.safetensors", place)
    said = refusal(folder)
    assert said.startswith(
        f"{folder / 'model.safetensors'} does not hold the weights this model was saved with "
    )
    assert said.endswith("Copy the whole folder again.")


def test_a_flipped_bit_of_the_list_of_weights_is_named(folder):
    flip(folder / "model.safetensors", 0)
    assert "model.safetensors cannot be read as safetensors: " in refusal(folder)


def test_two_weights_that_changed_places_are_noticed(folder):
    tensors = load_file(folder / "model.safetensors")
    one, other = "text.final_norm.weight", "image.final_norm.weight"
    tensors[one] += 1
    save_file(tensors, folder / "model.safetensors")
    moved = weights_mark(tensors)
    tensors[one], tensors[other] = tensors[other], tensors[one]
    assert weights_mark(tensors) != moved
    save_file(tensors, folder / "model.safetensors")
    assert "does not hold the weights this model was saved with" in refusal(folder)


def test_truncated_weights_are_refused(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    assert "model.safetensors cannot be read as safetensors: " in refusal(folder)


def test_truncated_weights_under_a_forged_contract_are_no_safetensors(folder):
    data = (folder / "model.safetensors").read_bytes()
    for length in (0, 5, len(data) // 2, len(data) - 1):
        (folder / "model.safetensors").write_bytes(data[:length])
        seal(folder)
        assert "model.safetensors cannot be read as safetensors" in refusal(folder)


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def hostile(path, writer, mark):
    """A file that leaves a mark when it is opened as its writer would open it."""
    if writer == "torch":
        torch.save({"weight": Bomb(mark)}, path)
    elif writer == "old torch":
        torch.save({"weight": Bomb(mark)}, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps(Bomb(mark), protocol=int(writer)))


def refused_pickle(path):
    return (
        f"{path} is a pickle, which can run any code when it is opened, so it was not opened. "
        "Use weights saved as safetensors, in a folder that `diptych train` wrote."
    )


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("writer", ["2", "3", "4", "5", "torch", "old torch"])
def test_a_pickle_that_calls_itself_safetensors_is_refused_and_not_run(folder, sealed, writer):
    path, mark = folder / "model.safetensors", folder / "mark"
    hostile(path, writer, mark)
    if sealed:
        seal(folder)
    assert refusal(folder) == refused_pickle(path)
    assert not mark.exists()
    with pytest.raises(CheckpointError, match="is a pickle"):
        load_tensors(path)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "epoch_3.pt", "model.ckpt"])
def test_a_pickle_in_the_place_of_safetensors_is_named_and_not_run(tmp_path, name):
    mark = tmp_path / "mark"
    hostile(tmp_path / name, "torch", mark)
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(CheckpointError) as caught:
            find_model(path)
        assert str(caught.value) == refused_pickle(tmp_path / name)
    assert refusal(tmp_path) == refused_pickle(tmp_path / name)
    assert not mark.exists()


def test_a_pickle_beside_the_weights_is_left_alone(folder):
    hostile(folder / "notes.pt", "torch", folder / "mark")
    load_bundle(folder)
    assert not (folder / "mark").exists()


@pytest.mark.parametrize("length", [0x280, 0x380, 0x480, 0x580, 0x10280])
def test_safetensors_whose_header_length_looks_like_a_pickle_are_read(tmp_path, length):
    for size in range(length - 100, length):
        save_file({"x": torch.ones(2)}, tmp_path / "x", metadata={"pad": "p" * size})
        if int.from_bytes((tmp_path / "x").read_bytes()[:8], "little") == length:
            break
    assert (tmp_path / "x").read_bytes()[0] == 0x80
    assert load_tensors(tmp_path / "x")["x"].tolist() == [1, 1]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("name", ["log_scale", "text.blocks.1.mlp.up.weight"])
def test_weights_that_are_no_numbers_are_refused(folder, name, value):
    def spoil(tensors):
        tensors[name].view(-1)[-1] = float(value)

    change_weights(folder, spoil)
    assert refusal(folder) == (
        f"{folder / 'model.safetensors'} holds NaN or infinity in the weights that become {name}, "
        "so every vector would be without meaning. Copy the file again, or use an earlier "
        "checkpoint."
    )
