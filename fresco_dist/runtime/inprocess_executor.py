"""The executor inside this process: one worker, one task after the other."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fresco_dist.config import Config
from fresco_dist.runtime.job import Job
from fresco_dist.runtime.numerics import numerics
from fresco_dist.runtime.worker import Worker
from fresco_dist.schedule.execute import Failure, OutOfStep, WorkerError
from fresco_dist.schedule.graph import NO_INPUTS, Node, Task
from fresco_dist.schedule.trace import TaskRecord


class InProcessExecutor:
    """One worker in this process, for debugging and as the reference for the others."""

    num_workers = 1

    def __init__(self, *, use_gpu: bool) -> None:
        self._worker = Worker(use_gpu=use_gpu)
        self._queue: deque[tuple[Task, Node]] = deque()
        self._results: dict[Task, Any] = {}

    def give(self, jobs: Sequence[Job], stored: Mapping[str, Any] = NO_INPUTS) -> "InProcessExecutor":
        """The tasks that follow are of these jobs; `stored`: see Worker. Returns itself."""
        self._queue.clear()
        self._results.clear()
        self._worker.take(jobs, stored)
        return self

    def numerics(self, config: Config) -> dict[int, dict[str, str]]:
        """What decides the bits of what its worker makes."""
        return {0: numerics(config, self._worker.device)}

    def answers(self) -> bool:
        """It is this process."""
        return True

    def submit(self, worker: int, task: Task, node: Node) -> None:
        """See Executor."""
        self._queue.append((task, node))

    def wait(self) -> TaskRecord | Failure:
        """Run the next task. See Executor."""
        task, node = self._queue.popleft()
        if not self._results.keys() >= set(node.sources):
            return Failure(0, task, WorkerError(f"{task} misses what a failed task was to make"), consequence=True)
        try:
            given = {name: [self._results[source] for source in sources] for name, sources in node.inputs.items()}
            record, self._results[task] = self._worker.run(task, given, node.states, node.beside)
        except (RuntimeError, ArithmeticError) as error:  # FloatingPointError: a prediction out of range
            consequence = isinstance(error, OutOfStep)
            return Failure(0, task, WorkerError(f"rank 0 failed at {task}: {error}"), consequence=consequence)
        return record

    def drain(self) -> list[TaskRecord | Failure]:
        """Nothing runs between two calls. See Executor."""
        self._queue.clear()
        return []

    def regroup(self) -> None:
        """There are no others to do it without. See Executor."""

    def result(self, task: Task) -> Any:
        """See Executor."""
        return self._results[task]

    def later(self, task: Task) -> Callable[[], Any]:
        """See Executor."""
        result = self._results[task]
        return lambda: result

    def release(self, task: Task) -> None:
        """See Executor."""
        self._results.pop(task, None)
        self._worker.forget(task)

    def close(self) -> None:
        """See Executor."""
        self._results.clear()
