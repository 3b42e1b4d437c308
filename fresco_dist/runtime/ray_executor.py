"""Workers as Ray actors, seen from the driver.

Each actor holds one replica. Ranks are given after placement, so that neighbours on a node are neighbours in rank;
with an all-reduce the actors then form a process group. Results travel through Ray's object store, never through the
driver.
"""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import (
    GetTimeoutError,
    ObjectStoreFullError,
    OutOfDiskError,
    RayActorError,
    RayError,
    RayTaskError,
)
from ray.util.placement_group import placement_group_table, remove_placement_group

from fresco_dist.config import ClusterConfig, Config, DispatchMode, InputError
from fresco_dist.runtime import ray_head
from fresco_dist.runtime.job import Job
from fresco_dist.runtime.ray_cluster import reason, reserve
from fresco_dist.runtime.ray_head import PULSE_S, Head, HeadLost, Tell, say_nothing
from fresco_dist.runtime.ray_worker import Address, WorkerActor
from fresco_dist.schedule.execute import Failure, OutOfStep, WorkerError
from fresco_dist.schedule.graph import NO_INPUTS, Node, Place, Task
from fresco_dist.schedule.trace import TaskRecord

ANSWER_TIMEOUT_S = 120.0  # for a worker that has started to answer beside its tasks
JOIN_TIMEOUT_S = 60.0  # for all to meet in a process group; less than the driver waits for that
BESIDE_GROUP = "beside"  # Ray's concurrency group for the tasks that run beside the forwards


def _require_unique_gpus(addresses: Iterable[Address]) -> None:
    """Raise WorkerError if two workers share a GPU: NCCL would wait for ever."""
    seen: set[str] = set()
    for address in addresses:
        if address.gpu_uuid in seen:
            raise WorkerError(f"two workers have been given the same GPU, {address.gpu_uuid} on {address.host}")
        seen |= {address.gpu_uuid} - {""}


def names_of(workers: Collection[int], addresses: Mapping[int, str]) -> str:
    """Workers in words, with their nodes if `addresses`, those of all workers, are several."""
    names = f"worker{'s' * (len(workers) > 1)} {', '.join(map(str, sorted(workers)))}"
    if len(set(addresses.values())) > 1:
        names += f" on {', '.join(sorted({addresses[worker] for worker in workers}))}"
    return names


def _is_error(ref: ray.ObjectRef) -> bool:
    """Whether a call that has ended has failed."""
    try:
        ray.get(ref)
    except RayError:
        return True
    return False


