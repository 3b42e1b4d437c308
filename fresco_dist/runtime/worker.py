"""One worker: a model replica, its share of the canvas work, and the function behind each kind of task.

The same object runs inside the in-process executor and inside a Ray actor; it knows neither. Results that travel are
numpy arrays, and made of nothing but inputs and ids.
"""

import platform
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

from fresco_dist import models
from fresco_dist.config import DispatchMode, ImageEmbedding
from fresco_dist.method.grid import Window
from fresco_dist.method.noise import CANVAS_STREAM, PRIOR_STREAM
from fresco_dist.models.backbone import Backbone
from fresco_dist.models.conditioning import Embeddings
from fresco_dist.models.tiling import blend_tile, blend_tiles, decode_clip, join_tiles
from fresco_dist.runtime.cells import cut, receive, send
from fresco_dist.runtime.collectives import Group, LocalGroup
from fresco_dist.runtime.job import Job
from fresco_dist.runtime.machine import read_gb
from fresco_dist.runtime.replicated_canvas import ReplicatedCanvas
from fresco_dist.runtime.step import Cell, Denoiser, Fusion
from fresco_dist.schedule.execute import OutOfStep
from fresco_dist.schedule.graph import Task
from fresco_dist.schedule.plan import Layout
from fresco_dist.schedule.trace import TaskRecord


