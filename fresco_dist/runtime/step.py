"""One denoising step as pure functions of a batch of windows and of a cell (Algorithm 1 of the paper).

    predict  w_i * coefficient * m_i on windows, for one branch, of its prompt's share, in fixed point
    step     N = sum of those; m* = fused N, D, x, z; x <- noise scheduler's step of m*, on one cell

Knows nothing of how windows and cells are handed out. Shapes: C channels, T latent frames, H, W latent cells.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fresco_dist.method.fixed_point import accumulate_, check_range, to_float
from fresco_dist.method.fusion import fuse_, pull, strength_map
from fresco_dist.method.grid import Window
from fresco_dist.method.level import RISE_STREAM, Level, Step, part_to_rise
from fresco_dist.method.noise import gaussian_noise
from fresco_dist.method.prediction import noise_level_of, risen_levels, signal_and_noise, x0_coefficients
from fresco_dist.method.residual import ResidualTime, residual_base, residual_time
from fresco_dist.method.rise import NUM_NOISES, rise
from fresco_dist.method.weights import GridWeights
from fresco_dist.models.backbone import HISTORY, Backbone
from fresco_dist.models.conditioning import Conditioning
from fresco_dist.models.look import Look

# What the model is given of a part of the canvas, which is a window of that number if it is one.
Condition = Callable[[Window, int], Conditioning]


@dataclass(frozen=True)
class Guidance:
    """What is taken from a level below, whatever guides others take that share what all steps have in common.

    `z` gives its clean canvas in a window of this level; the strengths differ where the map, bool (H, W) of the whole
    level, is light and where it is dark. With a `time` they are exponents.
    """

    z: Callable[[Window], torch.Tensor]
    light: float
    dark: float
    map_HW: torch.Tensor | None = None
    time: ResidualTime | None = None

    def strength(self, window: Window, base: float | None = None) -> float | torch.Tensor:
        """In a window: a scalar or (H, W); with a `base` that to the power of it."""
        light, dark = (value if base is None else base**value for value in (self.light, self.dark))
        return light if self.map_HW is None else strength_map(light, dark, self.map_HW[window.slices])


@dataclass(frozen=True)
class Cell:
    """A cell of the canvas between two steps: its latents (C, T, H, W) and the noise scheduler with its history."""

    x_CTHW: torch.Tensor
    scheduler: Any


class Denoiser:
    """What all steps of a level have in common: weights, condition, prompts, its noise. Never changes.

    Noise, condition and weights are made part by part, when they are needed.

    A canvas that is pulled to a level below before a step (`level.Step.residual`) is not the one that a multistep
    noise scheduler remembers: its history begins anew there, with a step of first order.
    """

    def __init__(
        self,
        backbone: Backbone,
        level: Level,
        *,
        seed: int,
        condition: Condition,
        prompt_embeds: Mapping[int, torch.Tensor],
        device: torch.device,
        shares_PHW: np.ndarray | None = None,
        look: Look | None = None,
    ) -> None:
        self.level, self.device, self._seed = level, device, seed
        self._backbone, self._condition, self._prompt_embeds = backbone, condition, prompt_embeds
        self._shares_PHW = shares_PHW  # of prompts by region
        self._look = look
        self._scheduler = backbone.make_scheduler(level.num_steps, level.shift, level.sigmas)
        if level.rise:
            sigmas = risen_levels(self._scheduler.sigmas[: level.num_steps].tolist(), level.rise.until)
            self._scheduler = backbone.make_scheduler(level.num_steps, None, sigmas)
        self._remembers = HISTORY[type(self._scheduler).__name__]
        self._weights: dict[int, GridWeights] = {}  # by grid

    def noise(self, part: Window) -> torch.Tensor:
        """The level's noise in a part of the canvas (C, T, H, W)."""
        shape = (*self.level.latent_shape[:2], part.height, part.width)
        return self._noise(shape, part, self.level.stream)

    def _noise(self, shape: Sequence[int], part: Window, stream: int) -> torch.Tensor:
        return gaussian_noise(shape, seed=self._seed, stream=stream, origin=(part.top, part.left), device=self.device)

    def first_cell(self, window: Window, residual: Guidance | None = None) -> Cell:
        """A cell before the first step: noise, pulled to a level below."""
        first = Cell(self.noise(window), self._scheduler)
        return self._pull(first, self.level.first_step, window, residual) if residual else first

    def risen(self, z_CTHW: torch.Tensor, part: Window, step: int) -> Cell:
        """A part of the canvas before a step, from what becomes it of the level below."""
        first = RISE_STREAM + NUM_NOISES * self.level.stream
        noises = [self._noise(z_CTHW.shape, part_to_rise(part), first + k) for k in range(NUM_NOISES)]
        x_CTHW = rise(z_CTHW, noises, part, self.noise_level(step))
        return Cell(x_CTHW, self._new_scheduler(step))

    def noise_level(self, step: int) -> float:
        """Sigma before a step."""
        return noise_level_of(self._scheduler, step)[1]

    def predict_(
        self, totals: Sequence[torch.Tensor], x_BCTHW: torch.Tensor, step: int, batch: int, branch: int
    ) -> None:
        """Add the weighted predictions of a batch of windows, from their latents, to the int32 `totals` in place.

        `totals` (C, T, H, W) are one per window, and may overlap. Raises FloatingPointError, with all of them as they
        were, if the model's output is out of range.
        """
        program = self.level.at(step)
        windows, chosen = program.batches[batch].windows, program.batches[batch].branches[branch]
        weights = self._weights_of(program)
        conditions = [self._condition(program.grid.windows[i], i) for i in windows]
        timestep = self._scheduler.timesteps[step]
        m_BCTHW = self._backbone.predict(x_BCTHW, conditions, timestep, self._prompt_embeds[chosen.prompt])
        check_range(m_BCTHW)
        for i, total_CTHW, m_CTHW in zip(windows, totals, m_BCTHW, strict=True):
            weight_HW = weights.of_window(i) * chosen.coefficient
            if chosen.shared:
                assert self._shares_PHW is not None
                share_HW = self._shares_PHW[(chosen.prompt, *program.grid.windows[i].slices)]
                weight_HW *= torch.tensor(share_HW, device=self.device)
            accumulate_(total_CTHW, m_CTHW, weight_HW, weights.scale)

    def fuse(
        self, before: Cell, step: int, cell: int, total_CTHW: torch.Tensor, prior: Guidance | None = None
    ) -> torch.Tensor:
        """The fused prediction m* of a cell (C, T, H, W): from the sum of its predictions (int32), and the prior."""
        window, weights = self.level.cells[cell], self._weights_of(self.level.at(step))
        z_CTHW, lam = (prior.z(window), prior.strength(window)) if prior else (None, 0.0)
        a, b = x0_coefficients(*noise_level_of(self._scheduler, step))
        N_CTHW, D_HW = to_float(total_CTHW, weights.scale), weights.D(window)
        return fuse_(N_CTHW, D_HW, before.x_CTHW, z_CTHW, lam=lam, a=a, b=b)

    def step(self, before: Cell, m_CTHW: torch.Tensor, step: int, cell: int, residual: Guidance | None = None) -> Cell:
        """The cell after `step`: from its fused prediction, and what pulls it after that."""
        window = self.level.cells[cell]
        scheduler = self._copy_history(before.scheduler)
        timestep = self._scheduler.timesteps[step]
        x_CTHW = scheduler.step(m_CTHW[None], timestep, before.x_CTHW[None], return_dict=False)[0][0]
        if step == self.level.num_steps - 1:
            return Cell(self._finish(x_CTHW, window), self._scheduler)
        if self.level.rise and step + 1 == self.level.rise.until:  # where others rise, and remember nothing
            scheduler = self._new_scheduler(step + 1)
        after = Cell(x_CTHW, scheduler)
        return self._pull(after, step + 1, window, residual) if residual else after

    def standardised(self, x_CTHW: torch.Tensor, window: Window, gain: float, offset: float) -> Cell:
        """A clean cell with another mean and deviation, but for what the model knows of it."""
        return Cell(self._finish(x_CTHW * gain + offset, window), self._scheduler)

    def estimate(self, before: Cell, m_CTHW: torch.Tensor, step: int, cell: int) -> torch.Tensor:
        """The clean cell x0 = a x - b m* (METHOD 3), as if the fused prediction of `step` held to the end."""
        a, b = x0_coefficients(*noise_level_of(self._scheduler, step))
        return self._finish(a * before.x_CTHW - b * m_CTHW, self.level.cells[cell])

    def look(self, before: Cell, m_CTHW: torch.Tensor, step: int, cell: int) -> np.ndarray | None:
        """First, middle and last latent frame of that, in colours: uint8 (F, H, W, 3); fewer of a clip of fewer."""
        if self._look is None:
            return None
        (a, b), last = x0_coefficients(*noise_level_of(self._scheduler, step)), m_CTHW.shape[1] - 1
        frames = [(a * before.x_CTHW[:, t]).sub_(m_CTHW[:, t], alpha=b) for t in sorted({0, last // 2, last})]
        return self._look(self._finish(torch.stack(frames, dim=1), self.level.cells[cell]))

    def _finish(self, x_CTHW: torch.Tensor, window: Window) -> torch.Tensor:
        return self._backbone.finish(x_CTHW, lambda: self._condition(window, 0))

    def _pull(self, cell: Cell, step: int, window: Window, guidance: Guidance) -> Cell:
        """x <- (1 - c) x + c n before a step: n is z at its noise level, with this level's own noise."""
        signal, noise = signal_and_noise(*noise_level_of(self._scheduler, step))
        base = None
        if guidance.time is not None:
            share = float(self._scheduler.timesteps[step]) / self._scheduler.config.num_train_timesteps
            at = {"step": step, "num_steps": self.level.num_steps, "timestep_share": share}
            base = residual_base(residual_time(guidance.time, signal=signal, noise=noise, **at))
        n_CTHW = signal * guidance.z(window) + noise * self.noise(window)
        weight = guidance.strength(window, base)
        return Cell(pull(cell.x_CTHW, n_CTHW, weight), self._new_scheduler(step))

    def _new_scheduler(self, step: int) -> Any:
        """A noise scheduler that begins at a step, with nothing to remember."""
        scheduler = copy.copy(self._scheduler)
        if step > 0 and hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(step)
        return scheduler

    def _weights_of(self, step: Step) -> GridWeights:
        grid = step.grid
        if id(grid) not in self._weights:
            level = self.level
            self._weights[id(grid)] = GridWeights(grid, level.canvas, level.sum_abs_coefficients, self.device)
        return self._weights[id(grid)]

    def pack(self, cell: Cell) -> tuple[torch.Tensor, dict[str, Any]]:
        """A cell as its latents and the attributes in which its scheduler differs from a new one."""
        new = vars(self._scheduler)
        history = {name: value for name, value in vars(cell.scheduler).items() if value is not new.get(name)}
        return cell.x_CTHW, history

    def unpack(self, x_CTHW: torch.Tensor, history: dict[str, Any]) -> Cell:
        """The cell that was packed, also on another worker, or stored.

        Raises ValueError for an attribute that is not the history of such a scheduler: none else is ever set.
        """
        unknown = sorted(history.keys() - set(self._remembers))
        if unknown:
            kind = type(self._scheduler).__name__
            raise ValueError(
                f"a cell's history must be {', '.join(self._remembers) or 'empty'} of a {kind}; got {unknown[0]}"
            )
        scheduler = copy.copy(self._scheduler)
        vars(scheduler).update(history)
        return Cell(x_CTHW, scheduler)

    def _copy_history(self, scheduler: Any) -> Any:
        """A noise scheduler to step once: what it was copied from keeps its own history."""
        copied = copy.copy(scheduler)
        for name in self._remembers:
            value = getattr(scheduler, name, None)  # `this_order` is there after a step
            if isinstance(value, list):  # multistep schedulers replace entries of their lists
                setattr(copied, name, list(value))
        return copied
