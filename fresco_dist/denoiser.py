"""The state of one canvas on one worker, and a denoising step on it (Algorithm 1 of the paper, one rank's share).

    predict  N += w_i * coefficient * m_i, for each window and branch this worker is given
    commit   N <- sum of N over ranks; m* = fused N, D, x, z; x <- scheduler step of m*

Knows nothing of how windows are handed out. Shapes: C channels, T latent frames, H, W latent cells.
"""

import math

import torch

from fresco_dist.backbones import Backbone
from fresco_dist.backbones.conditioning import Conditioning
from fresco_dist.collectives import Group
from fresco_dist.config import Config, SamplerConfig
from fresco_dist.fixed_point import accumulate_, choose_scale, to_float
from fresco_dist.fusion import fuse_
from fresco_dist.noise import gaussian_noise
from fresco_dist.plan import Branch, Layout
from fresco_dist.prediction import scheduler_coefficients
from fresco_dist.weights import denominator, window_weight


class Denoiser:
    """A canvas being denoised; all ranks hold the same canvas and each its own accumulator."""

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
        self._backbone, self._layout, self._branches = backbone, layout, branches
        self._condition = condition
        self._prompt_embeds = prompt_embeds.to(device)
        self._scheduler = make_scheduler(backbone, config.sampler, layout.num_steps)
        weights = [window_weight(w, layout.canvas, layout.overlap, config.tiles.min_weight) for w in layout.windows]
        self._D_HW = denominator(layout.windows, weights, layout.canvas).to(device)
        self._weights = [weight_HW.to(device) for weight_HW in weights]
        self._scale = choose_scale(float(self._D_HW.max()), sum(branch.largest for branch in branches))
        # One buffer for one collective: the numerator, and behind it the number of predictions that are in it.
        self._sums = torch.zeros(math.prod(layout.latent_shape) + 1, dtype=torch.int32, device=device)
        self._N_CTHW = self._sums[:-1].view(layout.latent_shape)
        self._counted: set[tuple[int, int]] = set()
        self.step = 0
        self.x_CTHW = gaussian_noise(layout.latent_shape, seed=config.seed, stream=stream, device=device)

    def predict(self, window: int, branch: int) -> None:
        """Predict one window and branch at the current step and add it to the accumulator, once."""
        assert (window, branch) not in self._counted, f"window {window}, branch {branch} counted twice"
        rows, columns = self._layout.windows[window].slices
        timestep = self._scheduler.timesteps[self.step]
        m_CTHW = self._backbone.predict(
            self.x_CTHW[..., rows, columns],
            self._condition.crop(self._layout.windows[window], window),
            timestep,
            self._prompt_embeds[branch],
        )
        weight_HW = self._weights[window] * self._branches[branch].at(self._backbone.stage(timestep))
        accumulate_(self._N_CTHW[..., rows, columns], m_CTHW, weight_HW, self._scale)
        self._counted.add((window, branch))
        self._sums[-1] += 1

    def commit(self, group: Group, z_CTHW: torch.Tensor | None, lam: float | torch.Tensor) -> None:
        """Finish the current step: reduce, fuse with the prior `z_CTHW` at strength `lam`, step the canvas.

        Reduces a copy: if a rank is gone, the accumulator and the canvas are as before.
        """
        sums = group.sum_(self._sums.clone())
        num_needed = len(self._weights) * len(self._branches)
        assert sums[-1] == num_needed, f"{sums[-1]} of {num_needed} predictions are in"
        N_CTHW = to_float(sums[:-1].view(self._layout.latent_shape), self._scale)
        a, b = scheduler_coefficients(self._scheduler, self.step)
        m_CTHW = fuse_(N_CTHW, self._D_HW, self.x_CTHW, z_CTHW, lam=lam, a=a, b=b)
        timestep = self._scheduler.timesteps[self.step]
        self.x_CTHW = self._scheduler.step(m_CTHW[None], timestep, self.x_CTHW[None], return_dict=False)[0][0]
        self._sums.zero_()
        self._counted.clear()
        self.step += 1
        if self.step == self._layout.num_steps:
            self.x_CTHW = self._backbone.finish(self.x_CTHW, self._condition)


def make_scheduler(backbone: Backbone, sampler: SamplerConfig, num_steps: int):
    """A fresh noise scheduler; noise levels of the user hold for the sampler's own number of steps."""
    sigmas = sampler.sigmas if num_steps == sampler.num_steps else None
    return backbone.make_scheduler(num_steps, sampler.shift, sigmas)
