"""The plan: everything about a run that can be known before a model is loaded.

Owns the levels (canvases, windows, branches, guides, VAE tiles) and sizes. It touches no tensor, no file and no worker,
and prints nothing. The plan depends on image, model, configuration and seed; only the number of workers depends on the
cluster.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property, partial, reduce
from typing import Any

import numpy as np

from fresco_dist.config import FORMATS, Config, DispatchMode, ExpertOffload, ImageEmbedding, InputError, VideoFormat
from fresco_dist.method.builder import LevelBuilder, Shares
from fresco_dist.method.grid import Window, cut_windows, fit_area, fit_cap, snap_down, vae_tiles, window_and_stride
from fresco_dist.method.level import Level, Source
from fresco_dist.method.recipes import Recipe
from fresco_dist.schedule.idle import idle_keys
from fresco_dist.schedule.spec import ModelSpec

UNSET: tuple = (None, [], False, ExpertOffload.hold, ImageEmbedding.picture)  # values of a key that ask for nothing


@dataclass(frozen=True)
class Plan:
    """A run, before it starts. The last of the levels is the video's; the first is the thumbnail's, the prior."""

    image_px: tuple[int, int]  # width, height, as given
    output_px: tuple[int, int]  # width, height of the video
    num_frames: int
    levels: tuple[Level, ...]
    seams: tuple[Window, ...]  # windows side by side, latent cells: where any method's seams are measured
    overlap: float  # tiles.overlap, or what tiles.fit made of it
    batch: int  # tiles.batch, or what the planner made of it
    num_workers: int
    spec: ModelSpec
    notes: tuple[str, ...] = field(default=())
    shares: tuple[np.ndarray, ...] = field(default=(), compare=False, repr=False)  # of the prompts, by level; or none

    @property
    def top(self) -> int:
        """The index of the video's level."""
        return len(self.levels) - 1

    @property
    def canvas(self) -> Level:
        """The video's level."""
        return self.levels[-1]

    def size_px(self, level: int) -> tuple[int, int]:
        """(width, height) of a level, decoded."""
        height, width = (side * self.spec.spatial_factor for side in self.levels[level].canvas)
        return width, height

    @property
    def seams_px(self) -> list[Window]:
        """The windows of `seams` on the decoded video."""
        return [window.scaled(self.spec.spatial_factor) for window in self.seams]

    @cached_property
    def needed(self) -> tuple[int, ...]:
        """The levels that are run: the last, those that one of these takes from, and those that are shown."""
        needed = {i for i, level in enumerate(self.levels) if level.is_shown} | {self.top}
        for i in reversed(range(len(self.levels))):
            if i in needed:
                needed |= {source.level for source in self.levels[i].sources}
        return tuple(sorted(needed))

    @property
    def whole(self) -> "Plan":
        """The same from its beginning."""
        return self.going_on_from(lambda level: None)

    def going_on_from(self, stored: Callable[[int], int | None]) -> "Plan":
        """The same from canvases that are stored: `stored` says of a level before which step the latest is.

        Of a level that is not needed then it is not asked; one that another rises from goes on from no later step.
        """
        plan = replace(self, levels=tuple(replace(level, given=None) for level in self.levels))
        for i in reversed(range(len(self.levels))):
            if i in plan.needed:
                levels = list(plan.levels)
                given, rising = stored(i), [above for above in levels if Source(i) in above.rises_from]
                if given is not None and any(above.decides or given > above.first_step for above in rising):
                    given = None
                levels[i] = replace(levels[i], given=given)
                plan = replace(plan, levels=tuple(levels))
        return plan

    @cached_property
    def prompts(self) -> tuple[int, ...]:
        """The prompts that windows are predicted for, by their numbers among the job's."""
        return tuple(sorted(set().union(*(_prompts_of(level) for level in self.levels))))

    @property
    def tile_shapes(self) -> tuple[tuple[int, int, int, int], ...]:
        """(B, T, H, W) in latent cells of what one forward predicts, the most frequent first."""
        shapes = sum((self.levels[i].tile_shapes for i in reversed(self.needed)), Counter())
        return tuple(shape for shape, _ in shapes.most_common())

    @property
    def num_forwards(self) -> int:
        """Model forwards of the whole run: predictions of one window for one prompt."""
        return sum(self.levels[i].num_forwards for i in self.needed)

    @property
    def cost(self) -> float:
        """The same, in forwards of one full window."""
        return sum(self.levels[i].cost for i in self.needed)

    @cached_property
    def least(self) -> "Plan":
        """The same if it is found that no window goes up before all do; itself, if nothing is found out on the way."""

        def last_to_rise(level: Level) -> Level:
            if not (level.rise and level.decides) or level.todo.stop <= level.rise.until:
                return level
            first, rise = level.rise.until, replace(level.rise, max_variance=None)
            return replace(
                level, first_step=first, steps=level.steps[first - level.first_step :], rise=rise, given=None
            )

        return replace(self, levels=tuple(map(last_to_rise, self.levels)))

    @property
    def work_per_worker(self) -> float:
        """Forwards of each worker, if all are busy to the end."""
        return self.cost / self.num_workers

    @property
    def critical_path(self) -> float:
        """Forwards one after the other: of each level its steps, once there is what they take from levels below."""
        ends: dict[int, float] = {}
        before: dict[int, dict[int, float]] = {}  # each step, by level
        for i in self.needed:
            now, level, before[i] = 0.0, self.levels[i], {}
            if level.given is None and level.steps[0].residual:
                now = ends[level.steps[0].residual.source.level]
            if level.given is None and level.rise:
                now = before[level.rise.level][level.first_step]
            for k in level.todo:
                before[i][k] = now
                now += max(batch.cost for batch in level.at(k).batches)
                for guide in (level.at(k).prior, level.residual_after(k)):
                    now = max(now, ends[guide.source.level]) if guide else now
                if level.rise and k in level.undecided:
                    now = max(now, before[level.rise.level][k + 1])
            ends[i] = before[i][level.todo.stop] = now
        return max(ends.values())


