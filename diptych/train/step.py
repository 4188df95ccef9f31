"""One step of training: vectors, loss, gradients. And the same loss without gradients, to judge.

Every rank holds a share of the batch. Vectors are gathered, and each rank computes the loss of
the whole batch, so the loss does not depend on the number of ranks.

With `chunk`, gradients are cached (Gao et al., arXiv:2101.06983): the towers encode the batch
piece by piece without keeping anything for the backward pass, the loss of the whole batch gives
the gradient of every vector, and each piece is encoded again to pass its share on to the weights.
The loss and all gradients are those of the plain step, but for batch norm, which normalises each
piece by its own statistics; the activations kept at a time are those of one piece; the towers run
forwards twice, a third more work.

The same holds for dual encoders of sequences of pictures. The step of the change model is in
`change_step.py`.
"""

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel

from diptych.batch import ContrastiveOutput, ImagePairBatch, ImageTextBatch
from diptych.comm import Comm
from diptych.data.transforms import ImageTransformConfig, normalise
from diptych.losses.change import changed_loss
from diptych.losses.contrastive import sigmoid_contrastive, softmax_contrastive

AnyBatch = ImageTextBatch | ImagePairBatch
"""What a step is made of: single pictures with texts, or sequences of pictures with texts."""


class Objective:
    """From a batch to its loss."""

    def __init__(
        self,
        transform: ImageTransformConfig,
        comm: Comm,
        device: torch.device,
        *,
        bf16: bool,
        tile: int | None,
        chunk: int | None = None,
        changed_weight: float = 1.0,
    ) -> None:
        """Hold what every step needs.

        Args:
            transform: Its mean and deviation normalise the pictures.
            comm: The processes that share the batch.
            device: Where the loss is computed.
            bf16: Run the towers under autocast.
            tile: Side of the loss tiles held at once; None chooses.
            chunk: Most pairs of this rank that the towers take at a time; None takes all.
            changed_weight: Of the loss of "did anything change?", where the model asks it.
        """
        self.transform, self.comm, self.device = transform, comm, device
        self.bf16, self.tile, self.chunk = bf16, tile, chunk
        self.changed_weight = changed_weight

    def __call__(self, model: nn.Module, batch: AnyBatch) -> Tensor:
        """Loss of the whole batch, in nats per picture (a scalar), all pairs encoded at once."""
        return self._loss(self._encode(model, batch, slice(None)), batch)

    def backward(self, model: nn.Module, batch: AnyBatch) -> Tensor:
        """Add the gradients of the loss to those of the weights, by pieces if there is a `chunk`.

        With batch norm the result depends on `chunk`: a piece is normalised by its own statistics,
        and running statistics move once per piece.

        Returns:
            The loss, as `__call__` gives it, without history.
        """
        pieces = self._pieces(batch)
        if len(pieces) == 1:
            loss = self(model, batch)
            loss.backward()
            return loss.detach()
        devices = [] if self.device.type == "cpu" else [self.device]
        with torch.random.fork_rng(devices, device_type=self.device.type):
            output = _leaves(self._encode_pieces(model, batch, pieces))
        loss = self._loss(output, batch)
        loss.backward()
        for piece in pieces:  # draws the same random numbers again
            last = piece is pieces[-1]
            with nullcontext() if last else without_averaging(model):
                _pass_on(self._encode(model, batch, piece), output, piece, last=last)
        return loss.detach()

    @torch.no_grad()
    def judge(self, model: nn.Module, batches: Iterable[AnyBatch]) -> float:
        """Mean loss over batches: the training objective, on pictures as evaluation sees them."""
        was_training = model.training
        model.eval()
        losses = []
        for batch in batches:
            output = self._encode_pieces(model, batch, self._pieces(batch))
            losses.append(self._loss(output, batch).item())
        model.train(was_training)
        return sum(losses) / len(losses)

    def _pieces(self, batch: AnyBatch) -> list[slice]:
        """The rows that the towers take at a time."""
        return pieces_of(len(batch.image), self.chunk)

    def _encode(
        self, model: Callable[..., ContrastiveOutput], batch: AnyBatch, rows: slice
    ) -> ContrastiveOutput:
        """Vectors of some rows of this rank's share."""
        image = pictures_of(batch, rows, self.transform, self.device)
        text = batch.text[rows].to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return model(image, text)

    @torch.no_grad()
    def _encode_pieces(
        self, model: nn.Module, batch: AnyBatch, pieces: list[slice]
    ) -> ContrastiveOutput:
        """Vectors of this rank's share, without history; running statistics stay as they are."""
        inner = model.module if isinstance(model, DistributedDataParallel) else model
        buffers = {name: buffer.clone() for name, buffer in inner.named_buffers()}

        def apart(*inputs: Tensor) -> ContrastiveOutput:
            return functional_call(inner, buffers, inputs)

        outputs = [self._encode(apart, batch, piece) for piece in pieces]
        return ContrastiveOutput(
            image=torch.cat([output.image for output in outputs]),
            text=torch.cat([output.text for output in outputs]),
            scale=outputs[0].scale,
            bias=outputs[0].bias,
            changed=_joined([output.changed for output in outputs]),
        )

    def _loss(self, output: ContrastiveOutput, batch: AnyBatch) -> Tensor:
        """Loss of the whole batch from the vectors of this rank's share."""
        groups = self.comm.gather_numbers(batch.groups.to(self.device))
        image, text = self.comm.gather(output.image), self.comm.gather(output.text)
        scale, bias = output.scale, output.bias
        if bias is None:
            loss = softmax_contrastive(image, text, scale, tile=self.tile, groups=groups)
        else:
            loss = sigmoid_contrastive(image, text, scale, bias, tile=self.tile, groups=groups)
        return loss + self.changed_weight * self._changed_loss(output, batch)

    def _changed_loss(self, output: ContrastiveOutput, batch: AnyBatch) -> Tensor | float:
        """How badly "did anything change?" was answered, per row of which somebody knows; 0 where
        it is not asked."""
        if output.changed is None or not isinstance(batch, ImagePairBatch):
            return 0.0
        each = self.comm.gather(output.changed[:, None])[:, 0]
        known = self.comm.gather(batch.changed.to(self.device)[:, None])[:, 0]
        total, count = changed_loss(each, known)
        return total / count.clamp(min=1)


