"""Regional FrescoDiffusion (arXiv 2603.17555, Eq. 8): the background keeps the prior longer than what moves."""

from collections.abc import Sequence
from dataclasses import dataclass

from fresco_dist.config import require
from fresco_dist.method.level import Guide
from fresco_dist.method.prior_strength import Schedule, prior_guides
from fresco_dist.method.recipes.base import Recipe, require_share, require_strength


@dataclass(kw_only=True)
class Regional(Recipe):
    """Cutoffs where the activity map says that motion is expected, and elsewhere; shares of the steps."""

    prior_strength: float
    schedule: Schedule
    cutoff_active: float
    cutoff_background: float

    takes_activity_map = True

    def __post_init__(self) -> None:
        require_strength(self.prior_strength)
        for name in ("cutoff_active", "cutoff_background"):
            require_share(f"fusion.{name}", getattr(self, name))
        require(
            self.cutoff_active <= self.cutoff_background,
            "fusion.cutoff_active",
            self.cutoff_active,
            f"at most fusion.cutoff_background ({self.cutoff_background})",
            "Active regions leave the prior first.",
        )

    def guides(self, num_steps: int) -> Sequence[Guide | None]:
        cutoffs = self.cutoff_active, self.cutoff_background
        return prior_guides(self.prior_strength, self.schedule, cutoffs, num_steps)
