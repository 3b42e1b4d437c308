"""Makes the levels of a run for a recipe: what models, pictures and settings decide of them stands here.

Numbers only: no tensor. Sizes are (height, width) in latent cells.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fresco_dist.config import Border, Config, RegionMode, SamplerConfig
from fresco_dist.method.grid import Tiles, Window, place_cells, place_windows, seam_offsets, shifted_windows, snap_down
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
    stages: Callable[[SamplerConfig], tuple[int, ...]]  # the model's stage at each step, see `level.Step`
    share: Callable[[Window], float]  # what a window's forward costs, in forwards of a full window
    encode_tiles: Callable[[Size], Tiles]
    decode_tiles: Callable[[Size], Tiles]
    shares: Shares | None = None  # None: one prompt for all

    def thumbnail(self) -> Level:
        """The prior's level: one window, as the model knows it."""
        size, sampler = self.thumbnail_size, self.config.prior.sampler(self.config.sampler)
        whole = Window(0, 0, *size)
        grid = Grid((whole,), (0, 0), self.config.tiles.min_weight)
        return self.level(
            size,
            sampler,
            [grid] * sampler.num_steps,
            blend=True,  # or the prior would pull every region to one's prompt
            stream=PRIOR_STREAM,
            encode_tiles=((whole,),),
            decode_tiles=self.decode_tiles(size) if self.config.metrics else (),
        )

    def video(self, guides: Sequence[Guide | None], *, moves: bool = False) -> Level:
        """The last level: windows that overlap or, with `moves`, that lie side by side and are shifted at each step."""
        size, sampler = self.canvas, self.config.sampler
        grids = self.moving(size, sampler.num_steps) if moves else [self.overlapping(size)] * sampler.num_steps
        return self.level(
            size,
            sampler,
            grids,
            guides,
            stream=CANVAS_STREAM,
            decode_tiles=self.decode_tiles(size),
            until=sampler.stop_after,
        )

    def between(self, share: float) -> Size:
        """The size of a level between the thumbnail and the video, which `share` 0 and 1 are, in equal factors."""
        sides = zip(self.thumbnail_size, self.canvas)
        return tuple(snap_down(round(small * (large / small) ** share), self.patch) for small, large in sides)

    def level(
        self,
        size: Size,
        sampler: SamplerConfig,
        grids: Sequence[Grid],
        guides: Sequence[Guide | None] | None = None,
        *,
        blend: bool = False,
        **fields: Any,
    ) -> Level:
        """A level of any kind: the windows of each step, and what its fusion takes from a level below.

        Its cells are cut along the windows' edges or, where windows move, along those of windows half over each other:
        what is not in the keys of a canvas may not depend on more than those do. With `blend` prompts by region are
        blended, whatever `region_mode` says.
        """
        stages = self.stages(sampler)
        batches: dict[tuple[int, int], tuple[Batch, ...]] = {}  # by grid and stage
        for grid, stage in zip(grids, stages, strict=True):
            if (id(grid), stage) not in batches:
                branches = self._branches_of(size, grid, stage, blend)
                batches[id(grid), stage] = make_batches(grid.windows, branches, self._batch, self.share)
        guides = [None] * len(grids) if guides is None else guides
        moves = len({id(grid) for grid in grids}) > 1
        half = tuple(max(1, side // 2) for side in self.window)
        windows = place_windows(size, self.window, half) if moves else grids[0].windows
        return Level(
            latent_shape=(self.channels, self.num_frames, *size),
            steps=tuple(
                Step(grid, batches[id(grid), stage], stage, prior=guide)
                for grid, stage, guide in zip(grids, stages, guides, strict=True)
            ),
            sum_abs_coefficients=sum_abs_coefficients(self._branches),
            shift=sampler.shift,
            sigmas=None if sampler.sigmas is None else tuple(sampler.sigmas),
            **{
                "cells": tuple(place_cells(size, windows)),
                "encode_tiles": self.encode_tiles(size),
                "decode_tiles": (),
                **fields,
            },
        )

    def overlapping(self, size: Size) -> Grid:
        """Windows that overlap by `tiles.overlap`."""
        overlap = tuple(window - stride for window, stride in zip(self.window, self.stride))
        windows = place_windows(size, self.window, self.stride)
        return Grid(tuple(windows), overlap, self.config.tiles.min_weight)

    def moving(self, size: Size, num_steps: int, stream: int = CANVAS_STREAM) -> list[Grid]:
        """Windows side by side, on a grid that is shifted at each step; they overlap in the first `overlap_steps`.

        A step's offset is drawn by (seed, stream, step, axis) from the few of `seam_offsets`, but not the one before:
        so no seam lies within a quarter of a window of one of the step before, and few shapes of windows occur. Of
        windows that are moved inside, which overlap there, the inner edges of the outer ones stay.
        """
        tiles = self.config.tiles
        choices = [seam_offsets(side, window, self.patch) for side, window in zip(size, self.window)]
        grids: dict[tuple[int, ...] | None, Grid] = {None: self.overlapping(size)}
        offsets, program = None, []
        for step in range(num_steps):
            if step >= tiles.overlap_steps:
                before, offsets = offsets, ()
                for axis, offered in enumerate(choices):
                    left = [offset for offset in offered if before is None or offset != before[axis]] or offered
                    drawn = hashlib.sha256(repr((self.config.seed, stream, step, axis)).encode()).digest()
                    offsets = (*offsets, left[int.from_bytes(drawn[:4]) % len(left)])
            if offsets not in grids:
                grids[offsets] = self._side_by_side(size, offsets, inside=tiles.border is Border.inside)
            program.append(grids[offsets])
        return program

    def at_rest(self, size: Size) -> Grid:
        """Windows side by side, where they stay: a partition."""
        offsets = tuple(seam_offsets(side, window, self.patch)[0] for side, window in zip(size, self.window))
        return self._side_by_side(size, offsets, inside=False)

    def _side_by_side(self, size: Size, offsets: tuple[int, ...], *, inside: bool) -> Grid:
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
