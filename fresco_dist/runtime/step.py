"""One denoising step as pure functions of a window and of a cell (Algorithm 1 of the paper).

    predict  w_i * coefficient * m_i on a batch of windows, for one guidance branch, in fixed point
    step     N = sum of those; m* = fused N, D, x, z; x <- noise scheduler's step of m*, on one cell

Knows nothing of how windows and cells are handed out. Shapes: C channels, T latent frames, H, W latent cells.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fresco_dist.config import Config
from fresco_dist.method.fixed_point import accumulate_, check_range, choose_scale, to_float
from fresco_dist.method.fusion import fuse_, resize_prior, strength_map
from fresco_dist.method.noise import gaussian_noise
from fresco_dist.method.prediction import scheduler_coefficients
from fresco_dist.method.prior_strength import prior_strengths
from fresco_dist.method.weights import denominator, window_weight
from fresco_dist.models.backbone import Backbone
from fresco_dist.models.conditioning import Conditioning
from fresco_dist.schedule.plan import Branch, Layout, counting


@dataclass(frozen=True)
class Cell:
    """A cell of the canvas between two steps: its latents (C, T, H, W) and the noise scheduler with its history."""

    x_CTHW: torch.Tensor
    scheduler: Any


class Denoiser:
    """What all steps on one canvas have in common: weights, condition, prompts, first noise. Never changes."""

    def __init__(
        self,
        backbone: Backbone,
        layout: Layout,
        branches: tuple[Branch, ...],
        *,
        config: Config,
        stream: int,
        condition: Conditioning,
        prompt_embeds: torch.Tensor,
    ) -> None:
        device = condition.canvas_CTHW.device
        self.layout, self.branches = layout, branches
        self._backbone = backbone
        self._condition = condition
        self._prompt_embeds = prompt_embeds.to(device)
        sampler, num_steps = config.sampler, layout.num_steps
        self._scheduler = backbone.make_scheduler(num_steps, sampler.shift, sampler.sigmas_for(num_steps))
        weights = [window_weight(w, layout.canvas, layout.overlap, config.tiles.min_weight) for w in layout.windows]
        self._D_HW = denominator(layout.windows, weights, layout.canvas).to(device)
        self._weights = [weight_HW.to(device) for weight_HW in weights]
        self._scale = choose_scale(float(self._D_HW.max()), sum(branch.largest for branch in branches))
        self.noise_CTHW = gaussian_noise(layout.latent_shape, seed=config.seed, stream=stream, device=device)

    def first_cell(self, cell: int) -> Cell:
        """A cell before step 0."""
        rows, columns = self.layout.cells[cell].slices
        return Cell(self.noise_CTHW[..., rows, columns].contiguous(), self._scheduler)

    def branches_at(self, step: int) -> list[int]:
        """The branches that are predicted at a step."""
        return counting(self.branches, self.layout.stages[step])

    def predict_(
        self, totals: Sequence[torch.Tensor], x_BCTHW: torch.Tensor, step: int, batch: int, branch: int
    ) -> None:
        """Add the weighted predictions of a batch of windows, from their latents, to the int32 `totals` in place.

        `totals` (C, T, H, W) are one per window, and may overlap. Raises FloatingPointError, with all of them as they
        were, if the model's output is out of range.
        """
        timestep, windows = self._scheduler.timesteps[step], self.layout.batches[batch]
        conditions = [self._condition.crop(self.layout.windows[i], i) for i in windows]
        m_BCTHW = self._backbone.predict(x_BCTHW, conditions, timestep, self._prompt_embeds[branch])
        check_range(m_BCTHW)
        coefficient = self.branches[branch].at(self.layout.stages[step])
        for i, total_CTHW, m_CTHW in zip(windows, totals, m_BCTHW, strict=True):
            accumulate_(total_CTHW, m_CTHW, self._weights[i] * coefficient, self._scale)

    def step(
        self,
        before: Cell,
        step: int,
        cell: int,
        total_CTHW: torch.Tensor,
        z_CTHW: torch.Tensor | None,
        lam: float | torch.Tensor,
    ) -> Cell:
        """The cell after `step`, from the sum of its predictions (int32), the prior `z_CTHW` and its strength there."""
        rows, columns = self.layout.cells[cell].slices
        N_CTHW = to_float(total_CTHW, self._scale)
        a, b = scheduler_coefficients(self._scheduler, step)
        m_CTHW = fuse_(N_CTHW, self._D_HW[rows, columns], before.x_CTHW, z_CTHW, lam=lam, a=a, b=b)
        scheduler = _copy_history(before.scheduler)
        timestep = self._scheduler.timesteps[step]
        x_CTHW = scheduler.step(m_CTHW[None], timestep, before.x_CTHW[None], return_dict=False)[0][0]
        if step == self.layout.num_steps - 1:
            x_CTHW = self._backbone.finish(x_CTHW, self._condition.crop(self.layout.cells[cell]))
        return Cell(x_CTHW, scheduler)

    def pack(self, cell: Cell) -> tuple[torch.Tensor, dict[str, Any]]:
        """A cell as its latents and the attributes in which its scheduler differs from a new one."""
        new = vars(self._scheduler)
        history = {name: value for name, value in vars(cell.scheduler).items() if value is not new.get(name)}
        return cell.x_CTHW, history

    def unpack(self, x_CTHW: torch.Tensor, history: dict[str, Any]) -> Cell:
        """The cell that was packed, also on another worker."""
        scheduler = copy.copy(self._scheduler)
        vars(scheduler).update(history)
        return Cell(x_CTHW, scheduler)


class Fusion:
    """How the prior enters a canvas: its strength at each step and place, and its own latents there (METHOD 3, 4)."""

    def __init__(self, config: Config, layout: Layout, activity_HW: torch.Tensor | None) -> None:
        self._config, self._layout, self._activity_HW = config.fusion, layout, activity_HW

    def at(self, step: int, cell: int, prior_CTHW: torch.Tensor | None) -> tuple[torch.Tensor | None, Any]:
        """(z, lam) on a cell; the prior comes at its own size, or is None where its strength is 0."""
        window = self._layout.cells[cell]
        active, background = prior_strengths(self._config, step, self._layout.num_steps)
        uniform = active == background
        lam = active if uniform else strength_map(active, background, self._activity_HW[window.slices])
        z_CTHW = None if prior_CTHW is None else resize_prior(prior_CTHW, self._layout.canvas, window)
        return z_CTHW, lam


def _copy_history(scheduler: Any) -> Any:
    """A noise scheduler to step once: what it was copied from keeps its own history."""
    copied = copy.copy(scheduler)
    for name, value in vars(scheduler).items():
        if isinstance(value, list):  # multistep schedulers replace entries of their lists
            setattr(copied, name, list(value))
    return copied
