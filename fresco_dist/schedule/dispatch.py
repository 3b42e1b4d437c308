"""Which task goes to which worker when: decisions without I/O.

Events in (a worker finished a task, failed at one, is gone), instructions out (run this task on that worker). It never
reads a clock, a worker or a configuration, so every schedule can be replayed, simulated and tested without processes.
"""

import heapq
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from fresco_dist.schedule.graph import Graph, Place, Task
from fresco_dist.schedule.pace import Pace

QUEUE_LENGTH = 2  # tasks that a worker is given: the one it runs and the next
NUM_ATTEMPTS = 2  # of a task that fails, on different workers


@dataclass(frozen=True)
class Instruction:
    """Run `task` on `worker`."""

    worker: int
    task: Task


class Dispatcher:
    """List scheduling: the ready task with the longest way to the end goes to the worker that would finish it first.

    Jobs come in their order, `Graph.num_together` at a time; tasks of later ones only fill what these leave idle. Their
    canvases take memory on every worker, so that no more than these and one have begun and not ended.

    A worker is given one task ahead, so that no round trip shows between two forwards; a task that a busy worker would
    still finish before an idle slow one waits for it.

    Workers run their forwards in the order given. So a task that runs everywhere, or where its predecessor ran, is
    handed out as soon as what it needs is, and what needs it right behind it: no round trip between them. Such a task
    gets what other workers make through its inputs, or through a collective. What runs beside the forwards has a queue
    of its own on each worker.
    """

    def __init__(self, graph: Graph, num_workers: int) -> None:
        self._nodes = graph.nodes
        self._successors = graph.successors()
        lengths = graph.critical_paths(lambda task: graph.nodes[task].cost)
        self._num_together = graph.num_together
        self._job = {task: graph.job_of(task) for task in graph.nodes}
        num_jobs = max(self._job.values(), default=0) + 1
        last_group = max(0, num_jobs // self._num_together - 1)  # takes the rest too: few would not fill the workers
        self._priority = {
            task: (min(job // self._num_together, last_group), -lengths[task], job, i)
            for i, (task, job) in enumerate(self._job.items())
        }
        self._pace = Pace(num_workers)
        self._alive = list(range(num_workers))
        self._finished: dict[Task, int] = {}  # the worker that ran it (one of them)
        self._given: dict[Task, set[int]] = {}  # who has it queued or runs it
        self._finished_on: dict[Task, set[int]] = {}  # who has finished what others have not yet
        self._failed_on: dict[Task, set[int]] = {}
        self._doomed: set[Task] = set()  # given, and behind one that has failed: they will fail, too
        self._dropped: set[Task] = set()
        self._released: set[Task] = set()  # results that nobody needs any more
        self._to_release: list[Task] = []
        self._takers: dict[Task, list[Task]] = {task: [] for task in graph.nodes}  # who is given what it makes
        for task, node in graph.nodes.items():
            for taken in node.takes:
                self._takers[taken].append(task)
        self._num_open = {task: len(takers) for task, takers in self._takers.items()}  # neither finished nor dropped
        self._charged: dict[Task, int] = {}  # whose load it counts in
        self._coming: dict[Task, int] = {}  # charged, as it is pinned to what a worker has, but not given yet
        self._load: dict[int, float] = {}  # cost of what each worker has or will be given, and has not finished
        self._num_queued: dict[int, int] = {}  # tasks in each worker's queue
        self._num_beside: dict[int, int] = {}  # tasks beside its forwards that each worker has
        self._pinned: dict[Task, list[Task]] = {}
        for task, node in graph.nodes.items():
            if isinstance(node.place, Task):
                self._pinned.setdefault(node.place, []).append(task)
        self._begins = [task for task in graph.nodes if task.kind == "begin"]
        self._prepare()

    @property
    def done(self) -> bool:
        """Whether every task has finished or been dropped."""
        return len(self._finished) + len(self._dropped) == len(self._nodes)

    @property
    def dropped(self) -> Collection[Task]:
        """Tasks that will not run, because one that they need has failed."""
        return self._dropped

    @property
    def num_alive(self) -> int:
        """Workers that are left."""
        return len(self._alive)

    def is_finished(self, task: Task) -> bool:
        """Whether `task` has finished on every worker it runs on."""
        return task in self._finished

    def take_released(self) -> list[Task]:
        """Tasks whose results, or states, nobody needs any more, since the last call."""
        released, self._to_release = self._to_release, []
        return released

    def start(self) -> list[Instruction]:
        """Instructions before any event."""
        return self._hand_out()

    def finished(self, worker: int, task: Task, duration_s: float = 0.0) -> list[Instruction]:
        """A worker finished a task: what to queue next."""
        self._pace.learn(worker, task, self._nodes[task].cost, duration_s)
        self._take_back(worker, task)
        if task in self._dropped:
            self._to_release.append(task)
            return self._hand_out()
        self._finished_on.setdefault(task, set()).add(worker)
        if not self._given[task]:
            everywhere = self._nodes[task].place is Place.EVERYWHERE
            if everywhere and not self._finished_on[task].issuperset(self._alive):
                self._prepare()  # a worker could not do it: all do it again
            else:
                self._finish(task)
        return self._hand_out()

    def failed(self, worker: int, task: Task, *, consequence: bool = False) -> list[Instruction]:
        """A worker could not do a task: another one tries, or all that needs it is dropped.

        `consequence`: it did not get what it needs, and is done again.
        """
        self._take_back(worker, task)
        self._doom(task)
        if not consequence:
            self._failed_on.setdefault(task, set()).add(worker)
            everywhere = self._nodes[task].place is Place.EVERYWHERE
            if everywhere or len(self._failed_on[task]) >= min(NUM_ATTEMPTS, len(self._alive)):
                self._drop(task)
        self._prepare()
        return self._hand_out()

    def lost(self, worker: int, results: Iterable[Task] = ()) -> list[Instruction]:
        """A worker is gone, and `results` with it: what it had not finished, and what is missed, is done again."""
        if worker in self._alive:
            self._alive.remove(worker)
        for workers in self._given.values():
            workers.discard(worker)
        for task in [task for task, workers in self._given.items() if not workers]:
            self._doom(task)
            everywhere = self._nodes[task].place is Place.EVERYWHERE
            if everywhere and self._finished_on.get(task) and task not in self._dropped:
                self._finish(task)
        for task in [task for task, ran_on in self._finished.items() if ran_on == worker]:
            if self._is_gathered(task):
                self._undo(task)  # what it made was state of that worker
        for task in results:
            if any(s not in self._finished for s in self._successors[task]):
                self._undo(task)
        self._prepare()
        return self._hand_out()

    def withdraw(self) -> None:
        """Take back all that is handed out and not finished, since the workers' queues are empty.

        What only some workers have finished is done again on all, and what has been built on it.
        """
        for task in [task for task in self._given if self._finished_on.get(task)]:
            for successor in self._successors[task]:
                self._undo(successor)
        for task in self._given:
            self._finished_on.pop(task, None)
        self._given.clear()
        self._charged.clear()
        self._prepare()

    def _finish(self, task: Task) -> None:
        del self._given[task]
        workers = self._finished_on.pop(task)
        self._finished[task] = min(workers)
        for successor in self._successors[task]:
            self._settle(successor, task)
        self._release_if_spent(task)
        self._close(task)

    def _close(self, task: Task) -> None:
        """A task that has finished or been dropped takes its inputs no more."""
        for taken in self._nodes[task].takes:
            self._num_open[taken] -= 1
            self._release_if_spent(taken)

    def _release_if_spent(self, task: Task) -> None:
        if not self._num_open[task] and task in self._finished and task not in self._released:
            self._released.add(task)
            self._to_release.append(task)

    def _take_back(self, worker: int, task: Task) -> None:
        if worker in self._given.get(task, ()):
            self._given[task].remove(worker)
            self._count(worker, task, -1)
        owner = self._charged.pop(task, None)
        if owner in self._load:
            self._load[owner] -= self._nodes[task].cost

    def _doom(self, task: Task) -> None:
        """A task has failed or is lost: what follows it in the queues is not built on until it has failed, too.

        Otherwise its followers would be handed out once more before it is, only to fail again, and theirs as well.
        """
        stack = [task]
        while stack:
            followers = self._successors[stack.pop()]
            doomed = [f for f in followers if self._given.get(f) and f not in self._doomed]
            self._doomed.update(doomed)
            stack += doomed

    def _is_gathered(self, task: Task) -> bool:
        """Whether it has added to a state of its worker, which a collective that has not finished gathers."""
        if self._nodes[task].place is Place.EVERYWHERE:
            return False
        collectives = (s for s in self._successors[task] if s.traits.collective and s not in self._finished)
        return any(task not in self._nodes[collective].takes for collective in collectives)

    def _undo(self, task: Task) -> None:
        """Forget that `task` finished, and what is no longer there to do it again with; and what has added to it."""
        if self._finished.pop(task, None) is None:
            return
        self._released.discard(task)
        if self._nodes[task].place is Place.EVERYWHERE:
            for successor in self._successors[task]:
                if self._is_gathered(successor):
                    self._undo(successor)
        for taken in self._nodes[task].takes:
            self._num_open[taken] += 1
            if taken in self._released:
                self._undo(taken)
        if not self._dropped.isdisjoint(self._nodes[task].needs):  # it cannot be done again
            self._drop(task)

    def _drop(self, task: Task) -> None:
        """Drop a task, all that needs it, and what then leads to nothing."""
        stack = [task]
        while stack:
            dropped = stack.pop()
            if dropped not in self._dropped and dropped not in self._finished:
                self._drop_one(dropped)
                stack += [task for task in self._successors[dropped] if dropped in self._nodes[task].needs]
        for other in reversed(self._nodes):
            takers, is_over = self._takers[other], other in self._finished or other in self._dropped
            if takers and not is_over and self._dropped.issuperset(takers):
                self._drop_one(other)

    def _drop_one(self, task: Task) -> None:
        self._dropped.add(task)
        self._close(task)
        if task in self._finished_on:  # some workers have made it
            self._to_release.append(task)

    def _prepare(self) -> None:
        """Find out from scratch what is ready: at the start, and after anything but a finished task."""
        self._ready: list[tuple[tuple, Task]] = []  # heaps by priority
        self._ready_placed: list[tuple[int, Task]] = []  # by order of adding: the same on all workers
        self._ready_beside: list[tuple[tuple, Task]] = []
        self._given = {task: workers for task, workers in self._given.items() if workers and task not in self._finished}
        self._doomed &= self._given.keys()
        over = self._finished.keys() | (self._dropped - self._given.keys())
        self._charged = {t: w for t, w in self._charged.items() if w in self._alive and t not in over}
        self._coming = {t: w for t, w in self._charged.items() if t not in self._given}
        self._load = dict.fromkeys(self._alive, 0.0)
        for task, worker in self._charged.items():
            self._load[worker] += self._nodes[task].cost
        self._num_queued, self._num_beside = dict.fromkeys(self._alive, 0), dict.fromkeys(self._alive, 0)
        for task, workers in self._given.items():
            for worker in workers:
                self._count(worker, task, 1)
        self._missing: dict[Task, set[Task]] = {}
        for task, node in self._nodes.items():
            if task not in self._finished and task not in self._given and task not in self._dropped:
                self._missing[task] = {needed for needed in node.after if not self._is_there(needed, task)}
                if not self._missing[task]:
                    self._push(task)

    def _is_there(self, needed: Task, task: Task) -> bool:
        if needed in self._finished or needed in self._dropped:  # that was but its place
            return True
        return needed in self._given and needed not in self._doomed and self._follows_in_queue(needed, task)

    def _follows_in_queue(self, needed: Task, task: Task) -> bool:
        """Whether the order of the queues alone makes `task` come after `needed`, or lets it wait there safely."""
        node = self._nodes[task]
        if self._nodes[needed].beside or node.beside:
            return False
        if Place.EVERYWHERE in (self._nodes[needed].place, node.place):
            return True
        return isinstance(node.place, Task) and (needed == node.place or needed in node.sources)

    def _settle(self, successor: Task, needed: Task) -> None:
        """One thing that `successor` needs is there."""
        missing = self._missing.get(successor)
        if missing and needed in missing:
            missing.remove(needed)
            if not missing:
                self._push(successor)

    def _push(self, task: Task) -> None:
        if self._worker_of(task) is not None or self._nodes[task].place is Place.EVERYWHERE:
            heapq.heappush(self._ready_placed, (self._priority[task][-1], task))
        else:
            ready = self._ready_beside if self._nodes[task].beside else self._ready
            heapq.heappush(ready, (self._priority[task], task))

    def _worker_of(self, task: Task) -> int | None:
        """The worker that a pinned task belongs to, if it is still there."""
        place = self._nodes[task].place
        if not isinstance(place, Task):
            return None
        workers = self._given.get(place) or ({self._finished[place]} if place in self._finished else set())
        able = set(self._alive).difference(self._failed_on.get(task, ()))
        return next((worker for worker in workers if worker in able), None)

    def _hand_out(self) -> list[Instruction]:
        """Placed tasks enter their queues however full these are: nobody may miss a collective."""
        instructions: list[Instruction] = []
        pace: dict[int, float] = {}
        held_back: list[tuple[tuple, Task]] = []  # for a worker that is busy now
        shut: list[tuple[int, Task]] = []  # canvases for which there is no room now
        held_cost: dict[int, float] = {}
        while self._alive:  # handing out a task may make others ready
            if self._ready_placed:
                placed = heapq.heappop(self._ready_placed)
                task = placed[1]
                if task.kind == "begin" and not self._may_begin(self._job[task]):
                    shut.append(placed)
                    continue
                worker = self._worker_of(task)
                workers = self._alive if worker is None else [worker]
            elif self._ready_beside:
                _, task = heapq.heappop(self._ready_beside)
                workers = [self._choose_beside(task)]
            elif self._ready and any(self._has_room(worker, self._ready[0][1]) for worker in self._alive):
                entry = heapq.heappop(self._ready)
                task = entry[1]
                pace = pace or self._pace.relative(self._alive)
                worker = self._choose(task, held_cost, pace)
                if not self._has_room(worker, task):
                    held_back.append(entry)
                    held_cost[worker] = held_cost.get(worker, 0.0) + self._nodes[task].cost
                    continue
                workers = [worker]
                self._charge(task, worker)
            else:
                break
            self._given[task] = set(workers)
            self._coming.pop(task, None)
            for worker in workers:
                self._count(worker, task, 1)
            self._missing.pop(task, None)
            instructions += [Instruction(worker, task) for worker in workers]
            for successor in self._successors[task]:
                if self._follows_in_queue(task, successor):
                    self._settle(successor, task)
        for entry in held_back:
            heapq.heappush(self._ready, entry)
        for placed in shut:
            heapq.heappush(self._ready_placed, placed)
        return instructions

    def _may_begin(self, job: int) -> bool:
        """Whether some of a job's canvases have begun, or there is room for them."""
        held = (task for task in self._begins if self._given.get(task) or task in self._finished)
        begun = {self._job[task] for task in held if task not in self._released}
        return job in begun or len(begun) <= self._num_together

    def _has_room(self, worker: int, task: Task) -> bool:
        """Whether a worker's queue takes `task`, which must not get between a chain that is pinned to it."""
        if self._num_queued[worker] >= QUEUE_LENGTH:
            return False
        coming = (follower for follower, charged_to in self._coming.items() if charged_to == worker)
        return all(self._priority[task] <= self._priority[follower] for follower in coming)  # it may come itself

    def _count(self, worker: int, task: Task, change: int) -> None:
        if self._nodes[task].beside:
            self._num_beside[worker] += change
        elif self._nodes[task].place is not Place.EVERYWHERE:
            self._num_queued[worker] += change

    def _charge(self, task: Task, worker: int) -> None:
        """Count a task in a worker's load, and at once what is pinned to it."""
        for charged in (task, *self._pinned.get(task, [])):
            if charged not in self._finished and charged not in self._dropped and charged not in self._charged:
                self._load[worker] += self._nodes[charged].cost
                self._charged[charged] = self._coming[charged] = worker

    def _choose(self, task: Task, held_cost: dict[int, float], pace: dict[int, float]) -> int:
        """The worker that would finish `task` first; of those alike, the one that holds most of what it takes."""
        cost, failed_on = self._nodes[task].cost, self._failed_on.get(task, ())
        held = self._held(task)

        def key(worker: int) -> tuple:
            end = (self._load[worker] + held_cost.get(worker, 0.0) + cost) * pace[worker]
            return worker in failed_on, round(10 * end / max(cost, 1e-9)), -held[worker], worker

        return min(self._alive, key=key)

    def _choose_beside(self, task: Task) -> int:
        """The worker with the fewest tasks beside its forwards; of those alike, the one that holds most inputs."""
        failed_on, held = self._failed_on.get(task, ()), self._held(task)
        return min(self._alive, key=lambda w: (w in failed_on, self._num_beside[w], -held[w], w))

    def _held(self, task: Task) -> Counter[int | None]:
        """How many of its inputs each worker has made."""
        return Counter(map(self._finished.get, self._nodes[task].sources))
