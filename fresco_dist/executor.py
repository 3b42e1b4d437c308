"""Where tasks run: the protocol of an executor, and how it fails.

An executor moves tasks and results and decides nothing. Results stay where they are until a task or the driver asks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fresco_dist.graph import Task
from fresco_dist.trace import TaskRecord


class WorkerError(RuntimeError):
    """A worker is lost, a task failed, or a deadline passed; the line names rank, step and tile.

    `remote_traceback` is that of a task that failed elsewhere.
    """

    def __init__(self, message: str, remote_traceback: str = "") -> None:
        super().__init__(message)
        self.remote_traceback = remote_traceback


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
    """Workers 0..num_workers-1, each running its tasks in the order given, one at a time but for `graph.BESIDE`."""

    num_workers: int

    def submit(self, worker: int, task: Task, inputs: Sequence[Task]) -> None:
        """Queue `task` on `worker`; it starts when the tasks `inputs` have finished, and gets their results."""

    def wait(self) -> TaskRecord | Failure:
        """Block until some task finishes or fails, or a worker is lost or silent for too long."""

    def drain(self) -> list[TaskRecord | Failure]:
        """Wait until nothing is queued or running, and forget what will never run."""

    def regroup(self, undo: Sequence[Task]) -> Failure | None:
        """With empty queues, undo these tasks where they are done, and form a group of the workers that are left.

        Returns the loss of a worker, if there was one meanwhile: then it must be called again.
        """

    def result(self, task: Task) -> Any:
        """The result of the task that `wait` told of last, or the Failure of its worker if that was lost with it."""

    def release(self, task: Task) -> None:
        """Forget the result of a finished task."""

    def close(self) -> None:
        """Stop all workers."""