class Worker:
    """Runs tasks one at a time, in the order given; those beside the forwards may run in a second thread."""

    def __init__(self, *, use_gpu: bool = False) -> None:
        self.index = 0  # by which the driver calls it
        self.device = torch.device("cuda" if use_gpu else "cpu")
        self._side_stream = torch.cuda.Stream() if use_gpu else None
        self._group: Group = LocalGroup()
        self._backbone: Backbone | None = None
        self._loaded: tuple | None = None  # what the backbone was loaded for
        self.take([])
        self._functions: dict[str, Callable] = {
            "load": self._load,
            "encode_prompt": self._encode_prompt,
            "encode_thumbnail": self._encode_thumbnail,
            "prior": self._prior,
            "decode_prior": self._decode_prior,
            "encode": self._encode,
            "begin": self._begin,
            "predict": self._predict,
            "fuse": self._fuse,
            "commit": self._commit,
            "end": self._end,
            "collect": self._collect,
            "decode": self._decode,
            "blend": self._blend,
        }

    def take(self, jobs: Sequence[Job]) -> None:
        """Be given the jobs of the tasks that follow, in place of those before; a model that is theirs, too, stays."""
        self._jobs = jobs
        self._denoisers: dict[int, Denoiser] = {}  # by job
        self._thumbnails: dict[int, Denoiser] = {}
        self._fusions: dict[int, Fusion] = {}
        self._replicas: dict[int, ReplicatedCanvas] = {}
        if jobs:
            torch.set_num_threads(jobs[0].config.cluster.num_threads)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def join(self, group: Group) -> None:
        """Enter the group in which the accumulators are added up."""
        self._group = group

    def undo(self, task: Task) -> None:
        """Go back to before a commit that the other workers have not finished."""
        if task.kind == "commit" and task.job in self._replicas:
            self._replicas[task.job].undo(task.step)

    @torch.inference_mode()
    def run(self, task: Task, inputs: Mapping[str, Sequence[Any]]) -> tuple[TaskRecord, Any]:
        """Run one task on the results of others, by name.

        Returns when it ran (Unix seconds), its memory and what it read, and its result.
        """
        start_s, before_gb = time.time(), read_gb()
        with self._stream(task):
            result = self._functions[task.kind](task, **inputs)
            if self.device.type == "cuda":
                torch.cuda.current_stream().synchronize()
        loaded_gb = None if before_gb is None else read_gb() - before_gb
        return TaskRecord(task, self.index, start_s, time.time(), self._peak_memory_gb(), loaded_gb), result

    def _stream(self, task: Task) -> Any:
        """Work beside the forwards has a stream of its own, or it would wait for them."""
        beside = task.traits.beside and self._side_stream is not None
        return torch.cuda.stream(self._side_stream) if beside else nullcontext()

    def _load(self, task: Task) -> tuple[str, float]:
        """Attention backend in use, and seconds that compilation took.

        Weights are mapped from their files: the workers of a node share what the first of them has brought to the page
        cache, so storage is read once per node, without waiting for each other.
        """
        tiles = tuple(dict.fromkeys(shape for job in self._jobs for shape in job.plan.tile_shapes))
        wanted = (self._jobs[task.job].config.model, tiles)
        if self._loaded != wanted:
            self._backbone = self._loaded = None  # two would not fit
            self._backbone, self._loaded = models.load(wanted[0], self.device, tiles), wanted
            return self._backbone.attention_backend, self._backbone.compile_s
        return self._backbone.attention_backend, 0.0

    def _encode_prompt(self, task: Task) -> Embeddings:
        """Prompts, and pictures for a model with an image encoder: the thumbnail, then the canvas or its windows."""
        job = self._jobs[task.job]
        prompts = self._backbone.encode_prompts(list(job.prompts)).numpy()
        pictures = [_present(job.thumbnail, job.thumbnail_last)]
        if job.config.model.image_embedding is ImageEmbedding.picture:
            pictures.append(_present(job.canvas_image, job.canvas_last))
        else:
            windows = [window.scaled(job.plan.spec.spatial_factor) for window in job.plan.canvas.windows]
            pictures += [_present(job.canvas_image, job.canvas_last, window) for window in windows]
        embeds = [embeds.numpy() for embeds in self._backbone.embed_pictures(pictures)]
        return Embeddings(prompts, embeds[0] if embeds else None, tuple(embeds[1:]))

    def _encode_thumbnail(self, task: Task) -> np.ndarray:
        job = self._jobs[task.job]
        return self._encode_pictures(job, _present(job.thumbnail, job.thumbnail_last))

    def _encode(self, task: Task) -> np.ndarray:
        job = self._jobs[task.job]
        tile = _flat(job.plan.canvas.encode_tiles)[task.index].scaled(job.plan.spec.spatial_factor)
        return self._encode_pictures(job, _present(job.canvas_image, job.canvas_last, tile))

    def _encode_pictures(self, job: Job, pictures: list[torch.Tensor]) -> np.ndarray:
        return self._backbone.encode_image(pictures[0], job.plan.num_frames, *pictures[1:]).cpu().numpy()

    def _make_denoiser(
        self,
        job: Job,
        layout: Layout,
        stream: int,
        prompts: np.ndarray,
        image_embeds: Sequence[np.ndarray],
        encoded: Sequence[np.ndarray],
    ) -> Denoiser:
        tiles = layout.encode_tiles
        raw_CTHW = join_tiles(tiles, blend_tiles(tiles, map(self._tensor, encoded)))
        return Denoiser(
            self._backbone,
            layout,
            job.plan.branches,
            config=job.config,
            stream=stream,
            condition=self._backbone.make_condition(
                raw_CTHW, tuple(map(self._tensor, image_embeds)), has_last=job.canvas_last is not None
            ),
            prompt_embeds=self._tensor(prompts),
        )

    def _prior(
        self, task: Task, embeddings: Sequence[Embeddings], encoded: Sequence[np.ndarray], previous: Sequence[tuple]
    ) -> Any:
        """One step of the ordinary sampler at native size, one window and no fusion, for one guidance branch.

        `previous` are the branches' results of the step before: the cell they began with, and their predictions. After
        the last step, the clean latents.
        """
        job = self._jobs[task.job]
        if task.job not in self._thumbnails:
            (texts,) = embeddings
            image_embeds = () if texts.thumbnail is None else (texts.thumbnail,)
            self._thumbnails[task.job] = self._make_denoiser(
                job, job.plan.prior, PRIOR_STREAM, texts.prompts, image_embeds, encoded
            )
        denoiser = self._thumbnails[task.job]
        cell = denoiser.first_cell(0)
        if previous:
            before = self._receive_cell(denoiser, previous[0][0])
            total_CTHW = self._tensor(sum(predictions for _, predictions in previous))
            cell = denoiser.step(before, task.step - 1, 0, total_CTHW, None, 0.0)
        if task.step == job.plan.prior.num_steps:
            del self._thumbnails[task.job]
            return send(cell.x_CTHW)
        total_CTHW = torch.zeros_like(cell.x_CTHW, dtype=torch.int32)
        denoiser.predict_([total_CTHW], cell.x_CTHW[None], task.step, 0, task.branch)
        return send(denoiser.pack(cell)), send(total_CTHW)

    def _decode_prior(self, task: Task, prior: Sequence[np.ndarray]) -> np.ndarray:
        plan = self._jobs[task.job].plan
        return decode_clip(self._backbone.vae, plan.prior_tiles, self._tensor(prior[0]))

    def _begin(self, task: Task, embeddings: Sequence[Embeddings], encoded: Sequence[np.ndarray]) -> None:
        job, (texts,) = self._jobs[task.job], embeddings
        self._replicas = {i: replica for i, replica in self._replicas.items() if self._jobs[i].base != task.job}
        self._denoisers[task.job] = self._make_denoiser(
            job, job.plan.canvas, CANVAS_STREAM, texts.prompts, texts.canvas, encoded
        )

    def _end(self, task: Task) -> None:
        """No job on this canvas needs it any more."""
        self._denoisers.pop(task.job, None)  # none, if it could not begin
        self._replicas = {i: replica for i, replica in self._replicas.items() if self._jobs[i].base != task.job}

    def _predict(self, task: Task, cells: Sequence[tuple] = ()) -> np.ndarray | None:
        """Wavefront: weighted fixed-point predictions (B, C, T, h, w) of some windows, from the cells that cover them.

        With an all-reduce they stay in this worker's accumulator, and nothing is returned.
        """
        if self._replicates(task):
            self._replica(task).predict(task.step, task.index, task.branch)
            return None
        denoiser = self._denoiser(task)
        layout = denoiser.layout
        windows = [layout.windows[i] for i in layout.batches[task.index]]
        if cells:
            parts = {i: x for i, (x, _) in zip(layout.cells_of_batch(task.index), cells, strict=True)}
            x_BCTHW = self._tensor(np.stack([cut(window, layout, parts) for window in windows]))
        else:
            x_BCTHW = torch.stack([denoiser.noise_CTHW[(..., *window.slices)] for window in windows])
        total_BCTHW = torch.zeros(x_BCTHW.shape, dtype=torch.int32, device=self.device)
        denoiser.predict_(list(total_BCTHW), x_BCTHW, task.step, task.index, task.branch)
        return send(total_BCTHW)

    def _fuse(
        self, task: Task, before: Sequence[tuple], predictions: Sequence[np.ndarray], prior: Sequence[np.ndarray]
    ) -> tuple:
        """The next state of a cell, from its last one (none at step 0), its predictions, and the prior if it counts."""
        denoiser = self._denoiser(task)
        layout = denoiser.layout
        cell = layout.cells[task.index]
        last = self._receive_cell(denoiser, before[0]) if before else denoiser.first_cell(task.index)
        batches = [i for i in layout.batches_of(cell) for _ in denoiser.branches_at(task.step)]
        total_CTHW = np.zeros(last.x_CTHW.shape, dtype=np.int32)
        for batch, predictions_BCTHW in zip(batches, predictions, strict=True):
            for i, prediction_CTHW in zip(layout.batches[batch], predictions_BCTHW, strict=True):
                window = layout.windows[i]
                if window.overlaps(cell):
                    common = cell.intersection(window)
                    inner, outer = common.within(cell).slices, common.within(window).slices
                    total_CTHW[(..., *inner)] += prediction_CTHW[(..., *outer)]
        z_CTHW, lam = self._fusion(task).at(task.step, task.index, self._tensor(prior[0]) if prior else None)
        after = denoiser.step(last, task.step, task.index, self._tensor(total_CTHW), z_CTHW, lam)
        return send(denoiser.pack(after))

    def _commit(self, task: Task, prior: Sequence[np.ndarray]) -> None:
        prior_CTHW = self._tensor(prior[0]) if prior else None
        try:
            self._replica(task).commit(task.step, self._group, prior_CTHW, self._fusion(task))
        except RuntimeError:
            self._group.leave()  # or the others would wait for this one in the next commit
            raise

    def _collect(self, task: Task, cells: Sequence[tuple]) -> np.ndarray:
        """The whole canvas (C, T, H, W)."""
        if self._replicates(task):
            return send(self._replica(task).x_CTHW)
        layout = self._jobs[task.job].plan.canvas
        return cut(Window(0, 0, *layout.canvas), layout, dict(enumerate(x for x, _ in cells)))

    def _decode(self, task: Task, cells: Sequence[tuple]) -> np.ndarray:
        """A raw decoded tile."""
        plan = self._jobs[task.job].plan
        tile = _flat(plan.decode_tiles)[task.index]
        if self._replicates(task):
            rows, columns = tile.slices
            latents_CTHW = self._replica(task).x_CTHW[..., rows, columns]
        else:
            parts = {i: x for i, (x, _) in zip(plan.canvas.cells_of(tile), cells, strict=True)}
            latents_CTHW = self._tensor(cut(tile, plan.canvas, parts))
        return send(self._backbone.vae.decode_tile(latents_CTHW))

    def _blend(
        self, task: Task, tile: Sequence[np.ndarray], above: Sequence[tuple], left: Sequence[tuple]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Blend with the tiles above and to the left, if there are any.

        Returns the edges for the tiles below and to the right, and the tile's own pixels, uint8 (F, h, w, 3).
        """
        plan = self._jobs[task.job].plan
        row, column = divmod(task.index, len(plan.decode_tiles[0]))
        core, bottom, right = blend_tile(
            plan.decode_tiles,
            row,
            column,
            self._tensor(tile[0]),
            self._tensor(above[0][0]) if above else None,
            self._tensor(left[0][1]) if left else None,
        )
        return send(bottom), send(right), send(self._backbone.vae.to_pixels(core))

    def _replicates(self, task: Task) -> bool:
        return self._jobs[task.job].config.dispatch.mode is DispatchMode.allreduce

    def _denoiser(self, task: Task) -> Denoiser:
        base = self._jobs[task.job].base
        if base not in self._denoisers:
            raise OutOfStep(f"{task} comes before its canvas has begun")
        return self._denoisers[base]

    def _fusion(self, task: Task) -> Fusion:
        if task.job not in self._fusions:
            job = self._jobs[task.job]
            activity_HW = None if job.activity is None else self._tensor(job.activity)
            self._fusions[task.job] = Fusion(job.config, job.plan.canvas, activity_HW)
        return self._fusions[task.job]

    def _replica(self, task: Task) -> ReplicatedCanvas:
        if task.job not in self._replicas:
            self._replicas[task.job] = ReplicatedCanvas(self._denoiser(task))
        return self._replicas[task.job]

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


def _present(first_HW3: np.ndarray, last_HW3: np.ndarray | None, part: Window | None = None) -> list[torch.Tensor]:
    """First and, if given, last frame, or the same part of both."""
    pictures = [first_HW3] if last_HW3 is None else [first_HW3, last_HW3]
    return [torch.tensor(picture if part is None else picture[part.slices]) for picture in pictures]


def _flat(rows: tuple[tuple[Window, ...], ...]) -> list[Window]:
    return [tile for row in rows for tile in row]
