"""Tensors in safetensors files, read straight into memory that kernels like; and their mark.

The safetensors library checks a file (header, offsets, sizes) and writes it. The numbers are then
read by threads, each tensor into memory of its own: a mapped file would hold them at any multiple
of 8 bytes, where kernels that look at the alignment of their input give other last bits, and a copy
of it would need the memory twice.

`checkpoint.py` is the model folder around such a file; `pretrained/weights.py` reads what others
wrote in other ways. Nothing here executes code from a file.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from diptych.errors import CheckpointError
from diptych.files import fingerprint, refused

PICKLED = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""How files begin that hold a pickle: those of torch.save (a zip), and plain ones."""

PICKLE_NAMES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
"""How such files are called."""

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Kinds of numbers by their name in the file."""

ALIGNMENT = 64
"""Bytes; where torch begins the tensors it allocates itself."""

THREADS = min(8, os.cpu_count() or 1)
"""Readers of one file. Reading and hashing both wait for no lock of Python."""

Result = TypeVar("Result")


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors.

    Raises:
        StorageError: The disk refused.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(plain, path)
        path.chmod(0o666 & ~_umask())  # the library makes it readable to its owner alone
    except (SafetensorError, OSError) as error:
        raise refused(path, error) from error


def _umask() -> int:
    """What new files of this process are not allowed; it can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def load_tensors(path: Path, *, float32: bool = False) -> dict[str, Tensor]:
    """Read a safetensors file; needs the memory of its tensors once.

    Args:
        path: The file.
        float32: Make float32 of every other kind of float, one tensor at a time.

    Raises:
        CheckpointError: It is missing, cut, no safetensors file, or holds numbers of a kind that
            is not in `DTYPES`.
    """
    try:
        with safe_open(path, framework="numpy"):
            pass  # opening it checks it: a header that lies goes no further
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            if entry["dtype"] not in DTYPES:
                raise CheckpointError(
                    f"{path} holds {name} as {entry['dtype']}, which is not read. "
                    f"Save it as one of {', '.join(DTYPES)}."
                )

        # made by one thread: glibc gives each thread that allocates a heap of its own
        empty = {
            name: torch.empty(entry["shape"], dtype=DTYPES[entry["dtype"]])
            for name, entry in header.items()
        }

        def read(name: str) -> Tensor:
            tensor = empty.pop(name)
            read_into(tensor, path, 8 + length + header[name]["data_offsets"][0])
            return settled(tensor) if float32 else tensor

        return in_threads(read, {name: tensor.nbytes for name, tensor in empty.items()})
    except (SafetensorError, OSError) as error:
        refuse_pickle(path)
        raise CheckpointError(
            f"{path} cannot be read as safetensors: {error}. Copy the file again."
        ) from error


def settled(tensor: Tensor) -> Tensor:
    """The same numbers as a model wants them: floats in float32, contiguous, in aligned memory of
    their own; the tensor itself if it is so already."""
    plain = tensor.detach()
    if plain.is_floating_point():
        plain = plain.float()
    own = plain.untyped_storage().nbytes() == plain.nbytes
    if own and plain.is_contiguous() and plain.data_ptr() % ALIGNMENT == 0:
        return plain
    return plain.clone(memory_format=torch.contiguous_format)


def weights_mark(tensors: Mapping[str, Tensor]) -> str:
    """Sixteen hexadecimal digits that change with any name, kind, shape or number.

    They do not depend on the file the tensors come from, nor on their order.
    """

    def digest(name: str) -> bytes:
        tensor = tensors[name].detach().cpu().contiguous()
        return hashlib.sha256(_bytes_of(tensor)).digest()

    digests = in_threads(digest, {name: tensor.nbytes for name, tensor in tensors.items()})
    parts: list[bytes | str] = []
    for name in sorted(tensors):
        tensor = tensors[name]
        kind = str(tensor.dtype).removeprefix("torch.")
        parts += [name, kind, str(list(tensor.shape)), digests[name]]
    return fingerprint(*parts)


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of a tensor that holds infinity or no number, if there is one.

    A sum shows it at the speed of the memory; one that is too large is looked at again.
    """

    def spoiled(name: str) -> bool:
        tensor = tensors[name]
        return not tensor.sum().isfinite() and not bool(tensor.isfinite().all())

    found = in_threads(spoiled, {name: tensor.nbytes for name, tensor in tensors.items()})
    return next((name for name, bad in found.items() if bad), None)


def refuse_pickle(path: Path) -> None:
    """Refuse pickled weights, recognised by how the file begins; nothing in it is run.

    Args:
        path: A file, or a model folder: then its weights are looked at, and where there are none,
            the files beside them.

    Raises:
        CheckpointError: Names the file.
    """
    files: Iterable[Path] = [path]
    if path.is_dir():
        weights = path / "model.safetensors"
        others = [file for file in path.iterdir() if file.suffix in PICKLE_NAMES]
        files = [weights] if weights.exists() else sorted(others)
    for file in files:
        if file.is_file():
            with file.open("rb") as opened:
                begin = opened.read(9)
            # a safetensors file begins with a length, which may look the same, and then a brace
            if begin.startswith(PICKLED) and begin[8:] != b"{":
                raise CheckpointError(
                    f"{file} is a pickle, which can run any code when it is opened, so it was not "
                    "opened. Use weights saved as safetensors, in a folder that `diptych train` "
                    "wrote."
                )


def read_into(tensor: Tensor, path: Path, offset: int) -> None:
    """Fill a contiguous tensor with the bytes of a file from `offset` on.

    Raises:
        OSError: The file cannot be read, or ends before.
    """
    wanted = _bytes_of(tensor)
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        while len(wanted):
            count = file.readinto(wanted)
            if not count:
                raise OSError(f"it ends {len(wanted):,} bytes too early")
            wanted = wanted[count:]


def in_threads(job: Callable[[str], Result], sizes: Mapping[str, int]) -> dict[str, Result]:
    """The job done for each name, the largest first so that no thread ends long after the others.

    Args:
        job: Gets the name.
        sizes: How much work each name is. The result is in the order of these names.
    """
    largest_first = sorted(sizes, key=lambda name: -sizes[name])
    with ThreadPoolExecutor(THREADS) as pool:
        done = dict(zip(largest_first, pool.map(job, largest_first), strict=True))
    return {name: done[name] for name in sizes}


def letters_of(text: str) -> UInt8[Tensor, " letters"]:
    """A text as a tensor, to stand in a file of tensors."""
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def text_of(letters: Tensor | None) -> str:
    """The text that `letters_of` was given; nothing that can be compared with one if it did not
    make the tensor, empty if there is none."""
    if letters is None or letters.dtype != torch.uint8:
        return ""
    return bytes(letters.flatten().tolist()).decode(errors="replace")


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data
