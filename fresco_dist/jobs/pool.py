"""Several jobs as one graph on one pool of workers, each written as soon as it is complete.

Hands every result to the jobs that share it. A thread writes, and the workers go on with the next jobs meanwhile.
"""

import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import replace

import numpy as np
from rich.console import Console

from fresco_dist.config import ExecutorKind
from fresco_dist.jobs.folder import PRODUCTS
from fresco_dist.jobs.job import Clip, JobRun, tasks_of
from fresco_dist.jobs.progress import Phase, ProgressLine
from fresco_dist.jobs.stop import stop_if_requested
from fresco_dist.runtime.inprocess_executor import InProcessExecutor
from fresco_dist.runtime.job import Job
from fresco_dist.schedule.execute import Executor, Failure, Receiver, WorkerError, execute
from fresco_dist.schedule.graph import Graph, Task
from fresco_dist.schedule.sharing import find_owners
from fresco_dist.schedule.tasks import run_graph
from fresco_dist.schedule.trace import TaskRecord

MAX_UNWRITTEN = 3  # clips that wait for their writing, 2 GB each at UHD; the workers wait for more


class PoolRun:
    """Jobs that run together; `begun_s` is when their preparation began, in Unix seconds."""

    def __init__(self, runs: Sequence[JobRun], console: Console, begun_s: float) -> None:
        self._runs, self._console = runs, console
        self._owners = find_owners([run.job.config for run in runs])
        self._jobs = [replace(run.job, base=owner.base) for run, owner in zip(runs, self._owners, strict=True)]
        self._graph = run_graph([job.plan for job in self._jobs], self._owners, self._jobs[0].config.dispatch.mode)
        clips: dict[int, Clip] = {}
        for run, owner in zip(runs, self._owners, strict=True):
            run.clip = clips.setdefault(owner.canvas[-1], run.clip)
        self._needed = [tasks_of(self._graph, owner) for owner in self._owners]
        self._timings_s = {"begun": begun_s}
        self._records: list[TaskRecord] = []
        self._backend = ""
        self._survived: list[str] = []
        self._writer = ThreadPoolExecutor(max_workers=1)
        self._writing: dict[int, Future] = {}

    def run(self, gpus_per_worker: int) -> list[Exception | None]:
        """Start workers, run all, stop them; the error of each job that failed."""
        try:
            with self._writer:
                executor = start_workers(self._jobs, gpus_per_worker)
                self._timings_s["start"] = time.time() - self._timings_s["begun"]
                try:
                    dropped = self._execute(executor)
                except WorkerError as error:  # no worker is left
                    dropped = dict.fromkeys(self._graph.nodes, error)
                finally:
                    executor.close()
        except BaseException as error:
            status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            for i, run in enumerate(self._runs):
                run.fail(str(error) or "interrupted", self._records_of(i), status)
            raise
        errors = [self._error_of(i, dropped) for i in range(len(self._runs))]
        for i, (run, error) in enumerate(zip(self._runs, errors, strict=True)):
            if error is None:
                self._print_done(run)
            else:
                run.fail(str(error), self._records_of(i))
        return errors

    def _execute(self, executor: Executor) -> dict[Task, WorkerError]:
        receivers: dict[str, Receiver] = {
            "load": self._take_backend,
            "collect": self._take_latents,
            "decode_prior": self._take_prior,
            "blend": self._take_pixels,
        }
        with ProgressLine(self._console, phases_of(self._graph)) as progress:

            def observe(record: TaskRecord) -> None:
                self._records.append(record)
                progress(record)
                stop_if_requested()

            return execute(self._graph, executor, observe, receivers, self._warn)

    def _take_backend(self, task: Task, result: tuple[str, float]) -> None:
        self._backend, self._timings_s["compile"] = result

    def _take_latents(self, task: Task, latents_CTHW: np.ndarray) -> None:
        for i in self._sharers(task):
            if i not in self._writing:
                self._runs[i].take_latents(latents_CTHW)
                self._write_if_complete(i)

    def _take_pixels(self, task: Task, result: tuple) -> None:
        unwritten = [i for i in self._sharers(task) if i not in self._writing]
        if unwritten:  # a tile that is made again after a loss may come after all is written
            self._runs[unwritten[0]].clip.take(task.index, result[-1])
        for i in unwritten:
            self._write_if_complete(i)

    def _take_prior(self, task: Task, frames: np.ndarray) -> None:
        for i, owner in enumerate(self._owners):
            if owner.base == task.job:
                self._runs[i].prior_frames = frames
                self._write_if_complete(i)

    def _sharers(self, task: Task) -> list[int]:
        """The jobs that end with the same canvas as the task's."""
        return [i for i, owner in enumerate(self._owners) if owner.canvas[-1] == task.job]

    def _write_if_complete(self, i: int) -> None:
        if i not in self._writing and self._runs[i].is_complete:
            unwritten = [future for future in self._writing.values() if not future.done()]
            wait_for(unwritten[: max(0, len(unwritten) - MAX_UNWRITTEN + 1)])
            self._writing[i] = self._writer.submit(
                self._runs[i].write, self._records_of(i), self._graph, self._timings_s, self._backend, self._survived
            )

    def _warn(self, failure: Failure) -> None:
        self._survived.append(str(failure.error))
        self._print(f"warning   {failure.error}; the others go on")

    def _records_of(self, i: int) -> list[TaskRecord]:
        return [record for record in self._records if record.task in self._needed[i]]

    def _error_of(self, i: int, dropped: dict[Task, WorkerError]) -> Exception | None:
        if i in self._writing:
            return self._writing[i].exception()  # type: ignore[return-value]
        return next(dropped[task] for task in self._needed[i] if task in dropped)

    def _print_done(self, run: JobRun) -> None:
        phases = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in run.timings_s.items())
        lines = [f"done      {phases}"] + [f"          {run.folder.path / name}" for name in PRODUCTS]
        self._print("\n".join(lines))

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def phases_of(graph: Graph) -> dict[str, Phase]:
    """What the progress line counts."""
    counts = Counter(task.kind for task in graph.nodes)
    num_steps = max(task.step for task in graph.nodes if task.kind == "predict") + 1
    return {
        "encode": Phase("encode", counts["encode"]),
        "predict": Phase("denoise", counts["predict"], num_steps),
        "blend": Phase("decode", counts["blend"]),
    }


def start_workers(jobs: Sequence[Job], gpus_per_worker: int) -> Executor:
    """The executor that the configuration asks for, its workers started."""
    if jobs[0].config.cluster.executor is ExecutorKind.inprocess:
        return InProcessExecutor(jobs, use_gpu=gpus_per_worker > 0)
    from fresco_dist.runtime.ray_executor import RayExecutor

    return RayExecutor(jobs, num_workers=jobs[0].plan.num_workers, gpus_per_worker=gpus_per_worker)
