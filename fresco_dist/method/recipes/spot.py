"""SpotDiffusion (arXiv 2407.15507) for pictures: windows side by side, on a grid that is shifted at each step.

There the noise is rolled along a panorama, and the windows stay; here the canvas and what the model is conditioned on
stay, and the windows move. A step costs the canvas once, and no seam is where one of the step before was.
"""

from dataclasses import dataclass

from fresco_dist.method.recipes.multidiffusion import MultiDiffusion


@dataclass(kw_only=True)
class Spot(MultiDiffusion):
    """Windows alone: no prior, no parameters; `tiles.overlap_steps` and `tiles.border` are for it."""

    moves = True
