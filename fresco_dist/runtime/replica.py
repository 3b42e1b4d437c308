"""A model replica, and the tasks that need nothing but that and what they are given: load, encode, segment, blend."""

import platform
import resource
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fresco_dist import models
from fresco_dist.config import ImageEmbedding, expanded
from fresco_dist.method.fusion import resize_part
from fresco_dist.method.grid import Window, flat, tile_cores
from fresco_dist.method.level import Level, part_below
from fresco_dist.models.backbone import Backbone
from fresco_dist.models.look import Look
from fresco_dist.models.sam3 import Sam3
from fresco_dist.models.tiling import blend_tile
from fresco_dist.runtime.cells import cut, send
from fresco_dist.runtime.job import Job, jobs_by_key
from fresco_dist.schedule.graph import NO_INPUTS, Task


class Replica:
    """A worker without a canvas. Results that travel are numpy arrays, and made of nothing but inputs and ids."""

    def __init__(self, *, use_gpu: bool) -> None:
        self.device = torch.device("cuda" if use_gpu else "cpu")
        self._replica: Backbone | None = None
        self._loaded: tuple | None = None  # what the backbone was loaded for
        self._sam3: Sam3 | None = None  # while pictures are segmented
        self.take([])

    def take(self, jobs: Sequence[Job], stored: Mapping[str, Any] = NO_INPUTS) -> None:
        """Be given the jobs of the tasks that follow, in place of those before; a model that is theirs, too, stays.

        `stored` is what need not be made, by key: a text, what is encoded of a picture, or a packed canvas.
        """
        self._jobs, self._stored = jobs_by_key(jobs), stored
        self._seen: dict[Task, dict[str, Any]] = {}  # of tasks that are run, for their records
        self._maps: dict[str, Look | None] = {}  # that show it, by the pictures that they are fitted on
        if jobs:
            torch.set_num_threads(jobs[0].config.cluster.num_threads)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    @property
    def _backbone(self) -> Backbone:
        assert self._replica is not None, "no model is loaded"
        return self._replica

    def _load(self, task: Task) -> tuple[str, float]:
        """Attention backend in use, and seconds that compilation took.

        Weights are mapped from their files: the workers of a node share what the first of them has brought to the page
        cache, so storage is read once per node, without waiting for each other.
        """
        tiles = tuple(dict.fromkeys(shape for job in self._jobs.values() for shape in job.plan.tile_shapes))
        job = self._jobs[task.of]
        wanted = (job.config.model, job.model, tiles)  # the files may have changed, too
        if self._loaded != wanted:
            self._replica = self._loaded = None  # two would not fit
            self._replica, self._loaded = models.load(wanted[0], self.device, tiles), wanted
            return self._backbone.attention_backend, self._backbone.compile_s
        return self._backbone.attention_backend, 0.0

    def _encode_text(self, task: Task) -> np.ndarray:
        """(tokens, features) of one of a job's prompts."""
        job = self._jobs[task.of]
        return self._backbone.encode_text(job.prompts[job.keys.texts.index(task.of)]).numpy()

    def _embed_picture(self, task: Task) -> list[np.ndarray]:
        """(pictures, tokens, features) of a level's picture, or of each window's part of it."""
        job, level = self._jobs[task.of], self._level(task)
        parts: list[Window] = [level.whole]
        if job.config.model.image_embedding is ImageEmbedding.window:
            (windows,) = {step.grid.windows for step in level.steps}  # those that move have no embeddings of their own
            parts = list(windows)
        return [self._backbone.embed_picture(self._pictures(task, part)).numpy() for part in parts]

    def _segment(self, task: Task) -> tuple[np.ndarray, dict[str, list[int]]]:
        """The activity map of a job's picture, see `Sam3.activity_map`."""
        job = self._jobs[task.of]
        assert job.config.sam3.path is not None
        self._sam3 = self._sam3 or Sam3(expanded(job.config.sam3.path), self.device)
        return self._sam3.activity_map(job.pictures[-1], job.config.sam3)

    def _encode(self, task: Task) -> np.ndarray:
        """A raw tile of what the model conditions on."""
        first, *last = self._pictures(task, flat(self._level(task).encode_tiles)[task.index])
        return send(self._backbone.encode_image(first, self._jobs[task.of].plan.num_frames, *last))

    def _encode_clip(self, task: Task, frames: Sequence[tuple]) -> np.ndarray:
        """A raw tile of the clip of the level below (`task.step`), its pixels resized to this level."""
        plan, level, below = self._jobs[task.of].plan, self._level(task), self._level(task, task.step)
        factor = plan.spec.spatial_factor
        tile = flat(level.encode_tiles)[task.index].scaled(factor)
        below_px, level_px = (of.whole.scaled(factor) for of in (below, level))
        sizes = ((below_px.height, below_px.width), (level_px.height, level_px.width))
        part = part_below(tile, *sizes[::-1])
        cores = [core.scaled(factor) for core in tile_cores(below.decode_tiles)]
        blocks = (np.moveaxis(pixels, -1, 0) for *_, pixels in frames)
        pixels_3FHW = cut(part, dict(zip((core for core in cores if core.overlaps(part)), blocks, strict=True)))
        resized_3FHW = resize_part(self._tensor(pixels_3FHW).float(), part, *sizes, tile)
        return send(self._backbone.encode_clip(resized_3FHW.round().byte().permute(1, 2, 3, 0)))

    def _look_of(self, task: Task) -> Look | None:
        """The map that shows what the steps of a task's job come to, fitted once per picture."""
        job = self._jobs[task.of]
        if not job.config.preview:
            return None
        name = job.keys.levels[0].inputs
        if name not in self._maps:
            plan = job.plan
            try:
                look = Look(self._backbone, job.pictures[0], plan.num_frames, plan.spec.spatial_factor)
                look(torch.zeros(plan.spec.latent_channels, 1, 1, 1, device=self.device))  # it fits the canvas
                self._maps[name] = look
            except Exception as error:  # whatever it is: a preview is worth no run
                self._maps[name], self._seen[task] = None, {"blind": f"{type(error).__name__}: {error}"}
        return self._maps[name]

    def _blend(
        self, task: Task, tile: Sequence[np.ndarray], above: Sequence[tuple], left: Sequence[tuple]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Blend with the tiles above and to the left, if there are any.

        Returns the edges for the tiles below and to the right, and the tile's own pixels (F, h, w, 3).
        """
        tiles = self._level(task).decode_tiles
        row, column = divmod(task.index, len(tiles[0]))
        core, bottom, right = blend_tile(
            tiles,
            row,
            column,
            self._tensor(tile[0]),
            self._tensor(above[0][0]) if above else None,
            self._tensor(left[0][1]) if left else None,
        )
        bits = self._jobs[task.of].bits(task.level)
        return send(bottom), send(right), send(self._backbone.vae.to_pixels(core, bits))

    def _level(self, task: Task, index: int | None = None) -> Level:
        """The task's level, or another one of its job's."""
        return self._jobs[task.of].plan.levels[task.level if index is None else index]

    def _pictures(self, task: Task, part: Window) -> list[torch.Tensor]:
        """First and, if given, last frame of the task's level, in a part of it."""
        job = self._jobs[task.of]
        slices = part.scaled(job.plan.spec.spatial_factor).slices
        pictures = [job.pictures[task.level]] + ([job.last_pictures[task.level]] if job.last_pictures else [])
        return [torch.tensor(picture[slices]) for picture in pictures]

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.tensor(array, device=self.device)

    def _peak_memory_gb(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 1e9
        unit = 1 if platform.system() == "Darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