def forward_share(spec: ModelSpec, num_frames: int, full: tuple[int, int], window: Window) -> float:
    """The cost of a window's forward over that of a full window (height, width); `num_frames` latent ones.

    Linear layers and attention to the prompt grow with the tokens, attention among them with their square. Of a model
    whose widths are not known, the first alone.
    """
    shape = spec.transformer

    def flops(height: int, width: int) -> float:
        num_tokens = num_frames * height * width / spec.patch**2
        return num_tokens * (1.0 if shape is None else shape.flops_per_token(num_tokens))

    return flops(window.height, window.width) / flops(*full)


def _prompts_of(level: Level) -> set[int]:
    return {branch.prompt for step in level.steps for batch in step.batches for branch in batch.branches}


def _value(config: Config, key: str) -> Any:
    """The value of a dotted key."""
    return reduce(getattr, key.split("."), config)


def _check_accepted(config: Config, spec: ModelSpec) -> None:
    """Raise InputError if a key is set that this model cannot use, or not set that it needs, or its frames misfit."""
    for key, reason in spec.refuses.items():
        value = _value(config, key)
        if value not in UNSET:
            shown = value.value if isinstance(value, Enum) else value
            raise InputError(f"{key} must stay unset for this model ({reason}); got {shown}. Leave it out.")
    for key, reason in spec.requires.items():
        if _value(config, key) in UNSET:
            raise InputError(f"{key} must be given for this model ({reason}); got null. Add {key}=VALUE.")
    num_frames = config.video.num_frames
    if spec.max_frames is not None and num_frames > spec.max_frames:
        raise InputError(
            f"video.num_frames must be at most {spec.max_frames} for this model; got {num_frames}."
            f" Try {spec.max_frames}."
        )
    if config.image_last is not None and num_frames <= spec.temporal_factor:
        raise InputError(
            f"video.num_frames must be greater than {spec.temporal_factor} with image_last for this model;"
            f" got {num_frames}. Try {spec.temporal_factor + 1}."
        )
    if (num_frames - 1) % spec.temporal_factor:
        near = snap_down(num_frames - 1, spec.temporal_factor) + 1
        raise InputError(
            f"video.num_frames must be 1 plus a multiple of {spec.temporal_factor} for this model;"
            f" got {num_frames}. Try {near}."
        )


