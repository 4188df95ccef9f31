"""The vision transformer that reads each picture in the light of those before it.

Layer l of picture t reads the input of layer l of picture t - 1 (of the last `window` pictures).
There is no recurrence over time: a pack of sequences runs as one batch, and a picture knows of one
more picture before it per layer. A stream keeps those inputs in a `State`, so that each new picture
costs one picture.

    tokens = encoder.packed(images, image_counts=[3, 1, 2])  # six pictures, three sequences
    tokens, state = encoder(image, state)  # the next picture of each stream

How a block reads is in `nn/state.py`; `image_tower.py` is the same transformer for single pictures.
Paper: Wang et al., Stateful Visual Encoders, arXiv:2606.04433, section 3 and appendix A.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.errors import CheckpointError, ConfigError
from diptych.files import fingerprint
from diptych.models.image_tower import ImageTower, ImageTowerConfig, VisionTransformer
from diptych.nn.blocks import Block
from diptych.nn.init import Scheme
from diptych.nn.state import (
    READING_FIRST,
    CrossBlock,
    Past,
    StateBlock,
    StateConfig,
    make_state_block,
    start_state_block,
)
from diptych.tensors import letters_of, load_tensors, save_tensors, text_of, weights_mark


@dataclass(frozen=True)
class State:
    """What a stream remembers of its last pictures; one row for each stream of a batch."""

    inputs: tuple[Float[Tensor, "batch pictures tokens width"], ...]
    """For each layer the tokens that went into it, the newest picture first."""

    seen: int
    """Pictures since the beginning of the stream."""

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name, to stand in a file."""
        inputs = {f"layers.{number}": kept for number, kept in enumerate(self.inputs)}
        return inputs | {"seen": torch.tensor(self.seen)}

    @staticmethod
    def of_tensors(tensors: Mapping[str, Tensor]) -> "State":
        """What `tensors` gave."""
        inputs = tuple(tensors[f"layers.{number}"] for number in range(len(tensors) - 1))
        return State(inputs, int(tensors["seen"]))

    def save(self, path: Path, encoder: "StatefulEncoder") -> None:
        """Write it as safetensors, with the mark of the encoder that made it.

        Raises:
            StorageError: The disk refused.
        """
        save_tensors(path, self.tensors() | {"encoder": letters_of(encoder.mark())})

    @staticmethod
    def load(path: Path, encoder: "StatefulEncoder") -> "State":
        """Read the state of a stream of this encoder, onto the encoder's device.

        Raises:
            CheckpointError: The file is missing or damaged, or another encoder made it.
        """
        tensors = load_tensors(path)
        theirs, ours = text_of(tensors.pop("encoder", None)), encoder.mark()
        seen = tensors.get("seen")
        if not theirs or seen is None or seen.dtype != torch.int64 or seen.numel() != 1:
            raise CheckpointError(
                f"{path} is no state of a stream: it holds {', '.join(sorted(tensors)[:3])}. "
                "Use a file that State.save wrote."
            )
        layers = {f"layers.{number}" for number in range(len(encoder.blocks))}
        if theirs != ours or set(tensors) != layers | {"seen"}:
            raise CheckpointError(
                f"{path} is the state of another encoder (fingerprint {theirs}, this one has "
                f"{ours}). Load the model that made it, or begin the stream anew."
            )
        device = encoder.positions.device
        return State.of_tensors({name: tensor.to(device) for name, tensor in tensors.items()})


@dataclass(frozen=True)
class Links:
    """Which pictures of a pack each of them reads."""

    source: Int64[Tensor, " read"]
    """For each picture and each age the number of the picture read, its own where there is none."""

    visible: Bool[Tensor, "total window"]
    """Whether there is such a picture."""

    first: Int64[Tensor, " sequences"]
    """Numbers of the pictures that begin a sequence."""


def link(image_counts: Sequence[int], window: int, device: torch.device) -> Links:
    """Which pictures are read in a pack of sequences, for pictures in the order of the sequences.

    Args:
        image_counts: Pictures of each sequence, 1 or more.
        window: Pictures before that are read.
        device: Where the result lies.
    """
    counts = torch.tensor(image_counts, device=device)
    first = counts.cumsum(0) - counts
    number = torch.arange(sum(image_counts), device=device)
    place = number - first.repeat_interleave(counts, output_size=len(number))
    ages = torch.arange(1, window + 1, device=device)
    visible = place[:, None] >= ages
    source = number[:, None] - ages * visible
    return Links(source.flatten(), visible, first)


