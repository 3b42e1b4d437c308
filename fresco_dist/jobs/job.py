"""One job between its graph and its run folder: takes results as they come, writes the products, tells how it went."""

import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fresco_dist.config import Config
from fresco_dist.jobs.folder import RunFolder, WriteError
from fresco_dist.media.metrics import measure
from fresco_dist.method.grid import flat
from fresco_dist.models.dino import DinoEncoder
from fresco_dist.runtime.job import Job
from fresco_dist.schedule.graph import Graph, Task
from fresco_dist.schedule.plan import Plan
from fresco_dist.schedule.tasks import Owners
from fresco_dist.schedule.trace import TaskRecord, loaded_gb, phase_s, schedule_summary


@dataclass(frozen=True)
class Request:
    """One run that is asked for: its configuration, the same as run.json records it, and its run folder."""

    config: Config
    plain_config: dict
    path: Path


class Clip:
    """A level's video while its decoded tiles come in."""

    def __init__(self, plan: Plan, level: int) -> None:
        tiles = enumerate(flat(plan.levels[level].decode_tiles))
        self._tiles = {i: tile.scaled(plan.spec.spatial_factor) for i, tile in tiles}
        self._missing = set(self._tiles)
        self._shape = (plan.num_frames, *plan.size_px(level)[::-1], 3)
        self.frames: np.ndarray | None = None  # uint8 (F, H, W, 3), from the first tile on

    @property
    def is_complete(self) -> bool:
        """Whether every tile is in."""
        return not self._missing

    def take(self, index: int, block: np.ndarray) -> None:
        """Put a decoded tile, uint8 (F, h, w, 3), in its place; one that comes again changes nothing."""
        if self._missing:
            self.frames = np.zeros(self._shape, dtype=np.uint8) if self.frames is None else self.frames
            tile = self._tiles[index]
            self.frames[:, tile.top : tile.top + block.shape[1], tile.left : tile.left + block.shape[2]] = block
            self._missing.discard(index)


@dataclass
class Common:
    """What jobs that run together have in common; filled in as it becomes known."""

    begun_s: float  # when their preparation began, in Unix seconds
    graph: Graph
    start_s: float = 0.0  # until the workers were there
    compile_s: float = 0.0
    attention_backend: str = ""
    survived: list[str] = field(default_factory=list)  # what went wrong on the way


class JobRun:
    """A job between being planned and being done; owns its run folder and its clip."""

    def __init__(self, request: Request, job: Job) -> None:
        self.job, self.folder = job, RunFolder(request.path)
        self.records: list[TaskRecord] = []  # of its tasks that have finished
        self.timings_s: dict[str, float] = {}
        self.finished = False
        self.error: WriteError | None = None  # that the latents could not be saved: it will not be complete
        decoded = [level for level in job.plan.needed if job.plan.levels[level].decode_tiles]
        self.clips = {level: Clip(job.plan, level) for level in decoded}  # jobs with the same canvas may share one
        self._plain_config = request.plain_config

    def take_latents(self, latents_CTHW: np.ndarray) -> None:
        """Save the final latents; if that fails, `error` says why."""
        try:
            self.folder.write_latents(latents_CTHW)
        except WriteError as error:
            self.error = error

    @property
    def is_complete(self) -> bool:
        """Whether all is there that `write` needs."""
        return all(clip.is_complete for clip in self.clips.values()) and self.folder.latents_sha256 is not None

    def write(self, common: Common) -> None:
        """Write what is left, run.json last."""
        from fresco_dist.media.video import contact_sheet, write_video  # see `import_media`

        plan, began_s, records = self.job.plan, time.time(), self.records.copy()
        frames = self.clips.pop(plan.top).frames  # two gigabytes at UHD
        fps = self.job.config.video.fps
        self.folder.write("video.mp4", lambda partial: write_video(partial, frames, plan.output_px, fps))
        self.folder.write("contact_sheet.png", contact_sheet(self.job.pictures[-1], frames).save)
        self.folder.write_trace(records)
        measured_from_s = time.time()
        facts = {"metrics": self._measure(frames)} if self.job.config.metrics else {}
        phases_s = phase_s(records)
        self.timings_s = {
            "total": time.time() - common.begun_s,
            "start": common.start_s,
            "load": phases_s.pop("load"),
            "compile": common.compile_s,  # a part of load
            **phases_s,
            "write": measured_from_s - began_s,
        }
        if facts:
            self.timings_s["metrics"] = time.time() - measured_from_s
        self.folder.write_run(
            "done",
            self._plain_config,
            plan,
            timings_s=self.timings_s,
            latents_sha256=self.folder.latents_sha256,
            schedule=schedule_summary(records, plan.num_workers, common.graph),
            loaded_gb=loaded_gb(records),
            peak_memory_gb=max(record.peak_memory_gb for record in records),
            attention_backend=common.attention_backend,
            survived=list(common.survived),
            **facts,
        )
        self.finished = True

    def _measure(self, frames: np.ndarray) -> dict[str, float]:
        path = self.job.config.dino_path
        encode = DinoEncoder(Path(path).expanduser()) if path else None
        return measure(frames, self.clips[0].frames, self.job.plan, self.job.activity, encode)

    def fail(self, reason: str, status: str = "failed") -> None:
        """Write down that the job has failed, or was "interrupted", unless it is done."""
        if self.finished:
            return
        digest = self.folder.latents_sha256
        kept = {"latents_sha256": digest} if digest and status == "interrupted" else {}
        with suppress(WriteError):  # a full disk must not hide what happened
            self.folder.write_trace(self.records)
        with suppress(WriteError):
            self.folder.write_run(status, self._plain_config, self.job.plan, error=reason, **kept)


def import_media() -> None:
    """Import what `write` needs, PyAV and matplotlib, which takes a second that no worker need wait for."""
    from fresco_dist.media import timeline, video  # noqa: F401


def tasks_of(graph: Graph, plan: Plan, owner: Owners) -> set[Task]:
    """The tasks that a job needs."""
    needed: set[Task] = set()
    kinds = ("collect", "blend")
    stack = [task for task in graph.nodes if task.kind in kinds and task.job == owner.of(task.level, -1, plan)]
    while stack:
        task = stack.pop()
        if task not in needed:
            needed.add(task)
            stack += graph.nodes[task].needs
    return needed
