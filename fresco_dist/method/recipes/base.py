"""What a recipe is: the parameters of a method, and the levels that it makes of a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fresco_dist.config import FusionConfig, require
from fresco_dist.method.builder import LevelBuilder
from fresco_dist.method.level import Guide, Level


@dataclass(kw_only=True)
class Recipe(FusionConfig):
    """A method: its fields are the keys `fusion.KEY`. What stands here is windows alone, beside a thumbnail.

    `moves`: windows lie side by side, on a grid that is shifted at each step. `takes_activity_map`: strengths differ
    where motion is expected. `takes_levels`: `prior.levels` are as many as is said.
    """

    moves: ClassVar[bool] = False
    takes_levels: ClassVar[bool] = False

    def guides(self, num_steps: int) -> Sequence[Guide | None]:
        """What the fusion of each step of the video takes from the thumbnail's level, which is level 0."""
        return [None] * num_steps

    def levels(self, build: LevelBuilder) -> tuple[Level, ...]:
        """The levels, the video's last; those that it takes nothing from, and none that is decoded, are not run."""
        return build.thumbnail(), build.video(self.guides(build.config.sampler.num_steps), moves=self.moves)


def require_strength(value: float) -> None:
    """Raise InputError unless `fusion.prior_strength` can be this."""
    require(0 <= value <= 1e9, "fusion.prior_strength", value, "in [0, 1e9]", "Try 1.")


def require_share(key: str, value: float) -> None:
    """Raise InputError unless a key can be a share of the steps."""
    require(0.0 <= value <= 1.0, key, value, "in [0, 1], a share of the steps", "Try 0.2.")
