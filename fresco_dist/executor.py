"""Where tasks run: the protocol of an executor, and how it fails.

An executor moves tasks and results and decides nothing. Results stay where they are until a task or the driver asks.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from fresco_dist.dispatch import Task
from fresco_dist.trace import TaskRecord


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
        """Queue `task` on `worker`; it starts when the tasks `inputs` have finished, and gets their results."""

    def wait(self) -> TaskRecord:
        """Block until some task finishes. Raises WorkerError."""

    def result(self, task: Task) -> Any:
        """The result of a finished task."""

    def release(self, task: Task) -> None:
        """Forget the result of a finished task."""

    def close(self) -> None:
        """Stop all workers and wait until they are gone."""
