"""Progressive resolution (arXiv 2601.07462, "Fresco"): the first steps small, each level taking over in mid-sampling.

A level has twice the sides of the one below; its canvas is made of that one's, as it is before a step, by the Hadamard
step (`method.rise`) with noise keyed to position, and goes on from there: the layout is drafted where forwards are few.
The noise level rises by the time shift by 2, and the next step brings it to the schedule that all levels share.

Where windows of the video have settled, they may go up before the others: those over which the clean estimates of the
level below vary by no more than a threshold. The rest follows the level below until all go up, and windows of the video
that are wholly there are not predicted until then. *Ours*, since the paper's are not published: when levels take over,
what varies (the clean estimate, over the steps since the level below took over), the threshold. *Not there*: attention
among tokens of different resolutions, which a window has to itself here. Flow matching alone. Sides
are halved up to whole tokens; what that adds is cut off again, and pictures of lower levels are too wide by as much.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from fresco_dist.config import Config, require
from fresco_dist.method.builder import LevelBuilder
from fresco_dist.method.level import PRIOR_STREAM, Level, Rise
from fresco_dist.method.recipes.base import Recipe, require_share

MAX_EXCESS = 0.05  # of a side, by which lower levels are larger than its half, quarter, ...


@dataclass(kw_only=True)
class Progressive(Recipe):
    """`rise` is the share of the steps before the video's level begins; those below it share them alike.

    `max_variance`: windows that vary less go up then, all others after the share `rise_latest`; null: all at once.
    `prior.levels` are the levels below: null, until the smallest has about `prior.area`.
    """

    rise: float
    rise_latest: float
    max_variance: float | None = None

    takes_levels = True

    def __post_init__(self) -> None:
        allowed = "greater than 0 and less than 1, a share of the steps"
        require(0.0 < self.rise < 1.0, "fusion.rise", self.rise, allowed, "Try 0.5.")
        require_share("fusion.rise_latest", self.rise_latest)
        variance, allowed = self.max_variance, "at least 0 and finite, or null"
        require(variance is None or 0 <= variance < math.inf, "fusion.max_variance", variance, allowed, "Try 0.002.")

    def notes(self, config: Config, levels: Sequence[Level]) -> Iterator[str]:
        yield from super().notes(config, levels)
        if config.metrics:
            yield (
                f"metrics=true measures by what the smallest level is expected to be after {levels[0].until} of its"
                " steps: not to be compared with other recipes"
            )

    def levels(self, build: LevelBuilder) -> tuple[Level, ...]:
        sampler = build.config.sampler
        sizes = self._sizes(build)
        num_below = len(sizes) - 1
        begins = self._begins(num_below, sampler.num_steps)
        for key in ("num_steps", "sigmas"):
            value, allowed = getattr(build.config.prior, key), "null with fusion=progressive"
            require(value is None, f"prior.{key}", value, allowed, "All levels have the steps of the video.")
        ends = [*begins[1:-2], begins[-1]]  # of the levels below
        levels = [build.thumbnail(sizes[0], sampler, until=ends[0])]
        for i in range(1, num_below):
            rise = Rise(i - 1, until=begins[i])
            grids, stream = build.fixed(sizes[i], sampler.num_steps), PRIOR_STREAM + i
            levels.append(
                build.level(sizes[i], sampler, grids, stream=stream, first_step=begins[i], rise=rise, until=ends[i])
            )
        rise = Rise(num_below - 1, begins[-1], self.max_variance)
        return *levels, build.video(first_step=begins[-2], rise=rise)

    def _sizes(self, build: LevelBuilder) -> list[tuple[int, int]]:
        """Those of the levels, the smallest first."""
        large, native = (math.prod(size) for size in (build.canvas, build.thumbnail_size))
        asked = build.config.prior.levels
        sizes = [build.canvas]
        for num_below in range(1, 1 + (asked or max(1, round(math.log(large / native, 4))))):
            half = build.halved(sizes[0])
            excess = max(small * 2**num_below / whole - 1 for small, whole in zip(half, build.canvas))
            if excess > MAX_EXCESS:
                allowed = "another recipe for a canvas so small that its sides cannot be halved"
                require(num_below > 1, "fusion", "progressive", allowed, "Try fusion=fresco.")
                allowed = f"at most {num_below - 1} with fusion=progressive and this canvas, whose sides are halved"
                require(asked is None, "prior.levels", asked, allowed, f"Try {num_below - 1}.")
                break
            sizes.insert(0, half)
        return sizes

    def _begins(self, num_below: int, num_steps: int) -> list[int]:
        """The first step of each level, the video's last, and before which step all of that has gone up."""
        begins = [int(num_steps * self.rise * i / num_below + 1e-9) for i in range(num_below + 1)]
        remedy = f"Try sampler.num_steps={max(6, 3 * num_below)} and fusion.rise=0.5, or fewer prior.levels."
        apart = all(later > one for one, later in pairwise(begins)) and begins[-1] < num_steps
        allowed = f"enough for {num_below} levels below the video, each with a step of its own before fusion.rise"
        require(apart, "sampler.num_steps", num_steps, allowed, remedy)
        if self.max_variance is None:
            return [*begins, begins[-1]]
        enough = begins[-1] - begins[-2] >= 2
        allowed = "null unless the level below the video has two steps of its own before fusion.rise"
        rise, latest = (math.ceil(100 * step / num_steps) / 100 for step in (2 * num_below, 2 * num_below + 1))
        remedy = f"Try fusion.rise={rise:g} fusion.rise_latest={latest:g}."
        if 2 * num_below + 1 >= num_steps:
            remedy = f"Try sampler.num_steps={4 * num_below + 2}."
        require(enough, "fusion.max_variance", self.max_variance, allowed, remedy)
        latest = int(num_steps * self.rise_latest + 1e-9)
        allowed = f"later than fusion.rise by a step, and less than 1, with {num_steps} steps"
        require(begins[-1] < latest < num_steps, "fusion.rise_latest", self.rise_latest, allowed, "Try 0.75.")
        return [*begins, latest]
