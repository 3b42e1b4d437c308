"""What the workers are told of a run: numbers, texts and pictures; no tensor, so that reading it needs no torch."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fresco_dist.config import Config
from fresco_dist.schedule.keys import Content, Keys, make_keys
from fresco_dist.schedule.plan import Plan


@dataclass(frozen=True)
class Job:
    """Everything a worker is told about a run. Pictures are uint8 (H, W, 3); maps are bool (H, W)."""

    config: Config
    plan: Plan
    prompts: tuple[str, ...]  # the picture's, those of its regions, the negative one; whether they are needed or not
    pictures: tuple[np.ndarray, ...]  # first frame, at the size of each level
    activity: np.ndarray | None = None  # where motion is measured apart, latent cells of the last level
    maps: tuple[np.ndarray, ...] = ()  # where guides have the first of their strengths, latent cells, by level
    segmenter: str = ""  # what makes the activity map, with all its settings, if it is made
    last_pictures: tuple[np.ndarray, ...] | None = None  # last frame, likewise
    model: str = ""  # the fingerprint of its files

    @cached_property
    def keys(self) -> Keys:
        """The names of all that it consists of."""
        content = Content(
            model=self.model,
            texts=self.prompts,
            pictures=tuple(map(_digest, zip(self.pictures, self.last_pictures or [None] * len(self.pictures)))),
            maps=tuple(_digest([map_HW]) for map_HW in self.maps),
            segmenter=self.segmenter,
            shares=tuple(_digest([shares_PHW]) for shares_PHW in self.plan.shares),
            embedding=self.config.model.image_embedding.value if self.plan.spec.embeds_pictures else "",
            seed=self.config.seed,
            bits=self.bits(self.plan.top),
        )
        return make_keys(self.plan, content)

    def bits(self, level: int) -> int:
        """Per sample of a level's frames: what is read again, below the video, has 8, and so has an estimate."""
        is_video = level == self.plan.top and self.plan.canvas.until is None
        return self.config.video.encoding.bits if is_video else 8


def jobs_by_key(jobs: Sequence[Job]) -> dict[str, Job]:
    """The first job that each key belongs to; of what belongs to none, the first of all."""
    found = {key: job for job in reversed(jobs) for key in job.keys}
    return found | {"": jobs[0]} if jobs else found


def _digest(arrays: Sequence[np.ndarray | None]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        if array is not None:
            digest.update(repr((array.shape, array.dtype.str)).encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
