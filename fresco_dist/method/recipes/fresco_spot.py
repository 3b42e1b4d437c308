"""FrescoDiffusion whose windows lie side by side and move (`spot`): the prior holds together what no overlap does."""

from dataclasses import dataclass

from fresco_dist.method.recipes.fresco import Fresco


@dataclass(kw_only=True)
class FrescoSpot(Fresco):
    """Parameters as those of `fresco`."""

    moves = True
