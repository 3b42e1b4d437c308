"""SuperGen (arXiv 2508.17756): a sketch, enlarged in pixels and re-noised, then windows side by side that move on.

What is as there: the sketch is decoded, resized in pixels and encoded again, since latents ring when they are
resized; denoising goes on with the steps that are left (35 of 50 with Wan 2.1); full windows, without overlap, move
on by a 16th of their size at each step, so that no seam stays.

What is not. *The canvas is no ring*: windows that would leave it are moved inside, where they overlap and are
averaged. *Resized* linearly with its ends aligned, as all that is resized here, not by a cubic. *Its tile cache* is
left out: it never skips the first five steps, nor the last, so that there is nothing to skip in six (conf/README.md).
"""

from dataclasses import dataclass

from fresco_dist.config import Through
from fresco_dist.method.builder import LevelBuilder
from fresco_dist.method.level import Level
from fresco_dist.method.recipes.base import Recipe, require_loop, require_start, source_of, starting


@dataclass(kw_only=True)
class SuperGen(Recipe):
    """`start` is the share of the steps that the sketch, the thumbnail's clip, stands for."""

    start: float
    loop_steps: int
    through: Through

    def __post_init__(self) -> None:
        require_start(self.start)
        require_loop(self.loop_steps)

    def levels(self, build: LevelBuilder) -> tuple[Level, ...]:
        num_steps = build.config.sampler.num_steps
        start = starting(self.start, num_steps, source_of(0, self.through))
        grids = build.rolled(build.canvas, num_steps, self.loop_steps, overlaps=False)
        return build.thumbnail(), build.video(grids=grids, **start)
