"""Weights of any file come out as they went in, and no file makes anything happen."""

import io
import json
import os
import pickle
import random
import struct
import tarfile
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from diptych.errors import CheckpointError
from diptych.pretrained.torchscript import is_torchscript
from diptych.pretrained.weights import read_weights

WEIGHTS = {
    "logit_scale": torch.tensor(4.6),
    "text.projection": torch.arange(6.0).reshape(2, 3),
    "norm.num_batches_tracked": torch.tensor(7),
    "nothing": torch.zeros(0, 3),
}


def same(found, expected):
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        wanted = tensor.detach().float() if tensor.is_floating_point() else tensor
        assert found[name].dtype == wanted.dtype, name
        assert found[name].shape == wanted.shape, name
        assert torch.equal(found[name], wanted), name
        assert found[name].is_contiguous()
        assert found[name].data_ptr() % 64 == 0
        assert not found[name].requires_grad


def refusal(path):
    with pytest.raises(CheckpointError) as caught:
        read_weights(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def old_format(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


WRITERS = {
    "model.safetensors": save_file,
    "model.pt": torch.save,
    "pytorch_model.bin": torch.save,
    "old.pth": old_format,
}


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", WRITERS)
def test_weights_of_every_layout_and_kind_come_out_in_float32(tmp_path, name, kind):
    stored = {
        key: value.to(kind) if value.is_floating_point() else value
        for key, value in WEIGHTS.items()
    }
    WRITERS[name](stored, tmp_path / name)
    same(read_weights(tmp_path / name), stored)


@pytest.mark.parametrize("save", [torch.save, old_format])
def test_parameters_views_and_tied_weights_come_out_with_memory_of_their_own(tmp_path, save):
    whole = torch.arange(12.0).reshape(3, 4)
    stored = {
        "parameter": nn.Parameter(whole.clone()),
        "transposed": whole.T,
        "row": whole[1],
        "tied": whole,
        "tied_too": whole,
    }
    save(stored, tmp_path / "x.pt")
    found = read_weights(tmp_path / "x.pt")
    same(found, stored)
    found["row"][0] = 99.0
    assert torch.equal(found["tied"], whole)


def test_tables_in_a_file_are_joined_with_dots_and_the_rest_is_left_out(tmp_path):
    stored = {"epoch": 3, "name": "run", "state_dict": {"module.a": torch.ones(2)}, "list": [1]}
    torch.save(stored, tmp_path / "x.pt")
    same(read_weights(tmp_path / "x.pt"), {"state_dict.module.a": torch.ones(2)})


def sharded(folder, name, save, places):
    """Several files and the index of them."""
    for file in set(places.values()):
        save({key: WEIGHTS[key] for key, place in places.items() if place == file}, folder / file)
    index = folder / f"{name}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


@pytest.mark.parametrize(
    ("name", "save"), [("model.safetensors", save_file), ("pytorch_model.bin", torch.save)]
)
def test_several_files_are_read_as_one(tmp_path, name, save):
    stem, _, end = name.partition(".")
    files = [f"{stem}-{number:05}-of-00002.{end}" for number in (1, 2)]
    places = {key: files[number % 2] for number, key in enumerate(WEIGHTS)}
    index = sharded(tmp_path, name, save, places)
    same(read_weights(index), WEIGHTS)

    (tmp_path / files[1]).unlink()
    with pytest.raises(CheckpointError, match=f"{files[1]} is no file, so there are no weights"):
        read_weights(index)


def test_an_index_that_lies_is_refused(tmp_path):
    places = dict.fromkeys(WEIGHTS, "a.safetensors")
    index = sharded(tmp_path, "model.safetensors", save_file, places)
    index.write_text(json.dumps({"weight_map": {"more": "a.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"a\.safetensors has no more, which model"):
        read_weights(index)
    for place in ("../a.safetensors", "/etc/passwd", "..", "", "model.safetensors.index.json"):
        index.write_text(json.dumps({"weight_map": {"x": place}}))
        said = refusal(index)
        assert f"names {place!r}, which is no file of weights beside it" in said, place
    for text in ("", "[]", "{}", '{"weight_map": 3}', "{", "[" * 100_000):
        index.write_text(text)
        assert "is damaged (" in refusal(index)


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.register_buffer("mask", torch.arange(4).bool())
        self.register_buffer("unsaved", torch.ones(2), persistent=False)
        self.count = 3

    def forward(self, x):
        return self.norm(x) * self.unsaved.sum()


class Net(nn.Module):
    """All that a TorchScript archive of a model may hold: nested, tied, scalar, whole numbers."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 3, 1), Inner())
        self.linear = nn.Linear(2, 2)
        self.linear_again = self.linear
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.register_buffer("input_resolution", torch.tensor(224))
        self.sizes = [1, 2]

    def forward(self, x):
        return self.linear_again(self.linear(self.layers(x)[0, 0])) * self.scale


def scripted(model):
    return torch.jit.script(model)


def traced(model):
    return torch.jit.trace(model, torch.ones(1, 3, 2, 2))


# torch warns that TorchScript is old; OpenAI's archives are older
old_writer = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


@old_writer
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("compiled", [scripted, traced])
def test_a_torchscript_archive_gives_the_state_dict_of_its_module(tmp_path, compiled, half):
    module = compiled(Net().eval())
    module = module.half() if half else module
    path = tmp_path / "ViT-B-32.pt"
    module.save(path)
    assert is_torchscript(path)
    expected = torch.jit.load(path).state_dict()
    assert "layers.1.norm.running_mean" in expected
    same(
        {name: value for name, value in read_weights(path).items() if "unsaved" not in name},
        {name: value for name, value in expected.items() if "unsaved" not in name},
    )


def test_only_torchscript_is_torchscript(tmp_path):
    torch.save(WEIGHTS, tmp_path / "x.pt")
    save_file(WEIGHTS, tmp_path / "x.safetensors")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "x.pt").read_bytes()[:-9])
    names = ("x.pt", "x.safetensors", "cut.pt", "missing")
    assert not any(is_torchscript(tmp_path / name) for name in names)


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def archive(path, entries, *, compress=zipfile.ZIP_STORED):
    """A zip of these entries, as TorchScript's are laid out."""
    with zipfile.ZipFile(path, "w", compress) as opened:
        for name, content in entries.items():
            opened.writestr(f"model/{name}", content)


def write_torch(path, mark):
    torch.save({"weight": torch.ones(2), "bomb": Bomb(mark)}, path)


def write_old_torch(path, mark):
    old_format({"weight": torch.ones(2), "bomb": Bomb(mark)}, path)


def write_plain(path, mark):
    path.write_bytes(pickle.dumps({"weight": Bomb(mark)}))


def write_torchscript(path, mark):
    archive(path, {"data.pkl": pickle.dumps(Bomb(mark), 2), "constants.pkl": b""})


@pytest.mark.parametrize("write", [write_torch, write_old_torch, write_plain, write_torchscript])
@pytest.mark.parametrize("name", ["model.pt", "pytorch_model.bin", "x.safetensors", "index.ckpt"])
def test_a_hostile_pickle_is_refused_and_not_run(tmp_path, write, name):
    path, mark = tmp_path / name, tmp_path / "mark"
    write(path, mark)
    said = refusal(path)
    assert not mark.exists()
    if name.endswith(".safetensors"):
        assert f"{path} is a pickle, which can run any code when it is opened" in said
    else:
        assert f"{path} was not opened: i" in said
        assert "mkdir" in said or "no file of tensors" in said
        assert "Use its safetensors" in said or "Use safetensors" in said
        assert "weights_only" not in said  # torch's advice is to run the file


def test_the_mark_would_be_left_by_who_unpickles(tmp_path):
    write_plain(tmp_path / "x", tmp_path / "mark")
    pickle.loads((tmp_path / "x").read_bytes())
    assert (tmp_path / "mark").is_dir()


STORAGE = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0aX\3\0\0\0cpuK\4tQ"
"""Instructions that put the storage `a`, of four numbers, on the stack."""


def tensor(offset=0, shape=(4,), strides=(1,)):
    """Instructions that put a tensor of it on the stack."""
    numbers = b"K" + bytes([offset])
    for row in (shape, strides):
        numbers += b"(" + b"".join(b"J" + struct.pack("<i", number) for number in row) + b"t"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + STORAGE
        + numbers
        + b"\x89ccollections\n"
        + (b"OrderedDict\n)RtR")
    )


def module(attributes):
    """Instructions that put a module with these attributes on the stack."""
    pairs = b"".join(
        b"X" + struct.pack("<I", len(name)) + name + value for name, value in attributes.items()
    )
    return b"c__torch__\nNet\n)\x81}(" + pairs + b"ub"


def archive_of(path, body, **more):
    """A TorchScript archive whose pickle has these instructions."""
    numbers = struct.pack("<4f", 1, 2, 3, 4)
    entries = {"data.pkl": b"\x80\2" + body + b".", "data/a": numbers, "constants.pkl": b""}
    archive(path, entries | more)
    return path


def test_a_hand_written_archive_is_read(tmp_path):
    body = module({b"a": tensor(), b"inner": module({b"b": tensor(1, (3, 1), (1, 1))}), b"n": b"N"})
    found = read_weights(archive_of(tmp_path / "x.pt", body, byteorder=b"little"))
    same(found, {"a": torch.tensor([1.0, 2, 3, 4]), "inner.b": torch.tensor([[2.0], [3], [4]])})


CYCLE = b"c__torch__\nNet\n)\x81q\0}X\1\0\0\0ah\0sX\1\0\0\0bh\0sb"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"cposix\nsystem\n(X\4\0\0\0exittR", "its pickle asks for a call of posix.system"),
        (b"cposix\nsystem\n)\x81", "asks for an object of posix.system"),
        (b"(X\4\0\0\0exitiposix\nsystem\n", "asks for the instruction INST"),
        (b"X\5\0\0\0posixX\6\0\0\0system\x93", "asks for the instruction STACK_GLOBAL"),
        (b"\x82\1", "asks for the instruction EXT1"),
        (b"Pstorage\n", "asks for the instruction PERSID"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n}b", "asks for a Module where there is a Named"),
        (b"ccollections\nOrderedDict\n(]tR", "asks for an OrderedDict of something"),
        (b"NQ", "asks for the storage None"),
        (STORAGE.replace(b"Float", b"Whole"), "the storage ('storage', torch.WholeStorage, 'a', '"),
        (STORAGE.replace(b"K\4", b"K\5"), "asks for 5 numbers of the 16 bytes in model/data/a"),
        (module({b"a": tensor(0, (5,), (1,))}), "RuntimeError: setStorage"),
        (module({b"a": tensor(2, (3,), (1,))}), "RuntimeError: setStorage"),
        (module({b"a": tensor(0, (-1,), (1,))}), "RuntimeError: "),
        (module({b"a": tensor(0, (1 << 30, 1 << 30), (0, 0))}), "bytes, and its tensors would"),
        (module({}), "asks for no tensor at all"),
        (b"N", "asks for a Module where there is a NoneType"),
        (CYCLE, "asks for modules without end"),
        (b"}" * 9 + b"0", "asks for the instruction POP"),
        (b"t", "asks for a row that never began"),
        (b"\x87", "asks for more items than there are"),
        (b"h\7", "cannot be read as TorchScript: KeyError: 7"),
        (b"X\xff\xff\xff\x7fa", "cannot be read as TorchScript: ValueError: expected 2147483647"),
        (b"\xfe", "cannot be read as TorchScript: ValueError: at position 2, opcode"),
    ],
)
def test_a_torchscript_pickle_that_is_more_than_tensors_is_refused(tmp_path, body, words):
    assert words in refusal(archive_of(tmp_path / "x.pt", body))


DAG = b")q\0" + b"h\0\x86q\0" * 60
"""Instructions that put a tuple of 2**60 empty ones on the stack: pairs of the pair before."""


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (DAG + b"Q", "asks for the storage (tuple, tuple)"),
        (b"c__torch__\nNet\n)\x81}X\1\0\0\0a" + DAG + b"sbQ", "asks for the storage Module"),
        (
            b"ctorch._utils\n_rebuild_tensor_v2\n" + DAG + b"R",
            "asks for a tensor of (tuple, tuple)",
        ),
        (b"}" + DAG + b"Ns", "asks for a table with a tuple for a name"),
        (b"}(" + DAG + b"Nu", "asks for a table with a tuple for a name"),
        (
            b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"K\0" + DAG + b")\x89NtR",
            "asks for a tensor of (Tensor, 0, tuple, tuple, False, None)",
        ),
    ],
)
def test_tuples_of_tuples_without_end_are_refused_at_once(tmp_path, body, words):
    assert words in refusal(archive_of(tmp_path / "x.pt", body))


