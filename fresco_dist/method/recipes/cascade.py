"""FrescoDiffusion over several levels, for pictures that one thumbnail cannot hold: each is held by the one below.

The paper names that limit (arXiv 2603.17555, section 6), and local priors as a way out; the levels between, and that
these hold the local priors in their turn, are ours. Windows lie side by side and move, as those of `fresco_spot`.

With `start` and `detail` a level goes on from the one below, as in FreeScale (arXiv 2412.09626): re-noised to a later
step, through pixels, and pulled back to it by a residual whose exponent may differ by a map. Its dilated convolutions
and the fusion of scales inside attention layers are left out: they belong to a UNet. Without, levels begin from noise.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fresco_dist.config import Config, Through
from fresco_dist.method.builder import LevelBuilder
from fresco_dist.method.level import PRIOR_STREAM, Grid, Level
from fresco_dist.method.prior_strength import prior_guides
from fresco_dist.method.recipes.base import Residual, require_start, source_of, starting
from fresco_dist.method.recipes.fresco_spot import FrescoSpot
from fresco_dist.method.residual import ResidualTime

FACTOR = 3.0  # from level to level, at most


@dataclass(kw_only=True)
class Cascade(Residual, FrescoSpot):
    """Parameters as those of `fresco`; they hold between any two levels. `prior.levels` are those below the video's.

    `local_priors`: each level between is held by windows of its size that are animated each by itself, and held by the
    level below: as many small priors, side by side. `start`: the share of the steps that the level below stands for,
    null none; `cutoff` is a share of those after. `through`: whether its latents or its pixels are taken.
    """

    local_priors: bool
    start: float | None = None
    through: Through

    takes_levels = True

    def __post_init__(self) -> None:
        Residual.__post_init__(self)
        FrescoSpot.__post_init__(self)
        require_start(self.start)

    def notes(self, config: Config, levels: Sequence[Level]) -> Iterator[str]:
        yield from super().notes(config, levels)
        if self.local_priors and len(levels) == 2:
            yield "fusion.local_priors=true has no effect without levels between: there is one prior"
        if self.detail is None and self.residual_time is not ResidualTime.unshifted:
            yield f"fusion.residual_time={self.residual_time.value} has no effect without fusion.detail"

    def levels(self, build: LevelBuilder) -> tuple[Level, ...]:
        factor = max(large / small for small, large in zip(build.thumbnail_size, build.canvas))
        num_priors = build.config.prior.levels or max(1, math.ceil(math.log(factor) / math.log(FACTOR) - 1e-9))
        sampler = build.config.prior.sampler(build.config.sampler)
        levels = [build.thumbnail()]

        def add(size: tuple[int, int], grids: list[Grid]) -> None:
            stream, taken = PRIOR_STREAM + len(levels), self._taken(len(levels) - 1, len(grids))
            levels.append(build.level(size, sampler, grids, stream=stream, **taken))

        for i in range(1, num_priors):
            size = build.between(i / num_priors)
            if size in (levels[-1].canvas, build.canvas):  # of a picture that is too small for so many
                continue
            if self.local_priors:
                alone = build.at_rest(size)
                add(size, [alone] * sampler.num_steps)
            add(size, build.moving(size, sampler.num_steps, stream=PRIOR_STREAM + len(levels)))
        return *levels, build.video(moves=True, **self._taken(len(levels) - 1, build.config.sampler.num_steps))

    def _taken(self, level: int, num_steps: int) -> dict[str, Any]:
        """What a level takes from the one below it."""
        source = source_of(level, self.through)
        residual = self.residual(source)
        residuals, cutoffs = [residual] * num_steps, (self.cutoff, self.cutoff)
        start: dict[str, Any] = (
            {"residuals": residuals} if self.start is None else starting(self.start, num_steps, source, residuals)
        )
        first = start.get("first_step", 0)
        guides = prior_guides(self.prior_strength, self.schedule, cutoffs, num_steps - first, source)
        return {"guides": [None] * first + [*guides], **start}
