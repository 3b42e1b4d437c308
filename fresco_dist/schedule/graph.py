"""The run as a graph of tasks: what each needs, where it may run, what it costs. Names and numbers only.

A task is a pure function of its inputs' results and of its ids, so done twice it gives the same bits. What a task that
runs on every worker makes is state there, named by that task and never changed; what needs it is given the name. One
thing is added to: the accumulator of a replicated canvas, by the predictions that a collective gathers.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from itertools import chain
from types import MappingProxyType
from typing import NamedTuple


@dataclass(frozen=True)
class Kind:
    """What holds for all tasks of a kind."""

    phase: str | None = None  # of run.json's timings
    work: bool = False  # keeps a worker busy, and counts as that
    forward: bool = False  # model forwards, as many as its cost says
    collective: bool = False  # all workers wait for each other
    beside: bool = False  # short: runs beside a worker's forwards instead of between them, unless a node says otherwise


KINDS = {
    "load": Kind("load"),
    "encode_text": Kind("encode", work=True),
    "embed_picture": Kind("encode", work=True),
    "segment": Kind("encode", work=True),
    "encode": Kind("encode", work=True),
    "encode_clip": Kind("steps", work=True),
    "begin": Kind(),
    "start": Kind("steps", beside=True),
    "decide": Kind("steps", beside=True),
    "predict": Kind("steps", work=True, forward=True),
    "fuse": Kind("steps", beside=True),
    "estimate": Kind("steps", beside=True),
    "commit": Kind("steps", collective=True),
    "moments": Kind("steps", beside=True),
    "standard": Kind("steps", beside=True),
    "standardise": Kind("steps", beside=True),
    "checkpoint": Kind(beside=True),
    "collect": Kind(beside=True),
    "decode": Kind("decode", work=True),
    "blend": Kind("decode", beside=True),
}
PLAIN = Kind()
NO_INPUTS: Mapping = MappingProxyType({})
PHASES = ("load", "encode", "prior", "steps", "decode")


class Task(NamedTuple):
    """One unit of work, named by ids and a key alone: equal tasks are one. -1 means "does not apply"."""

    kind: str
    step: int = -1  # of encode_clip: the level whose clip it is
    index: int = -1  # type: ignore[assignment]  # hides tuple.index; batch of windows, cell or VAE tile
    branch: int = -1
    level: int = -1  # of the job's
    of: str = ""  # the key of what it makes or, of a prediction, of its canvas (see `keys`)

    @property
    def traits(self) -> Kind:
        """What holds for its kind; nothing for one that no worker knows."""
        return KINDS.get(self.kind, PLAIN)

    def __str__(self) -> str:
        ids = (("level", self.level), ("step", self.step), ("tile", self.index), ("branch", self.branch))
        named = [f"{name} {value}" for name, value in ids if value >= 0]
        return ", ".join([self.kind, *named])


class Place(Enum):
    """Where a task may run."""

    ANY = "any"
    EVERYWHERE = "everywhere"  # on every worker, also one without a tile: collectives, replicated state


@dataclass(frozen=True)
class Node:
    """A task in the graph: what it is given, what must finish before it, where it runs, what it costs."""

    inputs: Mapping[str, tuple[Task, ...]]  # whose results, by what they are to it: arguments of its function
    states: Mapping[str, Task]  # the same of what is on every worker
    after: frozenset[Task]  # both included, and a task that is its place
    place: Place | Task  # a task: the worker that ran it
    cost: float  # in forwards of one full window
    beside: bool  # its lane: beside a worker's forwards, or between them

    @cached_property
    def sources(self) -> tuple[Task, ...]:
        """All whose results it is given."""
        return tuple(chain.from_iterable(self.inputs.values()))

    @cached_property
    def takes(self) -> tuple[Task, ...]:
        """All whose results or states it is given."""
        return (*self.sources, *self.states.values())

    @cached_property
    def needs(self) -> frozenset[Task]:
        """What it cannot do without: all of `after` but a task that only says where it runs."""
        return self.after - ({self.place} - set(self.takes))


@dataclass
class Graph:
    """Tasks in the order of adding; what a task needs is added before it.

    Jobs run `num_together` at a time, in their order; one more may have begun.
    """

    nodes: dict[Task, Node] = field(default_factory=dict)
    jobs: dict[str, int] = field(default_factory=dict)  # the first job of each key
    num_together: int = 1

    def add(
        self,
        task: Task,
        *,
        inputs: Mapping[str, Iterable[Task]] = NO_INPUTS,
        states: Mapping[str, Task] = NO_INPUTS,
        after: Iterable[Task] = (),
        place: Place | Task = Place.ANY,
        cost: float = 1.0,
        beside: bool | None = None,
    ) -> Task:
        """Add `task`; results of `inputs` and `states` are passed to it by name, `after` only has to be finished.

        A task that another job has added already is shared: it must need the same. `beside` is its kind's if not given.
        """
        given = {name: tuple(tasks) for name, tasks in inputs.items()}
        needed = {*after, *chain.from_iterable(given.values()), *states.values()}
        needed |= {place} if isinstance(place, Task) else set()
        node = Node(given, states, frozenset(needed), place, cost, task.traits.beside if beside is None else beside)
        assert self.nodes.get(task, node) == node, f"task added twice: {task}"
        assert needed <= self.nodes.keys(), f"{task} is added before {needed - self.nodes.keys()}"
        assert not isinstance(place, Task) or self.nodes[place].place is not Place.EVERYWHERE, (
            f"{task} has no one place"
        )
        assert all(self.nodes[state].place is Place.EVERYWHERE for state in states.values()), f"{task}: no such state"
        self.nodes[task] = node
        return task

    def job_of(self, task: Task) -> int:
        """Of the jobs that need a task, the first."""
        return self.jobs.get(task.of, 0)

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
