"""DynamicScaler (arXiv 2412.11100): windows on a grid that goes on at each step, guided by the thumbnail's clip.

What is as there: the grid goes on by a 16th of the distance from window to window along both axes, at each step; the
clip of a low resolution is resized, re-noised to a level, and denoised on from there (its image-to-video entry, which
starts at step 15 of 48); before later steps the canvas may be pulled to it again, by weights (`rho` of its
text-to-video entry is 1 minus these; no values are published).

What is not. *Flow matching*: re-noised to (1 - sigma) z + sigma eps, with one noise, keyed to position, for all steps;
there, fresh noise, one level too high for the first timestep. *Murals do not wrap*: windows that would leave the canvas
are moved inside; there all axes are rings. *The order of windows* is not reproduced: there each window takes what those
before it have made of their overlap in the same step, re-noised, so that the result depends on the order in which they
come. Here all are predicted from the same canvas, count alike, are fused, and the canvas is stepped once.
"""

from dataclasses import dataclass

from fresco_dist.config import Through, require
from fresco_dist.method.builder import LevelBuilder
from fresco_dist.method.level import Guide, Level
from fresco_dist.method.recipes.base import Recipe, require_loop, require_start, source_of, starting


@dataclass(kw_only=True)
class DynamicScaler(Recipe):
    """`start` is the share of the steps that the thumbnail stands for; `motion_guidance` are weights in [0, 1].

    They are those of the thumbnail's clip before the steps after the first that is run, one after the other.
    """

    start: float
    motion_guidance: list[float]
    loop_steps: int
    through: Through

    def __post_init__(self) -> None:
        require_start(self.start)
        require_loop(self.loop_steps)
        weights = self.motion_guidance
        in_range = all(0.0 <= weight <= 1.0 for weight in weights)
        require(in_range, "fusion.motion_guidance", weights, "weights in [0, 1], one per step", "Try [0.5,0.25].")

    def levels(self, build: LevelBuilder) -> tuple[Level, ...]:
        num_steps, source = build.config.sampler.num_steps, source_of(0, self.through)
        weights = self.motion_guidance
        pulls = [Guide(source, (weight, weight)) if weight else None for weight in weights]
        start = starting(self.start, num_steps, source, pulls)
        left = num_steps - start["first_step"] - 1
        allowed = f"at most {left} weights, as many steps as follow the start"
        require(len(weights) <= left, "fusion.motion_guidance", weights, allowed, "Leave the last ones out.")
        grids = build.rolled(build.canvas, num_steps, self.loop_steps, overlaps=True)
        return build.thumbnail(), build.video(grids=grids, **start)
