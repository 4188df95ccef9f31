"""big_vision's `.npz` files of SigLIP: the numbers of a two-tower model as Google saved them.

    [params/]img/embedding, pos_embedding, Transformer/encoderblock_0/..., MAPHead_0
    [params/]txt/Embed_0, pos_embedding, Encoder_0/encoderblock_0/..., head
    [params/]t, b          logarithm of the scale, and the bias

flax keeps a linear layer as (in, out), with one axis for the heads in attention, and pictures as
(height, width, colour). Models that were run as a scan over their layers have `encoderblock` with a
leading axis for the layer. A file says every size but that of the pictures, and nothing of the
contract: those come with the name of the architecture (`architectures.py`).

Attention and MLP are those of flax: the approximate GELU, and 1e-6 in the norms.
"""

import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from tokenizers import processors
from torch import Tensor

from diptych.data.tokenizer import Tokenizer
from diptych.errors import CheckpointError, ConfigError, RequestError
from diptych.models.dual_encoder import DualEncoderConfig
from diptych.models.image_tower import ImageTowerConfig
from diptych.models.text_tower import TextTowerConfig
from diptych.pretrained.architectures import find_architecture
from diptych.pretrained.foreign import Foreign
from diptych.pretrained.open_clip_config import read_transform
from diptych.pretrained.positions import resize_positions
from diptych.pretrained.sentencepiece import sentencepiece_tokenizer
from diptych.pretrained.tokenizers_of import transformers_tokenizer

Take = Callable[[str, tuple[int, ...]], np.ndarray]
"""Gives the array of a name, which must have a shape, and takes it out of the file's."""

FLAX: dict[str, Any] = {"activation": "gelu_tanh", "norm_epsilon": 1e-6}

IMAGE, TEXT = "img/Transformer", "txt/Encoder_0"
ATTENTION = "MultiHeadDotProductAttention_0"

GROWTH = 4
"""Times its own size that a compressed file may hold; random numbers shrink by a few percent."""

DAMAGED: tuple[type[Exception], ...] = (OSError, ValueError, EOFError, TypeError, KeyError)
DAMAGED += (MemoryError, NotImplementedError, zipfile.BadZipFile, zlib.error)
"""What numpy and zipfile raise for files that are not what they seem."""

VOCABULARIES = ("sentencepiece.model", "spiece.model")
"""Names of sentencepiece's files."""


