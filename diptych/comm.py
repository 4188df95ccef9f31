"""Talking between the processes of one run: rank, size, gathering, averaging.

One process is the plain case and needs no torch.distributed. Under `torchrun` the same calls go
over the process group. What needs to talk is handed a `Comm`; nothing looks for one.
"""

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64
from torch import Tensor

from diptych.errors import RequestError


class _GatherRows(torch.autograd.Function):
    """All ranks' rows, in rank order; the gradient of our rows comes back to us.

    Every rank computes the same loss over all rows, so our copy of the loss already holds the
    whole gradient of our rows. It is multiplied by the number of ranks because the gradients of
    the weights are averaged over ranks afterwards.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, rank: int, size: int) -> Tensor:
        """Rows of all ranks."""
        parts = [torch.empty_like(rows) for _ in range(size)]
        dist.all_gather(parts, rows.contiguous())
        ctx.rank, ctx.size, ctx.count = rank, size, len(rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor, None, None]:
        """The part of the gradient that belongs to our rows."""
        start = ctx.rank * ctx.count
        return gradient[0][start : start + ctx.count] * ctx.size, None, None


@dataclass(frozen=True)
class Comm:
    """This process among those of the run."""

    rank: int = 0
    """Which process this is, from 0."""

    size: int = 1
    """How many there are."""

    local_rank: int = 0
    """Which process of this machine; chooses the GPU."""

    @property
    def first(self) -> bool:
        """True for the one process that writes files and speaks."""
        return self.rank == 0

    def gather(self, rows: Float[Tensor, "rows embed"]) -> Float[Tensor, "all_rows embed"]:
        """The rows of all ranks, in rank order, with gradient. Ranks hold equally many."""
        if self.size == 1:
            return rows
        return _GatherRows.apply(rows, self.rank, self.size)

    def gather_numbers(self, rows: Int64[Tensor, " rows"]) -> Int64[Tensor, " all_rows"]:
        """Whole numbers of all ranks, in rank order; no gradient."""
        if self.size == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.size)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    def agree(self, value: Any) -> Any:
        """The first rank's value, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def collect(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order, on every rank."""
        if self.size == 1:
            return [value]
        box: list[Any] = [None] * self.size
        dist.all_gather_object(box, value)
        return box

    def wait(self) -> None:
        """Until every rank is here."""
        if self.size > 1:
            dist.barrier()


def join_processes(device: str) -> Comm:
    """The `Comm` of this process: alone, or among those that `torchrun` started.

    Raises:
        RequestError: torchrun's environment is incomplete.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Comm()
    if "RANK" not in os.environ:
        raise RequestError(
            f"WORLD_SIZE is {size} but RANK is not set. Start the processes with torchrun."
        )
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "cuda":
        torch.cuda.set_device(local_rank)  # collectives of objects use the current device
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device == "cuda" else "gloo")
    return Comm(dist.get_rank(), dist.get_world_size(), local_rank)


def leave_processes() -> None:
    """End the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
