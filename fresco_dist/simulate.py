"""The executor in virtual time: the real graph under the real policy, without a worker."""

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from fresco_dist.dispatch import COLLECTIVES, Task
from fresco_dist.engine import denoising_graph, execute
from fresco_dist.plan import Plan
from fresco_dist.trace import TaskRecord, schedule_summary


class SimulatedExecutor:
    """See Executor. `duration_s(worker, task)` says how long a task takes once its worker gets to it.

    A worker runs its queue in order; the task at its head waits for its inputs, a collective for all workers.
    """

    def __init__(self, num_workers: int, duration_s: Callable[[int, Task], float]) -> None:
        self.num_workers = num_workers
        self.now_s = 0.0
        self._duration_s = duration_s
        self._queues: list[deque[tuple[Task, tuple[Task, ...]]]] = [deque() for _ in range(num_workers)]
        self._started_s: list[float | None] = [None] * num_workers
        self._running: list[tuple[float, int]] = []  # a heap of (end, worker)
        self._waiting: list[int] = []  # workers that have entered a collective
        self._num_left: dict[Task, int] = {}

    def submit(self, worker: int, task: Task, inputs: Sequence[Task]) -> None:
        """See Executor."""
        self._queues[worker].append((task, tuple(inputs)))
        self._num_left[task] = self._num_left.get(task, 0) + 1

    def wait(self) -> TaskRecord:
        """Advance the clock to the next end of a task. See Executor."""
        for worker in range(self.num_workers):
            self._start(worker)
        assert self._running, "deadlock: work is left and nothing runs"
        self.now_s, worker = heapq.heappop(self._running)
        task, _ = self._queues[worker].popleft()
        start_s = self._started_s[worker]
        assert start_s is not None
        self._started_s[worker] = None
        self._num_left[task] -= 1
        return TaskRecord(task, worker, start_s, self.now_s, 0.0)

    def _start(self, worker: int) -> None:
        """Start the head of a worker's queue, if it is not running and its inputs are there."""
        if not self._queues[worker] or self._started_s[worker] is not None:
            return
        task, inputs = self._queues[worker][0]
        if any(self._num_left[source] for source in inputs):
            return
        self._started_s[worker] = self.now_s
        if task.kind not in COLLECTIVES:
            heapq.heappush(self._running, (self.now_s + self._duration_s(worker, task), worker))
            return
        self._waiting.append(worker)
        if len(self._waiting) == self.num_workers:
            for rank in self._waiting:
                heapq.heappush(self._running, (self.now_s + self._duration_s(rank, task), rank))
            self._waiting = []

    def result(self, task: Task) -> Any:
        """There are no results."""
        return None

    def release(self, task: Task) -> None:
        """See Executor."""

    def close(self) -> None:
        """See Executor."""


def simulate_denoising(plan: Plan) -> dict[str, float]:
    """`trace.schedule_summary` of the denoising on `plan.num_workers` equal workers, in forwards instead of seconds.

    Only forwards take time: encoding, decoding and commits are short beside them.
    """
    durations = {"predict": 1.0, "prior": float(plan.prior.num_steps * len(plan.branches)) if plan.prior else 0.0}
    executor = SimulatedExecutor(plan.num_workers, lambda worker, task: durations.get(task.kind, 0.0))
    records: list[TaskRecord] = []
    execute(denoising_graph(plan), executor, records.append, {})
    return schedule_summary(records, plan.num_workers)
