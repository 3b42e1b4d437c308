"""MultiDiffusion (arXiv 2302.08113): windows that overlap, fused by their weighted mean (METHOD 1 with lam = 0)."""

from dataclasses import dataclass

from fresco_dist.method.recipes.base import Recipe


@dataclass(kw_only=True)
class MultiDiffusion(Recipe):
    """Windows alone: no prior, no parameters."""
