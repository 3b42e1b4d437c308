"""What of runs is kept in a store, so that none of it is done twice: canvases, encodings, decoded tiles.

Finds what is there before they start, writes while they run, in a thread beside the dispatch, and removes what no run
goes on from any more. A store that fails costs what it would have saved, never a run.
"""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any

import numpy as np

from fresco_dist.jobs.clip import Clip
from fresco_dist.jobs.found import Found, find, pack_inputs
from fresco_dist.runtime.history import flatten
from fresco_dist.runtime.job import Job
from fresco_dist.runtime.store import Store
from fresco_dist.schedule.graph import Graph, Task
from fresco_dist.schedule.keys import numerics_key
from fresco_dist.schedule.plan import Plan

SHARE = 0.01  # of the wall time that checkpoints may take
FLUSH_TIMEOUT_S = 20.0  # for what is written last; Ray's own patience with a head that is lost is 60 s
FIRST_BYTES_PER_S = 0.5e9  # at which one is written, until that is known

Fetch = Callable[[], Any]


class Keeper:
    """Keeps what is worth it of jobs that run together. Without a store it keeps and finds nothing."""

    def __init__(
        self,
        store: Store | None,
        jobs: Sequence[Job],
        tell: Callable[[str], None],
        *,
        lasting: bool = False,
        shared: bool = False,
        plan_only: bool = False,
    ) -> None:
        """`tell` says what went wrong with the store.

        `lasting`: encodings and last canvases stay for other runs; `shared`: what others have put there stays, too.
        """
        self._store, self._jobs, self._tell = store, jobs, tell
        self._lasting, self._shared = lasting, shared
        self._failed = False  # nothing more is written
        self._is_too_small = False  # as has been told
        self._numerics: str | None = None
        self._found = Found([job.plan.whole for job in jobs])
        self._stops = {job.keys.levels[-1].last for job in jobs if job.plan.canvas.until is not None}
        self._graph = Graph()
        self._num_parts: dict[str, int] = {}  # of what is encoded of each picture
        self._parts: dict[str, dict[str, Fetch]] = {}  # until all are there
        self._last_s: dict[int, float] = {}  # when the last checkpoint of each job began
        self._cost_s: float | None = None  # of one
        self._open = set(range(len(jobs)))  # jobs that are not done: this and the next are the other thread's
        self._unwritten = set(self._open)  # and those whose videos are not, previews included
        self._put: set[str] = set()  # entries that are ours
        self._to_write: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        last = None if store is None else store.last_numerics()
        if last is not None:
            self._find(last[0], read=not plan_only)
        Thread(target=self._write_all, name="store", daemon=True).start()  # what it waits for may never come

    @property
    def keeps(self) -> bool:
        """Whether there is a store."""
        return self._store is not None

    @property
    def plans(self) -> list[Plan]:
        """What is left to do of each job."""
        return self._found.plans

    @property
    def found(self) -> Mapping[str, Any]:
        """What need not be done, by key; see Worker."""
        return self._found.by_key

    def _find(self, numerics: str, *, read: bool = True) -> None:
        """What is stored with these numerics, and what is left to do then."""
        assert self._store is not None
        self._store.use(numerics)
        self._numerics, self._found = numerics, find(self._store, self._jobs, read=read)
        if not self._shared and not self._lasting:
            self._put.update(self._store.keys())
        while self._store.damaged:
            self._tell(self._store.damaged.pop(0))

    def use(self, facts: Collection[Mapping[str, str]]) -> dict[str, Any]:
        """Find and write with these numerics from now on: of all workers, in any order. Returns what a store notes."""
        self._last_s = dict.fromkeys(range(len(self._jobs)), time.monotonic())
        different = {tuple(sorted(of_worker.items())): of_worker for of_worker in facts}
        first, numerics = different[min(different)], numerics_key(sorted(different))
        note, store = {"numerics": numerics, "facts": dict(first)}, self._store
        if store is None:
            return note
        if numerics != self._numerics:
            had, (_, known) = self.found, store.last_numerics() or ("", {})
            self._find(numerics)
            if had:
                now = {name: value for name, value in first.items() if known.get(name) != value}
                differ = "; ".join(f"{name} {known.get(name)}, now {value}" for name, value in now.items())
                self._tell(f"what is stored was made with {differ or 'other workers'}: it is not used")
        self._later(lambda: store.record_numerics(first))
        return note

    def watch(self, graph: Graph) -> None:
        """Be told of the graph that runs; what was found has been given to those who take it."""
        self._graph, self._found.by_key = graph, dict.fromkeys(self.found)
        for task in graph.nodes:
            if task.kind in ("encode", "embed_picture"):
                self._num_parts[task.of] = self._num_parts.get(task.of, 0) + 1

    def keep(self, clip: Clip, key: str) -> None:
        """Have a clip keep its tiles in the store, and find them there; not a preview, which is soon made again."""
        if self._store is not None and self._numerics is not None and not self._stops:
            clip.keep_at(self._clip_path(key))

    def has_canvas(self, key: str) -> bool:
        """Whether a canvas is stored now."""
        return self._store is not None and self._store.has(f"canvas-{key}")

    def wants(self, task: Task) -> bool:
        """Whether to run a task now: of checkpoints those of the thumbnail, where a run stops, and as time allows."""
        if task.kind != "checkpoint":
            return True
        if self._failed:
            return False
        job = self._graph.job_of(task)
        plan = self._jobs[job].plan
        about_to_stop = plan.canvas.until is not None and task.step + 2 >= plan.canvas.until
        if task.level == 0 or task.of in self._stops or about_to_stop:
            return True
        if self._cost_s is None:
            self._cost_s = 4 * 4 * np.prod(plan.canvas.latent_shape) / FIRST_BYTES_PER_S  # float32, with a history
        now_s = time.monotonic()
        if now_s - self._last_s[job] < self._cost_s * self._graph.num_together / SHARE:
            return False
        self._last_s[job] = now_s
        return True

    @property
    def late_receivers(self) -> dict[str, Callable[[Task, Fetch], None]]:
        """See `execute`."""
        if self._store is None:
            return {}
        return {
            "checkpoint": self._take_checkpoint,
            "collect": lambda task, fetch: self._put_later("canvas", task.of, lambda: ({"x": fetch()}, {})),
            "encode_text": lambda task, fetch: self._put_later("text", task.of, lambda: ({"text": fetch()}, {})),
            "segment": self._take_activity,
            "encode": self._take_inputs,
            "embed_picture": self._take_inputs,
        }

    def written(self, job: int, *, done: bool) -> None:
        """A job's video is there; `done`: nothing of it will be asked for again."""

        def remove() -> None:
            self._unwritten.discard(job)
            if done:
                self._open.discard(job)
            self._remove_superseded()
            self._remove_done()

        self._later(remove)

    def flush(self) -> None:
        """Wait until all is written, for a while: of a Ray that is lost nothing more can be had."""
        written = Event()
        self._to_write.put(written.set)
        if not self._failed and not written.wait(FLUSH_TIMEOUT_S):
            self._failed = True
            self._tell(f"what was to be stored last has not come within {FLUSH_TIMEOUT_S:g} s")

    def close(self) -> None:
        """Wait until all is written, and be done with it."""
        self.flush()
        self._to_write.put(None)

    def _take_checkpoint(self, task: Task, fetch: Fetch) -> None:
        def packed() -> tuple[dict[str, np.ndarray], dict]:
            x_CTHW, history = fetch()
            arrays, facts = flatten(history)
            return {"x": x_CTHW, **arrays}, facts

        is_top = task.level == self._jobs[self._graph.job_of(task)].plan.top
        self._put_later("canvas", task.of, packed, timed=is_top)

    def _take_activity(self, task: Task, fetch: Fetch) -> None:
        def packed() -> tuple[dict[str, np.ndarray], dict]:
            map_hw, masks = fetch()
            return {"map": map_hw}, {"masks": masks}

        self._put_later("activity", task.of, packed)

    def _take_inputs(self, task: Task, fetch: Fetch) -> None:
        parts = self._parts.setdefault(task.of, {})
        parts[f"{task.kind}.{max(0, task.index)}"] = fetch
        if len(parts) == self._num_parts[task.of]:
            del self._parts[task.of]

            def packed() -> tuple[dict[str, np.ndarray], dict]:
                return pack_inputs({name: fetch() for name, fetch in parts.items()}), {}

            self._put_later("inputs", task.of, packed)

    def _put_later(
        self, kind: str, key: str, make: Callable[[], tuple[dict[str, np.ndarray], dict]], *, timed: bool = False
    ) -> None:
        """Have the other thread write an entry; what is `timed` says what a checkpoint costs."""

        def put() -> None:
            began_s, name = time.monotonic(), f"{kind}-{key}"
            if self._failed:
                return
            try:
                arrays, facts = make()
            except Exception as error:  # it was lost with its worker
                self._tell(f"{kind} not stored: {error}")
                return
            assert self._store is not None
            if self._store.put(name, arrays, facts):
                self._put.add(name)
            elif not self._is_too_small:
                self._is_too_small = True
                self._tell(f"store.max_gb is too small for {name.replace('-', ' ', 1)}: it is not stored")
            if kind == "canvas":
                self._remove_superseded()
            if timed:  # twice, since the worker has copied it, too
                self._cost_s = 2 * (time.monotonic() - began_s)

        self._later(put)

    def _later(self, write: Callable[[], None]) -> None:
        if self._store is not None:
            self._to_write.put(write)

    def _write_all(self) -> None:
        """The other thread. What fails is told once, and is all there is to it."""
        while (write := self._to_write.get()) is not None:
            try:
                write()
            except OSError as error:
                if not self._failed:
                    self._failed = True
                    self._tell(f"nothing more is stored: {error}")

    def _remove_superseded(self) -> None:
        """The latest canvas of each level stays, of jobs that are not done; of others the last, in a lasting store.

        And the one before it where a run stops, until the preview of that is written: it is made of both.
        """
        assert self._store is not None
        needed: set[str] = set()
        for i, job in enumerate(self._jobs):
            for level, plan in zip(job.keys.levels, job.plan.levels, strict=True):
                chain = level.canvas[: plan.todo.stop + 1 - plan.first_step]
                stored = [key for key in chain if self._store.has(f"canvas-{key}")]
                num_latest = 2 if plan.until is not None and i in self._unwritten else 1
                needed.update(stored[-num_latest:] if i in self._open else {level.last} if self._lasting else ())
        chains = {key for job in self._jobs for level in job.keys.levels for key in level.canvas}
        self._remove(f"canvas-{key}" for key in chains - needed)

    def _remove_done(self) -> None:
        """What no job has a use for any more: clips and, in a store that is not to last, all else."""
        clips = {level.clip for i in self._unwritten for level in self._jobs[i].keys.levels}
        kept = {key for i in self._open for key in self._jobs[i].keys}
        for job in self._jobs:
            for key in {level.clip for level in job.keys.levels} - clips:
                Clip.remove(self._clip_path(key))
            made = [("text", key) for key in job.keys.texts] + [("activity", job.keys.activity)]
            made += [("inputs", level.inputs) for level in job.keys.levels]
            self._remove(f"{kind}-{key}" for kind, key in ([] if self._lasting else made) if key not in kept)

    def _remove(self, names: Iterable[str]) -> None:
        assert self._store is not None
        for name in self._put.intersection(names):
            self._store.remove(name)
            self._put.discard(name)

    def _clip_path(self, key: str) -> Path:
        assert self._store is not None
        return self._store.folder / f"clip-{key}"
