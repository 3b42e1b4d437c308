"""DemoFusion (arXiv 2311.16973): phases of growing size, each pulled back to the one before by a skip residual.

What is as there: all steps at every phase; one noise per phase, by which the phase before is re-noised to every
level, the first to begin with; windows that overlap (`tiles.overlap`), are jittered at each step, and count alike;
the mean and the deviation of the first phase at the end of every phase (in its code, not in the paper).

What is not. *Flow matching*: a canvas is re-noised to (1 - sigma) z + sigma eps instead of sqrt(a) z + sqrt(1 - a)
eps, and what stands for t / T in the residual is a choice, `fusion.residual_time`. *Views are fused, then stepped
once*: the same as stepping each and averaging, where a step is affine (Euler, DDIM). *Jitter* is drawn by (seed,
phase, step, window), not by a generator without a seed; windows at the border stay, where there they move into a
border of zeros. *The first phase* is the thumbnail, as that of all recipes, so that they can be compared. *Dilated
sampling* is left out, as in FrescoDiffusion's comparison (arXiv 2603.17555, C.3): on transformers it makes seams and
checkerboards.
"""

from dataclasses import dataclass
from typing import Any

from fresco_dist.config import Through, require
from fresco_dist.method.builder import LevelBuilder
from fresco_dist.method.level import PRIOR_STREAM, Guide, Level
from fresco_dist.method.recipes.base import Recipe, Residual, source_of


@dataclass(kw_only=True)
class DemoFusion(Residual, Recipe):
    """Parameters of the residual. `prior.levels` are the phases below the last: null, as many as fit in the factor."""

    through: Through

    takes_levels = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.detail is not None, "fusion.detail", self.detail, "given with fusion=demofusion", "Try 3.")

    def levels(self, build: LevelBuilder) -> tuple[Level, ...]:
        factor = max(large / small for small, large in zip(build.thumbnail_size, build.canvas))
        num_phases = 1 + (build.config.prior.levels or max(1, int(factor + 1e-9) - 1))
        sampler, levels = build.config.prior.sampler(build.config.sampler), [build.thumbnail()]
        for phase in range(2, num_phases):
            size, stream = build.portion(phase / num_phases), PRIOR_STREAM + len(levels)
            if any(side <= small for side, small in zip(size, levels[-1].canvas)):
                continue  # of a picture that is too small for so many
            grids = build.jittered(size, sampler.num_steps, stream)
            levels.append(build.level(size, sampler, grids, stream=stream, **self._phase(levels, sampler.num_steps)))
        num_steps = build.config.sampler.num_steps
        grids = build.jittered(build.canvas, num_steps)
        return *levels, build.video(grids=grids, **self._phase(levels, num_steps))

    def _phase(self, below: list[Level], num_steps: int) -> dict[str, Any]:
        source = source_of(len(below) - 1, self.through)
        residuals = [Guide(source, (1.0, 1.0)), *[self.residual(source)] * (num_steps - 1)]
        return {"residuals": residuals, "standard": 0}