class RayExecutor:
    """See Executor. Its workers run on the Ray that `start_ray` has started or joined."""

    def __init__(
        self,
        cluster: ClusterConfig,
        backbone: str,
        *,
        num_workers: int,
        gpus_per_worker: int,
        tell: Tell = say_nothing,
    ) -> None:
        """Returns while the workers are still starting; `give` waits for them. `tell` hears of waits that are long."""
        self.num_workers = num_workers
        self._timeout_s, self._start_timeout_s, self._tell = cluster.timeout_s, cluster.start_timeout_s, tell
        self._head = Head()
        self._actors: dict[int, Any] = {}  # by worker, those that live
        self._nodes: dict[int, str] = {}  # where each worker is, or was; empty until all have started
        self._has_group = False
        self._pending: dict[ray.ObjectRef, tuple[int, Task]] = {}
        self._result_of: dict[ray.ObjectRef, ray.ObjectRef] = {}  # by record
        self._since: dict[tuple[int, bool], float] = {}  # when a worker's queue (forwards, beside) last moved
        self._results: dict[Task, ray.ObjectRef] = {}
        self._made_by: dict[Task, int] = {}
        self._nodes_of: dict[Task, Node] = {}  # of what has been submitted
        options = {"num_cpus": cluster.cpus_per_worker, "num_gpus": gpus_per_worker, "max_restarts": 0}
        actor_class = ray.remote(**options, concurrency_groups={BESIDE_GROUP: 1})(WorkerActor)
        self._placement, self._places = reserve(cluster, num_workers, gpus_per_worker, tell)
        try:
            for worker, place in enumerate(self._places):
                create = actor_class.options(scheduling_strategy=place).remote
                self._actors[worker] = create(backbone, cluster.timeout_s, use_gpu=gpus_per_worker > 0)
        except BaseException:
            self.close()
            raise

    def give(self, jobs: Sequence[Job], stored: Mapping[str, Any] = NO_INPUTS) -> "RayExecutor":
        """Wait until all workers have started; the tasks that follow are of these jobs. Returns itself.

        `stored`: see Worker. Its arrays are put once, and the workers of a node read them where they are.
        Raises WorkerError if one does not start, or two have been given the same GPU.
        """
        self._await_workers()
        for of_last_jobs in (self._results, self._made_by, self._nodes_of):
            of_last_jobs.clear()
        jobs_ref, stored_ref = ray.put(jobs), ray.put(dict(stored))
        self._call("take their jobs", lambda actor: actor.take.remote(jobs_ref, stored_ref))
        if jobs[0].config.dispatch.mode is DispatchMode.allreduce and not self._has_group:
            self._form_group()
        return self

    def numerics(self, config: Config) -> dict[int, dict[str, str]]:
        """What decides the bits of each worker's results; waits as `give` does."""
        self._await_workers()
        return self._call("tell what it computes with", lambda actor: actor.numerics.remote(config))

    def answers(self) -> bool:
        """Whether all workers live, and the Ray that they need."""
        return self._head.loss() is None and len(self._actors) == self.num_workers and not self._unreachable()

    def _await_workers(self) -> None:
        """Until all have started; neighbours on a node are neighbours in rank."""
        if self._nodes:
            return
        addresses = self._call("start", lambda actor: actor.address.remote(), timeout_s=self._start_timeout_s)
        _require_unique_gpus(addresses.values())
        order = sorted(self._actors, key=lambda worker: addresses[worker])
        self._actors = {rank: self._actors[worker] for rank, worker in enumerate(order)}
        self._nodes = {rank: addresses[worker].node_id for rank, worker in enumerate(order)}
        indices = {actor: worker for worker, actor in self._actors.items()}
        self._call("be numbered", lambda actor: actor.number.remote(indices[actor]))

    def _form_group(self) -> None:
        """One process group of all workers that live."""
        ranks = {actor: rank for rank, actor in enumerate(self._actors.values())}
        first = next(iter(self._actors))
        store = None
        if len(ranks) > 1:
            serve = "serve the rendezvous store"
            store = self._call(serve, lambda actor: actor.serve_store.remote(JOIN_TIMEOUT_S), [first])[first]
        self._call(
            "join the process group",
            lambda actor: actor.join_group.remote(ranks[actor], len(ranks), store, JOIN_TIMEOUT_S),
        )
        self._has_group = True

    def _call(
        self,
        what: str,
        call: Callable[[Any], Any],
        workers: Iterable[int] | None = None,
        *,
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> dict[int, Any]:
        """The answers of these workers, or of all that live, to a call beside their tasks."""
        refs = {worker: call(self._actors[worker]) for worker in (workers or self._actors)}

        def missing() -> str:
            ready, _ = ray.wait(list(refs.values()), num_returns=len(refs), timeout=0)
            return names_of([worker for worker, ref in refs.items() if ref not in ready], self._addresses())

        for _ in self._head.pulses(timeout_s, self._tell, lambda: f"for {missing()} to {what}"):
            try:
                return dict(zip(refs, ray.get(list(refs.values()), timeout=PULSE_S), strict=True))
            except GetTimeoutError:
                continue
            except RayError as error:
                self._head.require()
                raise WorkerError(f"a worker could not {what}: {reason(error)}") from error
        limit, remedy = f"{timeout_s:g} s", ""
        if not self._nodes:
            limit, remedy = f"cluster.start_timeout_s={limit}", ". Raise it if they are only slow."
        raise WorkerError(f"{missing()} did not {what} within {limit}{remedy}")

    def _addresses(self) -> dict[int, str]:
        """The node address of each worker, also of those that have not started."""
        nodes = self._nodes
        if not nodes:
            placed = self._head.ask(lambda: placement_group_table(self._placement))["bundles_to_node_id"]
            nodes = {i: placed[place.placement_group_bundle_index] for i, place in enumerate(self._places)}
        addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in self._head.ask(ray.nodes)}
        return {worker: addresses.get(node, "no node") for worker, node in nodes.items()}

    def submit(self, worker: int, task: Task, node: Node) -> None:
        """See Executor."""
        if worker not in self._actors:
            return  # its loss has not been told yet
        options = {"num_returns": 2} | ({"concurrency_group": BESIDE_GROUP} if node.beside else {})
        run = self._actors[worker].run.options(**options)
        counts = {name: len(tasks) for name, tasks in node.inputs.items()}
        inputs = (self._results[source] for source in node.sources)  # Ray brings arguments, not what is inside one
        record_ref, result_ref = run.remote(task, counts, dict(node.states), node.beside, *inputs)
        self._results[task] = self._result_of[record_ref] = result_ref
        self._nodes_of[task] = node
        if not any(entry[0] == worker and self._lane(entry[1]) == node.beside for entry in self._pending.values()):
            self._since[worker, node.beside] = time.monotonic()
        self._pending[record_ref] = (worker, task)

    def _lane(self, task: Task) -> bool:
        """Whether it runs beside the forwards."""
        return self._nodes_of[task].beside

    def wait(self) -> TaskRecord | Failure:
        """See Executor. A worker at whose task `cluster.timeout_s` has passed counts as lost."""
        heads: dict[tuple[int, bool], Task] = {}
        for worker, task in self._pending.values():
            heads.setdefault((worker, self._lane(task)), task)
        waited_for = [queue for queue, task in heads.items() if not task.traits.collective]
        slowest = min(waited_for or heads, key=lambda queue: self._since[queue])
        ready: list[ray.ObjectRef] = []
        while not ready:
            patience_s = self._since[slowest] + self._timeout_s - time.monotonic()
            ready, _ = ray.wait(list(self._pending), num_returns=1, timeout=min(PULSE_S, max(0.0, patience_s)))
            self._head.require()  # without it nothing that comes is of use
            if not ready and patience_s <= PULSE_S:
                return self._lose(slowest[0], f"did not answer within cluster.timeout_s={self._timeout_s:g} s")
        worker, task = self._pending[ready[0]]
        try:
            record = ray.get(ready[0])
        except RayTaskError as error:  # first: if an input's maker died, it is a RayActorError as well
            return self._fail(ready[0], error)
        except RayActorError as error:
            return self._lose(worker, f"died: {reason(error)}")
        except RayError as error:
            return self._fail(ready[0], error)
        self._results[task], self._made_by[task] = self._result_of[ready[0]], worker
        self._forget(ready[0])
        return record

    def _forget(self, ref: ray.ObjectRef) -> None:
        worker, task = self._pending.pop(ref)
        del self._result_of[ref]
        self._since[worker, self._lane(task)] = time.monotonic()

    def _fail(self, ref: ray.ObjectRef, error: RayError) -> Failure:
        """A task that raised, or did not get its inputs."""
        worker, task = self._pending[ref]
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, InputError):
            raise cause from None
        for other in self._actors.keys() - self._living():
            return self._lose(other, "died with its node")  # the task itself is found failed again at the next call
        gone = self._held_by(self._nodes.keys() - self._living())
        if isinstance(cause, RayError) and gone:  # of a worker that was lost before its node
            lost_on = self._made_by[gone[0]]
            for made in gone:
                del self._made_by[made]
            return Failure(lost_on, None, WorkerError(f"the node of rank {lost_on} died"), tuple(gone))
        self._forget(ref)
        message = f"rank {worker} failed at {task}: {reason(cause)}"
        raised_at = getattr(cause, "task", None)  # Ray hands the error of a task on to those that take its result
        lost_input = isinstance(cause, RayError) and not isinstance(cause, (ObjectStoreFullError, OutOfDiskError))
        handed_on = lost_input if raised_at is None else raised_at != task
        consequence = handed_on or isinstance(cause, OutOfStep) or task.traits.collective
        return Failure(worker, task, WorkerError(message, str(error)), consequence=consequence)

    def _held_by(self, workers: Collection[int]) -> list[Task]:
        """Tasks whose results are lost with these; what all have made is not."""
        tasks = (task for task, by in self._made_by.items() if by in workers and task in self._results)
        return [task for task in tasks if self._nodes_of[task].place is not Place.EVERYWHERE]

    def _living(self) -> set[int]:
        """Workers whose node lives."""
        nodes = {node["NodeID"] for node in self._head.ask(ray.nodes) if node["Alive"]}
        return {worker for worker, node in self._nodes.items() if node in nodes}

    def _lose(self, worker: int, why: str) -> Failure:
        """Count a worker as lost; what it was at is the oldest of its tasks that has not finished."""
        ray.kill(self._actors.pop(worker))
        self._since = dict.fromkeys(self._since, time.monotonic())  # the others may have waited for this one
        tasks = [task for of, task in self._pending.values() if of == worker]
        self._pending = {ref: entry for ref, entry in self._pending.items() if entry[0] != worker}
        self._result_of = {ref: self._result_of[ref] for ref in self._pending}
        node_lives = worker in self._living()
        results = self._held_by({worker})
        message = f"rank {worker} {why}" + (f" (it was at {tasks[0]})" if tasks else "")
        return Failure(worker, None, WorkerError(message), () if node_lives else tuple(results))

    def drain(self) -> list[TaskRecord | Failure]:
        """See Executor."""
        events = []
        while self._pending:
            events.append(self.wait())
        return events

    def regroup(self) -> Failure | None:
        """See Executor."""
        if gone := self._unreachable():
            return self._lose(gone[0], "was lost before a new process group was formed")
        try:
            self._form_group()
        except WorkerError:
            if gone := self._unreachable():  # those that are left wait for it until JOIN_TIMEOUT_S
                return self._lose(gone[0], "was lost while a new process group was formed")
            raise
        return None

    def _unreachable(self) -> list[int]:
        """Workers that do not answer, even beside what they are at."""
        knock = {
            worker: actor.address.options(concurrency_group=BESIDE_GROUP).remote()
            for worker, actor in self._actors.items()
        }
        for _ in self._head.pulses(JOIN_TIMEOUT_S, self._tell, lambda: "for all workers to answer"):
            answered, silent = ray.wait(list(knock.values()), num_returns=len(knock), timeout=PULSE_S)
            if not silent:
                break
        return [worker for worker, ref in knock.items() if ref not in answered or _is_error(ref)]

    def result(self, task: Task) -> Any:
        """See Executor."""
        try:
            return ray.get(self._results[task], timeout=self._timeout_s)
        except RayError as error:
            worker, why = self._made_by.get(task, -1), f"lost the result of {task}: {reason(error)}"
            if worker not in self._actors:
                return Failure(worker, None, WorkerError(f"rank {worker} {why}"))
            return self._lose(worker, why)

    def later(self, task: Task) -> Callable[[], Any]:
        """See Executor."""
        ref, timeout_s = self._results[task], self._timeout_s
        return lambda: ray.get(ref, timeout=timeout_s)

    def release(self, task: Task) -> None:
        """See Executor."""
        self._results.pop(task, None)
        self._made_by.pop(task, None)
        if self._nodes_of[task].place is Place.EVERYWHERE:
            for actor in self._actors.values():  # behind what is queued, ahead of what comes next
                actor.forget.remote(task)

    def close(self) -> None:
        """See Executor."""
        for actor in self._actors.values():
            ray.kill(actor)
        self._actors.clear()
        try:
            self._head.ask(lambda: remove_placement_group(self._placement))
        except HeadLost:  # nothing is left to be given back
            ray_head.kill()