def plain(path, pickle):
    path.write_bytes(pickle)


def zipped(path, pickle):
    archive(path, {"data.pkl": pickle, "version": b"3\n", "byteorder": b"little"})


@pytest.mark.parametrize("write", [plain, zipped])
@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"}" + DAG + b"Ns.", "it makes more than 10,000,000 parts of a small pickle."),
        (b"cbuiltins\nset\n](" + DAG + b"e\x85R.", "more than 10,000,000 parts"),
        (DAG + b"Q.", "more than 10,000,000 parts"),
        (
            b"cbuiltins\nbytearray\n\x8a\5\0\0\0\xc0\0\x85R.",
            "it asks for builtins.bytearray, which is no tensor.",
        ),
        (b"c__builtin__\nbytearray\n.", "it asks for __builtin__.bytearray, which is no"),
        (b"c_codecs\nencode\n.", "it asks for _codecs.encode, which is no tensor."),
        (b"\x85.", "it is damaged, or no file of tensors by torch.save (IndexError: pop from"),
        (b"h\7.", "it is damaged, or no file of tensors by torch.save (KeyError: 7)."),
    ],
)
def test_a_file_of_torch_that_costs_more_than_its_size_is_refused_at_once(
    tmp_path, write, body, words
):
    write(tmp_path / "x.bin", b"\x80\2" + body)
    said = refusal(tmp_path / "x.bin")
    assert f"{tmp_path / 'x.bin'} was not opened: " in said
    assert words in said
    assert said.endswith(" with the library that made it.")


