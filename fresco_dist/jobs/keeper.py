"""What of runs is kept in a store, so that none of it is done twice: canvases, encodings, decoded tiles.

Finds what is there before they start, writes while they run, in a thread beside the dispatch, and removes what no run
goes on from any more. A store that fails costs what it would have saved, never a run.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any

import numpy as np

from fresco_dist.jobs.clip import Clip
from fresco_dist.runtime.history import flatten, unflatten
from fresco_dist.runtime.job import Job
from fresco_dist.runtime.store import Store
from fresco_dist.schedule.graph import Graph, Task
from fresco_dist.schedule.keys import numerics_key
from fresco_dist.schedule.trace import TaskRecord

SHARE = 0.01  # of the wall time that checkpoints may take
FLUSH_TIMEOUT_S = 60.0
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
        shared: bool = True,
    ) -> None:
        """`tell` says what went wrong with the store.

        `lasting`: encodings and last canvases stay for other runs; `shared`: others keep theirs there meanwhile.
        """
        self._store, self._jobs, self._tell, self._lasting, self._shared = store, jobs, tell, lasting, shared
        self.plans = [job.plan.whole for job in jobs]  # what is left to do
        self.found: dict[str, Any] = {}  # what need not be done, by key; see Worker
        self._numerics: str | None = None  # with which that was made
        self._open = set(range(len(jobs)))  # jobs that are not done
        self._unwritten = set(self._open)  # and those whose videos are not, previews included
        self._canvases: set[str] = set()  # that are stored, of these jobs
        self._encoded: dict[str, dict[str, Fetch]] = {}  # parts of what is encoded of pictures, until all are there
        self._graph = Graph()
        self._last_s: dict[int, float] = {}  # when the last checkpoint of each job began
        self._cost_s: float | None = None  # of the last checkpoint: on the worker and here
        self._seconds = 0.0
        self._to_write: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        Thread(target=self._write_all, name="store", daemon=True).start()  # what it waits for may never come
        last = None if store is None else store.last_numerics()
        if last is not None:
            self._find(last[0])

    def _find(self, numerics: str) -> None:
        """What is stored with these numerics, and what is left to do then."""
        self._store.use(numerics)
        self._numerics, self.plans, self.found = numerics, [], {}
        self._canvases.clear()
        for job in self._jobs:
            chains = (key for level in job.keys.levels for key in level.canvas)
            self._canvases.update(key for key in chains if self._store.has(f"canvas-{key}"))
            plan = job.plan.going_on_from(partial(self._latest, job))
            if any(plan.levels[i].todo for i in plan.needed):
                for key in job.keys.texts[: plan.num_prompts]:
                    self._read(key, "text", lambda arrays, facts: arrays["text"])
                for i in plan.needed:
                    if plan.levels[i].todo:
                        self._read(job.keys.levels[i].inputs, "inputs", _unpack_inputs)
            self.plans.append(plan)
        while self._store.damaged:
            self._tell(self._store.damaged.pop(0))

    def _latest(self, job: Job, level: int) -> int | None:
        """Before which step the latest canvas is that is stored of a level."""
        of = job.plan.levels[level]
        for step in range(of.todo.stop, of.first_step, -1):
            if step == of.until:  # its last step is done again, for the estimate
                continue
            key = job.keys.levels[level].canvas[step - of.first_step]
            if self._read(key, "canvas", lambda arrays, facts: (arrays["x"], unflatten(arrays, facts))):
                return step
        return None

    def _read(self, key: str, kind: str, unpack: Callable[[dict, dict], Any]) -> bool:
        if key not in self.found and (entry := self._store.get(f"{kind}-{key}")) is not None:
            self.found[key] = unpack(*entry)
        return key in self.found

    def watch(self, graph: Graph) -> None:
        """Be told of the graph that runs."""
        self._graph = graph
        self._encoded.clear()
        self._parts: dict[str, int] = {}
        for task in graph.nodes:
            if task.kind in ("encode", "embed_picture"):
                self._parts[task.of] = self._parts.get(task.of, 0) + 1

    def use(self, facts: Mapping[str, str]) -> bool:
        """Write with these numerics from now on; whether other things are found with them than before."""
        self._last_s = dict.fromkeys(range(len(self._jobs)), time.monotonic())
        if self._store is None:
            return False
        before, (_, known) = self._numerics, self._store.last_numerics() or (None, {})
        numerics = numerics_key(facts)
        if numerics != before:
            self._find(numerics)
            if before is not None:
                differ = [f"{name} {known.get(name)}, now {value}" for name, value in facts.items()]
                differ = [text for text, name in zip(differ, facts) if known.get(name) != facts[name]]
                self._tell(f"what is stored was made with {'; '.join(differ)}: it is not used")
        self._try(lambda: self._store.record_numerics(facts))
        return numerics != before and (before is not None or bool(self.found))

    def keep(self, clip: Clip, key: str) -> None:
        """Have a clip keep its tiles in the store, and find them there, as soon as its numerics are known."""
        if self._store is not None and self._numerics is not None:
            clip.keep_at(self._clip_path(key))

    def _clip_path(self, key: str) -> Path:
        return self._store.folder / f"clip-{key}"

    def wants(self, task: Task) -> bool:
        """Whether to run a task now: of checkpoints those of lower levels, where a run stops, and as time allows."""
        if task.kind != "checkpoint":
            return True
        if self._store is None:
            return False
        job = self._graph.job_of(task)
        plan = self._jobs[job].plan
        if task.level < plan.top or task.step + 1 == plan.canvas.until:
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
            "collect": lambda task, fetch: self._write(self._put_canvas, task.of, lambda: (fetch(), {})),
            "encode_text": lambda task, fetch: self._write(self._put_text, task.of, fetch),
            "encode": self._take_inputs,
            "embed_picture": self._take_inputs,
        }

    def observe(self, record: TaskRecord) -> None:
        """Take note of what checkpoints cost the workers."""
        if record.task.kind == "checkpoint" and self._cost_s is not None:
            self._seconds = record.end_s - record.start_s

    def written(self, job: int, *, done: bool) -> None:
        """A job's video is there; `done`: nothing of it will be asked for again."""
        self._unwritten.discard(job)
        if done:
            self._open.discard(job)
        if self._store is not None:
            self._later(self._remove_done)

    def flush(self) -> None:
        """Wait until all is written, for a while: of a Ray that is lost nothing more can be had."""
        written = Event()
        self._to_write.put(written.set)
        if not written.wait(FLUSH_TIMEOUT_S):
            self._tell(f"what was to be stored last has not come within {FLUSH_TIMEOUT_S:g} s")
            self._store = None

    def close(self) -> None:
        """Wait until all is written, and be done with it; of a store that is not to last nothing is left then."""
        self.flush()
        self._to_write.put(None)
        if self._store is not None and not self._lasting and not self._open:
            self._try(self._store.remove_if_empty if self._shared else self._store.clear)

    def _take_checkpoint(self, task: Task, fetch: Fetch) -> None:
        def put(key: str, fetch: Fetch) -> None:
            began_s = time.monotonic()
            self._put_canvas(key, fetch)
            if task.level == self._jobs[self._graph.job_of(task)].plan.top:
                self._cost_s = self._seconds + time.monotonic() - began_s

        self._write(put, task.of, fetch)

    def _take_inputs(self, task: Task, fetch: Fetch) -> None:
        parts = self._encoded.setdefault(task.of, {})
        parts[f"{task.kind}.{max(0, task.index)}"] = fetch
        if len(parts) == self._parts[task.of]:
            self._write(self._put_inputs, task.of, dict(self._encoded.pop(task.of)))

    def _write(self, put: Callable[[str, Any], None], key: str, what: Any) -> None:
        self._later(lambda: put(key, what))

    def _later(self, write: Callable[[], None]) -> None:
        """Have the other thread do it, if there is a store by then."""
        self._to_write.put(lambda: write() if self._store is not None else None)

    def _write_all(self) -> None:
        while (write := self._to_write.get()) is not None:
            self._try(write)

    def _try(self, write: Callable[[], None]) -> None:
        """What fails is told, once, and is all there is to it."""
        try:
            write()
        except OSError as error:
            self._tell(f"nothing more is stored: {error}")
            self._store = None
        except Exception as error:  # a result that was lost with its worker, above all
            self._tell(f"not stored: {error}")

    def _put_canvas(self, key: str, fetch: Fetch) -> None:
        x_CTHW, history = fetch()
        arrays, facts = flatten(history)
        if self._store.put(f"canvas-{key}", {"x": x_CTHW, **arrays}, facts):
            self._canvases.add(key)
            self._remove_superseded()

    def _put_text(self, key: str, fetch: Fetch) -> None:
        self._store.put(f"text-{key}", {"text": fetch()}, {})

    def _put_inputs(self, key: str, parts: dict[str, Fetch]) -> None:
        arrays: dict[str, np.ndarray] = {}
        for name, fetch in parts.items():
            made = fetch()
            arrays |= {f"{name}.{i}": array for i, array in enumerate(made if isinstance(made, list) else [made])}
        self._store.put(f"inputs-{key}", arrays, {})

    def _remove_superseded(self) -> None:
        """The latest canvas of each level stays, of jobs that are not done; of others the last, in a lasting store."""
        needed: set[str] = set()
        for i, job in enumerate(self._jobs):
            for level in job.keys.levels:
                stored = [key for key in level.canvas if key in self._canvases]
                needed.update(stored[-1:] if i in self._open else {level.last} if self._lasting else ())
        for key in self._canvases - needed:
            self._store.remove(f"canvas-{key}")
        self._canvases &= needed

    def _remove_done(self) -> None:
        """What no job has a use for any more: clips and, in a store that is not to last, all else."""
        self._remove_superseded()
        clips = {level.clip for i in self._unwritten for level in self._jobs[i].keys.levels}
        kept = {key for i in self._open for key in self._jobs[i].keys}
        for job in self._jobs:
            for key in {level.clip for level in job.keys.levels} - clips:
                Clip.remove(self._clip_path(key))
            texts = [("text", key) for key in job.keys.texts]
            made = [*texts, *(("inputs", level.inputs) for level in job.keys.levels)]
            for kind, key in [] if self._lasting else made:
                if key not in kept:
                    self._store.remove(f"{kind}-{key}")


def _unpack_inputs(arrays: dict[str, np.ndarray], facts: dict) -> tuple[list, list]:
    """What is encoded of a picture: tiles, and what pictures are embedded to; in their order."""
    names = sorted(arrays, key=lambda name: tuple(int(part) for part in name.split(".")[1:]))
    tiles = [arrays[name] for name in names if name.startswith("encode.")]
    return tiles, [[arrays[name] for name in names if name.startswith("embed_picture.")]]
