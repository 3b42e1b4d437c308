"""The canvas of `dispatch.mode=allreduce`: every worker holds all of it, and an accumulator of its own predictions.

    predict  N += w_i * coefficient * m_i, for the windows of each batch and branch this worker is given
    commit   N <- sum of N over workers; every cell steps

A commit that fails leaves everything as it was, and one that the others have not finished can be undone.
"""

import math

import torch

from fresco_dist.runtime.collectives import Group
from fresco_dist.runtime.step import Denoiser, Fusion
from fresco_dist.schedule.execute import OutOfStep


class ReplicatedCanvas:
    """A canvas being denoised; all workers hold the same canvas and each its own accumulator."""

    def __init__(self, denoiser: Denoiser) -> None:
        layout = denoiser.layout
        self._denoiser = denoiser
        self._cells = [denoiser.first_cell(cell) for cell in range(len(layout.cells))]
        # One buffer for one collective: the numerator, and behind it the number of predictions that are in it.
        self._sums = torch.zeros(
            math.prod(layout.latent_shape) + 1, dtype=torch.int32, device=denoiser.noise_CTHW.device
        )
        self._counted: set[tuple[int, int]] = set()
        self._before: tuple | None = None  # the state before the last commit
        self.step = 0
        self.x_CTHW = denoiser.noise_CTHW

    def predict(self, step: int, batch: int, branch: int) -> None:
        """Predict a batch of windows for one branch and add it to the accumulator, once."""
        self._check(step)
        assert (batch, branch) not in self._counted, f"batch {batch}, branch {branch} counted twice"
        windows = [self._denoiser.layout.windows[i].slices for i in self._denoiser.layout.batches[batch]]
        totals = [self._numerator(self._sums)[(..., *slices)] for slices in windows]
        x_BCTHW = torch.stack([self.x_CTHW[(..., *slices)] for slices in windows])
        self._denoiser.predict_(totals, x_BCTHW, step, batch, branch)
        self._counted.add((batch, branch))
        self._sums[-1] += len(windows)

    def commit(self, step: int, group: Group, prior_CTHW: torch.Tensor | None, fusion: Fusion) -> None:
        """Finish a step: reduce a copy of the accumulator, fuse and step every cell."""
        self._check(step)
        sums = group.sum_(self._sums.clone())
        num_needed = len(self._denoiser.layout.windows) * len(self._denoiser.branches_at(step))
        if sums[-1] != num_needed:
            raise OutOfStep(f"{sums[-1]} of {num_needed} predictions are in")
        N_CTHW, x_CTHW, cells = self._numerator(sums), torch.empty_like(self.x_CTHW), []
        for i, cell in enumerate(self._denoiser.layout.cells):
            rows, columns = cell.slices
            total_CTHW = N_CTHW[..., rows, columns].contiguous()
            cells.append(self._denoiser.step(self._cells[i], step, i, total_CTHW, *fusion.at(step, i, prior_CTHW)))
            x_CTHW[..., rows, columns] = cells[i].x_CTHW
        self._before = (self._cells, self._sums, self._counted, self.x_CTHW)
        self._cells, self._sums, self._counted, self.x_CTHW = cells, torch.zeros_like(sums), set(), x_CTHW
        self.step += 1

    def undo(self, step: int) -> None:
        """Go back to before the commit of `step`, if that was the last one here."""
        if self.step == step + 1:
            assert self._before is not None
            self._cells, self._sums, self._counted, self.x_CTHW = self._before
            self.step = step

    def _numerator(self, sums: torch.Tensor) -> torch.Tensor:
        return sums[:-1].view(self._denoiser.layout.latent_shape)

    def _check(self, step: int) -> None:
        if step != self.step:
            raise OutOfStep(f"asked for step {step}, but the canvas is at step {self.step}")
