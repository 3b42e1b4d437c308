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
    prompts: tuple[str, ...]  # one per guidance branch
    canvas_image: np.ndarray
    thumbnail: np.ndarray
    activity: np.ndarray | None  # latent cells
    canvas_last: np.ndarray | None = None  # last frame, as canvas_image and thumbnail
    thumbnail_last: np.ndarray | None = None
    base: int = 0  # index of the first job with the same picture, model, windows, sampler and seed
