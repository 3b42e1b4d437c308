"""How strongly the prior holds at each step: lam_i (METHOD 4, Eq. 7-8)."""

import math
from enum import Enum

from fresco_dist.method.level import Guide, Source

THUMBNAIL = Source(0)


class Schedule(Enum):
    """How prior strength changes over the steps, before gating."""

    constant = "constant"
    cosine = "cosine"


def step_position(step: int, num_steps: int) -> float:
    """s_i = i / (S - 1) in [0, 1]; 0 if S = 1."""
    return step / (num_steps - 1) if num_steps > 1 else 0.0


def schedule_factor(schedule: Schedule, s: float) -> float:
    """c(s): 1 (constant) or the decreasing cosine (1 + cos(pi s)) / 2."""
    return 1.0 if schedule is Schedule.constant else 0.5 * (1.0 + math.cos(math.pi * s))


def prior_guides(
    strength: float,
    schedule: Schedule,
    cutoffs: tuple[float, float],
    num_steps: int,
    source: Source = THUMBNAIL,
) -> tuple[Guide | None, ...]:
    """What the fusion of each step takes of the prior, a level below; None where its strength is 0 everywhere.

    Eq. 7: lam0 c(s_i) [s_i <= tau]; Eq. 8: with tau_active where motion is expected and tau_background elsewhere.
    """
    guides: list[Guide | None] = []
    for step in range(num_steps):
        s = step_position(step, num_steps)
        lam = strength * schedule_factor(schedule, s)
        active, background = (lam * (s <= cutoff) for cutoff in cutoffs)
        guides.append(Guide(source, (active, background)) if active or background else None)
    return tuple(guides)
