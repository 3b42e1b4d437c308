"""What the workers are told of a run: numbers, texts and pictures; no tensor, so that reading it needs no torch."""

from dataclasses import dataclass

import numpy as np

from fresco_dist.config import Config
from fresco_dist.schedule.plan import Plan


@dataclass(frozen=True)
class Job:
    """Everything a worker is told about a run. Pictures are uint8 (H, W, 3); the activity map is bool (H, W)."""

    config: Config
    plan: Plan
    prompts: tuple[str, ...]  # the negative one second, whether it is needed or not
    pictures: tuple[np.ndarray, ...]  # first frame, at the size of each level
    activity: np.ndarray | None = None  # latent cells of the last level
    last_pictures: tuple[np.ndarray, ...] | None = None  # last frame, likewise
