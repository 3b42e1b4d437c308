"""Jobs while they run together as one graph on the workers of a pool.

Hands every result to the jobs that share it. Each job is written and measured as soon as it is complete, by a thread
and by a process of its own, and the workers go on with the next ones meanwhile.
"""

import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from fresco_dist.jobs.caller import Caller
from fresco_dist.jobs.clip import Clip
from fresco_dist.jobs.job import Common, JobRun, import_media, tasks_of
from fresco_dist.jobs.keeper import Keeper
from fresco_dist.jobs.measuring import Measurer
from fresco_dist.jobs.preview import Looks
from fresco_dist.jobs.progress import Phase, ProgressLine
from fresco_dist.runtime.job import Job
from fresco_dist.schedule.execute import Executor, Failure, Receiver, WorkerError, execute
from fresco_dist.schedule.graph import Graph, Task
from fresco_dist.schedule.tasks import run_graph
from fresco_dist.schedule.trace import TaskRecord

MAX_UNWRITTEN = 3  # clips that wait to be written and measured, 2 GB each at UHD; the workers wait for more
PATIENCE_S = 20.0  # with what is being measured when the run is to stop

if TYPE_CHECKING:
    from fresco_dist.jobs.pool import Workers


class PoolRun:
    """Jobs while they run together."""

    def __init__(
        self, runs: Sequence[JobRun], keeper: Keeper, caller: Caller, begun_s: float, measurer: Measurer
    ) -> None:
        self.is_whole = False  # whether all has been done, and nothing went wrong on the way
        self._runs, self._keeper, self._caller, self._measurer = runs, keeper, caller, measurer
        self._jobs = [run.job for run in runs]
        self._clips: dict[str, Clip] = {}
        for run in runs:
            for level, clip in run.clips.items():
                run.clips[level] = self._clips.setdefault(run.job.keys.levels[level].clip, clip)
        self._common = Common(begun_s)
        self._graph = self._common.graph
        self._takers: dict[Task, list[int]] = {}
        self._looks = Looks()
        self._writer, self._finisher = ThreadPoolExecutor(max_workers=1), ThreadPoolExecutor(max_workers=1)
        self._imported: Future | None = None
        self._finishing: dict[int, Future] = {}  # of each job that is complete

    def __enter__(self) -> "PoolRun":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait for what is complete to be written and measured; not long if the run is to stop."""
        try:
            if kind is None or issubclass(kind, Exception):
                self._wait_for(self._finishing.values())
            else:
                wait_for(self._finishing.values(), PATIENCE_S)
        finally:
            self._measurer.stop()
            self._finisher.shutdown()
            self._writer.shutdown()
            self._measurer.close()

    def _wait_for(self, futures: Collection[Future]) -> None:
        """Until all are done, unless the run is asked to stop: metrics may take long."""
        while wait_for(futures, PATIENCE_S).not_done:
            self._caller.stop_if_asked()

    def _set_up(self, numerics: Mapping[int, Mapping[str, str]]) -> None:
        """The graph of what is left to do, as the keeper finds it with what the workers compute with."""
        self._common.numerics = self._keeper.use(numerics.values())
        (first, known), *others = sorted(numerics.items())
        for worker, facts in others:
            if differ := [name for name, value in known.items() if facts.get(name) != value]:
                self._tell(f"workers {first} and {worker} differ in {', '.join(differ)}: so may their bits")
                break
        keys = [job.keys for job in self._jobs]
        for key, clip in self._clips.items():
            self._keeper.keep(clip, key)
        decoded = {key: clip.decoded for key, clip in self._clips.items()}
        mode = self._jobs[0].config.dispatch.mode
        plans, found = self._keeper.plans, self._keeper.found
        self._graph = run_graph(plans, keys, mode, found, decoded, checkpoints=self._keeper.keeps)
        self._takers = {task: [] for task in self._graph.nodes}
        for i, of_job in enumerate(keys):
            for task in tasks_of(self._graph, of_job):
                self._takers[task].append(i)
        self._common.graph = self._graph

    def run(self, executor: "Workers") -> dict[Task, WorkerError]:
        """Run all; returns the tasks that were dropped, with the error that each was dropped for."""
        self._set_up(executor.numerics(self._jobs[0].config))
        for i, (run, left) in enumerate(zip(self._runs, self._keeper.plans, strict=True)):
            run.start(left)
            if run.job.keys.activity in self._keeper.found:
                self._note_activity(i, *self._keeper.found[run.job.keys.activity])
        self._end_if_hopeless()
        executor.give(self._jobs, self._keeper.found)
        self._keeper.watch(self._graph)
        self._common.start_s = time.time() - self._common.begun_s
        try:
            dropped = self._execute(executor)
        except WorkerError as error:  # no worker is left
            return dict.fromkeys(self._graph.nodes, error)
        self.is_whole = not dropped and not self._common.survived
        return dropped

    def conclude(self, dropped: dict[Task, WorkerError]) -> list[Exception | None]:
        """Tell of each job how it ended, once all that is complete is written; the error of each that failed."""
        errors = [self._error_of(i, dropped) for i in range(len(self._runs))]
        for run, error in zip(self._runs, errors, strict=True):
            if error is None:
                self._print_done(run)
            else:
                run.fail(str(error))
        return errors

    def _execute(self, executor: Executor) -> dict[Task, WorkerError]:
        receivers: dict[str, Receiver] = {
            "load": self._take_backend,
            "segment": self._take_activity,
            "collect": self._take_latents,
            "blend": self._take_pixels,
            "decide": self._take_decision,
        }
        phases = phases_of(self._graph, self._jobs)
        with ProgressLine(self._caller.console, phases, self._caller.listener) as progress:

            def observe(record: TaskRecord) -> None:
                self._show(record, progress)
                for i in self._takers[record.task]:
                    self._runs[i].records.append(replace(record, looks={}))  # or they would all be kept
                if record.task.level == self._jobs[self._graph.job_of(record.task)].plan.top:
                    progress(record)
                self._caller.stop_if_asked()

            late, wants = self._keeper.late_receivers, self._keeper.wants
            return execute(self._graph, executor, observe, receivers, self._warn, late, wants)

    def _show(self, record: TaskRecord, progress: ProgressLine) -> None:
        """What a step has come to, with the last look at it, unless a job's video is being written already."""
        if record.blind:
            self._caller.note(f"there is no preview: {record.blind}")
        task = record.task
        level = self._jobs[self._graph.job_of(task)].plan.levels[task.level]
        if not record.looks or (frames := self._looks.take(record, level)) is None:
            return
        for i, job in enumerate(self._jobs):  # not who takes it: of the last canvas before a stop nobody does
            is_its = any(task.of in level.canvas for level in job.keys.levels[task.level : task.level + 1])
            if is_its and i not in self._finishing and self._runs[i].show(frames, task.level, task.step):
                progress.show(frames, task.step + 1 if task.level == job.plan.top else 0, i)

    def _take_backend(self, task: Task, result: tuple[str, float]) -> None:
        self._common.attention_backend, self._common.compile_s = result

    def _take_activity(self, task: Task, result: tuple[np.ndarray, dict[str, list[int]]]) -> None:
        for i in self._takers[task]:
            if i not in self._finishing:
                self._note_activity(i, *result)
                self._write_if_complete(i)
        self._end_if_hopeless()

    def _note_activity(self, i: int, map_hw: np.ndarray, masks: dict[str, list[int]]) -> None:
        if note := self._runs[i].take_activity(map_hw, masks):
            self._caller.note(note)

    def _take_latents(self, task: Task, latents_CTHW: np.ndarray) -> None:
        for i in self._takers[task]:
            if i not in self._finishing:
                self._runs[i].take_latents(latents_CTHW)
                self._write_if_complete(i)
        self._end_if_hopeless()

    def _end_if_hopeless(self) -> None:
        """Raise the first error if no run can be saved any more: nothing is left to do it for."""
        errors = [run.error for run in self._runs if run.error]
        if len(errors) == len(self._runs):
            raise errors[0]

    def _take_decision(self, task: Task, result: tuple[bool, float]) -> None:
        for i in self._takers[task]:
            self._runs[i].decisions[task.index] = result

    def _take_pixels(self, task: Task, result: tuple) -> None:
        if not self._imported:
            self._imported = self._writer.submit(import_media)  # while the other tiles are decoded
        unwritten = [i for i in self._takers[task] if i not in self._finishing]
        shown = [clips[task.level] for clips in (self._runs[i].clips for i in unwritten) if task.level in clips]
        if shown:  # a tile that is made again after a loss may come after all is written
            shown[0].take(task.index, result[-1])
        for i in unwritten:
            self._write_if_complete(i)

    def _write_if_complete(self, i: int) -> None:
        run = self._runs[i]
        if i in self._finishing or not run.is_complete:
            return
        unfinished = [future for future in self._finishing.values() if not future.done()]
        self._wait_for(unfinished[: max(0, len(unfinished) - MAX_UNWRITTEN + 1)])
        clips = [run.clips[level].frames for level in (run.job.plan.top, 0)] if run.is_measured else []
        writing = self._writer.submit(self._write, i)
        self._finishing[i] = self._finisher.submit(self._finish, i, writing, clips)

    def _write(self, i: int) -> None:
        self._runs[i].write(self._common)
        still = {id(clip) for run in self._runs for clip in run.clips.values()}
        self._clips = {key: clip for key, clip in self._clips.items() if id(clip) in still}  # gigabytes each

    def _finish(self, i: int, writing: Future, clips: Sequence[np.ndarray]) -> None:
        """Measure a job's clip beside the prior's, while it is written, and then tell that it is done."""
        run, began_s = self._runs[i], time.time()
        measured = (
            (self._measurer.measure(clips[0], clips[1], run.job, run.activity), time.time() - began_s)
            if clips
            else None
        )
        writing.result()
        run.finish(self._common, measured)
        self._keeper.written(i, done=not run.is_preview)

    def _warn(self, failure: Failure) -> None:
        self._common.survived.append(str(failure.error))
        self._caller.warn(f"{failure.error}; the others go on")

    def _tell(self, text: str) -> None:
        self._common.survived.append(text)
        self._caller.warn(text)

    def _error_of(self, i: int, dropped: dict[Task, WorkerError]) -> Exception | None:
        if self._runs[i].error:
            return self._runs[i].error
        if i in self._finishing:
            return self._finishing[i].exception()  # type: ignore[return-value]
        return next(error for task, error in dropped.items() if i in self._takers[task])

    def _print_done(self, run: JobRun) -> None:
        phases = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in run.timings_s.items())
        lines = [f"{'paused' if run.is_preview else 'done':<10}{phases}"]
        shown = run.products if len(self._runs) == 1 else [""]
        lines += [f"          {run.folder.path / name}" for name in shown]
        if run.is_preview:
            stored = self._keeper.has_canvas(run.job.keys.levels[-1].last)
            same = f"the same with {run.typed} and without sampler.stop_after goes on"
            goes_on = f"is stored: {same}" if stored else "is not stored"
            lines.append(f"          step {run.job.plan.canvas.until} {goes_on}")
        self._caller.say(*lines)


def phases_of(graph: Graph, jobs: Sequence[Job]) -> dict[str, Phase]:
    """What the progress line counts: tasks of the last level."""
    counts = Counter(task.kind for task in graph.nodes if task.level == jobs[graph.job_of(task)].plan.top)
    num_steps = max(job.plan.canvas.num_steps for job in jobs)
    return {
        "encode": Phase("encode", counts["encode"]),
        "predict": Phase("denoise", counts["predict"], num_steps),
        "blend": Phase("decode", counts["blend"]),
    }
