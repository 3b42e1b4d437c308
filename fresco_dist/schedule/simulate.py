"""The executor in virtual time: the real graph under the real policy, without a worker."""

import heapq
import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fresco_dist.config import DispatchMode
from fresco_dist.schedule.execute import Failure, WorkerError, execute
from fresco_dist.schedule.graph import Node, Place, Task
from fresco_dist.schedule.keys import make_keys
from fresco_dist.schedule.plan import Plan
from fresco_dist.schedule.tasks import run_graph
from fresco_dist.schedule.trace import TaskRecord, schedule_summary

Entry = tuple[Task, tuple[Task, ...]]


@dataclass
class _Queue:
    """What a worker runs in order, and what of it runs now."""

    worker: int
    entries: deque[Entry] = field(default_factory=deque)
    start_s: float | None = None
    misses_input: bool = False  # of the task that runs: it fails


class SimulatedExecutor:
    """See Executor. `duration_s(worker, task)` says how long a task takes once its worker gets to it.

    A worker runs its queue in order, and its tasks beside the forwards in another; the task at the head waits for its
    inputs, a collective for all workers. `losses` says when a worker dies; with `loses_results`, what it made is gone
    with it, as with a node.
    """

    def __init__(
        self,
        num_workers: int,
        duration_s: Callable[[int, Task], float],
        losses: Mapping[int, float] | None = None,
        loses_results: bool = False,
    ) -> None:
        self.num_workers = num_workers
        self.now_s = 0.0
        self.held: set[Task] = set()  # finished tasks whose results are kept
        self._duration_s = duration_s
        self._losses = dict(losses or {})
        self._loses_results = loses_results
        self._alive = set(range(num_workers))
        self._queues = [(_Queue(worker), _Queue(worker)) for worker in range(num_workers)]
        self._waiting: set[tuple[int, int]] = set()  # (worker, lane) of queues whose head has not started
        self._ending: list[tuple[float, int, int]] = []  # a heap of (end, worker, lane)
        self._entered: dict[Task, list[_Queue]] = {}  # collectives that some workers wait in
        self._num_left: dict[Task, int] = {}
        self._everywhere: set[Task] = set()
        self._ran_on: dict[Task, int] = {}
        self._broken = False  # the group has lost a member
        self._doomed: set[tuple[int, Task]] = set()  # queued tasks that wait for what a lost worker was to make

    def submit(self, worker: int, task: Task, node: Node) -> None:
        """See Executor."""
        if worker in self._alive:
            lane = int(node.beside)
            self._queues[worker][lane].entries.append((task, node.sources))
            self._waiting.add((worker, lane))
            if node.place is Place.EVERYWHERE:
                self._everywhere.add(task)
            self._num_left[task] = self._num_left.get(task, 0) + 1

    def wait(self) -> TaskRecord | Failure:
        """Advance the clock to the next end of a task, or death. See Executor."""
        for worker, lane in sorted(self._waiting):
            self._start(self._queues[worker][lane], lane)
        worker, death_s = min(self._losses.items(), key=lambda entry: entry[1], default=(-1, math.inf))
        if death_s <= (self._ending[0][0] if self._ending else math.inf) and worker >= 0:
            return self._lose(worker, max(self.now_s, death_s))
        assert self._ending, "deadlock: work is left and nothing runs"
        self.now_s, worker, lane = heapq.heappop(self._ending)
        queue = self._queues[worker][lane]
        task, _ = queue.entries.popleft()
        start_s, queue.start_s = queue.start_s, None
        assert start_s is not None, f"{task} ends before it starts"
        self._waiting.add((worker, lane))
        self._num_left[task] -= 1
        if queue.misses_input or (self._broken and task.traits.collective):
            self._doom({task})
            return Failure(worker, task, WorkerError("a peer is gone"), consequence=True)
        if task not in self._everywhere:  # what all have made is not lost with one
            self._ran_on[task] = worker
        self.held.add(task)
        return TaskRecord(task, worker, start_s, self.now_s, 0.0, beside=bool(lane))

    def _lose(self, worker: int, now_s: float) -> Failure:
        del self._losses[worker]
        self.now_s, self._broken = now_s, True
        self._alive.discard(worker)
        unmade = {task for queue in self._queues[worker] for task, _ in queue.entries}
        for task in unmade:
            self._num_left[task] -= 1
        for queue in self._queues[worker]:
            queue.entries.clear()
        self._ending = [entry for entry in self._ending if entry[1] != worker]
        heapq.heapify(self._ending)
        for queues in self._entered.values():  # who waits for the dead one fails
            for queue in queues:
                if queue.worker in self._alive:
                    heapq.heappush(self._ending, (now_s, queue.worker, 0))
        self._entered.clear()
        lost = [task for task, ran_on in self._ran_on.items() if ran_on == worker and task in self.held]
        if self._loses_results:
            self.held.difference_update(lost)
            unmade.update(lost)
        self._doom(unmade)
        return Failure(worker, None, WorkerError(f"rank {worker} died"), tuple(lost) if self._loses_results else ())

    def _doom(self, unmade: set[Task]) -> None:
        """What is queued and needs a result that will not come fails in its turn."""
        for worker in self._alive:
            for queue in self._queues[worker]:
                waiting = list(queue.entries)[queue.start_s is not None :]
                self._doomed |= {(worker, task) for task, inputs in waiting if not unmade.isdisjoint(inputs)}

    def _start(self, queue: _Queue, lane: int) -> None:
        """Start the head of a queue, if it is not running and its inputs are there."""
        if queue.worker not in self._alive or not queue.entries or queue.start_s is not None:
            self._waiting.discard((queue.worker, lane))
            return
        task, inputs = queue.entries[0]
        is_doomed = (queue.worker, task) in self._doomed
        if not is_doomed and any(self._num_left[source] for source in inputs):
            return
        self._waiting.discard((queue.worker, lane))
        self._doomed.discard((queue.worker, task))
        queue.start_s = self.now_s
        queue.misses_input = is_doomed or not self.held.issuperset(inputs)
        if queue.misses_input:
            heapq.heappush(self._ending, (self.now_s, queue.worker, lane))
            return
        if task.traits.collective and not self._broken:
            self._entered.setdefault(task, []).append(queue)
            if len(self._entered[task]) < len(self._alive):
                return
            for ready in self._entered.pop(task):
                end_s = self.now_s + self._duration_s(ready.worker, task)
                heapq.heappush(self._ending, (end_s, ready.worker, lane))
            return
        end_s = self.now_s + self._duration_s(queue.worker, task)
        heapq.heappush(self._ending, (end_s, queue.worker, lane))

    def drain(self) -> list[TaskRecord | Failure]:
        """See Executor."""
        events = []
        while any(queue.entries for worker in self._alive for queue in self._queues[worker]):
            events.append(self.wait())
        return events

    def regroup(self) -> None:
        """See Executor."""
        self._broken = False

    def result(self, task: Task) -> Any:
        """There are no results."""
        return None

    def later(self, task: Task) -> Callable[[], Any]:
        """There are no results."""
        return lambda: None

    def release(self, task: Task) -> None:
        """See Executor."""
        self.held.discard(task)

    def close(self) -> None:
        """See Executor."""


def simulate_run(plan: Plan, mode: DispatchMode) -> dict[str, float]:
    """`trace.schedule_summary` of a run on `plan.num_workers` equal workers, in forwards instead of seconds.

    Only forwards take time: encoding, decoding and fusing are short beside them.
    """
    graph = run_graph([plan], [make_keys(plan)], mode)
    executor = SimulatedExecutor(plan.num_workers, lambda worker, task: graph.nodes[task].cost * (task.traits.forward))
    records: list[TaskRecord] = []
    execute(graph, executor, records.append, {})
    return schedule_summary(records, plan.num_workers, graph)
