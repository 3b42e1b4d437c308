"""How strongly the prior holds at each step: lam_i (METHOD 4, Eq. 7-8)."""

import math

import torch

from fresco_dist.config import FusionConfig, FusionMethod, Schedule


def step_position(step: int, num_steps: int) -> float:
    """s_i = i / (S - 1) in [0, 1]; 0 if S = 1."""
    return step / (num_steps - 1) if num_steps > 1 else 0.0


def schedule_factor(schedule: Schedule, s: float) -> float:
    """c(s): 1 (constant) or the decreasing cosine (1 + cos(pi s)) / 2."""
    return 1.0 if schedule is Schedule.constant else 0.5 * (1.0 + math.cos(math.pi * s))


def place_strengths(fusion: FusionConfig, step: int, num_steps: int) -> tuple[float, float]:
    """lam_i where motion is expected, and elsewhere.

    Eq. 7: lam0 c(s_i) [s_i <= tau]; Eq. 8: with tau_active in the one place and tau_background in the other.
    """
    s = step_position(step, num_steps)
    lam = fusion.prior_strength * schedule_factor(fusion.schedule, s)
    if fusion.method is FusionMethod.multidiffusion:
        return 0.0, 0.0
    if fusion.method is FusionMethod.fresco:
        return (lam * (s <= fusion.cutoff),) * 2
    return lam * (s <= fusion.cutoff_active), lam * (s <= fusion.cutoff_background)


def prior_strength(
    fusion: FusionConfig, step: int, num_steps: int, activity_HW: torch.Tensor | None = None
) -> float | torch.Tensor:
    """lam_i: a scalar, or float32 (H, W) for the regional method, whose map is 1 where motion is expected.

    Eq. 8: lam0 c(s_i) (M [s_i <= tau_active] + (1 - M) [s_i <= tau_background]).
    """
    active, background = place_strengths(fusion, step, num_steps)
    if fusion.method is not FusionMethod.regional:
        return active
    return activity_HW.float() * active + (1.0 - activity_HW.float()) * background


def prior_steps(fusion: FusionConfig, num_steps: int) -> tuple[bool, ...]:
    """Whether the prior counts at each step; if at none, the thumbnail need not be animated."""
    return tuple(any(place_strengths(fusion, step, num_steps)) for step in range(num_steps))