def test_a_later_pickle_of_an_old_file_is_looked_at_too(tmp_path):
    old_format(WEIGHTS, tmp_path / "x.pt")
    data = (tmp_path / "x.pt").read_bytes()
    start = data.index(b"logit_scale")
    place = data.rindex(b"\x80\2", 0, start) + 2
    (tmp_path / "x.pt").write_bytes(data[:place] + DAG + b"0" + data[place:])
    refusal(tmp_path / "x.pt")
    (tmp_path / "x.pt").write_bytes(data[:place] + b"}" + DAG + b"Ns" + data[place:])
    assert "more than 10,000,000 parts" in refusal(tmp_path / "x.pt")


def test_a_tar_file_is_refused(tmp_path):
    with tarfile.open(tmp_path / "x.pt", "w") as opened:
        opened.add(__file__, "pickle")
    assert "it is a tar file, which torch wrote before 2017. Use its" in refusal(tmp_path / "x.pt")


def test_a_training_checkpoint_with_its_optimizer_is_read(tmp_path):
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    stored = {"state_dict": model.state_dict(), "optimizer": optimizer.state_dict(), "kinds": {1}}
    for save in (torch.save, old_format):
        save(stored, tmp_path / "x.pt")
        found = read_weights(tmp_path / "x.pt")
        assert torch.equal(found["state_dict.weight"], model.weight)
        assert found["optimizer.state.0.exp_avg"].shape == (2, 3)


