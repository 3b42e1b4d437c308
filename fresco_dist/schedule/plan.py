"""The plan: everything about a run that can be known before a model is loaded.

Owns canvas, windows, branches, VAE tiles and step counts. It touches no tensor, no file and no worker, and prints
nothing. The plan depends on image, model, configuration and seed; only the number of workers depends on the cluster.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property, reduce
from typing import Any

from fresco_dist.config import Config, ExpertOffload, ImageEmbedding, InputError
from fresco_dist.method.grid import (
    Window,
    WindowIndex,
    place_cells,
    place_windows,
    snap_down,
    vae_tiles,
    window_and_stride,
)
from fresco_dist.method.prior_strength import prior_steps
from fresco_dist.schedule.spec import ModelSpec

UNSET = (None, [], False, ExpertOffload.hold, ImageEmbedding.picture)  # values of a key that ask for nothing


@dataclass(frozen=True)
class Branch:
    """A guidance branch: its prompt and the coefficient with which its prediction enters N (METHOD 1).

    `coefficient_2` holds while the low-noise expert predicts; None: the same.
    """

    name: str
    coefficient: float
    coefficient_2: float | None = None

    def at(self, stage: int) -> float:
        """The coefficient at a stage: 0 the first expert's, 1 the low-noise expert's."""
        return self.coefficient if stage == 0 or self.coefficient_2 is None else self.coefficient_2

    @property
    def largest(self) -> float:
        """The largest magnitude of the coefficient over the stages."""
        return max(abs(self.at(0)), abs(self.at(1)))


def counting(branches: Sequence[Branch], stage: int) -> list[int]:
    """Which branches count at a stage: one whose coefficient is 0 needs no forward."""
    return [i for i, branch in enumerate(branches) if branch.at(stage) != 0.0]


@dataclass(frozen=True)
class Layout:
    """A latent canvas and the windows on it: the main canvas, or the prior's (one window of canvas size)."""

    latent_shape: tuple[int, int, int, int]  # C, T, H, W
    windows: tuple[Window, ...]
    overlap: tuple[int, int]  # nominal, latent cells
    encode_tiles: tuple[tuple[Window, ...], ...]  # rows of VAE tiles, latent cells
    stages: tuple[int, ...]  # of each step, as `Branch.at` takes them
    batch: int = 1  # windows per forward

    @property
    def num_steps(self) -> int:
        """Sampler steps."""
        return len(self.stages)

    @property
    def canvas(self) -> tuple[int, int]:
        """(H, W) in latent cells."""
        return self.latent_shape[2:]

    @cached_property
    def cells(self) -> tuple[Window, ...]:
        """The canvas cut into cells, one per window."""
        return tuple(place_cells(self.canvas, self.windows))

    def cells_of(self, window: Window) -> list[int]:
        """The cells that cover a window, or any other part of the canvas."""
        return self._cell_index.overlapping(window)

    @cached_property
    def batches(self) -> tuple[range, ...]:
        """The windows that are predicted in one forward: neighbours, `batch` at a time; the last may be fewer."""
        starts = range(0, len(self.windows), self.batch)
        return tuple(range(start, min(start + self.batch, len(self.windows))) for start in starts)

    def cells_of_batch(self, batch: int) -> list[int]:
        """The cells that cover the windows of a batch."""
        return sorted({cell for window in self.batches[batch] for cell in self.cells_of(self.windows[window])})

    def batches_of(self, cell: Window) -> list[int]:
        """The batches with windows whose predictions count in a cell."""
        return sorted({i // self.batch for i in self._window_index.overlapping(cell)})

    @cached_property
    def _cell_index(self) -> WindowIndex:
        return WindowIndex(self.cells)

    @cached_property
    def _window_index(self) -> WindowIndex:
        return WindowIndex(self.windows)


@dataclass(frozen=True)
class Plan:
    """A run, before it starts."""

    image_px: tuple[int, int]  # width, height, as given
    canvas_px: tuple[int, int]  # width, height, decoded
    output_px: tuple[int, int]  # width, height of the video
    native_px: tuple[int, int]  # width, height of the prior
    num_frames: int
    canvas: Layout
    prior: Layout
    prior_steps: tuple[bool, ...]  # whether the prior counts at each step
    branches: tuple[Branch, ...]
    decode_tiles: tuple[tuple[Window, ...], ...]  # latent cells
    overlap: float  # tiles.overlap, or what tiles.fit made of it
    num_workers: int
    spec: ModelSpec
    prior_tiles: tuple[tuple[Window, ...], ...] = ()  # latent cells; empty: the prior is not decoded
    notes: tuple[str, ...] = field(default=())

    @property
    def tile_shapes(self) -> tuple[tuple[int, int, int, int], ...]:
        """(B, T, H, W) in latent cells of what one forward predicts: a batch of windows, and the whole thumbnail."""
        layouts = [self.canvas, self.prior] if self.num_prior_steps else [self.canvas]
        return tuple(
            (len(batch), layout.latent_shape[1], layout.windows[0].height, layout.windows[0].width)
            for layout in layouts
            for batch in (layout.batches[0], layout.batches[-1])
        )

    @property
    def num_forwards(self) -> int:
        """Model forwards of the whole run, in windows."""
        return len(self.canvas.windows) * sum(self.branches_per_step(self.canvas)) + self.num_prior_forwards

    @property
    def num_prior_forwards(self) -> int:
        """Those of the prior."""
        return sum(self.branches_per_step(self.prior)) if self.num_prior_steps else 0

    def branches_per_step(self, layout: Layout) -> list[int]:
        """How many branches count at each step."""
        return [len(counting(self.branches, stage)) for stage in layout.stages]

    @property
    def num_prior_steps(self) -> int:
        """Sampler steps of the prior; 0 if it counts at no step and is not decoded either."""
        return self.prior.num_steps if any(self.prior_steps) or self.prior_tiles else 0

    @property
    def work_per_worker(self) -> float:
        """Forwards of each worker, if all are busy to the end."""
        return self.num_forwards / self.num_workers

    @property
    def critical_path(self) -> float:
        """Forwards one after the other: those of the prior's steps, then those of the canvas after the first fusion."""
        size = float(len(self.canvas.batches[0]))
        alone = self.canvas.num_steps * size
        fused = self.prior_steps.index(True) + 1 if any(self.prior_steps) else self.canvas.num_steps
        return max(alone, self.num_prior_steps + (self.canvas.num_steps - fused) * size)


def fit_cap(image_px: tuple[int, int], max_size: list[int]) -> tuple[int, int]:
    """(width, height) in pixels of the image, reduced to the cap keeping its shape; the cap is turned for portraits."""
    width, height = image_px
    scale = min(1.0, max(max_size) / max(width, height), min(max_size) / min(width, height))
    return round(width * scale), round(height * scale)


def fit_area(image_px: tuple[int, int], area: int, grid_px: int) -> tuple[int, int]:
    """(width, height) of about `area` pixels at the image's aspect ratio, snapped down to the grid (METHOD 3)."""
    width, height = image_px
    scale = math.sqrt(area / (width * height))
    # 1e-9: a side that is a multiple already must not fall to the next one through rounding
    return (
        snap_down(int(width * scale + 1e-9), grid_px),
        snap_down(int(height * scale + 1e-9), grid_px),
    )


def make_branches(guidance_scale: float, guidance_scale_2: float | None = None) -> tuple[Branch, ...]:
    """Classifier-free guidance m_u + g (m_c - m_u) as weighted branches: g for the prompt, 1 - g for the negative.

    `guidance_scale_2` is g while the low-noise expert predicts. Guidance is off only if both are 1.
    """
    g, g_2 = guidance_scale, guidance_scale_2
    if g == 1.0 and g_2 in (None, 1.0):
        return (Branch("prompt", 1.0),)
    return (Branch("prompt", g, g_2), Branch("negative", 1.0 - g, None if g_2 is None else 1.0 - g_2))


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

    Raises InputError if the image is smaller than one token.
    """
    reduced_px = fit_cap(image_px, config.video.max_size)
    if min(reduced_px) < spec.grid_px:
        raise InputError(
            f"image must be at least {spec.grid_px} px high and wide for this model, within video.max_size;"
            f" got {reduced_px[0]} x {reduced_px[1]} px. Use a larger image or crop it."
        )
    width, height = (snap_down(side, spec.grid_px) for side in reduced_px)
    notes = []
    if reduced_px != image_px:
        size = f"{reduced_px[0]} x {reduced_px[1]} px"
        notes.append(f"the image exceeds video.max_size {config.video.max_size}: reduced to {size}")
    if (width, height) != reduced_px:
        notes.append(f"the canvas is snapped to the model's grid of {spec.grid_px} px; the video is resized back")
    output_w, output_h = (side // 2 * 2 for side in reduced_px)  # 4:2:0 video has even sides
    return (width, height), (output_w, output_h), notes


def make_plan(config: Config, spec: ModelSpec, image_px: tuple[int, int], num_workers: int) -> Plan:
    """Plan a run.

    `image_px` is (width, height). Raises InputError if the model's temporal factor does not allow the frame count or
    the image is smaller than one token.
    """
    _check_accepted(config, spec)
    (width, height), output_px, notes = _fit_canvas(config, spec, image_px)
    factor = spec.spatial_factor
    if not spec.trained:
        notes.append("the embedded model is untrained: expect noise, not an animation")

    num_latent_frames = (config.video.num_frames - 1) // spec.temporal_factor + 1
    axes = [window_and_stride(px, config.tiles.overlap, factor, spec.patch) for px in config.tiles.window]
    canvas_HW = (height // factor, width // factor)
    native_w, native_h = fit_area(image_px, config.prior.area, spec.grid_px)
    native_HW = (native_h // factor, native_w // factor)

    def shape(size: tuple[int, int]) -> tuple[int, int, int, int]:
        return (spec.latent_channels, num_latent_frames, *size)

    def tiles(size: tuple[int, int], tile_px: tuple[int, int]) -> tuple[tuple[Window, ...], ...]:
        return tuple(map(tuple, vae_tiles(size, tile_px[0] // factor, tile_px[1] // factor)))

    canvas = Layout(
        latent_shape=shape(canvas_HW),
        windows=tuple(place_windows(canvas_HW, tuple(w for w, _ in axes), tuple(s for _, s in axes))),
        overlap=tuple(w - s for w, s in axes),
        encode_tiles=tiles(canvas_HW, spec.encode_tile_px),
        stages=spec.stages(config.sampler, config.sampler.num_steps),
        batch=config.tiles.batch or 1,
    )
    whole = Window(0, 0, *native_HW)
    prior_stages = spec.stages(config.sampler, config.prior.num_steps or canvas.num_steps)
    return Plan(
        image_px=image_px,
        canvas_px=(width, height),
        output_px=output_px,
        native_px=(native_w, native_h),
        num_frames=config.video.num_frames,
        canvas=canvas,
        prior=Layout(shape(native_HW), (whole,), (0, 0), ((whole,),), prior_stages),
        prior_steps=prior_steps(config.fusion, config.sampler.num_steps),
        branches=make_branches(config.sampler.guidance_scale, config.sampler.guidance_scale_2),
        decode_tiles=tiles(canvas_HW, spec.decode_tile_px),
        overlap=config.tiles.overlap,
        num_workers=num_workers,
        spec=spec,
        prior_tiles=tiles(native_HW, spec.decode_tile_px) if config.metrics else (),
        notes=tuple(notes),
    )
