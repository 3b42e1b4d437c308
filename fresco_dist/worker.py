"""One worker: a model replica, its share of the canvas work, and the function behind each kind of task.

The same object runs inside the in-process executor and inside a Ray actor; it knows neither. Results that travel are
numpy arrays; everything else stays on the worker.
"""

import platform
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fresco_dist import backbones
from fresco_dist.backbones import Backbone
from fresco_dist.backbones.conditioning import Embeddings
from fresco_dist.collectives import Group, LocalGroup
from fresco_dist.config import Config, ImageEmbedding
from fresco_dist.denoiser import Denoiser
from fresco_dist.dispatch import Task
from fresco_dist.fusion import resize_prior
from fresco_dist.grid import Window, core_size
from fresco_dist.noise import CANVAS_STREAM, PRIOR_STREAM
from fresco_dist.plan import Layout, Plan
from fresco_dist.prior_strength import prior_strength
from fresco_dist.trace import TaskRecord


@dataclass(frozen=True)
class Job:
    """Everything a worker is told about the run. Pictures are uint8 (H, W, 3); the activity map is bool (H, W)."""

    config: Config
    plan: Plan
    prompts: tuple[str, ...]  # one per guidance branch
    canvas_image: np.ndarray
    thumbnail: np.ndarray
    activity: np.ndarray | None  # latent cells
    canvas_last: np.ndarray | None = None  # last frame, as canvas_image and thumbnail
    thumbnail_last: np.ndarray | None = None


