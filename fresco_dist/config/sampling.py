"""Sampler steps and noise levels, of the video and of the levels below."""

import math
from dataclasses import dataclass, replace

from fresco_dist.config.checks import check_sigmas, require

MAX_STEPS = 1000  # as many noise levels as models are trained with


@dataclass
class SamplerConfig:
    """Sampler steps, classifier-free guidance scale (1 = off), and the noise levels.

    `guidance_scale_2` is for the low-noise expert (null = the same); `shift` moves the scheduler's own noise levels
    (null = the model's shift); `sigmas` replaces them: the level of each step, used as given. After `stop_after` steps
    a run stops with a preview, and the same without it goes on from there.
    """

    num_steps: int
    guidance_scale: float
    guidance_scale_2: float | None = None
    shift: float | None = None
    sigmas: list[float] | None = None
    stop_after: int | None = None

    def __post_init__(self) -> None:
        require(1 <= self.num_steps <= MAX_STEPS, "sampler.num_steps", self.num_steps, f"in [1, {MAX_STEPS}]", "Try 6.")
        for name in ("guidance_scale", "guidance_scale_2"):
            scale = getattr(self, name)
            in_range = scale is None or 1.0 <= scale <= 100.0
            require(in_range, f"sampler.{name}", scale, "in [1, 100]", "1 switches guidance off.")
        finite = self.shift is None or 0 < self.shift < math.inf
        require(finite, "sampler.shift", self.shift, "greater than 0 and finite, or null", "Try 3.")
        if self.sigmas is not None:
            check_sigmas(self.sigmas, "sampler")
            remedy = f"Set sampler.num_steps={len(self.sigmas)}."
            allowed = "the length of sampler.sigmas"
            require(len(self.sigmas) == self.num_steps, "sampler.num_steps", self.num_steps, allowed, remedy)
            remedy = "They are used as given."
            require(self.shift is None, "sampler.shift", self.shift, "null with sampler.sigmas", remedy)
        stop, last = self.stop_after, self.num_steps - 1
        allowed = f"in [1, {last}], fewer than sampler.num_steps, or null" if last else "null with one step"
        require(stop is None or 1 <= stop <= last, "sampler.stop_after", stop, allowed, "Leave it out to run them all.")


@dataclass
class PriorConfig:
    """The thumbnail's clip: area in pixels at the image's aspect ratio, sampler steps and noise levels.

    `levels` is the number of canvases below the video's, null as many as the recipe takes.

    Null `num_steps`: as many as there are `sigmas`, without those the sampler's. Null `sigmas`: the sampler's own, for
    as many steps as it has; for others the noise scheduler's.
    """

    area: int
    num_steps: int | None = None
    sigmas: list[float] | None = None
    levels: int | None = None

    def __post_init__(self) -> None:
        levels = self.levels
        require(levels is None or 1 <= levels <= 8, "prior.levels", levels, "in [1, 8], or null", "Try 2.")
        require(self.area >= 256, "prior.area", self.area, "at least 256 pixels", "Try the model's native area.")
        number, sigmas = self.num_steps, self.sigmas
        allowed, remedy = f"in [1, {MAX_STEPS}]", "null takes sampler.num_steps."
        require(number is None or 1 <= number <= MAX_STEPS, "prior.num_steps", number, allowed, remedy)
        if sigmas is not None:
            check_sigmas(sigmas, "prior")
            allowed, remedy = "null or the length of prior.sigmas", f"Set prior.num_steps={len(sigmas)}."
            require(number in (None, len(sigmas)), "prior.num_steps", number, allowed, remedy)

    def sampler(self, of_video: SamplerConfig) -> SamplerConfig:
        """The thumbnail's sampler, given the video's."""
        sigmas = self.sigmas
        num_steps = self.num_steps or (of_video.num_steps if sigmas is None else len(sigmas))
        if sigmas is None and num_steps == of_video.num_steps:
            sigmas = of_video.sigmas
        shift = of_video.shift if sigmas is None else None
        return replace(of_video, num_steps=num_steps, sigmas=sigmas, shift=shift, stop_after=None)