class StatefulEncoder(VisionTransformer):
    """A vision transformer whose blocks read the pictures before."""

    def __init__(self, config: ImageTowerConfig, scheme: Scheme) -> None:
        if config.state.variant == "none":
            raise ConfigError(
                "a StatefulEncoder reads the pictures before, and state.variant is 'none'. "
                "Use state=cross_ffn, or build an ImageTower."
            )
        super().__init__(config, scheme)
        self.state_blocks = nn.ModuleList()
        for host in self.blocks:
            assert isinstance(host, Block)
            self.state_blocks.append(make_state_block(host, config.side, config.state))
        self.start_state(scheme)
        if config.frozen:
            self.requires_grad_(False)

    def start_state(self, scheme: Scheme) -> None:
        """Give the added weights their start, from the blocks as they are now."""
        for host, block in zip(self.blocks, self.state_blocks, strict=True):
            assert isinstance(host, Block)
            assert isinstance(block, StateBlock)
            start_state_block(block, host, self.config.layers, self.config.state, scheme)

    def mark(self) -> str:
        """Sixteen hexadecimal digits that change with the weights and with the config."""
        return fingerprint(self.config.model_dump_json(), weights_mark(self.state_dict()))

    def forward(
        self, image: Float[Tensor, "batch 3 size size"], state: State | None = None
    ) -> tuple[Float[Tensor, "batch tokens width"], State]:
        """The next picture of each stream.

        Args:
            image: One picture for each stream.
            state: What the call for the picture before returned; None begins the streams.

        Returns:
            The normalised tokens after the last block, and the state for the next picture.

        Raises:
            ValueError: The state is of another number of streams, or of another encoder.
        """
        tokens = self.embed(image)
        before: Sequence[Tensor | None] = [None] * self.config.layers
        if state is not None:
            self._check_state(state, tokens)
            before = state.inputs
        kept = []

        def read(number: int, tokens: Tensor) -> Past:
            kept.append(self._kept(tokens, before[number]))
            return self._streamed(number, tokens, before[number])

        tokens = self._through(tokens, read)
        return tokens, State(tuple(kept), 1 + (0 if state is None else state.seen))

    def packed(
        self, images: Float[Tensor, "total 3 size size"], image_counts: Sequence[int]
    ) -> Float[Tensor, "total tokens width"]:
        """All pictures of several sequences at once: the tokens that streams would have.

        Args:
            images: The pictures of the first sequence, oldest first, then those of the next.
            image_counts: Pictures of each sequence, such as [3, 1, 2] for six pictures.

        Returns:
            The normalised tokens after the last block.

        Raises:
            ValueError: The counts are missing, below 1, or of more or fewer pictures.
        """
        check_counts(image_counts, len(images))
        links = link(image_counts, self.config.state.window, images.device)
        return self._through(
            self.embed(images), lambda number, tokens: self._linked(number, tokens, links)
        )

    def update(
        self, images: Float[Tensor, "total 3 size size"], image_counts: Sequence[int]
    ) -> Float[Tensor, "total patches"]:
        """How much the pictures before changed each patch: a heat map that needs no training.

            for each patch: mean of (token - token had the picture read itself) ** 2

        Arguments and errors are those of `packed`. Paper: arXiv:2606.04433, feature analysis.
        """
        told = self.packed(images, image_counts)
        alone = self._through(self.embed(images), lambda number, tokens: Past(tokens, None))
        return (told - alone).square().mean(dim=-1)[:, int(self.config.class_token) :]

    def _through(
        self,
        tokens: Float[Tensor, "batch tokens width"],
        read: Callable[[int, Tensor], Past],
    ) -> Float[Tensor, "batch tokens width"]:
        """All blocks, each with what `read` gives for its number and its input."""
        for number, host in enumerate(self.blocks):
            tokens = self.state_blocks[number](host, tokens, read(number, tokens))
        return self.final_norm(tokens)

    def _kept(
        self,
        tokens: Float[Tensor, "batch tokens width"],
        before: Float[Tensor, "batch pictures tokens width"] | None,
    ) -> Float[Tensor, "batch kept tokens width"]:
        """What a layer's state holds from now on."""
        config = self.config.state
        newest = (tokens.detach() if config.stop_gradient else tokens)[:, None]
        return newest if before is None else torch.cat([newest, before], dim=1)[:, : config.window]

    def _streamed(
        self,
        number: int,
        tokens: Float[Tensor, "batch tokens width"],
        before: Float[Tensor, "batch pictures tokens width"] | None,
    ) -> Past:
        """What the next pictures read at a layer."""
        config = self.config.state
        if config.variant == "self_ffn":
            return Past(tokens, None)
        if before is None:
            reads = config.variant in READING_FIRST
            return Past(self._first(number, tokens) if reads else tokens[:, :0], None)
        before = before.detach() if config.stop_gradient else before
        return Past(before.flatten(1, 2), None)

    def _linked(
        self, number: int, tokens: Float[Tensor, "total tokens width"], links: Links
    ) -> Past:
        """What the pictures of a pack read at a layer."""
        config = self.config.state
        if config.variant == "self_ffn":
            return Past(tokens, None)
        source = tokens.detach() if config.stop_gradient else tokens
        read = source.index_select(0, links.source)
        visible = links.visible
        if config.variant in READING_FIRST:
            own = self._first(number, tokens.index_select(0, links.first))
            read.index_copy_(0, links.first * config.window, own)
            visible = F.pad(visible[:, 1:], (1, 0), value=True)
        total, count, width = tokens.shape
        whole = config.window == 1 and config.variant in READING_FIRST
        seen = None if whole else visible.repeat_interleave(count, dim=1)
        return Past(read.view(total, -1, width), seen)

    def _first(
        self, number: int, tokens: Float[Tensor, "batch tokens width"]
    ) -> Float[Tensor, "batch tokens width"]:
        """What pictures with none before them read."""
        block = self.state_blocks[number]
        null = block.null if isinstance(block, CrossBlock) else None
        return tokens if null is None else null.to(tokens.dtype).expand_as(tokens)

    def _check_state(self, state: State, tokens: Float[Tensor, "batch tokens width"]) -> None:
        """Refuse the state of other streams, or of another encoder.

        Raises:
            ValueError: Says what both are.
        """
        batch, count, width = tokens.shape
        layers, window = self.config.layers, self.config.state.window
        shapes = {tuple(kept.shape) for kept in state.inputs}
        pictures = min(state.seen, window)
        if len(state.inputs) != layers or shapes != {(batch, pictures, count, width)}:
            raise ValueError(
                f"the state has {len(state.inputs)} layers of shape {sorted(shapes)}, and for "
                f"{batch} pictures this encoder reads {layers} of shape "
                f"{(batch, pictures, count, width)}. Give the state that it returned for the "
                "pictures before, or None to begin."
            )


