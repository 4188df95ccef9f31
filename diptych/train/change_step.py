"""One step of the change model: text, "did anything change?", "where?", and their gradients.

    loss = text_weight    * mean over the tokens of all texts, the start token left out
         + changed_weight * mean over the rows of which somebody knows whether something changed
         + place_weight   * mean over the patches of the rows that have a mask

Each mean is over the whole batch on all ranks, however it is shared out and cut into pieces: the
counts are known before the first piece is read. `step.py` has the step of dual encoders, in which
every row meets every other.
"""

from collections.abc import Iterable
from contextlib import nullcontext

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diptych.batch import ImagePairBatch
from diptych.comm import Comm
from diptych.data.transforms import ImageTransformConfig
from diptych.losses.change import answer_loss, changed_loss, place_loss
from diptych.models.change import ChangeModelConfig
from diptych.train.step import AnyBatch, pictures_of, pieces_of, without_averaging


class ChangeObjective:
    """From a batch of sequences to its loss."""

    def __init__(
        self,
        config: ChangeModelConfig,
        transform: ImageTransformConfig,
        comm: Comm,
        device: torch.device,
        *,
        bf16: bool,
        chunk: int | None = None,
    ) -> None:
        """Hold what every step needs.

        Args:
            config: Of the model: its padding, its patches, and the weights of the three losses.
            transform: Its mean and deviation normalise the pictures.
            comm: The processes that share the batch.
            device: Where the loss is computed.
            bf16: Run the model under autocast.
            chunk: Most sequences of this rank that the model takes at a time; None takes all.
        """
        self.config, self.transform, self.comm, self.device = config, transform, comm, device
        self.bf16, self.chunk = bf16, chunk

    def __call__(self, model: nn.Module, batch: AnyBatch) -> Tensor:
        """Loss of the whole batch, in nats (a scalar), all sequences read at once."""
        return self._loss(model, batch, slice(None), self._shares(batch))

    def backward(self, model: nn.Module, batch: AnyBatch) -> Tensor:
        """Add the gradients of the loss to those of the weights, by pieces if there is a `chunk`.

        Returns:
            The loss, as `__call__` gives it, without history.
        """
        pieces, shares = pieces_of(len(batch.image), self.chunk), self._shares(batch)
        whole = torch.zeros((), device=self.device)
        for piece in pieces:
            with nullcontext() if piece is pieces[-1] else without_averaging(model):
                loss = self._loss(model, batch, piece, shares)
                loss.backward()
            whole += loss.detach()
        return whole

    @torch.no_grad()
    def judge(self, model: nn.Module, batches: Iterable[AnyBatch]) -> float:
        """Mean loss over batches: the training objective, on pictures as evaluation sees them."""
        was_training = model.training
        model.eval()
        losses = []
        for batch in batches:
            shares = self._shares(batch)
            pieces = pieces_of(len(batch.image), self.chunk)
            losses.append(sum(self._loss(model, batch, piece, shares).item() for piece in pieces))
        model.train(was_training)
        return sum(losses) / len(losses)

    def _loss(
        self, model: nn.Module, batch: AnyBatch, rows: slice, shares: Float[Tensor, " 3"]
    ) -> Float[Tensor, ""]:
        """What some rows of each rank add to the loss."""
        assert isinstance(batch, ImagePairBatch)
        image = pictures_of(batch, rows, self.transform, self.device)
        text = batch.text[rows].to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            output = model(image, text)
        said, _ = answer_loss(output.text, text, self.config.text.pad_token)
        changed, _ = changed_loss(output.changed, batch.changed[rows].to(self.device))
        place = output.place.sum() * 0.0  # its weights have a gradient in any case, as DDP wants
        if batch.mask is not None:
            mask = batch.mask[rows].to(self.device)
            place, _ = place_loss(output.place, mask, self.config.image.patch_size)
        sums = self.comm.gather(torch.stack([said, changed, place])[None])  # (ranks, 3)
        return (sums.sum(dim=0) * shares).sum()

    def _shares(self, batch: AnyBatch) -> Float[Tensor, " 3"]:
        """What one token, one row and one patch count in the loss of the whole batch."""
        assert isinstance(batch, ImagePairBatch)
        config = self.config
        counts = [
            int((batch.text[:, 1:] != config.text.pad_token).sum()),
            int((~batch.changed.isnan()).sum()),
            0 if batch.mask is None else len(batch.mask) * config.image.side**2,
        ]
        mine = torch.tensor(counts, device=self.device)
        all_ranks = self.comm.gather_numbers(mine).view(-1, len(counts)).sum(dim=0)
        weights = [config.text_weight, config.changed_weight, config.place_weight]
        return torch.tensor(weights, device=self.device) / all_ranks.clamp(min=1)
