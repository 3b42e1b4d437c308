"""One worker: a model replica, its share of the canvas work, and the function behind each kind of task.

The same object runs inside the in-process executor and inside a Ray actor; it knows neither.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch

from fresco_dist.method.grid import Window, flat, tiles_over
from fresco_dist.method.moments import Moments, moments, standardising
from fresco_dist.models.conditioning import Conditioning
from fresco_dist.models.tiling import blend_part
from fresco_dist.runtime.below import Below
from fresco_dist.runtime.cells import add_up, cut, receive, send
from fresco_dist.runtime.collectives import Group, LocalGroup
from fresco_dist.runtime.history import History, cut_cell, join_cells
from fresco_dist.runtime.job import Job
from fresco_dist.runtime.machine import read_gb
from fresco_dist.runtime.replica import Replica
from fresco_dist.runtime.replicated_canvas import ReplicatedCanvas
from fresco_dist.runtime.step import Cell, Denoiser, Guidance
from fresco_dist.schedule.execute import OutOfStep
from fresco_dist.schedule.graph import NO_INPUTS, Task
from fresco_dist.schedule.trace import TaskRecord


class Worker(Replica):
    """Runs tasks one at a time, in the order given; those beside the forwards may run in a second thread."""

    def __init__(self, *, use_gpu: bool = False) -> None:
        super().__init__(use_gpu=use_gpu)
        self.index = 0  # by which the driver calls it
        self._side_stream = torch.cuda.Stream() if use_gpu else None
        self._group: Group = LocalGroup()
        self._last_kind = ""  # of task, between the forwards

    def take(self, jobs: Sequence[Job], stored: Mapping[str, Any] = NO_INPUTS) -> None:
        """See Replica."""
        super().take(jobs, stored)
        self._states: dict[Task, Any] = {}  # by the task that made it, here as on every other worker

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

    def _stream(self, beside: bool) -> Any:
        """Work beside the forwards has a stream of its own, or it would wait for them."""
        return torch.cuda.stream(self._side_stream) if beside and self._side_stream is not None else nullcontext()

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

    def _receive_cell(self, denoiser: Denoiser, packed: tuple[np.ndarray, dict]) -> Cell:
        x, history = packed
        return denoiser.unpack(self._tensor(x), receive(history, self.device))
