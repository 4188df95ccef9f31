"""The tensors of a TorchScript archive, as which OpenAI published CLIP, without running its code.

Such an archive is a zip: `*/data.pkl` is a pickle of nested modules, `*/data/N` are their numbers,
`*/code/` is a program. The program is never looked at. The pickle is not unpickled either: this
file reads it as a list of instructions, knows the few that build tables and tensors, and refuses
all others. Objects of any class become plain tables of their attributes.

`weights.py` chooses between this reader and the others.
"""

import pickletools
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.errors import CheckpointError

STORAGES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
"""Kinds of numbers by their name in the pickle."""

CLASS = "__torch__."
"""How the name of a class begins whose code is in the archive."""

MOST_INSTRUCTIONS, MOST_MODULES = 1_000_000, 100_000
"""In one archive. The largest of CLIP's have some tens of thousands, and some thousands."""

MOST_LETTERS = 10_000_000
"""Of all names together; CLIP's have some tens of thousands. A module that stands in two others has
two names, so a small file may name its tensors without end."""

PIECE = 1 << 20
"""Bytes read at a time."""


DAMAGED = (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error)
"""How opening a damaged zip ends."""


@dataclass(frozen=True)
class Named:
    """A name the pickle asks for; only what is done with it tells whether it is known."""

    name: str


@dataclass
class Module:
    """An object of any class: its attributes."""

    attributes: dict[str, Any] = field(default_factory=dict)


class Refused(Exception):
    """What the pickle asks for is not in our table."""


def is_zip(path: Path) -> bool:
    """Whether a file begins as torch's zips do."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive; looks at its list of contents alone."""
    if not path.is_file() or not is_zip(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except DAMAGED:
        return False


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Parameters and buffers of all modules by their dotted names, as they are stored.

    Raises:
        CheckpointError: The archive is damaged, or its pickle asks for more than tensors.
    """
    refuse_bomb(path)
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            root = name.removesuffix("data.pkl")
            order = f"{root}byteorder"
            if order in archive.namelist() and archive.read(order) != b"little":
                raise Refused("numbers of another byte order")
            machine = _Machine(_Storages(archive, f"{root}data/"))
            return _named_tensors(machine.run(archive.read(name)))
    except StopIteration:
        why = "it has no data.pkl"
    except Refused as error:
        raise CheckpointError(
            f"{path} was not opened: its pickle asks for {error}, and a TorchScript archive of "
            "weights needs no such thing. Use safetensors of the same model."
        ) from error
    except Exception as error:  # a damaged file ends in any exception
        why = f"{type(error).__name__}: {error}".rstrip(".")
    raise CheckpointError(f"{path} cannot be read as TorchScript: {why:.200}. Copy the file again.")


def refuse_bomb(path: Path) -> None:
    """Refuse a zip that would grow when it is opened: torch stores tensors as they are, and
    compresses programs alone, which nobody reads here.

    Raises:
        CheckpointError: A part is compressed, the parts are larger than the file, or it is no zip.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            parts = [part for part in archive.infolist() if "/code/" not in part.filename]
    except DAMAGED as error:
        raise CheckpointError(f"{path} is a damaged zip ({error}). Copy the file again.") from error
    for part in parts:
        if part.compress_type != zipfile.ZIP_STORED or part.file_size != part.compress_size:
            raise CheckpointError(
                f"{path} holds {part.filename} compressed, as torch never does, so it was not "
                "opened. Use safetensors of the same model."
            )
    inside, size = sum(part.file_size for part in parts), path.stat().st_size
    if inside > size:
        raise CheckpointError(
            f"{path} says it holds {inside:,} bytes and has {size:,}, so it was not opened. "
            "Copy the file again."
        )


class _Storages:
    """Numbers of the archive by their key, each read once."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        self._archive = archive
        self._folder = folder
        self._read: dict[str, Tensor] = {}

    def __call__(self, identity: object) -> Tensor:
        """All numbers of one storage, in one row.

        Raises:
            Refused: `identity` is no storage of a kind we know, or of another length.
        """
        match identity:
            case ("storage", Named(kind), str(key), str(), int(count)) if kind in STORAGES:
                if key not in self._read:
                    self._read[key] = self._load(key, STORAGES[kind], count)
                return self._read[key]
        raise Refused(f"the storage {_said(identity)}")

    def _load(self, key: str, dtype: torch.dtype, count: int) -> Tensor:
        """Read a storage."""
        part = self._archive.getinfo(f"{self._folder}{key}")
        if part.file_size != count * dtype.itemsize:
            raise Refused(f"{count:,} numbers of the {part.file_size:,} bytes in {part.filename}")
        row = torch.empty(count, dtype=dtype)
        wanted = row.view(torch.uint8).numpy().data
        with self._archive.open(part) as file:
            while len(wanted):
                read = file.read(PIECE)
                if not read:
                    raise EOFError(f"{part.filename} is cut")
                wanted[: len(read)] = read
                wanted = wanted[len(read) :]
        return row


def _rebuild_tensor(arguments: tuple[Any, ...]) -> Tensor:
    """A tensor of a storage, as `torch._utils._rebuild_tensor_v2`.

    Raises:
        Refused: The arguments are of other kinds.
        RuntimeError: It reaches outside the storage.
    """
    match arguments:
        case (Tensor() as row, int(offset), tuple(shape), tuple(strides), _, _):
            if all(type(number) is int for number in (*shape, *strides)):
                return row.as_strided(shape, strides, offset)
    raise Refused(f"a tensor of {_said(arguments)}")


def _first(arguments: tuple[Any, ...]) -> Any:
    """The thing itself: what these calls do to it is of no interest here."""
    return arguments[0]


def _table(arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """An empty table."""
    if arguments:
        raise Refused("an OrderedDict of something")
    return {}


CALLS: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "collections.OrderedDict": _table,
    "torch.device": _first,
    "torch.jit._pickle.build_intlist": _first,
    "torch.jit._pickle.build_doublelist": _first,
    "torch.jit._pickle.build_boollist": _first,
    "torch.jit._pickle.build_tensorlist": _first,
    "torch.jit._pickle.restore_type_tag": _first,
}
"""Every function a pickle may call, and what happens instead."""

MARK = object()
"""Stands on the stack where a row of items begins."""


class _Machine:
    """Follows the instructions that torch's own writer uses, on a stack, and refuses others."""

    def __init__(self, storage: Callable[[object], Tensor]) -> None:
        self._storage = storage
        self._stack: list[Any] = []
        self._memory: dict[int, Any] = {}

    def run(self, pickle: bytes) -> object:
        """What the pickle describes.

        Raises:
            Refused: It holds an instruction, a name or a call that is not known here.
        """
        for number, (instruction, argument, _) in enumerate(pickletools.genops(pickle)):
            if number > MOST_INSTRUCTIONS:
                raise Refused(f"more than {MOST_INSTRUCTIONS:,} instructions")
            self._step(instruction.name, argument)
        return self._stack.pop()

    def _step(self, name: str, argument: Any) -> None:
        """Follow one instruction."""
        stack = self._stack
        match name:
            case "PROTO" | "STOP" | "FRAME":
                pass
            case "MARK":
                stack.append(MARK)
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(name == "NEWTRUE")
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE":
                stack.append(argument)
            case "BINPUT" | "LONG_BINPUT":
                self._memory[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memory[argument])
            case "GLOBAL":
                stack.append(Named(argument.replace(" ", ".")))
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self._last(int(name[-1]))))
            case "TUPLE":
                stack.append(tuple(self._since_mark()))
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case _:
                self._build(name)

    def _build(self, name: str) -> None:
        """Follow one of the instructions that put things into or onto others."""
        stack = self._stack
        match name:
            case "APPEND":
                item = stack.pop()
                _as(list, stack[-1]).append(item)
            case "APPENDS":
                items = self._since_mark()
                _as(list, stack[-1]).extend(items)
            case "SETITEM":
                key, value = self._last(2)
                _as(dict, stack[-1])[_key(key)] = value
            case "SETITEMS":
                items = self._since_mark()
                keys = map(_key, items[::2])
                _as(dict, stack[-1]).update(zip(keys, items[1::2], strict=True))
            case "BINPERSID":
                stack.append(self._storage(stack.pop()))
            case "REDUCE":
                asked, arguments = self._last(2)
                asked = _as(Named, asked).name
                if asked not in CALLS:
                    raise Refused(f"a call of {asked}")
                stack.append(CALLS[asked](_as(tuple, arguments)))
            case "NEWOBJ":
                asked, _ = self._last(2)
                if not _as(Named, asked).name.startswith(CLASS):
                    raise Refused(f"an object of {asked.name}")
                stack.append(Module())
            case "BUILD":
                attributes = _as(dict, stack.pop())
                _as(Module, stack[-1]).attributes.update(attributes)
            case _:
                raise Refused(f"the instruction {name}")

    def _last(self, count: int) -> list[Any]:
        """Take the last items off the stack."""
        items = self._stack[-count:]
        if len(items) < count:
            raise Refused("more items than there are")
        del self._stack[-count:]
        return items

    def _since_mark(self) -> list[Any]:
        """Take the items since the last mark off the stack, and the mark."""
        for place in range(len(self._stack) - 1, -1, -1):
            if self._stack[place] is MARK:
                items = self._stack[place + 1 :]
                del self._stack[place:]
                return items
        raise Refused("a row that never began")


