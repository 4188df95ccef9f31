"""Whether a file of torch.save can be opened at a cost that its size explains.

torch's reader (`weights_only`) calls nothing but what makes tensors and tables. A small pickle can
still make it work without end, by looking up tuples of tuples that stand in the file once each, or
fill the memory with a `bytearray`. This file follows the instructions beforehand and makes nothing:
on its stack stands, for each thing, how many parts it has.

`weights.py` asks before it opens such a file; `torchscript.py` has a reader of its own.
"""

import pickletools
import tarfile
import zipfile
from pathlib import Path
from typing import IO

from diptych.pretrained.torchscript import DAMAGED, is_zip

MOST_PARTS = 10_000_000
"""Of all things in a pickle together. State dicts have some thousands per million bytes of pickle,
training checkpoints some hundred thousands in all."""

PICKLES = 5
"""In a file of torch.save before 1.6: three on the file, the tables, the list of numbers."""

GROWING = ("bytearray", "encode")
"""What torch's reader would call and what makes much of little; tensors need neither."""

MARK = 0
"""Stands on the stack where a row of things begins; nothing has no parts."""


class Costly(Exception):
    """What is wrong with the file, for a message."""


def refuse_costly(path: Path) -> None:
    """Look through the pickles of a file of torch.save, running none.

    Raises:
        Costly: It would cost more than its size explains, or is damaged.
    """
    try:
        if is_zip(path):
            with zipfile.ZipFile(path) as archive:
                for part in archive.infolist():
                    if part.filename.endswith("data.pkl"):
                        _follow(archive.read(part))
        elif tarfile.is_tarfile(path):
            raise Costly("it is a tar file, which torch wrote before 2017.")
        else:
            with path.open("rb") as file:
                for _ in range(PICKLES):
                    if not _follow(file):
                        break
    except (*DAMAGED, IndexError, KeyError) as error:
        why = f"{type(error).__name__}: {error}".rstrip(".")
        raise Costly(f"it is damaged, or no file of tensors by torch.save ({why:.200}).") from error


def _follow(pickle: bytes | IO[bytes]) -> bool:
    """Follow one pickle; gives whether torch knows its instructions so far.

    Raises:
        Costly: Something in it is refused.
        ValueError: It is damaged; so are an IndexError and a KeyError.
    """
    stack: list[int] = []
    memory: dict[int, int] = {}
    parts = 0
    for instruction, argument, _ in pickletools.genops(pickle):
        name = instruction.name
        if name not in KNOWN:
            return False  # torch stops at the same place, and says why
        if name == "GLOBAL" and str(argument).rpartition(" ")[2] in GROWING:
            asked = str(argument).replace(" ", ".")
            raise Costly(f"it asks for {asked:.100}, which is no tensor.")
        if isinstance(argument, int) and name.endswith("BINPUT"):
            memory[argument] = stack[-1]
        taken = _take(stack, instruction.stack_before)
        if isinstance(argument, int) and name.endswith("BINGET"):
            stack.append(memory[argument])
        elif name == "MARK":
            stack.append(MARK)
        elif instruction.stack_after:
            whole = name.startswith("TUPLE") or name in ("REDUCE", "NEWOBJ")
            stack.append(1 + sum(taken) if whole else 1)
        parts += max([1, *stack[-1:]])
        if parts > MOST_PARTS:
            raise Costly(f"it makes more than {MOST_PARTS:,} parts of a small pickle.")
    return True


def _take(stack: list[int], before: list[pickletools.StackObject]) -> list[int]:
    """Take off the stack what an instruction needs.

    Raises:
        IndexError: There is less.
    """
    if pickletools.markobject not in before:
        return [stack.pop() for _ in before]
    taken: list[int] = []
    while (parts := stack.pop()) != MARK:
        taken.append(parts)
    if before[0] is not pickletools.markobject:  # the list or table that the row goes into
        stack.pop()
    return taken


KNOWN = {
    *("PROTO", "STOP", "GLOBAL", "NEWOBJ", "REDUCE", "BUILD", "APPEND", "APPENDS", "SETITEM"),
    *("SETITEMS", "MARK", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "NONE", "NEWFALSE", "NEWTRUE"),
    *("EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET", "BININT", "BININT1", "BININT2"),
    *("BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "BINPERSID", "BINGET", "LONG_BINGET"),
    *("BINPUT", "LONG_BINPUT", "LONG1"),
}
"""Instructions that torch's reader knows."""
