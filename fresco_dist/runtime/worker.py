"""One worker: a model replica, its share of the canvas work, and the function behind each kind of task.

The same object runs inside the in-process executor and inside a Ray actor; it knows neither. Results that travel are
numpy arrays, and made of nothing but inputs and ids.
"""

import platform
import resource
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fresco_dist import models
from fresco_dist.config import ImageEmbedding
from fresco_dist.method.fusion import resize_part
from fresco_dist.method.grid import Window, flat, tile_cores, tiles_over
from fresco_dist.method.level import Level, part_below
from fresco_dist.method.moments import Moments, moments, standardising
from fresco_dist.models.backbone import Backbone
from fresco_dist.models.conditioning import Conditioning
from fresco_dist.models.look import Look
from fresco_dist.models.sam3 import Sam3
from fresco_dist.models.tiling import blend_part, blend_tile
from fresco_dist.runtime.below import Below
from fresco_dist.runtime.cells import add_up, cut, receive, send
from fresco_dist.runtime.collectives import Group, LocalGroup
from fresco_dist.runtime.history import History, cut_cell, join_cells
from fresco_dist.runtime.job import Job, jobs_by_key
from fresco_dist.runtime.machine import read_gb
from fresco_dist.runtime.replicated_canvas import ReplicatedCanvas
from fresco_dist.runtime.step import Cell, Denoiser, Guidance
from fresco_dist.schedule.execute import OutOfStep
from fresco_dist.schedule.graph import NO_INPUTS, Task
from fresco_dist.schedule.trace import TaskRecord