def _as(kind: type, value: Any) -> Any:
    """The value, which must be of this kind."""
    if not isinstance(value, kind):
        raise Refused(f"a {kind.__name__} where there is a {type(value).__name__}")
    return value


def _key(value: Any) -> str | int:
    """The value, which must be a name or a number: to look a tuple up may take without end."""
    if not isinstance(value, str | int):
        raise Refused(f"a table with a {type(value).__name__} for a name")
    return value


def _said(value: object) -> str:
    """A value for a message. Its parts are not shown further down: tuples of tuples that stand in
    a file once each may have parts without end."""
    if isinstance(value, tuple):
        return f"({', '.join(_said_alone(part) for part in value[:6])})"
    return _said_alone(value)


def _said_alone(value: object) -> str:
    """A value without its parts."""
    if isinstance(value, Named):
        return f"{value.name:.100}"
    return f"{value!r:.100}" if isinstance(value, str | int | None) else type(value).__name__


def _named_tensors(top: object) -> dict[str, Tensor]:
    """The tensors of a module and of the modules in it, by their dotted names.

    Raises:
        Refused: There are no tensors, or modules or names without end.
    """
    tensors: dict[str, Tensor] = {}
    modules: list[tuple[str, Mapping[str, Any]]] = [("", _as(Module, top).attributes)]
    letters = 0
    for prefix, attributes in modules:  # grows on the way
        for name, value in attributes.items():
            whole = f"{prefix}{name}"
            letters += len(whole)
            if letters > MOST_LETTERS:
                raise Refused("names without end")
            if isinstance(value, Tensor):
                tensors[whole] = value
            elif isinstance(value, Module):
                if len(modules) > MOST_MODULES:
                    raise Refused("modules without end")
                modules.append((f"{whole}.", value.attributes))
    if not tensors:
        raise Refused("no tensor at all")
    return tensors
