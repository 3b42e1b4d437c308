"""Where tasks run: the protocol of an executor, its errors, and the executor inside this process.

An executor moves tasks and results and decides nothing. Results stay where they are until a task or the driver asks.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

from fresco_dist.dispatch import Task
from fresco_dist.trace import TaskRecord
from fresco_dist.worker import Job, Worker


class WorkerError(RuntimeError):
    """A worker is lost, a task failed, or a deadline passed; the line names rank, step and tile.

    `remote_traceback` is that of a task that failed elsewhere.
    """

    def __init__(self, message: str, remote_traceback: str = "") -> None:
        super().__init__(message)
        self.remote_traceback = remote_traceback


class Executor(Protocol):
    """Workers 0..num_workers-1, each running its tasks one at a time in the order given."""

    num_workers: int

    def submit(self, worker: int, task: Task, inputs: Sequence[Task]) -> None:
        """Queue `task` on `worker`; it is called with the results of the finished tasks `inputs`."""

    def wait(self) -> TaskRecord:
        """Block until some task finishes. Raises WorkerError."""

    def result(self, task: Task) -> Any:
        """The result of a finished task."""

    def release(self, task: Task) -> None:
        """Forget the result of a finished task."""

    def close(self) -> None:
        """Stop all workers and wait until they are gone."""


class InProcessExecutor:
    """One worker in this process, for debugging and as the reference for the others."""

    num_workers = 1

    def __init__(self, job: Job, *, use_gpu: bool) -> None:
        self._worker = Worker(job, use_gpu=use_gpu)
        self._queue: deque[tuple[Task, tuple[Task, ...]]] = deque()
        self._results: dict[Task, Any] = {}

    def submit(self, worker: int, task: Task, inputs: Sequence[Task]) -> None:
        """See Executor."""
        self._queue.append((task, tuple(inputs)))

    def wait(self) -> TaskRecord:
        """Run the next task. See Executor."""
        task, inputs = self._queue.popleft()
        try:
            record, self._results[task] = self._worker.run(task, *(self._results[i] for i in inputs))
        except (RuntimeError, ArithmeticError) as error:  # FloatingPointError: a prediction out of range
            raise WorkerError(f"rank 0 failed at {task}: {error}") from error
        return record

    def result(self, task: Task) -> Any:
        """See Executor."""
        return self._results[task]

    def release(self, task: Task) -> None:
        """See Executor."""
        self._results.pop(task, None)

    def close(self) -> None:
        """See Executor."""
        self._results.clear()
