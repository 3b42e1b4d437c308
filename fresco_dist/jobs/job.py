"""One job between its graph and its run folder: takes results as they come, writes the products, tells how it went."""

import shlex
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from fresco_dist.config import Config, expanded
from fresco_dist.jobs.clip import Clip
from fresco_dist.jobs.folder import ACTIVITY, PASSING, PREVIEW, PREVIEWS, PRODUCTS, RunFolder, WriteError
from fresco_dist.jobs.inputs import digest_files, note_of_map
from fresco_dist.jobs.preview import encode_png, lay_out
from fresco_dist.media.overlay import draw_overlay
from fresco_dist.method.activity import active_cells
from fresco_dist.runtime.job import Job
from fresco_dist.schedule.graph import Graph, Task
from fresco_dist.schedule.keys import Keys
from fresco_dist.schedule.plan import Plan
from fresco_dist.schedule.trace import TaskRecord, loaded_gb, phase_s, schedule_summary


class Result(NamedTuple):
    """What has come of a run: its clip (F, H, W, 3), its final latents, float32 (1, C, T, H, W), and its run.json.

    A run that stops before its end has the clip of its estimate, and no latents.
    """

    frames: np.ndarray
    latents: np.ndarray | None
    figures: dict[str, Any]


@dataclass(frozen=True)
class Request:
    """One run that is asked for: its configuration, the same as run.json records it, and its run folder."""

    config: Config
    plain_config: dict
    path: Path
    home: Path | None = None  # the sweep's folder, of a point of one
    shares_store: bool = False  # with runs of other processes, though it is none of the user's own
    given: frozenset[str] = frozenset()  # keys that the user has set for it
    take: Callable[[Result], object] | None = None  # is given what has come of it, when it is done
    writes: bool = True  # its products; otherwise only run.json

    @property
    def typed(self) -> str:
        """How a command names its folder, or the sweep's that it is a point of."""
        return shlex.quote(f"hydra.sweep.dir={self.home}" if self.home else f"hydra.run.dir={self.path}")

    @property
    def goes_on(self) -> bool:
        """Whether it stops before its end, to be continued."""
        return self.config.sampler.stop_after is not None

    @property
    def store_path(self) -> Path | None:
        """Where what it makes is kept, if it is."""
        store = self.config.store
        if not store.enabled:
            return None
        return expanded(store.path) if store.path else (self.home or self.path) / "store"


@dataclass
class Common:
    """What jobs that run together have in common; filled in as it becomes known."""

    begun_s: float  # when their preparation began, in Unix seconds
    graph: Graph = field(default_factory=Graph)
    start_s: float = 0.0  # until the workers were there
    compile_s: float = 0.0
    attention_backend: str = ""
    numerics: dict[str, Any] = field(default_factory=dict)  # as a store notes them
    survived: list[str] = field(default_factory=list)  # what went wrong on the way


