"""Makes the levels of a run for a recipe: what models, pictures and settings decide of them stands here.

Numbers only: no tensor. Sizes are (height, width) in latent cells.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np

from fresco_dist.config import Border, Config, RegionMode, SamplerConfig
from fresco_dist.method.grid import (
    Tiles,
    Window,
    place_cells,
    place_fine_cells,
    place_windows,
    rolled_windows,
    seam_offsets,
    shifted_windows,
    snap_down,
)
from fresco_dist.method.level import (
    CANVAS_STREAM,
    PRIOR_STREAM,
    Batch,
    Branch,
    Grid,
    Guide,
    Level,
    Step,
    make_batches,
    make_branches,
    share_branches,
    sum_abs_coefficients,
)
from fresco_dist.method.regions import main_prompt, prompts_in

Size = tuple[int, int]
Stages = Callable[[SamplerConfig, int | None], tuple[int, ...]]  # see `ModelSpec`
Shares = Callable[[Size], np.ndarray]  # of the prompts of a level of this size, see `regions.share_out`


@dataclass(frozen=True)
class LevelBuilder:
    """What all levels of a run have in common."""

    config: Config
    channels: int
    num_frames: int  # latent ones
    canvas: Size  # the video's
    thumbnail_size: Size
    window: Size  # a full one
    stride: Size  # of windows that overlap
    patch: int  # sides of windows are multiples of it
    stages: Stages  # of the model, at each step
    share: Callable[[Window], float]  # what a window's forward costs, in forwards of a full window
    encode_tiles: Callable[[Size], Tiles]
    decode_tiles: Callable[[Size], Tiles]
    shares: Shares | None = None  # None: one prompt for all

    def thumbnail(self, size: Size | None = None, sampler: SamplerConfig | None = None, **fields: Any) -> Level:
        """The prior's level: one window, as the model knows it; or of a size, and with steps, of its own."""
        size, sampler = size or self.thumbnail_size, sampler or self.config.prior.sampler(self.config.sampler)
        whole = Window(0, 0, *size)
        grid = Grid((whole,), (0, 0), self.config.tiles.min_weight)
        return self.level(
            size,
            sampler,
            [grid] * sampler.num_steps,
            blend=True,  # or the prior would pull every region to one's prompt
            stream=PRIOR_STREAM,
            encode_tiles=((whole,),),
            is_shown=self.config.metrics,
            **fields,
        )

    def video(
        self,
        guides: Sequence[Guide | None] | None = None,
        *,
        moves: bool = False,
        grids: Sequence[Grid] = (),
        **fields: Any,
    ) -> Level:
        """The last level: windows that overlap, with `moves` side by side and shifted at each step, or those given."""
        size, sampler = self.canvas, self.config.sampler
        grids = grids or (self.moving(size, sampler.num_steps) if moves else self.fixed(size, sampler.num_steps))
        return self.level(
            size, sampler, grids, guides, stream=CANVAS_STREAM, is_shown=True, until=sampler.stop_after, **fields
        )

    def between(self, share: float) -> Size:
        """The size of a level between the thumbnail and the video, which `share` 0 and 1 are, in equal factors."""
        sides = zip(self.thumbnail_size, self.canvas)
        height, width = (snap_down(round(small * (large / small) ** share), self.patch) for small, large in sides)
        return height, width

    def halved(self, size: Size) -> Size:
        """The size of a level whose cells become four each, of which those outside `size` are left out."""
        height, width = (-(-side // (2 * self.patch)) * self.patch for side in size)
        return height, width

    def portion(self, share: float) -> Size:
        """The size of a level that has this share of the video's sides."""
        height, width = (snap_down(int(side * share + 1e-9), self.patch) for side in self.canvas)
        return height, width

    def level(
        self,
        size: Size,
        sampler: SamplerConfig,
        grids: Sequence[Grid],
        guides: Sequence[Guide | None] | None = None,
        *,
        residuals: Sequence[Guide | None] | None = None,
        first_step: int = 0,
        blend: bool = False,
        **fields: Any,
    ) -> Level:
        """A level of any kind, from the windows, guides of the fusion, and residuals of all steps of the sampler.

        Those before `first_step` are left out. With `blend` prompts by region are blended, whatever `region_mode` says.

        Its cells are cut along the windows' edges: along all of them where some windows go up first; where windows
        move, along those of windows half over each other. What is not in the keys of a canvas may not depend on more
        than those do.
        """
        rise = fields.get("rise")
        stages = self.stages(sampler, rise.until if rise else None)
        batches: dict[tuple[int, int], tuple[Batch, ...]] = {}  # by grid and stage
        for grid, stage in zip(grids, stages, strict=True):
            if (id(grid), stage) not in batches:
                branches = self._branches_of(size, grid, stage, blend)
                batches[id(grid), stage] = make_batches(grid.windows, branches, self._batch, self.share)
        guides, residuals = ([None] * len(grids) if given is None else given for given in (guides, residuals))
        moves = len(set(grids)) > 1
        height, width = (max(1, side // 2) for side in self.window)
        windows = place_windows(size, self.window, (height, width)) if moves else grids[0].windows
        place = place_fine_cells if rise and rise.max_variance is not None else place_cells
        return Level(
            latent_shape=(self.channels, self.num_frames, *size),
            steps=tuple(
                Step(grid, batches[id(grid), stage], stage, prior=guide, residual=residual)
                for grid, stage, guide, residual in islice(
                    zip(grids, stages, guides, residuals, strict=True), first_step, None
                )
            ),
            first_step=first_step,
            sum_abs_coefficients=sum_abs_coefficients(self._branches),
            shift=sampler.shift,
            sigmas=None if sampler.sigmas is None else tuple(sampler.sigmas),
            **{
                "cells": tuple(place(size, windows)),
                "encode_tiles": self.encode_tiles(size),
                "decode_tiles": self.decode_tiles(size),
                **fields,
            },
        )

    def fixed(self, size: Size, num_steps: int) -> list[Grid]:
        """Windows that overlap, the same at each step."""
        return [self.overlapping(size)] * num_steps

    def overlapping(self, size: Size) -> Grid:
        """Windows that overlap by `tiles.overlap`."""
        windows = place_windows(size, self.window, self.stride)
        return Grid(tuple(windows), self._overlap, self.config.tiles.min_weight)

    def moving(self, size: Size, num_steps: int, stream: int = CANVAS_STREAM) -> list[Grid]:
        """Windows side by side, on a grid that is shifted at each step; they overlap in the first `overlap_steps`.

        A step's offset is drawn by (seed, stream, step, axis) from the few of `seam_offsets`, but not the one before:
        so no seam lies within a quarter of a window of one of the step before, and few shapes of windows occur. Of
        windows that are moved inside, which overlap there, the inner edges of the outer ones stay.
        """
        tiles = self.config.tiles
        choices = [seam_offsets(side, window, self.patch) for side, window in zip(size, self.window)]
        grids: dict[Size, Grid] = {}

        def draw(step: int, axis: int, before: Size | None) -> int:
            offered = choices[axis]
            left = [offset for offset in offered if before is None or offset != before[axis]] or offered
            drawn = hashlib.sha256(repr((self.config.seed, stream, step, axis)).encode()).digest()
            return left[int.from_bytes(drawn[:4]) % len(left)]

        grid, offsets, program = self.overlapping(size), None, []
        for step in range(num_steps):
            if step >= tiles.overlap_steps:
                offsets = draw(step, 0, offsets), draw(step, 1, offsets)
                if offsets not in grids:
                    grids[offsets] = self._side_by_side(size, offsets, inside=tiles.border is Border.inside)
                grid = grids[offsets]
            program.append(grid)
        return program

    def jittered(self, size: Size, num_steps: int, stream: int = CANVAS_STREAM) -> list[Grid]:
        """Windows that overlap, of uniform weight, each moved at each step by up to a quarter of the overlap.

        How far is drawn by (seed, stream, step, window); along an axis on whose border a window lies it stays.
        """
        windows, grids = self.overlapping(size).windows, []
        reach = [(window - stride) // 4 for window, stride in zip(self.window, self.stride)]
        for step in range(num_steps):
            moved = []
            for i, window in enumerate(windows):
                drawn = hashlib.sha256(repr((self.config.seed, stream, step, i)).encode()).digest()
                starts = []
                for axis, (start, side, whole) in enumerate(
                    zip((window.top, window.left), (window.height, window.width), size)
                ):
                    by = int.from_bytes(drawn[4 * axis : 4 * axis + 4]) % (2 * reach[axis] + 1) - reach[axis]
                    is_inner = 0 < start < whole - side
                    starts.append(min(max(0, start + by), whole - side) if is_inner else start)
                top, left = starts
                moved.append(Window(top, left, window.height, window.width))
            grids.append(self._uniform(moved))
        return grids

    def rolled(self, size: Size, num_steps: int, num_offsets: int, *, overlaps: bool) -> list[Grid]:
        """Full windows of uniform weight on a grid that goes on at each step, along both axes, and then starts anew.

        It goes on by the `num_offsets`-th part of the distance from window to window, which is `tiles.overlap` less
        than a window or, where they do not overlap, a window. Windows that would leave the canvas are moved inside.
        """
        stride = self.stride if overlaps else self.window
        by = tuple(max(1, side // num_offsets) for side in stride)
        grids = {
            i: self._uniform(rolled_windows(size, self.window, stride, (i * by[0], i * by[1])), overlaps=overlaps)
            for i in range(min(num_offsets, num_steps))
        }
        return [grids[step % num_offsets] for step in range(num_steps)]

    def _uniform(self, windows: Sequence[Window], *, overlaps: bool = True) -> Grid:
        return Grid(tuple(windows), self._overlap if overlaps else (0, 0), min_weight=1.0)

    def at_rest(self, size: Size) -> Grid:
        """Windows side by side, where they stay: a partition."""
        height, width = (seam_offsets(side, window, self.patch)[0] for side, window in zip(size, self.window))
        return self._side_by_side(size, (height, width), inside=False)

    def _side_by_side(self, size: Size, offsets: Size, *, inside: bool) -> Grid:
        windows = shifted_windows(size, self.window, offsets, inside=inside)
        return Grid(tuple(windows), (0, 0), self.config.tiles.min_weight)

    def _branches_of(self, size: Size, grid: Grid, stage: int, blend: bool) -> list[tuple[Branch, ...]]:
        """Of each window: the prompts with a share in it, or the one with the largest, and one negative for all."""
        usual = self._branches[stage]
        if self.shares is None:
            return [usual] * len(grid.windows)
        shares_PHW = self.shares(size)
        blend = blend or self.config.region_mode is RegionMode.blend
        chosen = [prompts_in(shares_PHW, w) if blend else (main_prompt(shares_PHW, w),) for w in grid.windows]
        return [share_branches(usual, prompts, negative=len(shares_PHW)) for prompts in chosen]

    @cached_property
    def _branches(self) -> tuple:
        sampler = self.config.sampler
        return make_branches(sampler.guidance_scale, sampler.guidance_scale_2)

    @property
    def _batch(self) -> int:
        return self.config.tiles.batch or 1

    @property
    def _overlap(self) -> Size:
        height, width = (window - stride for window, stride in zip(self.window, self.stride))
        return height, width