def test_names_without_end_are_refused(tmp_path):
    """Each module stands twice in the next one, under names of 200 letters."""
    names = [b"X" + struct.pack("<I", 200) + letter * 200 for letter in (b"a", b"b")]
    body = module({b"t": tensor()}) + b"q\0"
    for _ in range(16):
        body += b"c__torch__\nNet\n)\x81}(" + names[0] + b"h\0" + names[1] + b"h\0ubq\0"
    assert "asks for names without end" in refusal(archive_of(tmp_path / "x.pt", body))

    table = {"t": torch.ones(1)}
    for _ in range(200):
        table = {"a" * 2000: table}
    torch.save(table, tmp_path / "y.pt")
    said = refusal(tmp_path / "y.pt")
    assert "has names of more than 10,000,000 letters. Use its safetensors" in said


def test_many_names_for_the_same_numbers_are_refused(tmp_path):
    once = tensor(0, (4,), (1,))
    many = {b"%d" % number: once for number in range(2000)}
    path = archive_of(tmp_path / "x.pt", module({b"0": once}) + module(many))
    assert len(read_weights(path)) == 2000  # 32 kB, and the file has more
    torch.save({"x": torch.ones(1).expand(1 << 20, 1 << 20)}, tmp_path / "y.pt")
    said = refusal(tmp_path / "y.pt")
    assert "bytes, and its tensors would have 4,398,046,511,104, so they were not made" in said


