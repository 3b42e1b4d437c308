"""What is computed is named by all that it is made of: equal keys, equal bits (on equal hardware and versions).

A level has one chain of keys: that of the canvas before its first step is made of model, pictures, texts, windows,
noise levels and seed; each later one of the key before it, of how strongly which guides count, and of the last key of
the level that a guide takes from. So what jobs have in common is found by their keys, and a stored canvas by its own.

    inputs     = H(which level, model, pictures, VAE tiles)         what is encoded of the pictures
    base       = H(model, inputs, texts and their shares, windows of all steps, noise levels, seed)
    canvas[0]  = H(base, residual of the first step, the canvas below that it rises from)
    canvas[k+1] = H(canvas[k], prior of step k, residual of step k + 1)     of the last also what it is standardised to
    clip       = H(last canvas, VAE tiles, the depth of its frames)  or of the estimate, where a run stops before it
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fresco_dist.method.level import Grid, Guide, Level, Source
from fresco_dist.schedule.plan import Plan

ENTERS = {  # where each key of the configuration enters first; "" where it cannot change a bit of a canvas or a clip
    "image": "inputs",  # by its pixels, as they are at each level
    "image_last": "inputs",
    "prompt": "text",
    "negative_prompt": "text",
    "regions": "text",  # by their prompts; their masks, by the shares of the prompts, in base
    "region_mode": "base",
    "region_feather": "base",
    "seed": "base",
    "video.num_frames": "inputs",
    "video.fps": "",
    "video.max_size": "inputs",
    "video.format": "clip",  # by the depth of its frames
    "video.quality": "",
    "tiles.window": "base",
    "tiles.overlap": "base",
    "tiles.min_weight": "base",
    "tiles.fit": "base",  # by the overlap that it chooses
    "tiles.batch": "base",
    "tiles.overlap_steps": "base",  # of windows that move, as the next
    "tiles.border": "base",
    "fusion.method": "canvas",
    "fusion.prior_strength": "canvas",
    "fusion.schedule": "canvas",
    "fusion.cutoff": "canvas",
    "fusion.cutoff_active": "canvas",
    "fusion.cutoff_background": "canvas",
    "fusion.activity_map": "canvas",  # where strengths differ by it
    "fusion.local_priors": "inputs",  # by the levels that there are, as `prior.levels`
    "fusion.through": "canvas",
    "fusion.start": "base",  # by the first step
    "fusion.detail": "canvas",
    "fusion.detail_background": "canvas",
    "fusion.detail_map": "canvas",
    "fusion.residual_time": "canvas",
    "fusion.motion_guidance": "canvas",
    "fusion.loop_steps": "base",  # by the windows
    "fusion.rise": "base",  # by the first step
    "fusion.rise_latest": "base",  # by the noise levels
    "fusion.max_variance": "base",
    "sampler.num_steps": "base",
    "sampler.guidance_scale": "base",
    "sampler.guidance_scale_2": "base",
    "sampler.shift": "base",
    "sampler.sigmas": "base",
    "sampler.stop_after": "clip",
    "prior.area": "inputs",
    "prior.num_steps": "base",
    "prior.sigmas": "base",
    "prior.levels": "inputs",
    "model.backbone": "model",
    "model.path": "model",  # by the contents of its files
    "model.dtype": "model",
    "model.vae_dtype": "model",
    "model.attention": "",  # the kernel in use belongs to the workers' numerics
    "model.image_embedding": "inputs",
    "model.loras": "model",
    "model.fuse_loras": "model",
    "model.compile": "model",
    "model.expert_offload": "",
    "model.quantization": "model",
    "model.offload": "",
    "model.vae_tile": "inputs",
    "model.forward_s": "",
    "cluster.executor": "",
    "cluster.num_nodes": "",
    "cluster.num_workers": "",
    "cluster.cpus_per_worker": "",  # threads belong to the workers' numerics
    "cluster.gpus_per_worker": "",  # and so does the kind of device
    "cluster.address": "",
    "cluster.timeout_s": "",
    "cluster.start_timeout_s": "",
    "cluster.gpu_memory_gb": "",
    "dispatch.mode": "",
    "sam3.path": "canvas",  # by the contents of its files, where strengths differ by the activity map, as all here
    "sam3.prompts": "canvas",
    "sam3.score_threshold": "canvas",
    "sam3.mask_threshold": "canvas",
    "sam3.max_area": "canvas",
    "sam3.border": "canvas",
    "sam3.max_border": "canvas",
    "sam3.dilation": "canvas",
    "sam3.threshold": "canvas",
    "store.enabled": "",
    "store.path": "",
    "store.max_gb": "",
    "plan_only": "",
    "metrics": "",
    "preview": "",
    "dino_path": "",
}


@dataclass(frozen=True)
class Content:
    """What a job is made of, beside its plan; what comes from files as digests of their contents."""

    model: str = ""
    texts: tuple[str, ...] = ()  # none: as if they were all the same, but for regions, which have them to differ
    pictures: tuple[str, ...] = ()  # by level
    maps: tuple[str, ...] = ()  # by level, where strengths differ by one
    segmenter: str = ""  # with all its settings, of an activity map that is made
    shares: tuple[str, ...] = ()  # of prompts by region, by level
    embedding: str = ""  # model.image_embedding, of models that embed pictures
    seed: int = 0
    bits: int = 8  # per sample of the video's frames


@dataclass(frozen=True)
class LevelKeys:
    """Of one level."""

    inputs: str
    base: str
    canvas: tuple[str, ...]  # before each step, and after the last
    last: str  # after the last, or where it stops
    clip: str
    again: dict[Source, str] = field(default_factory=dict)  # the clips of levels below, encoded again


@dataclass(frozen=True)
class Keys:
    """Of all that a job consists of."""

    texts: tuple[str, ...]
    levels: tuple[LevelKeys, ...]
    activity: str = ""  # of an activity map that is made

    def __iter__(self) -> Iterator[str]:
        yield from (*self.texts, *filter(None, [self.activity]))
        for level in self.levels:
            yield from (level.inputs, level.base, *level.canvas, level.clip, *level.again.values())


def make_keys(plan: Plan, content: Content = Content()) -> Keys:
    """The keys of a job, whatever of it is stored."""
    plan = plan.whole
    given = content.texts or tuple(str(prompt) if plan.shares else "" for prompt in range(1 + plan.prompts[-1]))
    texts = tuple(_digest("text", content.model, text) for text in given)
    activity = ""
    if content.segmenter:
        activity = _digest("activity", content.segmenter, content.pictures[-1])
        content = replace(content, maps=content.maps or (activity,) * len(plan.levels))
    levels: list[LevelKeys] = []
    for i in range(len(plan.levels)):
        levels.append(_level_keys(plan, content, tuple(texts[prompt] for prompt in plan.prompts), i, levels))
    return Keys(texts, tuple(levels), activity)


def _level_keys(plan: Plan, content: Content, texts: tuple[str, ...], index: int, below: list[LevelKeys]) -> LevelKeys:
    level: Level = plan.levels[index]
    picture = content.pictures[index] if content.pictures else ""
    windows = _windows(level) if content.embedding == "window" else ""
    inputs = _digest(
        "inputs", index, content.model, picture, plan.num_frames, level.latent_shape, level.encode_tiles,
        content.embedding, windows,
    )  # fmt: skip
    base = _digest(
        "base", content.model, inputs, texts, _windows(level), level.sum_abs_coefficients, level.first_step,
        level.num_steps, level.shift, level.sigmas, level.rise and level.rise.until, content.seed, level.stream,
        content.shares[index : index + 1],
    )  # fmt: skip
    again = {
        source: _digest("again", below[source.level].clip, level.encode_tiles, level.latent_shape)
        for source in level.sources
        if source.through_pixels
    }

    def guide(taken: Guide | None) -> Any:
        if taken is None:
            return None
        of = again[taken.source] if taken.source.through_pixels else below[taken.source.level].last
        by_map = content.maps[index : index + 1] if taken.by_map else ()
        return of, taken.strengths, taken.time, by_map

    def risen(step: int) -> Any:
        rise = level.rise
        if rise is None or not (step == level.first_step or rise.max_variance is not None and step <= rise.until):
            return None
        return rise.max_variance, below[rise.level].canvas[step - plan.levels[rise.level].first_step]

    canvas = [_digest("canvas", base, guide(level.steps[0].residual), risen(level.first_step))]
    for step in range(level.first_step, level.num_steps):
        taken = (guide(level.at(step).prior), guide(level.residual_after(step)), risen(step + 1))
        canvas.append(_digest("canvas", canvas[-1], *taken))
    if level.standard is not None:
        canvas[-1] = _digest("standard", canvas[-1], below[level.standard].last)
    last = canvas[level.todo.stop - level.first_step]
    bits = (content.bits,) if index == plan.top and content.bits > 8 else ()
    clip = _digest("clip" if level.until is None else "preview", content.model, last, level.decode_tiles, *bits)
    return LevelKeys(inputs, base, tuple(canvas), last, clip, again)


def _windows(level: Level) -> str:
    """Of the windows that are predicted at each step, and for which prompts; steps that have the same are read once."""
    seen: dict[tuple[int, int], str] = {}

    def of(grid: Grid, batches: tuple) -> str:
        named = id(grid), id(batches)
        if named not in seen:
            seen[named] = _digest("windows", grid, [(batch.windows, batch.branches) for batch in batches])
        return seen[named]

    return _digest("steps", [(of(step.grid, step.batches), step.stage) for step in level.steps])


def numerics_key(facts: Sequence[tuple[tuple[str, str], ...]]) -> str:
    """The name of what decides bits beside model and inputs: names and values, of workers that differ all of them."""
    return _digest("numerics", facts)


def _digest(kind: str, *parts: Any) -> str:
    """A name for what is made of these, which `repr` tells apart: numbers, texts, and dataclasses of them."""
    return hashlib.sha256(repr((kind, *parts)).encode()).hexdigest()[:32]