class Worker:
    """Runs tasks one at a time, in the order given; those beside the forwards may run in a second thread."""

    def __init__(self, *, use_gpu: bool = False) -> None:
        self.index = 0  # by which the driver calls it
        self.device = torch.device("cuda" if use_gpu else "cpu")
        self._side_stream = torch.cuda.Stream() if use_gpu else None
        self._group: Group = LocalGroup()
        self._replica: Backbone | None = None
        self._loaded: tuple | None = None  # what the backbone was loaded for
        self._sam3: Sam3 | None = None  # while pictures are segmented
        self._last_kind = ""  # of task, between the forwards
        self.take([])

    def take(self, jobs: Sequence[Job], stored: Mapping[str, Any] = NO_INPUTS) -> None:
        """Be given the jobs of the tasks that follow, in place of those before; a model that is theirs, too, stays.

        `stored` is what need not be made, by key: a text, what is encoded of a picture, or a packed canvas.
        """
        self._jobs, self._stored = jobs_by_key(jobs), stored
        self._states: dict[Task, Any] = {}  # by the task that made it, here as on every other worker
        self._seen: dict[Task, dict[str, Any]] = {}  # of tasks that are run, for their records
        self._maps: dict[str, Look | None] = {}  # that show it, by the pictures that they are fitted on
        if jobs:
            torch.set_num_threads(jobs[0].config.cluster.num_threads)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def join(self, group: Group) -> None:
        """Enter the group in which the accumulators are added up."""
        self._group = group

    def forget(self, task: Task) -> None:
        """Drop the state that a task has made; nothing, if it could not."""
        self._states.pop(task, None)

    @torch.inference_mode()
    def run(
        self, task: Task, inputs: Mapping[str, Sequence[Any]], states: Mapping[str, Task], beside: bool
    ) -> tuple[TaskRecord, Any]:
        """Run one task on the results of others and on states of this worker, both by name, in a lane.

        Returns when it ran (Unix seconds), its memory and what it read, and its result. Raises OutOfStep if a state is
        missing, since the task that makes it has failed.
        """
        start_s, before_gb = time.time(), read_gb()
        for made_by in states.values():
            if made_by not in self._states:
                if task.traits.collective:
                    self._group.leave()  # or the others would wait for this one
                raise OutOfStep(f"{task} comes before {made_by}")
        if self._replica and not beside and task.kind != self._last_kind:  # an encoder stays for all that it encodes
            self._replica.drop_encoders()
            self._sam3 = None
        self._last_kind = self._last_kind if beside else task.kind
        with self._stream(beside):
            given = {name: self._states[made_by] for name, made_by in states.items()}
            result = getattr(self, f"_{task.kind}")(task, **inputs, **given)
            if self.device.type == "cuda":
                torch.cuda.current_stream().synchronize()
        after_gb = read_gb()
        loaded_gb = None if before_gb is None or after_gb is None else after_gb - before_gb
        memory_gb = self._peak_memory_gb()
        left_out = bool(task.traits.forward and inputs.get("up")) and not self._is_needed(task, inputs["up"])
        times_s, seen = (start_s, time.time()), self._seen.pop(task, {})
        return TaskRecord(task, self.index, *times_s, memory_gb, loaded_gb, beside, left_out, **seen), result

    @property
    def _backbone(self) -> Backbone:
        assert self._replica is not None, "no model is loaded"
        return self._replica

    def _stream(self, beside: bool) -> Any:
        """Work beside the forwards has a stream of its own, or it would wait for them."""
        return torch.cuda.stream(self._side_stream) if beside and self._side_stream is not None else nullcontext()

    def _load(self, task: Task) -> tuple[str, float]:
        """Attention backend in use, and seconds that compilation took.

        Weights are mapped from their files: the workers of a node share what the first of them has brought to the page
        cache, so storage is read once per node, without waiting for each other.
        """
        tiles = tuple(dict.fromkeys(shape for job in self._jobs.values() for shape in job.plan.tile_shapes))
        wanted = (self._jobs[task.of].config.model, tiles)
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
        self._sam3 = self._sam3 or Sam3(Path(job.config.sam3.path).expanduser(), self.device)
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

    def _begin(
        self,
        task: Task,
        texts: Sequence[np.ndarray],
        embeds: Sequence[Sequence[np.ndarray]],
        encoded: Sequence[np.ndarray],
    ) -> None:
        """State: what all steps of a level have in common."""
        job, level = self._jobs[task.of], self._level(task)
        encoded, embeds = self._stored.get(job.keys.levels[task.level].inputs, (encoded, embeds))
        image_embeds = [self._tensor(array) for arrays in embeds for array in arrays]
        made, names = iter(texts), {prompt: job.keys.texts[prompt] for prompt in job.plan.prompts}
        raw, has_last = dict(zip(flat(level.encode_tiles), encoded, strict=True)), job.last_pictures is not None

        @lru_cache(maxsize=job.plan.batch)  # of a batch, for its next prompt
        def condition(part: Window, index: int) -> Conditioning:
            over = flat(tiles_over(level.encode_tiles, part))
            raw_CTHW = blend_part(level.encode_tiles, part, (self._tensor(raw[tile]) for tile in over))
            chosen = image_embeds if len(image_embeds) <= 1 else [image_embeds[index]]
            return self._backbone.make_condition(raw_CTHW, tuple(chosen), has_last=has_last)

        self._states[task] = Denoiser(
            self._backbone,
            level,
            seed=job.config.seed,
            condition=condition,
            prompt_embeds={
                prompt: self._tensor(self._stored[key] if key in self._stored else next(made))
                for prompt, key in names.items()
            },
            device=self.device,
            shares_PHW=job.plan.shares[task.level] if job.plan.shares else None,
            look=self._look_of(task),  # here, among the forwards: a VAE does one thing at a time
        )

    def _look_of(self, task: Task) -> Look | None:
        """The map that shows what the steps of a task's job come to, fitted once per picture."""
        job = self._jobs[task.of]
        if not job.config.preview:
            return None
        name = job.keys.levels[0].inputs
        if name not in self._maps:
            plan = job.plan
            try:
                self._maps[name] = Look(self._backbone, job.pictures[0], plan.num_frames, plan.spec.spatial_factor)
            except Exception as error:  # whatever it is: a preview is worth no run
                self._maps[name], self._seen[task] = None, {"blind": f"{type(error).__name__}: {error}"}
        return self._maps[name]

    def _start(
        self, task: Task, denoiser: Denoiser | None = None, residual: Sequence[Any] = (), rise: Sequence[tuple] = ()
    ) -> tuple | None:
        """A cell before the first step that is run, stored or from levels below. Or, as a state, all of the canvas."""
        if task.of in self._stored:
            return self._go_on(task, denoiser)
        assert denoiser is not None
        level, below = self._level(task), self._below(task)
        part = level.cells[task.index] if task.index >= 0 else level.whole
        if level.rise:
            first = below.risen(denoiser, rise, part, level.first_step)
        else:
            first = partial(denoiser.first_cell, residual=below.guidance(level.steps[0].residual, residual, part))
        if task.index >= 0:
            return send(denoiser.pack(first(part)))
        self._states[task] = ReplicatedCanvas(denoiser, list(map(first, level.cells)))
        return None

    def _decide(self, task: Task, denoiser: Denoiser, cells: Sequence[tuple]) -> tuple[bool, float]:
        """Whether a window goes up before all do, and by how much it varies."""
        level = self._level(task)
        assert level.rise is not None and level.rise.max_variance is not None
        window = level.steps[0].grid.windows[task.index]
        variance = self._below(task).variance(denoiser, cells, window, task.step)
        return variance <= level.rise.max_variance, variance

    def _go_on(self, task: Task, denoiser: Denoiser | None) -> tuple | None:
        level, stored = self._level(task), self._stored[task.of]
        if task.index >= 0:
            return cut_cell(level.cells[task.index], *stored)
        assert denoiser is not None
        packed = [cut_cell(window, *stored) for window in level.cells]
        self._states[task] = ReplicatedCanvas(denoiser, [self._receive_cell(denoiser, cell) for cell in packed])
        return None

    def _predict(
        self,
        task: Task,
        denoiser: Denoiser,
        cells: Sequence[tuple] = (),
        up: Sequence[tuple[bool, float]] = (),
        canvas: ReplicatedCanvas | None = None,
    ) -> np.ndarray | None:
        """Weighted fixed-point predictions (B, C, T, h, w) of a batch of windows, from the cells that cover them.

        Those of a replicated canvas stay in this worker's accumulator, and nothing is returned. Nor are any made where
        no cell goes `up` yet.
        """
        if up and not self._is_needed(task, up):
            return None
        if canvas is not None:
            canvas.predict(task.step, task.index, task.branch)
            return None
        level = denoiser.level
        step = level.at(task.step)
        windows = [step.grid.windows[i] for i in step.batches[task.index].windows]
        if cells:
            covering = level.cells_of_batch(step, task.index)
            parts = {level.cells[i]: x for i, (x, _) in zip(covering, cells, strict=True)}
            x_BCTHW = self._tensor(np.stack([cut(window, parts) for window in windows]))
        else:
            x_BCTHW = torch.stack([denoiser.noise(window) for window in windows])
        total_BCTHW = torch.zeros(x_BCTHW.shape, dtype=torch.int32, device=self.device)
        denoiser.predict_(list(total_BCTHW), x_BCTHW, task.step, task.index, task.branch)
        return send(total_BCTHW)

    def _is_needed(self, task: Task, up: Sequence[tuple[bool, float]]) -> bool:
        """Whether a cell goes up that a batch counts in; of all windows that count in its cells it is said if they do.

        In order, as `Level.windows_over` has them.
        """
        level = self._level(task)
        step = level.at(task.step)
        cells = [level.cells[i] for i in level.cells_of_batch(step, task.index)]
        is_up = dict(zip(step.windows_over(cells), (goes for goes, _ in up), strict=True))
        return any(all(is_up[window] for window in step.windows_over([cell])) for cell in cells)

    def _fuse(
        self,
        task: Task,
        denoiser: Denoiser,
        before: Sequence[tuple],
        predictions: Sequence[np.ndarray],
        up: Sequence[tuple[bool, float]] = (),
        rise: Sequence[tuple] = (),
        **guides: Sequence[Any],
    ) -> tuple:
        """The next state of a cell, from its last one (none before a first step from noise) and its predictions.

        Where windows that count in it are not `up` yet, from the level below.
        """
        cell = denoiser.level.cells[task.index]
        if not all(goes for goes, _ in up):
            return send(denoiser.pack(self._below(task).risen(denoiser, rise, cell, task.step + 1)(cell)))
        last, total_CTHW = self._gather(task, denoiser, before, predictions)
        prior, residual = self._guides(task, cell, **guides)
        m_CTHW = denoiser.fuse(last, task.step, task.index, total_CTHW, prior)
        look = denoiser.look(last, m_CTHW, task.step, task.index)
        if look is not None:
            self._seen[task] = {"looks": {task.index: look}}
        return send(denoiser.pack(denoiser.step(last, m_CTHW, task.step, task.index, residual)))

    def _estimate(
        self,
        task: Task,
        denoiser: Denoiser,
        before: Sequence[tuple],
        predictions: Sequence[np.ndarray],
        **guides: Sequence[Any],
    ) -> tuple:
        """What a cell would be if the last predictions were right, without noise; no history."""
        last, total_CTHW = self._gather(task, denoiser, before, predictions)
        prior, _ = self._guides(task, denoiser.level.cells[task.index], **guides)
        m_CTHW = denoiser.fuse(last, task.step, task.index, total_CTHW, prior)
        return send((denoiser.estimate(last, m_CTHW, task.step, task.index), {}))

    def _gather(
        self, task: Task, denoiser: Denoiser, before: Sequence[tuple], predictions: Sequence[np.ndarray]
    ) -> tuple[Cell, torch.Tensor]:
        """A cell before a step, and the sum of its predictions (int32)."""
        level = denoiser.level
        step, cell = level.at(task.step), level.cells[task.index]
        last = self._receive_cell(denoiser, before[0]) if before else denoiser.first_cell(cell)
        windows = [
            [step.grid.windows[i] for i in step.batches[batch].windows]
            for batch in step.batches_of(cell)
            for _ in step.batches[batch].branches
        ]
        return last, self._tensor(add_up(cell, windows, predictions))

    def _commit(self, task: Task, denoiser: Denoiser, canvas: ReplicatedCanvas, **guides: Sequence[Any]) -> None:
        """State: the canvas after a step."""
        taken = self._guides(task, denoiser.level.whole, **guides)
        try:
            self._states[task] = after = canvas.commit(task.step, self._group, *taken)
        except RuntimeError:
            self._group.leave()  # or the others would wait for this one in the next commit
            raise
        self._seen[task] = {"looks": after.looks}

    def _moments(self, task: Task, **canvas: Any) -> Moments:
        """Of a cell of the clean canvas."""
        return moments(self._tensor(self._latents(task, self._level(task).cells[task.index], **canvas)))

    def _standard(self, task: Task, own: Sequence[Moments], target: Sequence[Moments]) -> tuple[float, float]:
        """How the canvas is standardised."""
        return standardising(own, target)

    def _standardise(
        self, task: Task, denoiser: Denoiser, standard: Sequence[tuple[float, float]], **canvas: Any
    ) -> tuple:
        """A cell of the clean canvas with the mean and the deviation of another one."""
        cell = self._level(task).cells[task.index]
        x_CTHW = self._tensor(self._latents(task, cell, **canvas))
        return send(denoiser.pack(denoiser.standardised(x_CTHW, cell, *standard[0])))

    def _guides(
        self,
        task: Task,
        part: Window,
        *,
        prior: Sequence[Any],
        residual: Sequence[Any],
        activity: Sequence[tuple] = (),
    ) -> tuple[Guidance | None, Guidance | None]:
        """What a step's fusion takes from levels below, and what pulls the canvas after it, anywhere in `part`."""
        level, below = self._level(task), self._below(task, *activity)
        return (
            below.guidance(level.at(task.step).prior, prior, part),
            below.guidance(level.residual_after(task.step), residual, part),
        )

    def _below(self, task: Task, activity: tuple | None = None) -> Below:
        job = self._jobs[task.of]
        map_hw, _ = activity or self._stored.get(job.keys.activity, (None, None))
        return Below(job, task.level, self._backbone, self.device, map_hw)

    def _collect(self, task: Task, **canvas: Any) -> np.ndarray:
        """The whole canvas (C, T, H, W)."""
        return self._latents(task, self._level(task).whole, **canvas)

    def _checkpoint(
        self,
        task: Task,
        cells: Sequence[tuple],
        canvas: ReplicatedCanvas | None = None,
        denoiser: Denoiser | None = None,
    ) -> tuple[np.ndarray, History]:
        """The whole canvas (C, T, H, W) after a step, and its noise scheduler's history."""
        level = self._level(task)
        packed = [send(denoiser.pack(cell)) for cell in canvas.cells] if canvas and denoiser else cells
        return join_cells(level.canvas, dict(zip(level.cells, packed, strict=True)))

    def _decode(self, task: Task, **canvas: Any) -> np.ndarray:
        """A raw decoded tile."""
        tile = flat(self._level(task).decode_tiles)[task.index]
        return send(self._backbone.vae.decode_tile(self._tensor(self._latents(task, tile, **canvas))))

    def _latents(
        self,
        task: Task,
        part: Window,
        cells: Sequence[tuple],
        canvas: ReplicatedCanvas | None = None,
        denoiser: Denoiser | None = None,
    ) -> np.ndarray:
        """Of a part of the canvas, from the cells that cover it or a replica, whose denoiser is only kept for it."""
        if canvas is not None:
            return send(canvas.x_CTHW[(..., *part.slices)])
        level = self._level(task)
        covering = [level.cells[i] for i in level.cells_of(part)]
        return cut(part, dict(zip(covering, (x for x, _ in cells), strict=True)))

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

    def _receive_cell(self, denoiser: Denoiser, packed: tuple[np.ndarray, dict]) -> Cell:
        x, history = packed
        return denoiser.unpack(self._tensor(x), receive(history, self.device))

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.tensor(array, device=self.device)

    def _peak_memory_gb(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 1e9
        unit = 1 if platform.system() == "Darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