def read_big_vision(
    path: Path, architecture: str, *, tokenizer: Path | None, image_size: int | None = None
) -> Foreign:
    """A SigLIP or SigLIP 2 of fixed resolution.

    Args:
        path: The .npz file.
        architecture: One of `ARCHITECTURES`, such as "ViT-B-16-SigLIP".
        tokenizer: The vocabulary: c4_en's sentencepiece.model, or for SigLIP 2 Gemma's
            tokenizer.json; or a folder with one of them.
        image_size: In pixels, if not the architecture's own; positions are resized as big_vision
            does.

    Raises:
        RequestError: The architecture is unknown or no SigLIP, or there is no tokenizer.
        CheckpointError: The file is damaged, or its arrays are another model's.
        ConfigError: `image_size` does not fit the model.
    """
    known = find_architecture(architecture)
    if known.clip_words:
        raise RequestError(
            f"{path} is a file of big_vision and {architecture!r} no SigLIP. "
            "Use the name of a SigLIP, such as ViT-B-16-SigLIP."
        )
    if tokenizer is None:
        raise RequestError(
            f"{path} has no vocabulary. Name its file, such as --tokenizer sentencepiece.model "
            "(SigLIP) or --tokenizer tokenizer.json (SigLIP 2)."
        )
    words = _tokenizer(tokenizer, known.model["text_cfg"]["context_length"])
    arrays = _by_layer(_read(path), path)
    pixels = known.model["vision_cfg"]["image_size"]
    try:
        config = _config(arrays, words, pixels, path)
    except ConfigError as error:
        raise CheckpointError(f"{path} holds no SigLIP: {error}") from error
    _require_named(config, known.model, architecture, path)
    tensors = dict(_tensors(config, partial(_take, arrays, path)))
    if arrays:
        raise CheckpointError(
            f"{path} has {next(iter(arrays))}, which a SigLIP has not. Use the file of a SigLIP."
        )
    if image_size is not None:
        config = _with_pixels(config, image_size)
        table, grid = tensors["image.positions"], _tower(config).side
        tensors["image.positions"] = resize_positions(table, grid, method="big_vision")
    transform, _ = read_transform(known.preprocess, image_size or pixels)
    notes = (
        f"{path.name} says nothing but numbers: the contract is that of {architecture}",
        "pictures are resized as open_clip does for these weights, with antialiasing; big_vision "
        "itself has none",
    )
    return Foreign(config, tensors, words, transform, "big_vision", notes)


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file without the prefix "params/"; the state of an optimizer is left out.

    Raises:
        CheckpointError: It is missing, damaged, or holds pickled objects, which are never opened.
    """
    try:
        _refuse_bomb(path)
        with np.load(path, allow_pickle=False) as file:
            names = list(file)
            inside = [name for name in names if name.startswith("params/")]
            return {name.removeprefix("params/"): _float(file[name]) for name in inside or names}
    except DAMAGED as error:
        raise CheckpointError(
            f"{path} cannot be read as an .npz file of numbers: {error}. Copy the file again."
        ) from error


def _refuse_bomb(path: Path) -> None:
    """Refuse a zip that would grow out of all proportion when it is opened.

    Raises:
        ValueError: It would.
    """
    with zipfile.ZipFile(path) as archive:
        inside, size = sum(part.file_size for part in archive.infolist()), path.stat().st_size
    if inside > GROWTH * size:
        raise ValueError(f"it has {size:,} bytes and says it holds {inside:,}")


def _float(array: np.ndarray) -> np.ndarray:
    """As float32; numpy knows bfloat16 only as two bytes without meaning."""
    if array.dtype == np.dtype("V2"):
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).float().numpy()
    if array.dtype.kind not in "fiu":
        raise ValueError(f"an array has the type {array.dtype}")
    return array.astype(np.float32, copy=False)


def _by_layer(arrays: dict[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    """The same with an array for each layer, where a scan has one for all."""
    apart: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        start, scanned, end = name.partition("/encoderblock/")
        if scanned and not array.ndim:
            raise CheckpointError(f"{path}: {name} is one number, and layers should be stacked.")
        layers = {f"{start}/encoderblock_{i}/{end}": one for i, one in enumerate(array)}
        apart |= layers if scanned else {name: array}
    return apart


def _tokenizer(path: Path, context: int) -> Tokenizer:
    """What big_vision makes of a text: A to Z in lower case, the end token always kept.

    Raises:
        RequestError: There is nothing at `path`.
        CheckpointError: There is no vocabulary, or it is of another kind.
    """
    if not path.exists():
        raise RequestError(f"there is no tokenizer at {path}. Check the path.")
    if path.is_dir():
        files = [path / name for name in ("tokenizer.json", *VOCABULARIES)]
        path = next((file for file in files if file.is_file()), files[0])
    if path.suffix != ".json":
        return sentencepiece_tokenizer(path, context)
    gemma = transformers_tokenizer(path.parent, context=context)
    inner = tokenizers.Tokenizer.from_str(gemma.to_json())
    end = gemma.rules.end
    inner.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, gemma.end_token)]
    )
    inner.enable_truncation(context, direction="right")
    padding = {"pad_id": gemma.pad_token, "pad_token": inner.id_to_token(gemma.pad_token)}
    inner.enable_padding(length=context, direction="right", **padding)
    rules = {"cleaning": ("lower_ascii",), "reads_special": False}
    return Tokenizer(inner, gemma.rules.model_copy(update=rules))


def _config(
    arrays: dict[str, np.ndarray], tokenizer: Tokenizer, pixels: int, path: Path
) -> DualEncoderConfig:
    """The shape of the model, from the shapes of its arrays.

    Raises:
        CheckpointError: An array that tells it is missing or has other axes.
        ConfigError: The shapes contradict each other.
    """

    def axes(name: str, count: int) -> tuple[int, ...]:
        if name not in arrays or arrays[name].ndim != count:
            found = list(arrays[name].shape) if name in arrays else "missing"
            raise CheckpointError(
                f"{path} is no SigLIP of big_vision: {name} is {found}, and should be an array of "
                f"{count} axes. Use the .npz file of a SigLIP of fixed resolution."
            )
        return arrays[name].shape

    def tower(start: str) -> dict[str, Any]:
        width, heads, _ = axes(f"{start}/encoderblock_0/{ATTENTION}/query/kernel", 3)
        hidden = axes(f"{start}/encoderblock_0/MlpBlock_0/Dense_0/kernel", 2)[1]
        layers = sum(
            name.startswith(f"{start}/encoderblock_") and name.endswith("/LayerNorm_0/scale")
            for name in arrays
        )
        return {"width": width, "heads": heads, "mlp_width": hidden, "layers": layers, **FLAX}

    patch = axes("img/embedding/kernel", 4)[0]
    image = ImageTowerConfig(
        image_size=pixels,
        patch_size=patch,
        cut_edge=pixels % patch != 0,
        class_token=False,
        pool="attention",
        pre_norm=False,
        patch_bias=True,
        **tower(IMAGE),
    )
    text = TextTowerConfig(
        vocabulary=axes("txt/Embed_0/embedding", 2)[0],
        context=axes("txt/pos_embedding", 3)[1],
        causal=False,
        pool="last",
        end_token=tokenizer.end_token,
        pad_token=tokenizer.pad_token,
        **tower(TEXT),
    )
    return DualEncoderConfig(
        image=image,
        text=text,
        embed=axes("txt/head/kernel", 2)[1],
        objective="sigmoid",
        initialisation="siglip",
        image_projection=False,
        text_projection_bias=True,
    )


def _require_named(
    config: DualEncoderConfig, named: dict[str, Any], architecture: str, path: Path
) -> None:
    """Refuse arrays of another architecture than the one that was named.

    Raises:
        CheckpointError: They differ.
    """
    wanted = {name: named["text_cfg"][name] for name in ("vocab_size", "context_length")}
    wanted["embed_dim"] = named["embed_dim"]
    found = {"vocab_size": config.text.vocabulary, "context_length": config.text.context}
    found["embed_dim"] = config.embed
    for name, value in wanted.items():
        if found[name] != value:
            raise CheckpointError(
                f"{path} has {name} {found[name]}, and {architecture} has {value}. "
                "Name the architecture that the file belongs to."
            )


def _tensors(config: DualEncoderConfig, take: Take) -> Iterator[tuple[str, Tensor]]:
    """Everything under our names and in our layout."""
    image, text = _tower(config), config.text
    width, patch = image.width, image.patch_size
    kernel = take("img/embedding/kernel", (patch, patch, 3, width))
    squares = kernel.transpose(3, 2, 0, 1).reshape(width, -1)
    yield "image.patches.project.weight", _tensor(squares)
    yield "image.patches.project.bias", _tensor(take("img/embedding/bias", (width,)))
    table = take("img/pos_embedding", (1, image.side**2, width))
    yield "image.positions", _tensor(table[0])
    yield from _blocks(take, IMAGE, "image", image)
    head, pool = "img/MAPHead_0", "image.pool"
    yield f"{pool}.probe", _tensor(take(f"{head}/probe", (1, 1, width)))
    inner = f"{head}/{ATTENTION}"
    yield from _inputs(take, inner, f"{pool}.attention.query", width, image.heads, ("query",))
    pair = ("key", "value")
    yield from _inputs(take, inner, f"{pool}.attention.key_value", width, image.heads, pair)
    yield from _output(take, inner, f"{pool}.attention.out", width, image.heads)
    yield from _norm(take, f"{head}/LayerNorm_0", f"{pool}.mlp_norm", width)
    yield from _mlp(take, f"{head}/MlpBlock_0", f"{pool}.mlp", width, image.mlp_width)

    tokens = take("txt/Embed_0/embedding", (text.vocabulary, text.width))
    yield "text.tokens.weight", _tensor(tokens)
    table = take("txt/pos_embedding", (1, text.context, text.width))
    yield "text.positions", _tensor(table[0])
    yield from _blocks(take, TEXT, "text", text)
    yield from _dense(take, "txt/head", "text_projection", text.width, config.embed)
    yield "log_scale", _tensor(take("t", (1,))[0])
    yield "bias", _tensor(take("b", (1,))[0])


def _blocks(
    take: Take, theirs: str, ours: str, tower: ImageTowerConfig | TextTowerConfig
) -> Iterator[tuple[str, Tensor]]:
    """The blocks of a tower and the norm behind them."""
    width, heads = tower.width, tower.heads
    for layer in range(tower.layers):
        block, name = f"{theirs}/encoderblock_{layer}", f"{ours}.blocks.{layer}"
        parts = ("query", "key", "value")
        fused = f"{name}.attention.query_key_value"
        yield from _norm(take, f"{block}/LayerNorm_0", f"{name}.attention_norm", width)
        yield from _inputs(take, f"{block}/{ATTENTION}", fused, width, heads, parts)
        yield from _output(take, f"{block}/{ATTENTION}", f"{name}.attention.out", width, heads)
        yield from _norm(take, f"{block}/LayerNorm_1", f"{name}.mlp_norm", width)
        yield from _mlp(take, f"{block}/MlpBlock_0", f"{name}.mlp", width, tower.mlp_width)
    yield from _norm(take, f"{theirs}/encoder_norm", f"{ours}.final_norm", width)


def _inputs(
    take: Take, theirs: str, ours: str, width: int, heads: int, parts: tuple[str, ...]
) -> Iterator[tuple[str, Tensor]]:
    """The linear layers into attention, as one."""
    each = width // heads
    kernels = [take(f"{theirs}/{part}/kernel", (width, heads, each)) for part in parts]
    yield f"{ours}.weight", _tensor(np.concatenate([k.reshape(width, width).T for k in kernels]))
    biases = [take(f"{theirs}/{part}/bias", (heads, each)) for part in parts]
    yield f"{ours}.bias", _tensor(np.concatenate([bias.reshape(-1) for bias in biases]))


def _output(
    take: Take, theirs: str, ours: str, width: int, heads: int
) -> Iterator[tuple[str, Tensor]]:
    """The linear layer out of attention."""
    kernel = take(f"{theirs}/out/kernel", (heads, width // heads, width))
    yield f"{ours}.weight", _tensor(kernel.reshape(width, width).T)
    yield f"{ours}.bias", _tensor(take(f"{theirs}/out/bias", (width,)))


def _mlp(
    take: Take, theirs: str, ours: str, width: int, hidden: int
) -> Iterator[tuple[str, Tensor]]:
    """Both layers of an MLP."""
    yield from _dense(take, f"{theirs}/Dense_0", f"{ours}.up", width, hidden)
    yield from _dense(take, f"{theirs}/Dense_1", f"{ours}.down", hidden, width)


def _dense(take: Take, theirs: str, ours: str, into: int, out: int) -> Iterator[tuple[str, Tensor]]:
    """A linear layer."""
    yield f"{ours}.weight", _tensor(take(f"{theirs}/kernel", (into, out)).T)
    yield f"{ours}.bias", _tensor(take(f"{theirs}/bias", (out,)))


def _norm(take: Take, theirs: str, ours: str, width: int) -> Iterator[tuple[str, Tensor]]:
    """A norm."""
    yield f"{ours}.weight", _tensor(take(f"{theirs}/scale", (width,)))
    yield f"{ours}.bias", _tensor(take(f"{theirs}/bias", (width,)))


def _take(
    arrays: dict[str, np.ndarray], path: Path, name: str, shape: tuple[int, ...]
) -> np.ndarray:
    """An array, taken out of the others.

    Raises:
        CheckpointError: It is missing or of another shape.
    """
    if name not in arrays:
        raise CheckpointError(f"{path} has no {name} {list(shape)}. Copy the file again.")
    array = arrays.pop(name)
    if array.shape != shape:
        raise CheckpointError(
            f"{path}: {name} has shape {list(array.shape)}, and the model wants {list(shape)}. "
            "Use the file of one SigLIP, with the name of its architecture."
        )
    return array


def _tensor(array: Any) -> Tensor:
    """A copy in torch's own memory, which begins where its kernels like it."""
    return torch.empty(np.shape(array)).copy_(torch.as_tensor(array))


def _tower(config: DualEncoderConfig) -> ImageTowerConfig:
    """The image tower, which is a vision transformer here."""
    assert isinstance(config.image, ImageTowerConfig)
    return config.image


def _with_pixels(config: DualEncoderConfig, pixels: int) -> DualEncoderConfig:
    """The same model for pictures of another size."""
    cut = pixels % _tower(config).patch_size != 0
    image = {**config.image.model_dump(), "image_size": pixels, "cut_edge": cut}
    return DualEncoderConfig(**{**config.model_dump(), "image": image})
