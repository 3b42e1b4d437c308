"""The loop that runs a graph, and what it needs: the protocol of an executor, and how that fails.

An executor moves tasks and results and decides nothing. Results stay where they are until a task or the driver asks.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Protocol

from fresco_dist.schedule.dispatch import Dispatcher, Instruction
from fresco_dist.schedule.graph import Graph, Node, Task
from fresco_dist.schedule.trace import TaskRecord


class WorkerError(RuntimeError):
    """A worker is lost, a task failed, or a deadline passed; the line names rank, step and tile.

    `remote_traceback` is that of a task that failed elsewhere.

    >>> import fresco_dist
    >>> fresco_dist.WorkerError("worker 2 is lost").remote_traceback
    ''
    """

    def __init__(self, message: str, remote_traceback: str = "") -> None:
        super().__init__(message)
        self.remote_traceback = remote_traceback


class OutOfStep(RuntimeError):
    """A state that a task needs is not there, or not all predictions are: what was to make them has failed."""


@dataclass(frozen=True)
class Failure:
    """A task failed on a worker or, with no task, the worker is gone, and `results` with it.

    `consequence`: the task failed because another worker, or an earlier task, had.
    """

    worker: int
    task: Task | None
    error: WorkerError
    results: tuple[Task, ...] = ()
    consequence: bool = False


class Executor(Protocol):
    """Workers 0..num_workers-1, each running its tasks in order, one at a time but for those beside the forwards."""

    num_workers: int

    def submit(self, worker: int, task: Task, node: Node) -> None:
        """Queue `task` on `worker`, in the node's lane.

        It starts when its inputs have finished, and gets their results by name; and the names of the states that it
        needs, which have been made there by then, or are ahead of it in the queue.
        """

    def wait(self) -> TaskRecord | Failure:
        """Block until some task finishes or fails, or a worker is lost or silent for too long."""

    def drain(self) -> list[TaskRecord | Failure]:
        """Wait until nothing is queued or running, and forget what will never run."""

    def regroup(self) -> Failure | None:
        """With empty queues, form a group of the workers that are left.

        Returns the loss of a worker, if there was one meanwhile: then it must be called again.
        """

    def result(self, task: Task) -> Any:
        """The result of the task that `wait` told of last, or the Failure of its worker if that was lost with it."""

    def later(self, task: Task) -> Callable[[], Any]:
        """How to get the result of the task that `wait` told of last, at any time and in any thread.

        What is called raises if the result was lost with its worker.
        """

    def release(self, task: Task) -> None:
        """Forget the result of a finished task; of one that ran on every worker, the state that it made there."""

    def close(self) -> None:
        """Stop all workers."""


Observer = Callable[[TaskRecord], None]
Receiver = Callable[[Task, Any], None]
LateReceiver = Callable[[Task, Callable[[], Any]], None]
Warner = Callable[[Failure], None]


def execute(
    graph: Graph,
    executor: Executor,
    observe: Observer,
    receivers: Mapping[str, Receiver],
    warn: Warner = lambda failure: None,
    late_receivers: Mapping[str, LateReceiver] = MappingProxyType({}),
    wanted: Callable[[Task], bool] = lambda task: True,
) -> dict[Task, WorkerError]:
    """Run `graph` to its end: feed events to the dispatcher, its instructions to the executor.

    `observe` sees every record, `warn` every failure that is not the consequence of another; `receivers` get the
    results of tasks by kind, `late_receivers` a way to get them. A task that is not `wanted` when its turn comes, which
    no other may need, is left out. A result is dropped once its receiver and every task that takes it have had it. What
    a lost worker had not finished is done by the others; a task that fails is tried once more elsewhere. Returns the
    tasks that were dropped because of one that failed, with its error. Raises WorkerError when no worker is left.
    """
    return _Execution(graph, executor, observe, receivers, warn, late_receivers, wanted).run()


class _Execution:
    """What `execute` has at hand while it runs."""

    def __init__(
        self,
        graph: Graph,
        executor: Executor,
        observe: Observer,
        receivers: Mapping[str, Receiver],
        warn: Warner,
        late_receivers: Mapping[str, LateReceiver],
        wanted: Callable[[Task], bool],
    ) -> None:
        self._nodes = graph.nodes
        self._dispatcher = Dispatcher(graph, executor.num_workers)
        self._executor = executor
        self._observe, self._receivers, self._warn = observe, receivers, warn
        self._late_receivers, self._wanted = late_receivers, wanted
        self._has_collectives = any(task.traits.collective for task in graph.nodes)
        self._dropped: dict[Task, WorkerError] = {}
        self._left_out: set[Task] = set()

    def run(self) -> dict[Task, WorkerError]:
        """See `execute`."""
        self._submit(self._dispatcher.start())
        while not self._dispatcher.done:
            event = self._receive(self._executor.wait())
            if not isinstance(event, Failure):
                instructions = self._finish(event)
            elif self._has_collectives:
                instructions = self._begin_step_again(event)
            else:
                instructions = self._blame(event)
            for task in self._dispatcher.take_released():  # first: what comes next may need the room
                if task not in self._left_out:
                    self._executor.release(task)
            self._submit(instructions)
        return self._dropped

    def _submit(self, instructions: Iterable[Instruction]) -> None:
        for worker, task in ((instruction.worker, instruction.task) for instruction in instructions):
            if self._wanted(task):
                self._executor.submit(worker, task, self._nodes[task])
            else:
                self._left_out.add(task)
                self._submit(self._dispatcher.finished(worker, task))

    def _receive(self, event: TaskRecord | Failure) -> TaskRecord | Failure:
        """Take note of a finished task, and hand on its result; returns a failure if that was lost on the way."""
        if isinstance(event, Failure):
            return event
        self._observe(event)
        task = event.task
        done_with = self._dispatcher.is_finished(task) or task in self._dispatcher.dropped
        if task.kind in self._receivers and not done_with:
            result = self._executor.result(task)
            if isinstance(result, Failure):
                return result
            self._receivers[task.kind](task, result)
        if task.kind in self._late_receivers and not done_with:
            self._late_receivers[task.kind](task, self._executor.later(task))
        return event

    def _finish(self, record: TaskRecord) -> list[Instruction]:
        """Tell the dispatcher of a finished task; returns what to do next."""
        duration_s = 0.0 if record.left_out else record.end_s - record.start_s
        return self._dispatcher.finished(record.worker, record.task, duration_s)

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

    def _begin_step_again(self, failure: Failure) -> list[Instruction]:
        """When collectives are queued: let all queues run empty, form a new group, and begin the step again.

        With a worker that is missing, or a prediction, the collective behind it fails on all workers, and so does what
        is queued behind that. What the dispatcher hands out meanwhile is taken back.
        """
        failures = [failure]
        for event in map(self._receive, self._executor.drain()):
            if isinstance(event, Failure):
                failures.append(event)
            else:
                self._finish(event)
        causes = [f for f in failures if not f.consequence] or [replace(f, consequence=False) for f in failures]
        for cause in causes:
            self._blame(cause)
        self._dispatcher.withdraw()
        while (lost := self._executor.regroup()) is not None:
            self._blame(lost)
            self._dispatcher.withdraw()
        for task in self._dispatcher.dropped - self._dropped.keys():
            self._dropped[task] = causes[0].error
        return self._dispatcher.start()
