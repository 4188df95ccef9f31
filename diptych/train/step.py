"""One step of training: vectors, loss, gradients. And the same loss without gradients, to judge.

Every rank holds a share of the batch. Vectors are gathered, and each rank computes the loss of
the whole batch, so the loss does not depend on the number of ranks.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from diptych.batch import ContrastiveOutput, ImageTextBatch
from diptych.comm import Comm
from diptych.data.transforms import ImageTransformConfig, normalise
from diptych.losses.contrastive import sigmoid_contrastive, softmax_contrastive


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
    ) -> None:
        """Hold what every step needs.

        Args:
            transform: Its mean and deviation normalise the pictures.
            comm: The processes that share the batch.
            device: Where the loss is computed.
            bf16: Run the towers under autocast.
            tile: Side of the loss tiles held at once; None chooses.
        """
        self.transform, self.comm, self.device = transform, comm, device
        self.bf16, self.tile = bf16, tile

    def __call__(self, model: nn.Module, batch: ImageTextBatch) -> Tensor:
        """Loss of the whole batch, in nats per picture (a scalar)."""
        pixels = batch.image.to(self.device, non_blocking=True)
        image = normalise(pixels, self.transform.mean, self.transform.std)
        text = batch.text.to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            output: ContrastiveOutput = model(image, text)
        groups = self.comm.gather_numbers(batch.groups.to(self.device))
        every_image, every_text = self.comm.gather(output.image), self.comm.gather(output.text)
        if output.bias is None:
            return softmax_contrastive(
                every_image, every_text, output.scale, tile=self.tile, groups=groups
            )
        return sigmoid_contrastive(
            every_image, every_text, output.scale, output.bias, tile=self.tile, groups=groups
        )

    @torch.no_grad()
    def judge(self, model: nn.Module, batches: Iterable[ImageTextBatch]) -> float:
        """Mean loss over batches: the training objective, on pictures as evaluation sees them."""
        was_training = model.training
        model.eval()
        losses = [self(model, batch).item() for batch in batches]
        model.train(was_training)
        return sum(losses) / len(losses)


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