class Worker:
    """Runs tasks one at a time, in the order given."""

    def __init__(self, job: Job, *, use_gpu: bool = False) -> None:
        torch.set_num_threads(job.config.cluster.num_threads)
        self._job, self._config, self._plan = job, job.config, job.plan
        self._device = torch.device("cuda" if use_gpu else "cpu")
        self._group: Group = LocalGroup()
        self._backbone: Backbone
        self._canvas: Denoiser
        self._prior_CTHW: torch.Tensor | None = None
        self._activity_HW = None if job.activity is None else torch.tensor(job.activity, device=self._device)
        self._decoded: dict[int, torch.Tensor] = {}
        self._functions: dict[str, Callable] = {
            "load": self._load,
            "encode_prompt": self._encode_prompt,
            "encode_thumbnail": self._encode_thumbnail,
            "prior": self._prior,
            "encode": self._encode,
            "begin": self._begin,
            "predict": self._predict,
            "commit": self._commit,
            "collect": self._collect,
            "decode": self._decode,
            "blend": self._blend,
            "pixels": self._pixels,
        }

    def join(self, group: Group) -> None:
        """Enter the group in which the accumulators are added up."""
        self._group = group

    @torch.inference_mode()
    def run(self, task: Task, *inputs: Any) -> tuple[TaskRecord, Any]:
        """Run one task. Returns when it ran (Unix seconds) and how much memory it took, and its result."""
        start_s = time.time()
        result = self._functions[task.kind](task, *inputs)
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        record = TaskRecord(task, self._group.rank, start_s, time.time(), self._peak_memory_gb())
        return record, result

    def _load(self, task: Task) -> tuple[str, float]:
        """Attention backend in use, and seconds that compilation took."""
        self._backbone = backbones.load(self._config.model, self._device, self._plan.tile_shapes)
        return self._backbone.attention_backend, self._backbone.compile_s

    def _encode_prompt(self, task: Task) -> Embeddings:
        """Prompts, and pictures for a model with an image encoder: the thumbnail, then the canvas or its windows."""
        job, prompts = self._job, self._backbone.encode_prompts(list(self._job.prompts)).numpy()
        pictures = [_present(job.thumbnail, job.thumbnail_last)]
        if self._config.model.image_embedding is ImageEmbedding.picture:
            pictures.append(_present(job.canvas_image, job.canvas_last))
        else:
            windows = [window.scaled(self._plan.spec.spatial_factor) for window in self._plan.canvas.windows]
            pictures += [_present(job.canvas_image, job.canvas_last, window) for window in windows]
        embeds = [embeds.numpy() for embeds in self._backbone.embed_pictures(pictures)]
        return Embeddings(prompts, embeds[0] if embeds else None, tuple(embeds[1:]))

    def _encode_thumbnail(self, task: Task) -> np.ndarray:
        return self._encode_pictures(_present(self._job.thumbnail, self._job.thumbnail_last))

    def _encode(self, task: Task) -> np.ndarray:
        tile = _flat(self._plan.canvas.encode_tiles)[task.index].scaled(self._plan.spec.spatial_factor)
        return self._encode_pictures(_present(self._job.canvas_image, self._job.canvas_last, tile))

    def _encode_pictures(self, pictures: list[torch.Tensor]) -> np.ndarray:
        return self._backbone.encode_image(pictures[0], self._plan.num_frames, *pictures[1:]).cpu().numpy()

    def _denoiser(
        self,
        layout: Layout,
        stream: int,
        prompts: np.ndarray,
        image_embeds: tuple[np.ndarray, ...],
        encoded: tuple[np.ndarray, ...],
    ) -> Denoiser:
        raw_CTHW = self._backbone.vae.assemble(layout.encode_tiles, [self._tensor(tile) for tile in encoded])
        return Denoiser(
            self._backbone,
            layout,
            self._plan.branches,
            config=self._config,
            stream=stream,
            condition=self._backbone.make_condition(
                raw_CTHW, tuple(map(self._tensor, image_embeds)), has_last=self._job.canvas_last is not None
            ),
            prompt_embeds=self._tensor(prompts),
        )

    def _prior(self, task: Task, embeddings: Embeddings, encoded: np.ndarray) -> np.ndarray:
        """The ordinary sampler at native size: one window, no fusion; the clean latents at native size."""
        assert self._plan.prior is not None
        image_embeds = () if embeddings.thumbnail is None else (embeddings.thumbnail,)
        denoiser = self._denoiser(self._plan.prior, PRIOR_STREAM, embeddings.prompts, image_embeds, (encoded,))
        for _ in range(self._plan.prior.num_steps):
            for branch in range(len(self._plan.branches)):
                denoiser.predict(0, branch)
            denoiser.commit(LocalGroup(), None, 0.0)
        return denoiser.x_CTHW.cpu().numpy()

    def _begin(self, task: Task, embeddings: Embeddings, *encoded: np.ndarray) -> None:
        layout = self._plan.canvas
        self._canvas = self._denoiser(layout, CANVAS_STREAM, embeddings.prompts, embeddings.canvas, encoded)

    def _predict(self, task: Task) -> None:
        assert task.step == self._canvas.step
        self._canvas.predict(task.index, task.branch)

    def _commit(self, task: Task, *prior: np.ndarray) -> None:
        if prior:
            self._prior_CTHW = resize_prior(self._tensor(prior[0])[None], self._plan.canvas.canvas)[0]
        lam = prior_strength(self._config.fusion, task.step, self._plan.canvas.num_steps, self._activity_HW)
        self._canvas.commit(self._group, self._prior_CTHW, lam)

    def _collect(self, task: Task) -> np.ndarray:
        return self._canvas.x_CTHW.float().cpu().numpy()

    def _decode(self, task: Task) -> None:
        rows, columns = _flat(self._plan.decode_tiles)[task.index].slices
        self._decoded[task.index] = self._backbone.vae.decode_tile(self._canvas.x_CTHW[..., rows, columns])

    def _blend(self, task: Task, *edges: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Blend with the tile above (first input, if any) and to the left; the edges for the tiles after it."""
        row, column = divmod(task.index, len(self._plan.decode_tiles[0]))
        remaining = iter(edges)
        above = self._tensor(next(remaining)[0]) if row else None
        left = self._tensor(next(remaining)[1]) if column else None
        blended = self._backbone.vae.blend_decoded(self._decoded.pop(task.index), above, left)
        self._decoded[task.index], bottom, right = blended
        return bottom.contiguous().cpu().numpy(), right.contiguous().cpu().numpy()  # Ray copies no contiguous array

    def _pixels(self, task: Task) -> np.ndarray:
        row, column = divmod(task.index, len(self._plan.decode_tiles[0]))
        height, width = core_size(self._plan.decode_tiles, row, column)
        factor = self._plan.spec.spatial_factor
        pixels = self._backbone.vae.to_pixels(self._decoded.pop(task.index), height * factor, width * factor)
        return pixels.contiguous().cpu().numpy()

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.tensor(array, device=self._device)

    def _peak_memory_gb(self) -> float:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 1e9
        unit = 1 if platform.system() == "Darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def _present(first_HW3: np.ndarray, last_HW3: np.ndarray | None, part: Window | None = None) -> list[torch.Tensor]:
    """First and, if given, last frame, or the same part of both."""
    pictures = [first_HW3] if last_HW3 is None else [first_HW3, last_HW3]
    return [torch.tensor(picture if part is None else picture[part.slices]) for picture in pictures]


def _flat(rows: tuple[tuple[Window, ...], ...]) -> list[Window]:
    return [tile for row in rows for tile in row]
