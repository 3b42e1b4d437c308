"""FrescoDiffusion (arXiv 2603.17555, Eq. 7): windows that overlap, held by a thumbnail's clip at the first steps."""

from collections.abc import Sequence
from dataclasses import dataclass

from fresco_dist.method.level import Guide
from fresco_dist.method.prior_strength import Schedule, prior_guides
from fresco_dist.method.recipes.base import Recipe, require_share, require_strength


@dataclass(kw_only=True)
class Fresco(Recipe):
    """`cutoff` is a share of the steps: 0 = the first step only, 1 = all steps."""

    prior_strength: float
    schedule: Schedule
    cutoff: float

    def __post_init__(self) -> None:
        require_strength(self.prior_strength)
        require_share("fusion.cutoff", self.cutoff)

    def guides(self, num_steps: int) -> Sequence[Guide | None]:
        return prior_guides(self.prior_strength, self.schedule, (self.cutoff, self.cutoff), num_steps)