def _fit_canvas(
    config: Config, spec: ModelSpec, image_px: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int], list[str]]:
    """(width, height) in pixels of canvas and video, and what the user should know of them.

    Raises InputError if the image is smaller than one token, or the video larger than its format takes.
    """
    reduced_px = fit_cap(image_px, config.video.max_size)
    if min(reduced_px) < spec.grid_px:
        raise InputError(
            f"image must be at least {spec.grid_px} px high and wide for this model, within video.max_size;"
            f" got {reduced_px[0]} x {reduced_px[1]} px. Use a larger image or crop it."
        )
    width, height = (snap_down(side, spec.grid_px) for side in reduced_px)
    notes = []
    window_h, window_w = config.tiles.window
    if reduced_px == image_px and width * height < window_h * window_w:
        notes.append(
            f"the picture is small, and the video has its size, {width} x {height} px: less than a window of"
            f" {window_w} x {window_h} px, as the model knows them. Enlarge the picture for a larger video"
        )
    if reduced_px != image_px:
        size = f"{reduced_px[0]} x {reduced_px[1]} px"
        notes.append(f"the image exceeds video.max_size {config.video.max_size}: reduced to {size}")
    if (width, height) != reduced_px:
        notes.append(f"the canvas is snapped to the model's grid of {spec.grid_px} px; the video is resized back")
    format = VideoFormat.h264 if config.sampler.stop_after else config.video.format  # previews are H.264
    even = FORMATS[format].even_sides
    output_w, output_h = (side // 2 * 2 if even else side for side in reduced_px)
    if limit := FORMATS[format].limit((output_w, output_h)):
        raise InputError(
            f"video.max_size must be such that video.format={format.value} takes the video, {limit};"
            f" got {output_w} x {output_h} px. Try [8192,8192], or another video.format."
        )
    return (width, height), (output_w, output_h), notes


def _check_levels(config: Config, spec: ModelSpec, levels: Sequence[Level]) -> None:
    """Raise InputError if the recipe's levels are none that the other settings can do."""
    if any(level.rise for level in levels) and not spec.flow_matching:
        raise InputError(
            f"fusion must be a recipe without the Hadamard step for this model, which is for flow matching alone;"
            f" got {config.fusion.method}. Try fusion=demofusion."
        )
    top, stop = levels[-1], config.sampler.stop_after
    begun = top.rise.until if top.rise and top.decides else top.first_step
    if stop is not None and stop <= begun:
        remedy = f"Try {begun + 1}." if begun + 1 < top.num_steps else "Leave it out."
        raise InputError(
            f"sampler.stop_after must be greater than {begun} with fusion={config.fusion.method}, whose canvas has"
            f" begun everywhere after that many steps; got {stop}. {remedy}"
        )
    has_own = config.model.image_embedding is ImageEmbedding.window
    if has_own and any(len({step.grid.windows for step in level.steps}) > 1 for level in levels):
        raise InputError(
            f"model.image_embedding must be picture with fusion={config.fusion.method}, whose windows move;"
            " got window. Leave it out."
        )


def _regions_left_out(config: Config, spec: ModelSpec, level: Level, shares_PHW: np.ndarray) -> Iterator[str]:
    """The regions that no window is predicted for; raises InputError if one is nowhere."""
    for number, prompt in enumerate(config.region_prompts, start=1):
        if not shares_PHW[number].any():
            raise InputError(
                f"regions must each hold a part of the canvas, of {spec.spatial_factor} px or more;"
                f' got "{prompt}" with less. Enlarge its box or mask, make the mask lighter, or lower region_feather.'
            )
        if number not in _prompts_of(level):
            yield f'region_mode=dominant leaves "{prompt}" out: no window is mostly in its region'


def make_plan(
    config: Config, spec: ModelSpec, image_px: tuple[int, int], num_workers: int, shares: Shares | None = None
) -> Plan:
    """Plan a run.

    `image_px` is (width, height); `shares` are those of the prompts, where regions have their own. Raises InputError if
    the model's temporal factor does not allow the frame count, the image is smaller than one token or a region is
    nowhere.
    """
    _check_accepted(config, spec)
    (width, height), output_px, notes = _fit_canvas(config, spec, image_px)
    if not spec.trained:
        notes.append("the embedded model is untrained: expect noise, not an animation")

    factor, num_frames = spec.spatial_factor, (config.video.num_frames - 1) // spec.temporal_factor + 1
    axes = [window_and_stride(px, config.tiles.overlap, factor, spec.patch) for px in config.tiles.window]
    window, stride = zip(*axes)
    thumbnail_w, thumbnail_h = fit_area(image_px, config.prior.area, spec.grid_px)
    builder = LevelBuilder(
        config=config,
        channels=spec.latent_channels,
        num_frames=num_frames,
        canvas=(height // factor, width // factor),
        thumbnail_size=(thumbnail_h // factor, thumbnail_w // factor),
        window=window,
        stride=stride,
        patch=spec.patch,
        stages=spec.stages,
        share=partial(forward_share, spec, num_frames, window),
        encode_tiles=lambda size: vae_tiles(size, *(side // factor for side in spec.encode_tile_px)),
        decode_tiles=lambda size: vae_tiles(size, *(side // factor for side in spec.decode_tile_px)),
        shares=shares,
    )
    assert isinstance(config.fusion, Recipe)
    levels = config.fusion.levels(builder)
    _check_levels(config, spec, levels)
    shares_of = () if shares is None else tuple(shares(level.canvas) for level in levels)
    notes += config.fusion.notes(config, levels)
    if levels[-1].decides and config.dispatch.mode is DispatchMode.allreduce:
        notes.append("dispatch.mode=allreduce has no effect with fusion.max_variance: cells meet one by one, same bits")
    notes += _regions_left_out(config, spec, levels[-1], shares_of[-1]) if shares_of else ()
    plan = Plan(
        image_px=image_px,
        output_px=output_px,
        num_frames=config.video.num_frames,
        levels=levels,
        seams=tuple(cut_windows(builder.canvas, window)),
        overlap=config.tiles.overlap,
        batch=config.tiles.batch or 1,
        num_workers=num_workers,
        spec=spec,
        shares=shares_of,
    )
    return replace(plan, notes=(*notes, *idle_keys(config, plan)))


def replan(config: Config, plan: Plan, **tiles: Any) -> Plan:
    """The plan with another configuration, in which levels have the same sizes, and other settings of the tiles."""
    changed = replace(config, tiles=replace(config.tiles, **tiles))
    shares = {level.canvas: shares_PHW for level, shares_PHW in zip(plan.levels, plan.shares)}
    return make_plan(changed, plan.spec, plan.image_px, plan.num_workers, shares.__getitem__ if shares else None)