def test_numbers_of_the_other_byte_order_are_refused(tmp_path):
    path = archive_of(tmp_path / "x.pt", module({b"a": tensor()}), byteorder=b"big")
    assert "asks for numbers of another byte order" in refusal(path)


def zip_of(path, name, size, compress):
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("model/constants.pkl", b"")
        opened.writestr(name, bytes(size), compress)


def test_a_zip_that_grows_is_refused(tmp_path):
    zip_of(tmp_path / "x.pt", "model/data.pkl", 1 << 20, zipfile.ZIP_DEFLATED)
    assert "model/data.pkl compressed, as torch never does, so it" in refusal(tmp_path / "x.pt")
    zip_of(tmp_path / "y.bin", "archive/data/0", 1 << 20, zipfile.ZIP_DEFLATED)
    assert "archive/data/0 compressed" in refusal(tmp_path / "y.bin")


def test_a_zip_that_lies_about_sizes_is_refused(tmp_path):
    zip_of(tmp_path / "x.pt", "model/data.pkl", 64, zipfile.ZIP_STORED)
    data = (tmp_path / "x.pt").read_bytes()
    place = data.rindex(b"PK\1\2") + 20
    (tmp_path / "x.pt").write_bytes(
        data[:place] + struct.pack("<II", 1 << 31, 1 << 31) + data[place + 8 :]
    )
    assert "says it holds 2,147,483,648 bytes and has" in refusal(tmp_path / "x.pt")


@pytest.mark.parametrize("name", ["missing.safetensors", "missing.pt", "m.bin.index.json"])
def test_a_missing_file_is_named(tmp_path, name):
    assert refusal(tmp_path / name).endswith(
        "is no file, so there are no weights. Copy the folder again."
    )


