"""Data parallelism on one machine's CPUs: single-threaded processes that sum gradients through shared memory.

One process per core with one meeting per step beats one process with a thread pool that meets at every operation,
most of all on a machine that also does other work. Every member takes the same optimizer step, so weights stay equal
without being sent. Owns no training logic; a team of one is the plain single-process case.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import nn

MEETING_TIMEOUT_S = 1800


@dataclass
class Team:
    """Member `rank` of `size`; `slots` (size, parameters) float32 in shared memory, None when alone."""

    rank: int = 0
    size: int = 1
    slots: torch.Tensor | None = None
    barrier: Any = None

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @torch.no_grad()
    def average_gradients(self, module: nn.Module) -> None:
        """Replaces every gradient by the mean over the team; summed in rank order, so all members agree to the bit."""
        if self.size == 1:
            return
        assert self.slots is not None
        parameters = [p for p in module.parameters() if p.requires_grad]
        gradients = [p.grad for p in parameters if p.grad is not None]
        torch.cat([gradient.flatten() for gradient in gradients], out=self.slots[self.rank])
        self.barrier.wait(MEETING_TIMEOUT_S)
        mean = self.slots.sum(0) / self.size
        self.barrier.wait(MEETING_TIMEOUT_S)
        for gradient, part in zip(gradients, mean.split([gradient.numel() for gradient in gradients])):
            gradient.copy_(part.view_as(gradient))


def run_team(train: Callable[..., None], args: Any, *, size: int, num_parameters: int) -> None:
    """Calls train(args, team) in `size` processes with one thread each, or here when `size` is 1."""
    if size == 1:
        train(args, Team())
        return
    context = mp.get_context("spawn")
    slots = torch.zeros(size, num_parameters).share_memory_()
    barrier = context.Barrier(size)
    mp.spawn(_member, (train, args, size, slots, barrier), nprocs=size)


def _member(rank: int, train: Callable[..., None], args: Any, size: int, slots: torch.Tensor, barrier: Any) -> None:
    torch.set_num_threads(1)
    train(args, Team(rank, size, slots, barrier))
