"""What a task takes of the levels below its own: anywhere in a part of this one, from the cells that cover it there."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from fresco_dist.method.activity import active_cells
from fresco_dist.method.fusion import resize_part
from fresco_dist.method.grid import Window
from fresco_dist.method.level import Guide, Level, Rise, Source, part_below, part_to_rise
from fresco_dist.method.rise import variance_of_estimates
from fresco_dist.models.backbone import Backbone
from fresco_dist.models.tiling import blend_part
from fresco_dist.runtime.cells import cut
from fresco_dist.runtime.job import Job
from fresco_dist.runtime.step import Cell, Denoiser, Guidance

Packed = tuple[np.ndarray, dict[str, Any]]  # a cell, see `Denoiser.pack`


class Below:
    """The levels below one of a job's. What is `given` of them lies in the order in which the graph gives it.

    `activity` is the activity map, float32 (h, w), of a job for which it is made.
    """

    def __init__(
        self, job: Job, level: int, backbone: Backbone, device: torch.device, activity: np.ndarray | None = None
    ) -> None:
        self._job, self._level, self._backbone, self._device = job, level, backbone, device
        self._activity = activity

    def guidance(self, guide: Guide | None, given: Sequence[Any], part: Window) -> Guidance | None:
        """What a guide takes, anywhere in `part`; None without one."""
        if guide is None:
            return None
        map_HW = torch.tensor(self._map(), device=self._device) if guide.by_map else None
        return Guidance(self._source(guide.source, given, part), *guide.strengths, map_HW, guide.time)

    def _map(self) -> np.ndarray:
        """Where guides have the first of their strengths, bool (H, W)."""
        if self._job.maps:
            return self._job.maps[self._level]
        assert self._activity is not None
        return active_cells(self._activity, self._levels[self._level].canvas, self._job.config.sam3.threshold)

    def risen(self, denoiser: Denoiser, given: Sequence[Packed], part: Window, step: int) -> Callable[[Window], Cell]:
        """Cells inside `part` before a step, made of the level below as it is then, see `method.rise`."""
        below = self._levels[self._rise.level]

        def cell(window: Window) -> Cell:
            return denoiser.risen(self._cut(below, given, part_to_rise(part), part_to_rise(window)), window, step)

        return cell

    def variance(self, of_below: Denoiser, given: Sequence[Packed], window: Window, step: int) -> float:
        """How little has settled in a window of the level below, whose denoiser it is: by what it has come to so far.

        Of that the cells before each step are given, up to that before `step`; not where they are noise alone.
        """
        below, part = self._levels[self._rise.level], part_to_rise(window)
        count = len(below.cells_of(part))
        canvases = [self._cut(below, given[i : i + count], part, part) for i in range(0, len(given), count)]
        if below.begins_as_noise:
            canvases.insert(0, of_below.noise(part))
        sigmas = [of_below.noise_level(k) for k in range(step + 1 - len(canvases), step + 1)]
        return variance_of_estimates(canvases, sigmas)

    @property
    def _rise(self) -> Rise:
        rise = self._levels[self._level].rise
        assert rise is not None
        return rise

    @property
    def _levels(self) -> tuple[Level, ...]:
        return self._job.plan.levels

    def _source(self, source: Source, given: Sequence[Any], part: Window) -> Callable[[Window], torch.Tensor]:
        """z in windows inside `part`: from tiles encoded again, or from cells of the level below."""
        level, below = self._levels[self._level], self._levels[source.level]
        if source.through_pixels:
            raw = (torch.tensor(tile, device=self._device) for tile in given)
            again_CTHW = self._backbone.normalise(blend_part(level.encode_tiles, part, raw))
            return lambda window: again_CTHW[(..., *window.within(part).slices)]
        outer = part_below(part, level.canvas, below.canvas)
        z_CTHW = self._cut(below, given, outer, outer)
        return lambda window: resize_part(z_CTHW, outer, below.canvas, level.canvas, window)

    def _cut(self, below: Level, given: Sequence[Packed], covered: Window, part: Window) -> torch.Tensor:
        """`part` of a level, of which the cells are given that cover `covered`."""
        cells = [below.cells[i] for i in below.cells_of(covered)]
        return torch.tensor(cut(part, dict(zip(cells, (x for x, _ in given), strict=True))), device=self._device)
