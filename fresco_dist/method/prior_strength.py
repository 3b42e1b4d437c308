"""How strongly the prior holds at each step: lam_i (METHOD 4, Eq. 7-8)."""

import math

from fresco_dist.config import FusionConfig, FusionMethod, Schedule
from fresco_dist.method.level import Guide, Source


def step_position(step: int, num_steps: int) -> float:
    """s_i = i / (S - 1) in [0, 1]; 0 if S = 1."""
    return step / (num_steps - 1) if num_steps > 1 else 0.0


def schedule_factor(schedule: Schedule, s: float) -> float:
    """c(s): 1 (constant) or the decreasing cosine (1 + cos(pi s)) / 2."""
    return 1.0 if schedule is Schedule.constant else 0.5 * (1.0 + math.cos(math.pi * s))


def prior_strengths(fusion: FusionConfig, step: int, num_steps: int) -> tuple[float, float]:
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


def prior_guides(fusion: FusionConfig, num_steps: int) -> tuple[Guide | None, ...]:
    """The thumbnail's part in the fusion of each step; None where its strength is 0 everywhere."""
    strengths = [prior_strengths(fusion, step, num_steps) for step in range(num_steps)]
    return tuple(Guide(Source(0), pair) if any(pair) else None for pair in strengths)