def test_files_that_hold_no_tensors_are_refused(tmp_path):
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    assert "holds a list, not tensors by name. Use its safetensors" in refusal(tmp_path / "list.pt")
    torch.save({"epoch": 3, "more": {}}, tmp_path / "epoch.pt")
    assert "holds no tensors. Use its safetensors" in refusal(tmp_path / "epoch.pt")
    torch.save({"x": torch.ones(3).to_sparse()}, tmp_path / "sparse.pt")
    assert "holds x as torch.sparse_coo, torch.float32, on cpu; plain" in refusal(
        tmp_path / "sparse.pt"
    )
    torch.save({"x": torch.ones(3, device="meta")}, tmp_path / "meta.pt")
    assert "on meta; plain numbers are read" in refusal(tmp_path / "meta.pt")
    torch.save(nn.Linear(2, 2), tmp_path / "model.pt")
    assert "it asks for torch.nn.modules.linear.Linear, which is no tensor. Use" in refusal(
        tmp_path / "model.pt"
    )
    for name in ("x.pt", "x.safetensors", "x.ckpt"):
        for content in (b"", b"\x00" * 100, b"<html>", b"PK\x03\x04"):
            (tmp_path / name).write_bytes(content)
            refusal(tmp_path / name)


def safetensors(path, header, data=b"\0" * 16):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


F32 = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    "header",
    [
        {"a": F32 | {"shape": [5]}},
        {"a": F32 | {"shape": [1 << 62]}},
        {"a": F32 | {"shape": [-4]}},
        {"a": F32 | {"data_offsets": [0, 20]}},
        {"a": F32 | {"data_offsets": [16, 0]}},
        {"a": F32 | {"data_offsets": [4, 20]}},
        {"a": F32 | {"dtype": "F31"}},
        {"a": F32, "b": F32},
        {"a": {"dtype": "F32", "shape": [4]}},
        {"a": []},
        [],
        b"{",
        b"\x80\x02",
        {},
    ],
)
def test_a_safetensors_header_that_lies_is_refused(tmp_path, header):
    safetensors(tmp_path / "x.safetensors", header)
    assert "cannot be read as safetensors: " in refusal(tmp_path / "x.safetensors")


def test_a_safetensors_header_without_end_is_refused(tmp_path):
    for length in (1 << 63, 1 << 40, 101, 99):
        content = length.to_bytes(8, "little") + b"{" * 100
        (tmp_path / "x.safetensors").write_bytes(content)
        assert "cannot be read as safetensors: " in refusal(tmp_path / "x.safetensors")


def test_a_kind_of_number_that_is_not_read_is_named(tmp_path):
    header = {"a": {"dtype": "F8_E4M3", "shape": [16], "data_offsets": [0, 16]}}
    safetensors(tmp_path / "x.safetensors", header)
    assert "holds a as F8_E4M3, which is not read. Save it as one of F64, F32" in refusal(
        tmp_path / "x.safetensors"
    )


def whole_files(folder):
    """One small file of each layout."""
    for name, write in WRITERS.items():
        write(WEIGHTS, folder / name)
    archive_of(folder / "script.pt", module({b"a": tensor()}))
    return sorted(folder.iterdir())


def outcome(path):
    """What reading a file says, and what it gives."""
    try:
        return "", read_weights(path)
    except CheckpointError as error:
        return str(error), {}


@pytest.mark.parametrize("seed", range(5))
def test_damaged_files_end_in_a_named_error_or_in_tensors(tmp_path, seed):
    random_ = random.Random(seed)
    for path in whole_files(tmp_path):
        whole = path.read_bytes()
        for _ in range(40):
            data = bytearray(whole)
            if random_.random() < 0.3:
                del data[random_.randrange(len(data)) :]
            for _ in range(random_.randrange(1, 4)):
                if data:
                    data[random_.randrange(len(data))] = random_.randrange(256)
            path.write_bytes(data)
            said, found = outcome(path)
            assert str(path) in said or found
            assert sum(value.nbytes for value in found.values()) <= 8 * len(whole)


def test_reading_needs_no_memory_beside_the_tensors(tmp_path):
    stored = {str(number): torch.full((1 << 18,), float(number)) for number in range(4)}
    buffer = io.BytesIO()
    torch.save(stored, buffer)
    (tmp_path / "x.pt").write_bytes(buffer.getvalue())
    found = read_weights(tmp_path / "x.pt")
    (tmp_path / "x.pt").write_bytes(b"")  # nothing is mapped: the file may go
    same(found, stored)
