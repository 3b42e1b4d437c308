"""Settings that have no effect on a run, and why: what a user has given and would look for in vain.

Rules alone, of a configuration and its plan. What `idle_keys` tells of was given, since its value asks for something;
other keys have a value in any case, and of these `idle_if_given` tells only if they stood on the command line.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import fields
from typing import TYPE_CHECKING

from fresco_dist.config import Config, DispatchMode, ExecutorKind, Expert, RegionMode, Sam3Config
from fresco_dist.method.level import Grid, Guide, Level

if TYPE_CHECKING:
    from fresco_dist.schedule.plan import Plan


def idle_keys(config: Config, plan: "Plan") -> Iterator[str]:
    """What has no effect although its value asks for something."""
    yield from _idle_texts(config, plan)
    yield from _idle_of_windows(config)
    yield from _idle_of_prior(config, plan)
    yield from _idle_of_model(config, plan)
    cluster = config.cluster
    if cluster.executor is ExecutorKind.inprocess:
        for name in ("address", "num_nodes"):
            if getattr(cluster, name) is not None:
                yield f"cluster.{name} has no effect with cluster.executor=inprocess: there is no Ray"


def _idle_texts(config: Config, plan: "Plan") -> Iterator[str]:
    if config.negative_prompt and 1 + len(config.region_prompts) not in plan.prompts:
        yield "negative_prompt has no effect with sampler.guidance_scale=1, which is no guidance"
    if config.prompt and 0 not in plan.prompts:
        yield "prompt has no effect: regions leave no part of the picture to it"
    if not config.regions and config.region_mode is not RegionMode.blend:
        yield f"region_mode={config.region_mode.value} has no effect without regions"


def _idle_of_windows(config: Config) -> Iterator[str]:
    fusion, tiles = config.fusion, config.tiles
    if config.sampler.stop_after is not None and config.dispatch.mode is DispatchMode.allreduce:
        yield "dispatch.mode=allreduce has no effect with sampler.stop_after: cells meet one by one, same bits"
    if not fusion.moves:
        for name, value, usual in (("overlap_steps", tiles.overlap_steps, 0), ("border", tiles.border.value, "cut")):
            if value != usual:
                why = "it is for windows side by side, on a grid that moves"
                yield f"tiles.{name}={value} has no effect with fusion={fusion.method}: {why}"
    elif tiles.overlap_steps > config.sampler.num_steps:
        yield f"tiles.overlap_steps={tiles.overlap_steps} is more than there are: windows overlap at all steps"


def _idle_of_prior(config: Config, plan: "Plan") -> Iterator[str]:
    fusion, prior = config.fusion, config.prior
    if prior.levels is not None and not fusion.takes_levels:
        yield f"prior.levels={prior.levels} has no effect with fusion={fusion.method}"
    for name in ("num_steps", "sigmas"):
        if getattr(prior, name) is not None and not _takes_prior(plan):
            yield f"prior.{name} has no effect: nothing is taken from a prior"
    is_map = fusion.takes_activity_map and fusion.activity_map and not config.metrics
    key = "activity_map" if is_map else "detail_map" if fusion.detail_map else ""
    if key and not any(guide.by_map for level in _needed(plan) for guide in _guides(level)):
        yield f"fusion.{key} has no effect: what is taken is the same where it is light and where it is dark"


def _idle_of_model(config: Config, plan: "Plan") -> Iterator[str]:
    model, stages = config.model, {step.stage for level in _needed(plan) for step in level.steps}
    if model.forward_s and model.backbone != "synthetic":
        yield "model.forward_s has no effect with a model that has weights: it is for model=synthetic"
    if config.sampler.guidance_scale_2 is not None and Expert.low_noise.stage not in stages:
        yield "sampler.guidance_scale_2 has no effect: the low-noise expert predicts at no step"
    for expert in dict.fromkeys(lora.expert for lora in model.loras if lora.expert):
        if expert.stage not in stages:
            yield f"model.loras of the {expert.value} expert have no effect: it predicts at no step"
    if config.image is not None and not plan.spec.condition_channels and not plan.spec.embeds_pictures:
        yield "image gives the video its size alone: this model does not see it"


def idle_if_given(config: Config, plan: "Plan", given: Collection[str]) -> Iterator[str]:
    """What has no effect of the keys that were `given`, dotted."""
    for key, why in (entry for entry in _idle_values(config, plan) if entry[0] in given):
        yield f"{key} has no effect: {why}"


def _idle_values(config: Config, plan: "Plan") -> Iterator[tuple[str, str]]:
    """Keys that have a value in any case, and why that has no effect."""
    if not _takes_prior(plan):
        yield "prior.area", "nothing is taken from a prior"
    if not _any_grid(plan, lambda grid: any(grid.overlap)):
        for name in ("overlap",) * (config.tiles.overlap > 0) + ("fit", "min_weight"):
            yield f"tiles.{name}", f"with fusion={config.fusion.method} windows lie side by side"
    elif not _any_grid(plan, lambda grid: len(grid.windows) > 1):
        for name in ("overlap", "fit", "min_weight"):
            yield f"tiles.{name}", "one window holds the whole picture"
    elif not _any_grid(plan, lambda grid: any(grid.overlap) and grid.min_weight == config.tiles.min_weight):
        yield "tiles.min_weight", f"with fusion={config.fusion.method} windows count alike"
    if not config.regions:
        yield "region_feather", "there are no regions"
    priors = [[step.prior for step in level.steps] for level in _needed(plan)]
    if not any(any(guides) for guides in priors):
        scheduled = ("schedule", "cutoff", "cutoff_active", "cutoff_background")
        for name in (name for name in scheduled if hasattr(config.fusion, name)):  # others are told of before
            yield f"fusion.{name}", "fusion.prior_strength is 0"
    elif not any(any(guides[1:]) for guides in priors):
        yield "fusion.schedule", "the prior counts at the first step alone, where all schedules are 1"
    if not config.segments:
        for key in fields(Sam3Config):
            yield f"sam3.{key.name}", "no activity map is made without fusion.activity_map=sam3"
    if config.cluster.executor is ExecutorKind.inprocess:
        yield "cluster.start_timeout_s", "with cluster.executor=inprocess nothing has to start"


def _takes_prior(plan: "Plan") -> bool:
    return plan.needed != (plan.top,)


def _needed(plan: "Plan") -> Iterator[Level]:
    return (plan.levels[i] for i in plan.needed)


def _guides(level: Level) -> Iterator[Guide]:
    return (guide for step in level.steps for guide in (step.prior, step.residual) if guide)


def _any_grid(plan: "Plan", holds: Callable[[Grid], bool]) -> bool:
    return any(holds(step.grid) for level in _needed(plan) for step in level.steps)
