"""The run as a graph of tasks: what each needs, where it may run, what it costs. Names and numbers only.

A task is a pure function of its inputs' results and of its ids, so done twice it gives the same bits. Two kinds make
state in a worker: what runs on every worker, and predictions that a collective gathers.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

FORWARDS = ("predict", "prior")  # kinds that are model forwards, as many as their cost says
COLLECTIVES = ("commit",)  # kinds of tasks in which all workers wait for each other
BESIDE = ("fuse", "collect", "blend")  # short kinds that run beside a worker's forwards instead of between them


class Task(NamedTuple):
    """One unit of work, named by ids alone. -1 means "does not apply"."""

    kind: str
    step: int = -1
    index: int = -1  # window (or batch of windows), cell or VAE tile
    branch: int = -1
    job: int = 0  # of several jobs that share the task, the first

    def __str__(self) -> str:
        ids = (("step", self.step), ("tile", self.index), ("branch", self.branch))
        named = [f"{name} {value}" for name, value in ids if value >= 0]
        return ", ".join([self.kind, *named] + [f"job {self.job}"] * (self.job > 0))


class Place(Enum):
    """Where a task may run."""

    ANY = "any"
    EVERYWHERE = "everywhere"  # on every worker, also one without a tile: collectives, replicated state


@dataclass(frozen=True)
class Node:
    """A task in the graph: whose results it is given, what must finish before it, where it runs, what it costs."""

    inputs: tuple[Task, ...]
    after: frozenset[Task]  # inputs included
    place: Place | Task  # a task: the worker that ran it
    cost: float  # in forwards of one window


@dataclass
class Graph:
    """Tasks in the order of adding; what a task needs is added before it."""

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
        """Add `task`; results of `inputs` are passed to it in order, `after` only has to be finished.

        A task that another job has added already is shared: it must need the same.
        """
        inputs = tuple(inputs)
        needed = frozenset(inputs) | frozenset(after) | (frozenset([place]) if isinstance(place, Task) else frozenset())
        node = Node(inputs, needed, place, cost)
        assert self.nodes.get(task, node) == node, f"task added twice: {task}"
        assert needed <= self.nodes.keys(), f"{task} is added before {needed - self.nodes.keys()}"
        assert not isinstance(place, Task) or self.nodes[place].place is Place.ANY, f"{task} has no one place"
        self.nodes[task] = node
        return task

    def successors(self) -> dict[Task, list[Task]]:
        """The tasks that need each task."""
        found: dict[Task, list[Task]] = {task: [] for task in self.nodes}
        for task, node in self.nodes.items():
            for needed in node.after:
                found[needed].append(task)
        return found

    def critical_paths(self, cost: Callable[[Task], float]) -> dict[Task, float]:
        """The cost of the longest chain of tasks from each task to the end, itself included."""
        lengths: dict[Task, float] = {}
        successors = self.successors()
        for task in reversed(self.nodes):
            lengths[task] = cost(task) + max((lengths[s] for s in successors[task]), default=0.0)
        return lengths
