"""What several jobs have in common, so that it is done once: points of a sweep differ late or not at all.

Two jobs have the same base if nothing but the fusion differs, and the same canvas before step k if also their prior
strengths agree at all steps before k. Decides by configurations alone.
"""

import dataclasses
import json
from collections.abc import Hashable, Sequence

from fresco_dist.config import Config, FusionConfig
from fresco_dist.method.prior_strength import prior_strengths
from fresco_dist.schedule.tasks import Owners


def base_key(config: Config) -> Hashable:
    """Equal for jobs that differ in the fusion alone."""
    values = dataclasses.asdict(config)
    for key in ("fusion", "plan_only"):
        del values[key]
    return json.dumps(values, default=str, sort_keys=True)


def strength_key(fusion: FusionConfig, step: int, num_steps: int) -> Hashable:
    """Equal where the prior strengths of a step are equal at every place."""
    active, background = prior_strengths(fusion, step, num_steps)
    if active == background:
        return active
    return active, background, fusion.activity_map


def find_owners(configs: Sequence[Config]) -> list[Owners]:
    """For each job, which job does each part of it."""
    bases: dict[Hashable, int] = {}
    canvases: dict[Hashable, int] = {}
    texts: dict[Hashable, tuple[int, int]] = {}
    owners = []
    for job, config in enumerate(configs):
        num_steps = config.sampler.num_steps
        base = bases.setdefault(base_key(config), job)
        strengths = tuple(strength_key(config.fusion, step, num_steps) for step in range(num_steps))
        prefixes = [strengths[:step] for step in range(num_steps + 1)]
        canvas = tuple(canvases.setdefault((base, prefix), job) for prefix in prefixes)
        bundled = config.prompt is None and config.image is None
        prompts = (None if bundled else config.prompt or "", config.negative_prompt)
        owned = tuple(texts.setdefault(text, (job, i)) for i, text in enumerate(prompts))
        owners.append(Owners(base, canvas, owned))
    return owners
