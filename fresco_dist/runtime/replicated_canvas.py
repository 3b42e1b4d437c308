"""The canvas of `dispatch.mode=allreduce`: every worker holds all of it, and an accumulator of its own predictions.

    predict  N += w_i * coefficient * m_i, for the windows of each batch and branch this worker is given
    commit   N <- sum of N over workers; every cell steps: the next canvas

A canvas never changes, so that several may be made from it, or the same once more.
"""

import math
from functools import cached_property
from typing import Any

import numpy as np
import torch

from fresco_dist.runtime.collectives import Group
from fresco_dist.runtime.step import Cell, Denoiser, Guidance
from fresco_dist.schedule.execute import OutOfStep


class ReplicatedCanvas:
    """A canvas between two steps; all workers hold the same, and each its own accumulator for the next one."""

    def __init__(self, denoiser: Denoiser, cells: list[Cell]) -> None:
        self._denoiser, self.cells = denoiser, cells
        self.looks: dict[int, np.ndarray] = {}  # at this worker's share of the cells, see `Denoiser.look`
        self.x_CTHW = torch.empty(denoiser.level.latent_shape, device=denoiser.device)
        for window, cell in zip(denoiser.level.cells, cells, strict=True):
            self.x_CTHW[(..., *window.slices)] = cell.x_CTHW
        self._counted: set[tuple[int, int]] = set()

    @cached_property
    def _sums(self) -> torch.Tensor:
        """One buffer for one collective: the numerator, and behind it the number of predictions that are in it."""
        size = math.prod(self._denoiser.level.latent_shape) + 1
        return torch.zeros(size, dtype=torch.int32, device=self._denoiser.device)

    def predict(self, step: int, batch: int, branch: int) -> None:
        """Predict a batch of windows for one branch and add it to the accumulator, once."""
        assert (batch, branch) not in self._counted, f"batch {batch}, branch {branch} counted twice"
        program = self._denoiser.level.at(step)
        windows = [program.grid.windows[i].slices for i in program.batches[batch].windows]
        totals = [self._numerator(self._sums)[(..., *slices)] for slices in windows]
        x_BCTHW = torch.stack([self.x_CTHW[(..., *slices)] for slices in windows])
        self._denoiser.predict_(totals, x_BCTHW, step, batch, branch)
        self._counted.add((batch, branch))
        self._sums[-1] += len(windows)

    def commit(self, step: int, group: Group, prior: Guidance | None, residual: Guidance | None) -> "ReplicatedCanvas":
        """The canvas after a step: reduce a copy of the accumulator, fuse and step every cell."""
        sums = group.sum_(self._sums.clone())
        num_needed = self._denoiser.level.at(step).num_forwards
        if sums[-1] != num_needed:
            raise OutOfStep(f"{sums[-1]} of {num_needed} predictions are in")
        N_CTHW, cells, looks = self._numerator(sums), [], {}
        for i, window in enumerate(self._denoiser.level.cells):
            total_CTHW, before = N_CTHW[(..., *window.slices)].contiguous(), self.cells[i]
            m_CTHW = self._denoiser.fuse(before, step, i, total_CTHW, prior)
            if i % group.world_size == group.rank:
                looks[i] = self._denoiser.look(before, m_CTHW, step, i)
            cells.append(self._denoiser.step(before, m_CTHW, step, i, residual))
        after = ReplicatedCanvas(self._denoiser, cells)
        after.looks = {i: look for i, look in looks.items() if look is not None}
        return after

    def _numerator(self, sums: torch.Tensor) -> Any:
        return sums[:-1].view(self._denoiser.level.latent_shape)
