"""What a recipe is: the parameters of a method, and the levels that it makes of a picture."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fresco_dist.config import Config, FusionConfig, Through, require
from fresco_dist.method.builder import LevelBuilder
from fresco_dist.method.level import Guide, Level, Source
from fresco_dist.method.residual import ResidualTime


@dataclass(kw_only=True)
class Recipe(FusionConfig):
    """A method: its fields are the keys `fusion.KEY`. What stands here is windows alone, beside a thumbnail.

    `moves`: windows lie side by side, on a grid that is shifted at each step. `takes_activity_map`: strengths differ
    where motion is expected. `takes_levels`: `prior.levels` are as many as is said.
    """

    def guides(self, num_steps: int) -> Sequence[Guide | None]:
        """What the fusion of each step of the video takes from the thumbnail's level, which is level 0."""
        return [None] * num_steps

    def notes(self, config: Config, levels: Sequence[Level]) -> Iterator[str]:
        """What the user should know of the levels that it has made."""
        asked, made = config.prior.levels, len({level.canvas for level in levels[:-1]})
        if self.takes_levels and asked is not None and made < asked:
            yield f"prior.levels={asked} is more than the picture has room for: there are {made}"

    def levels(self, build: LevelBuilder) -> tuple[Level, ...]:
        """The levels, the video's last; those that it takes nothing from, and none that is decoded, are not run."""
        return build.thumbnail(), build.video(self.guides(build.config.sampler.num_steps), moves=self.moves)


@dataclass(kw_only=True)
class Residual:
    """Keys of recipes whose canvases are pulled to the level below before each step, see `method.residual`.

    `detail` is the exponent by which that fades, where `detail_map` is light or, without one, everywhere;
    `detail_background` is that where it is dark.
    """

    detail: float | None = None
    detail_background: float | None = None
    detail_map: str | None = None
    residual_time: ResidualTime

    def __post_init__(self) -> None:
        require(self.detail_map != "", "fusion.detail_map", '""', "a picture or null", "Give the file's path.")
        for name in ("detail", "detail_background"):
            value = getattr(self, name)
            require(value is None or 0 <= value <= 100, f"fusion.{name}", value, "in [0, 100]", "Try 2.")
        is_split, background = self.detail_map is not None, self.detail_background
        allowed, remedy = "given with fusion.detail_map, and only then", "FreeScale's are 0.5, and 3 where it is light."
        require(is_split == (background is not None), "fusion.detail_background", background, allowed, remedy)
        allowed = "given with fusion.detail_map"
        require(not is_split or self.detail is not None, "fusion.detail", self.detail, allowed, "Try 3.")

    def residual(self, source: Source) -> Guide | None:
        """What pulls a canvas to its source before each step; None without `detail`."""
        if self.detail is None:
            return None
        background = self.detail if self.detail_background is None else self.detail_background
        return Guide(source, (self.detail, background), self.residual_time)


def source_of(level: int, through: Through) -> Source:
    """What is taken of a level below."""
    return Source(level, through_pixels=through is Through.pixels)


def starting(start: float, num_steps: int, source: Source, after: Sequence[Guide | None] = ()) -> dict[str, Any]:
    """`first_step` and `residuals` of a level that starts after a share of its steps, at least one and not all.

    There it is its source, at that step's noise level; the steps after it have the residuals `after`, as far as given.
    """
    allowed = "at least 2, and so prior.num_steps, where a level starts from the one below"
    require(num_steps >= 2, "sampler.num_steps", num_steps, allowed, "Try 6.")
    first_step = min(num_steps - 1, max(1, round(start * num_steps)))
    residuals = [*[None] * first_step, Guide(source, (1.0, 1.0)), *after]
    return {"first_step": first_step, "residuals": (residuals + [None] * num_steps)[:num_steps]}


def require_start(start: float | None) -> None:
    """Raise InputError unless `fusion.start` can be this."""
    allowed, remedy = "greater than 0 and less than 1, a share of the steps", "Try 0.3."
    require(start is None or 0.0 < start < 1.0, "fusion.start", start, allowed, remedy)


def require_loop(loop_steps: int) -> None:
    """Raise InputError unless `fusion.loop_steps` can be this."""
    require(1 <= loop_steps <= 1000, "fusion.loop_steps", loop_steps, "in [1, 1000]", "Try 16.")


def require_strength(value: float) -> None:
    """Raise InputError unless `fusion.prior_strength` can be this."""
    require(0 <= value <= 1e9, "fusion.prior_strength", value, "in [0, 1e9]", "Try 1.")


def require_share(key: str, value: float) -> None:
    """Raise InputError unless a key can be a share of the steps."""
    require(0.0 <= value <= 1.0, key, value, "in [0, 1], a share of the steps", "Try 0.2.")