def check_counts(image_counts: Sequence[int], total: int) -> None:
    """Refuse counts that do not tell which sequence each picture belongs to.

    Raises:
        ValueError: They are missing, below 1, or of more or fewer pictures than `total`.
    """
    if len(image_counts) == 0:
        raise ValueError(
            f"image_counts is empty, so which of {total} pictures follow each other is unknown. "
            f"Give the pictures of each sequence, such as [{total}] for one."
        )
    if min(image_counts) < 1:
        raise ValueError(
            f"image_counts has {min(image_counts)}, and a sequence has at least 1 picture. "
            "Leave empty sequences out."
        )
    if sum(image_counts) != total:
        raise ValueError(
            f"image_counts sums to {sum(image_counts)}, and there are {total} pictures. "
            f"Give the pictures of each sequence, such as [{total}] for one."
        )


def make_stateful(
    tower: ImageTower, state: StateConfig, scheme: Scheme = "clip"
) -> StatefulEncoder:
    """A stateful encoder with the weights of a trained tower, which begins as that tower.

    Until it is trained its tokens are those of the tower, bit by bit, for `output_std` 0; but for
    "self_ext", which adds no weights and reads the pictures before at once.

    Args:
        tower: Its weights are copied.
        state: How the pictures before are read.
        scheme: How added weights are drawn if `state.clone` is false.

    Raises:
        ConfigError: The tower cannot have such a state.
    """
    values = tower.config.model_dump() | {"state": state.model_dump()}
    encoder = StatefulEncoder(ImageTowerConfig(**values), scheme)
    encoder.load_state_dict(encoder.state_dict() | tower.state_dict())
    encoder.start_state(scheme)
    return encoder.to(tower.positions).train(tower.training)