def pictures_of(
    batch: AnyBatch, rows: slice, transform: ImageTransformConfig, device: torch.device
) -> Float[Tensor, "rows *images 3 height width"]:
    """The pictures of some rows as the towers take them, sequences as sequences."""
    pixels = batch.image[rows].to(device, non_blocking=True)
    image = normalise(pixels.flatten(0, -4), transform.mean, transform.std)
    return image.unflatten(0, pixels.shape[:-3])


def pieces_of(rows: int, chunk: int | None) -> list[slice]:
    """Cut range(rows) into as few pieces of at most `chunk` as can be, as even as can be: no piece
    is smaller than another by more than one. None cuts nothing."""
    count = -(-rows // (chunk or rows))
    return [slice(rows * i // count, rows * (i + 1) // count) for i in range(count)]


def chance_loss(objective: str, batch: int) -> float:
    """Loss of a model that cannot tell pairs apart: the best it can do with one constant logit.

    softmax: ln(n). sigmoid: each pair is true with probability 1/n, which costs
    ln(n) + (n - 1) ln(n / (n - 1)) nats per picture.
    """
    if objective == "softmax":
        return math.log(batch)
    return math.log(batch) + (batch - 1) * math.log(batch / (batch - 1))


def has_fast_bf16(device: torch.device) -> bool:
    """True where bf16 matrix products run in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def _leaves(output: ContrastiveOutput) -> ContrastiveOutput:
    """The same numbers as leaves, to take up their gradients."""

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.detach().requires_grad_()

    bias = None if output.bias is None else leaf(output.bias)
    changed = None if output.changed is None else leaf(output.changed)
    vectors = leaf(output.image), leaf(output.text)
    return ContrastiveOutput(*vectors, leaf(output.scale), bias, changed)


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    """The parts one after the other; None where the model gives none."""
    there = [part for part in parts if part is not None]
    return torch.cat(there) if there else None


def _pass_on(
    piece: ContrastiveOutput, whole: ContrastiveOutput, rows: slice, *, last: bool
) -> None:
    """Pass the gradients of the whole batch on through one piece: those of its rows, and with the
    last piece those of scale and bias."""
    pairs = [(piece.image, _gradient(whole.image)[rows]), (piece.text, _gradient(whole.text)[rows])]
    if piece.changed is not None and whole.changed is not None:
        pairs.append((piece.changed, _gradient(whole.changed)[rows]))
    if last:
        pairs.append((piece.scale, _gradient(whole.scale)))
        if piece.bias is not None and whole.bias is not None:
            pairs.append((piece.bias, _gradient(whole.bias)))
    learning = [pair for pair in pairs if pair[0].requires_grad]  # a tower may be frozen
    torch.autograd.backward([pair[0] for pair in learning], [pair[1] for pair in learning])


def _gradient(leaf: Tensor) -> Tensor:
    """What the loss left there."""
    assert leaf.grad is not None
    return leaf.grad


def without_averaging(model: nn.Module) -> AbstractContextManager[None]:
    """Until the last piece, gradients add up on each rank; then they are averaged once."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()
