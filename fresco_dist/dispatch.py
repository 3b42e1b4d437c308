"""The job as a graph of tasks, and the policy that hands them to workers: decisions without I/O.

Events in (a worker finished a task), instructions out (run this task on that worker). It never reads a clock, a
worker or a configuration, so every schedule can be replayed and tested without processes.
"""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum


@dataclass(frozen=True, order=True)
class Task:
    """One unit of work, named by ids alone. -1 means "does not apply"."""

    kind: str
    step: int = -1
    index: int = -1  # window, or VAE tile
    branch: int = -1

    def __str__(self) -> str:
        ids = (("step", self.step), ("tile", self.index), ("branch", self.branch))
        return ", ".join([self.kind] + [f"{name} {value}" for name, value in ids if value >= 0])


COLLECTIVES = ("commit",)  # kinds of tasks in which all workers wait for each other


class Place(Enum):
    """Where a task may run."""

    ANY = "any"
    EVERYWHERE = "everywhere"  # on every worker, also one without a tile: collectives, replicated state


@dataclass
class Node:
    """A task in the graph: what must finish before it, whose results it is given, where it runs, what it costs."""

    inputs: tuple[Task, ...]
    after: frozenset[Task]
    place: Place | Task  # a task: the worker that ran it, whose state this one needs
    cost: float  # in forwards of one window


@dataclass(frozen=True)
class Instruction:
    """Run `task` on `worker`."""

    worker: int
    task: Task


@dataclass
class Graph:
    """Tasks in order of priority (the order of adding). A task's predecessors are added before it."""

    nodes: dict[Task, Node] = field(default_factory=dict)

    def add(
        self,
        task: Task,
        *,
        inputs: Iterable[Task] = (),
        after: Iterable[Task] = (),
        place: Place | Task = Place.ANY,
        cost: float = 1.0,
    ) -> Task:
        """Add `task`; results of `inputs` are passed to it in order, `after` only has to be finished."""
        inputs = tuple(inputs)
        predecessors = frozenset(inputs) | frozenset(after)
        if isinstance(place, Task):
            predecessors |= {place}
        assert task not in self.nodes, f"task added twice: {task}"
        assert predecessors <= self.nodes.keys(), f"{task} is added before {predecessors - self.nodes.keys()}"
        assert not isinstance(place, Task) or self.nodes[place].place is not Place.EVERYWHERE, (
            f"{task} has no one place"
        )
        self.nodes[task] = Node(inputs, predecessors, place, cost)
        return task


class Dispatcher:
    """Greedy list scheduling: the first ready task goes to the worker with the least work in its queue.

    A worker is given up to `queued_cost` of work ahead, so that no round trip shows between two forwards, and nothing
    behind a long task while others have room.

    Workers run their queues in order. So a task that runs everywhere is handed out as soon as what it needs is, and
    what needs it right behind it: the steps follow each other without a round trip. Such a task must get what other
    workers make through its inputs, or through a collective.
    """

    def __init__(self, graph: Graph, num_workers: int, queued_cost: float = 2.0) -> None:
        self._nodes = graph.nodes
        self._queued_cost = queued_cost
        self._priority = {task: i for i, task in enumerate(graph.nodes)}
        self._num_missing = {task: len(node.after) for task, node in graph.nodes.items()}
        self._after_handing_out: dict[Task, list[Task]] = {task: [] for task in graph.nodes}
        self._after_finish: dict[Task, list[Task]] = {task: [] for task in graph.nodes}
        for task, node in graph.nodes.items():
            for needed in node.after:
                in_order = Place.EVERYWHERE in (node.place, graph.nodes[needed].place)
                (self._after_handing_out if in_order else self._after_finish)[needed].append(task)
        self._ready_anywhere: list[tuple[int, Task]] = []  # heaps by priority
        self._ready_placed: list[tuple[int, Task]] = []
        self._loads = [0.0] * num_workers  # cost of what each worker has been given and not finished
        self._running_on: dict[Task, set[int]] = {}
        self._ran_on: dict[Task, int] = {}
        for task, num_missing in self._num_missing.items():
            if num_missing == 0:
                self._push(task)

    @property
    def done(self) -> bool:
        """Whether every task has finished."""
        return len(self._ran_on) == len(self._nodes)

    def is_finished(self, task: Task) -> bool:
        """Whether `task` has finished on every worker it runs on."""
        return task in self._ran_on

    def start(self) -> list[Instruction]:
        """Instructions before any event."""
        return self._hand_out()

    def finished(self, worker: int, task: Task) -> list[Instruction]:
        """A worker finished a task: what to queue next."""
        self._loads[worker] -= self._nodes[task].cost
        self._running_on[task].remove(worker)
        if not self._running_on[task]:
            self._ran_on[task] = worker
            self._settle(self._after_finish[task])
        return self._hand_out()

    def _settle(self, successors: list[Task]) -> None:
        """One thing that each of `successors` needs is there."""
        for successor in successors:
            self._num_missing[successor] -= 1
            if self._num_missing[successor] == 0:
                self._push(successor)

    def _push(self, task: Task) -> None:
        ready = self._ready_anywhere if self._nodes[task].place is Place.ANY else self._ready_placed
        heapq.heappush(ready, (self._priority[task], task))

    def _hand_out(self) -> list[Instruction]:
        """Placed tasks enter their queues however full these are: nobody may miss a collective."""
        instructions: list[Instruction] = []
        while True:  # handing out a task may make others ready
            if self._ready_placed:
                _, task = heapq.heappop(self._ready_placed)
                place = self._nodes[task].place
                workers = [self._ran_on[place]] if isinstance(place, Task) else list(range(len(self._loads)))
            elif self._ready_anywhere and min(self._loads) < self._queued_cost:
                _, task = heapq.heappop(self._ready_anywhere)
                workers = [self._loads.index(min(self._loads))]
            else:
                return instructions
            self._running_on[task] = set(workers)
            for worker in workers:
                self._loads[worker] += self._nodes[task].cost
                instructions.append(Instruction(worker, task))
            self._settle(self._after_handing_out[task])