class JobRun:
    """A job between being planned and being done; owns its run folder and its clip."""

    def __init__(self, request: Request, job: Job) -> None:
        self._files_sha256 = digest_files(request.config, job.model)
        self.job, self.folder = job, RunFolder(request.path, writes=request.writes)
        self.records: list[TaskRecord] = []  # of its tasks that have finished
        self.decisions: dict[int, tuple[bool, float]] = {}  # of windows: whether one goes up first, and its variance
        self.activity: np.ndarray | None = job.activity  # bool (H, W) latent cells: where motion is measured apart
        self._shown = (-1, -1)  # the last step that was shown: level, step
        self._masks: dict[str, list[int]] | None = None  # that were found and kept for it, by prompt
        self.timings_s: dict[str, float] = {}
        self.finished = False
        self.error: WriteError | None = None  # that something could not be saved: it will not be complete
        self._written: list[TaskRecord] = []  # the records that were there when it was written
        self._write_s = 0.0  # what that has taken
        shown = [i for i in job.plan.needed if job.plan.levels[i].is_shown]
        self.clips = {i: Clip(job.plan, i, job.bits(i)) for i in shown}  # jobs with the same canvas may share one
        self._request = request
        self._latents: np.ndarray | None = None  # for who takes them
        self._frames: np.ndarray | None = None

    def start(self, left: Plan) -> None:
        """Note that it begins, with what is left to do; if that fails, `error` says why."""
        steps = {f"level {i}": level.given for i, level in enumerate(left.levels) if level.given is not None}
        try:
            self.folder.note_start(num_workers=left.num_workers, stored_steps=steps, forwards_left=left.num_forwards)
        except WriteError as error:
            self.error = error

    def take_latents(self, latents_CTHW: np.ndarray) -> None:
        """Save the final latents; if that fails, `error` says why."""
        self._latents = latents_CTHW[None].copy() if self._request.take else None  # Ray's own may not be written to
        try:
            self.folder.write_latents(latents_CTHW)
        except WriteError as error:
            self.error = error

    def take_activity(self, map_hw: np.ndarray, masks: dict[str, list[int]]) -> str:
        """Save the activity map that was made, and the picture with it; returns what there is to say of it.

        The map, as `fusion.activity_map` of a run, gives this one's cells. If it cannot be saved, `error` says why.
        """
        plan, threshold = self.job.plan, self.job.config.sam3.threshold
        self.activity = active_cells(map_hw, plan.canvas.canvas, threshold)
        size = plan.size_px(plan.top)
        picture = Image.fromarray(self.activity).resize(size, Image.Resampling.NEAREST)
        overlay = draw_overlay(self.job.pictures[-1], self.activity)
        try:
            for name, image in zip(ACTIVITY, (picture, overlay)):
                self.folder.write(name, partial(image.save, format="PNG"))
            self._masks = masks
        except WriteError as error:
            self.error = error
        kept = ", ".join(f"{prompt} {number}" for prompt, (_, number) in masks.items())
        note = note_of_map("the activity map that SAM 3 has made", self.activity)
        return f"{note} (masks: {kept})" if note else ""

    def show(self, frames: np.ndarray, level: int, step: int) -> bool:
        """Show what a step has come to, uint8 (F, h, w, 3), unless a later one has been; whether it is shown."""
        if (level, step) <= self._shown:
            return False
        self._shown, plan = (level, step), self.job.plan
        self.folder.show(PREVIEW, encode_png(lay_out(frames, plan.size_px(plan.top))))
        return True

    @property
    def is_complete(self) -> bool:
        """Whether all is there that `write` needs."""
        has_latents = self.is_preview or self.folder.latents_sha256 is not None
        has_activity = self._masks is not None or not self.job.keys.activity
        return has_latents and has_activity and all(clip.is_complete for clip in self.clips.values())

    @property
    def typed(self) -> str:
        """See Request."""
        return self._request.typed

    @property
    def is_preview(self) -> bool:
        """Whether it stops before its last step, and what it shows is an estimate."""
        return self.job.plan.canvas.until is not None

    @property
    def products(self) -> tuple[str, ...]:
        """The files that it writes."""
        made = ACTIVITY if self.job.keys.activity else ()
        video = self.job.config.video.encoding.file_name
        return (*(PREVIEWS if self.is_preview else (video, *PRODUCTS[1:])), *made)

    @property
    def is_measured(self) -> bool:
        """Whether its metrics are asked for."""
        return self.job.config.metrics and not self.is_preview

    def write(self, common: Common) -> None:
        """Write all but run.json."""
        from fresco_dist.media.video import contact_sheet, resize_frames, write_video  # see `import_media`

        plan, began_s, self._written = self.job.plan, time.time(), self.records.copy()
        frames = self.clips.pop(plan.top).frames  # two gigabytes at UHD
        if self._request.take:
            frames = resize_frames(frames, plan.output_px)
            self._frames = frames = np.array(frames) if isinstance(frames, np.memmap) else frames  # the store goes
        if not self._request.writes:
            return
        config = self.job.config.video
        how = () if self.is_preview else (config.format, config.quality)
        video, sheet = self.products[:2]
        self.folder.write(video, lambda partial: write_video(partial, frames, plan.output_px, config.rate, *how))
        self.folder.write(sheet, contact_sheet(self.job.pictures[-1], frames).save)
        self.folder.write_trace(self._written)
        self._write_s = time.time() - began_s

    def finish(self, common: Common, measured: tuple[dict[str, float], float] | None) -> None:
        """Write run.json, the last of all; `measured` are the metrics and the seconds that they took."""
        plan, records = self.job.plan, self._written
        phases_s = phase_s(records)
        self.timings_s = {
            "total": time.time() - common.begun_s,
            "start": common.start_s,
            "load": phases_s.pop("load"),
            "compile": common.compile_s,  # a part of load
            **phases_s,
            "write": self._write_s,
        }
        facts: dict[str, Any] = {}
        if measured:
            facts["metrics"], self.timings_s["metrics"] = measured
        left_out = {record.task for record in records if record.left_out}
        if left_out:
            cost = plan.cost - sum(common.graph.nodes[task].cost for task in left_out)
            facts["work"] = round(cost, 3)
        if self.decisions:
            variances = sorted(variance for _, variance in self.decisions.values())
            facts["variance"] = {"min": variances[0], "median": median(variances), "max": variances[-1]}
            facts["windows_up_first"] = sum(goes_up for goes_up, _ in self.decisions.values())
        if self._masks is not None and self.activity is not None:
            facts["activity"] = {"active": float(np.mean(self.activity)), "masks": self._masks}
        figures = self.folder.write_run(
            "paused" if self.is_preview else "done",
            self._request.plain_config,
            plan,
            timings_s=self.timings_s,
            files_sha256=self._files_sha256,
            latents_sha256=self.folder.latents_sha256,
            latents_key=None if self.is_preview else self.job.keys.levels[-1].last,
            numerics=common.numerics,
            schedule=schedule_summary(records, plan.num_workers, common.graph),
            loaded_gb=loaded_gb(records),
            peak_memory_gb=max(record.peak_memory_gb for record in records),
            attention_backend=common.attention_backend,
            survived=list(common.survived),
            **facts,
        )
        self.finished = True
        if self._request.take:
            assert self._frames is not None
            self._request.take(Result(self._frames, self._latents, figures))
            self._frames = self._latents = None
        if not self.is_preview:
            self.folder.remove(PASSING)

    def fail(self, reason: str, status: str = "failed") -> None:
        """Write down that the job has failed, or was "interrupted", unless it is done."""
        if self.finished:
            return
        digest = self.folder.latents_sha256
        kept = {"latents_sha256": digest} if digest and status == "interrupted" else {}
        with suppress(WriteError):  # a full disk must not hide what happened
            self.folder.write_trace(self.records)
        with suppress(WriteError):
            self.folder.write_run(status, self._request.plain_config, self.job.plan, error=reason, **kept)


def import_media() -> None:
    """Import what `write` needs, PyAV and matplotlib, which takes a second that no worker need wait for."""
    from fresco_dist.media import timeline, video  # noqa: F401


def tasks_of(graph: Graph, keys: Keys) -> set[Task]:
    """The tasks that a job needs."""
    needed: set[Task] = set()
    ends = {"collect": {keys.levels[-1].last}, "blend": {level.clip for level in keys.levels}}
    ends["segment"] = {keys.activity}
    stack = [task for task in graph.nodes if task.of in ends.get(task.kind, ())]
    while stack:
        task = stack.pop()
        if task not in needed:
            needed.add(task)
            stack += graph.nodes[task].needs
    return needed
