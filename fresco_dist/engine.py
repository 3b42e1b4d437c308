"""The run as a graph of tasks, to be read beside Algorithm 1 of the paper, and the loop that executes it.

Owns what depends on what. Where a task runs is decided in `dispatch`, what it does stands in `worker` and `denoiser`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fresco_dist.config import DispatchMode
from fresco_dist.dispatch import Dispatcher, Instruction
from fresco_dist.executor import Executor, Failure, WorkerError
from fresco_dist.graph import COLLECTIVES, Graph, Place, Task
from fresco_dist.plan import Plan, counting
from fresco_dist.trace import TaskRecord

VAE_COST = 0.1  # of encoding or decoding a tile, in forwards: an estimate, for the dispatcher's decisions only

Observer = Callable[[TaskRecord], None]
Receiver = Callable[[Task, Any], None]
Warner = Callable[[Failure], None]


@dataclass(frozen=True)
class Owners:
    """Which job a job's tasks belong to: the first that does the same.

    `base`: same picture, model, windows, sampler and seed. `canvas[k]`: also the same canvas before step k.
    """

    base: int
    canvas: tuple[int, ...]  # num_steps + 1

    @classmethod
    def alone(cls, job: int, num_steps: int) -> "Owners":
        """Of a job that shares nothing."""
        return cls(job, (job,) * (num_steps + 1))


def run_graph(plans: Sequence[Plan], owners: Sequence[Owners], mode: DispatchMode) -> Graph:
    """All jobs as one graph, each from its picture to its pixels; tasks with the same owner are one task."""
    graph = Graph()
    load = graph.add(Task("load"), place=Place.EVERYWHERE, cost=0.0)
    ends: dict[int, list[Task]] = {}
    for plan, owner in zip(plans, owners, strict=True):
        begin, prior = _add_inputs(graph, plan, owner.base, load)
        denoise = _add_wavefront if mode is DispatchMode.wavefront else _add_allreduce
        stepped = denoise(graph, plan, owner, begin, prior)
        ends.setdefault(owner.base, []).extend(_add_decoding(graph, plan, owner, mode, stepped))
    for base, last in ends.items():
        graph.add(Task("end", job=base), after=last, place=Place.EVERYWHERE, cost=0.0)
    return graph


def _add_inputs(graph: Graph, plan: Plan, base: int, load: Task) -> tuple[Task, list[Task]]:
    """Encode prompts and picture; animate the thumbnail, one task per step and branch, if the prior counts at all.

    The thumbnail's clip is needed by the first fusion only, so it is made while the first windows are predicted
    (METHOD 6.1).
    """
    prompt = graph.add(Task("encode_prompt", job=base), after=[load], cost=VAE_COST)
    prior: list[Task] = []
    if plan.num_prior_steps:
        thumbnail = graph.add(Task("encode_thumbnail", job=base), after=[load], cost=VAE_COST)
        inputs = [prompt, thumbnail]
        for step in range(plan.num_prior_steps):
            prior = [  # each branch stays where it begins: no other task comes between its steps
                graph.add(Task("prior", step, 0, branch, job=base), inputs=[*inputs, *prior], place=inputs[1 - branch])
                for branch in counting(plan.branches, plan.prior.stages[step])
            ]
        last = Task("prior", plan.num_prior_steps, 0, 0, job=base)
        prior = [graph.add(last, inputs=[*inputs, *prior], place=thumbnail, cost=0.0)]
    if plan.prior_tiles:
        graph.add(Task("decode_prior", job=base), inputs=prior, cost=VAE_COST)
    num_tiles = sum(map(len, plan.canvas.encode_tiles))
    encoded = [graph.add(Task("encode", index=i, job=base), after=[load], cost=VAE_COST) for i in range(num_tiles)]
    begin = graph.add(Task("begin", job=base), inputs=[prompt, *encoded], place=Place.EVERYWHERE, cost=0.0)
    return begin, prior


def _add_allreduce(graph: Graph, plan: Plan, owner: Owners, begin: Task, prior: list[Task]) -> list[Task]:
    """S steps of: predict all windows, then all workers together fuse with the prior and step the canvas."""
    stepped = begin
    job = owner.canvas[-1]
    batches = plan.canvas.batches
    for step in range(plan.canvas.num_steps):
        branches = counting(plan.branches, plan.canvas.stages[step])
        predictions = [
            graph.add(Task("predict", step, i, branch, job=job), after=[stepped], cost=float(len(windows)))
            for i, windows in enumerate(batches)
            for branch in branches
        ]
        inputs = prior if plan.prior_steps[step] else []
        commit = Task("commit", step, job=job)
        stepped = graph.add(commit, inputs=inputs, after=predictions, place=Place.EVERYWHERE, cost=0.0)
    return [stepped]


def _add_wavefront(graph: Graph, plan: Plan, owner: Owners, begin: Task, prior: list[Task]) -> list[Task]:
    """S steps without a barrier: windows are predicted when the cells inside them have stepped, a cell is fused and
    stepped when the windows that count in it are predicted (METHOD 6.2)."""
    layout = plan.canvas
    cells_of = [layout.cells_of_batch(i) for i in range(len(layout.batches))]
    batches_of = [layout.batches_of(cell) for cell in layout.cells]
    cells: list[Task] = []
    for step in range(layout.num_steps):
        branches = counting(plan.branches, layout.stages[step])
        predictions = {
            (i, branch): graph.add(
                Task("predict", step, i, branch, job=owner.canvas[step]),
                inputs=[cells[cell] for cell in cells_of[i]] if cells else [],
                after=[begin],
                cost=float(len(windows)),
            )
            for i, windows in enumerate(layout.batches)
            for branch in branches
        }
        cells = [
            graph.add(
                Task("fuse", step, cell, job=owner.canvas[step + 1]),
                inputs=cells[cell : cell + 1]
                + [predictions[i, branch] for i in batches_of[cell] for branch in branches]
                + (prior if plan.prior_steps[step] else []),
                after=[begin],
                cost=0.0,
            )
            for cell in range(len(layout.cells))
        ]
    return cells


def _add_decoding(graph: Graph, plan: Plan, owner: Owners, mode: DispatchMode, stepped: list[Task]) -> list[Task]:
    """Collect the latents; decode each VAE tile, then blend it with the edges of the tiles above and to the left.

    `stepped` are the last cells, or the last commit. A wavefront decodes a tile when its cells are there; after an
    all-reduce the latents are safe before anything is decoded.
    """
    job, layout, wavefront = owner.canvas[-1], plan.canvas, mode is DispatchMode.wavefront
    collect = Task("collect", job=job)
    graph.add(collect, inputs=stepped if wavefront else [], after=stepped, cost=0.0)
    blended: dict[tuple[int, int], Task] = {}
    for row, tiles in enumerate(plan.decode_tiles):
        for column, tile in enumerate(tiles):
            index = row * len(tiles) + column
            inputs = [stepped[cell] for cell in layout.cells_of(tile)] if wavefront else []
            after = [] if wavefront else [collect]
            decode = graph.add(Task("decode", index=index, job=job), inputs=inputs, after=after, cost=VAE_COST)
            edges = [blended[key] for key in ((row - 1, column), (row, column - 1)) if key in blended]
            blended[row, column] = graph.add(Task("blend", index=index, job=job), inputs=[decode, *edges], cost=0.0)
    return [collect, *blended.values()]


def execute(
    graph: Graph,
    executor: Executor,
    observe: Observer,
    receivers: Mapping[str, Receiver],
    warn: Warner = lambda failure: None,
) -> dict[Task, WorkerError]:
    """Run `graph` to its end: feed events to the dispatcher, its instructions to the executor.

    `observe` sees every record, `warn` every failure that is not the consequence of another; `receivers` get the
    results of tasks by kind. A result is dropped once its receiver and every task that takes it have had it. What a
    lost worker had not finished is done by the others; a task that fails is tried once more elsewhere. Returns the
    tasks that were dropped because of one that failed, with its error. Raises WorkerError when no worker is left.
    """
    return _Execution(graph, executor, observe, receivers, warn).run()


class _Execution:
    """What `execute` has at hand while it runs."""

    def __init__(
        self,
        graph: Graph,
        executor: Executor,
        observe: Observer,
        receivers: Mapping[str, Receiver],
        warn: Warner,
    ) -> None:
        self._nodes = graph.nodes
        self._dispatcher = Dispatcher(graph, executor.num_workers)
        self._executor = executor
        self._observe, self._receivers, self._warn = observe, receivers, warn
        self._has_collectives = any(task.kind in COLLECTIVES for task in graph.nodes)
        self._dropped: dict[Task, WorkerError] = {}

    def run(self) -> dict[Task, WorkerError]:
        """See `execute`."""
        self._submit(self._dispatcher.start())
        while not self._dispatcher.done:
            event = self._executor.wait()
            failure = event if isinstance(event, Failure) else self._receive(event)
            if failure is None:
                self._submit(self._finish(event))
            elif self._has_collectives:
                self._begin_step_again(failure)
            else:
                self._submit(self._blame(failure))
            for task in self._dispatcher.take_released():
                self._executor.release(task)
        return self._dropped

    def _submit(self, instructions: Iterable[Instruction]) -> None:
        for instruction in instructions:
            inputs = self._nodes[instruction.task].inputs
            self._executor.submit(instruction.worker, instruction.task, inputs)

    def _receive(self, record: TaskRecord) -> Failure | None:
        """Take note of a finished task, and hand on its result; returns a failure if that was lost on the way."""
        self._observe(record)
        task = record.task
        done_with = self._dispatcher.is_finished(task) or task in self._dispatcher.dropped
        if task.kind in self._receivers and not done_with:
            result = self._executor.result(task)
            if isinstance(result, Failure):
                return result
            self._receivers[task.kind](task, result)
        return None

    def _finish(self, record: TaskRecord) -> list[Instruction]:
        """Tell the dispatcher of a finished task; returns what to do next."""
        return self._dispatcher.finished(record.worker, record.task, record.end_s - record.start_s)

    def _blame(self, failure: Failure) -> list[Instruction]:
        """Tell the dispatcher what went wrong; returns what to do next. Raises if no worker is left."""
        if failure.task is None:
            instructions = self._dispatcher.lost(failure.worker, failure.results)
        else:
            instructions = self._dispatcher.failed(failure.worker, failure.task, consequence=failure.consequence)
        if not failure.consequence:
            self._warn(failure)
        if not self._dispatcher.num_alive:
            raise failure.error
        for task in self._dispatcher.dropped - self._dropped.keys():
            self._dropped[task] = failure.error
        return instructions

    def _begin_step_again(self, failure: Failure) -> None:
        """When collectives are queued: let all queues run empty, form a new group, and begin the step again.

        With a worker that is missing, or a prediction, the collective behind it fails on all workers, and so does what
        is queued behind that. What the dispatcher hands out meanwhile is taken back.
        """
        failures = [failure]
        for event in self._executor.drain():
            lost = event if isinstance(event, Failure) else self._receive(event)
            if lost is None:
                self._finish(event)
            else:
                failures.append(lost)
        causes = [f for f in failures if not f.consequence] or [replace(f, consequence=False) for f in failures]
        for cause in causes:
            self._blame(cause)
        undo = self._dispatcher.withdraw()
        while (lost := self._executor.regroup(undo)) is not None:
            self._blame(lost)
            undo += self._dispatcher.withdraw()
        self._submit(self._dispatcher.start())
