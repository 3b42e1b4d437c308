"""FrescoDiffusion over several levels, for pictures that one thumbnail cannot hold: each is held by the one below.

The paper names that limit (arXiv 2603.17555, section 6), and local priors as a way out; the levels between, and that
these hold the local priors in their turn, are ours. Windows lie side by side and move, as those of `fresco_spot`.
"""

import math
from dataclasses import dataclass

from fresco_dist.method.builder import LevelBuilder
from fresco_dist.method.level import PRIOR_STREAM, Grid, Level
from fresco_dist.method.prior_strength import prior_guides
from fresco_dist.method.recipes.fresco_spot import FrescoSpot

FACTOR = 3.0  # from level to level, at most


@dataclass(kw_only=True)
class Cascade(FrescoSpot):
    """Parameters as those of `fresco`; they hold between any two levels. `prior.levels` are those below the video's.

    `local_priors`: each level between is held by windows of its size that are animated each by itself, and held by the
    level below: as many small priors, side by side.
    """

    local_priors: bool

    takes_levels = True

    def levels(self, build: LevelBuilder) -> tuple[Level, ...]:
        factor = max(large / small for small, large in zip(build.thumbnail_size, build.canvas))
        num_priors = build.config.prior.levels or max(1, math.ceil(math.log(factor) / math.log(FACTOR) - 1e-9))
        sampler = build.config.prior.sampler(build.config.sampler)
        levels = [build.thumbnail()]

        def add(size: tuple[int, int], grids: list[Grid]) -> None:
            guides = self._guides_from(len(levels) - 1, len(grids))
            levels.append(build.level(size, sampler, grids, guides, stream=PRIOR_STREAM + len(levels)))

        for i in range(1, num_priors):
            size = build.between(i / num_priors)
            if size in (levels[-1].canvas, build.canvas):  # of a picture that is too small for so many
                continue
            if self.local_priors:
                alone = build.at_rest(size)
                add(size, [alone] * sampler.num_steps)
            add(size, build.moving(size, sampler.num_steps, stream=PRIOR_STREAM + len(levels)))
        guides = self._guides_from(len(levels) - 1, build.config.sampler.num_steps)
        return *levels, build.video(guides, moves=True)

    def _guides_from(self, level: int, num_steps: int) -> tuple:
        return prior_guides(self.prior_strength, self.schedule, (self.cutoff, self.cutoff), num_steps, level)
