"""Workers as Ray actors: the only module that imports ray.

Each actor holds one replica. Ranks are given after placement, so that neighbours on a node are neighbours in rank;
then the actors form a process group. Results travel through Ray's object store, never through the driver.
"""

import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import ray
import torch
from ray.exceptions import AuthenticationError, GetTimeoutError, RayActorError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from fresco_dist import collectives
from fresco_dist.config import ClusterConfig, InputError, require
from fresco_dist.dispatch import Task
from fresco_dist.executor import WorkerError
from fresco_dist.trace import TaskRecord
from fresco_dist.worker import Job, Worker

PROBE_TIMEOUT_S = 10.0
START_TIMEOUT_S = 120.0  # for an actor to start once its resources are free
BLAME_TIMEOUT_S = 5.0  # a lost peer fails the collectives of the others, sometimes before Ray reports the loss

KNOCK = """
import sys
from ray._raylet import GcsClient
from ray.exceptions import AuthenticationError
try:
    GcsClient(address=sys.argv[1]).check_alive([], timeout=float(sys.argv[2]))
except AuthenticationError:
    print("refused")
else:
    print("admitted")
"""


class WorkerActor(Worker):
    """A worker with an address. Its class becomes a Ray actor with the resources of the configuration."""

    def __init__(self, job: Job, *, use_gpu: bool) -> None:
        super().__init__(job, use_gpu=use_gpu)
        self._use_gpu = use_gpu
        self._timeout_s = job.config.cluster.timeout_s
        self._store = None

    def address(self) -> tuple[str, list[int], str]:
        """Node address and GPU ids, by which ranks are ordered, and the GPU's UUID."""
        uuid = str(torch.cuda.get_device_properties(0).uuid) if self._use_gpu else ""
        return ray.util.get_node_ip_address(), ray.get_gpu_ids(), uuid

    def serve_store(self) -> tuple[str, int]:
        """Serve the rendezvous store (rank 0 only); its host and port."""
        host = ray.util.get_node_ip_address()
        self._store = collectives.serve_store(host, self._timeout_s)
        return host, self._store.port

    def join_group(self, rank: int, world_size: int, address: tuple[str, int]) -> None:
        """Enter the process group of all workers, and add up one number to see that it works."""
        host = ray.util.get_node_ip_address()
        store = self._store or collectives.connect_store(address, self._timeout_s)
        group = collectives.ProcessGroup(store, rank, world_size, host, self._timeout_s, cuda=self._use_gpu)
        group.sum_(torch.ones(1, dtype=torch.int32, device=self._device))
        self.join(group)


def start_ray(cluster: ClusterConfig) -> None:
    """Start Ray on this machine, or join the cluster at `cluster.address`; once. `launch` sees to the token."""
    if ray.is_initialized():
        return
    handler = signal.getsignal(signal.SIGTERM)
    options = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if cluster.address is None:
            ray.init(address="local", include_dashboard=False, num_cpus=_num_local_cpus(), **options)
        else:
            _probe(cluster.address)
            _require_token(cluster.address)
            ray.init(address=cluster.address, **options)
    except (OSError, AuthenticationError) as error:
        if cluster.address is None:
            raise
        raise InputError(f"cluster.address: cannot join Ray at {cluster.address}: {_reason(error)}") from error
    except SystemExit:  # ray.init has a SIGTERM handler of its own
        signal.signal(signal.SIGTERM, handler)
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, handler)


def _probe(address: str) -> None:
    """Raise ConnectionError unless something listens there: Ray itself would try for minutes, deaf to signals."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), timeout=PROBE_TIMEOUT_S).close()


def _require_token(address: str) -> None:
    """Raise InputError unless the cluster admits this run and nobody without a token.

    Ray itself would join an open cluster, too, and try a wrong token for minutes.
    """
    if _is_admitted(address, "env", "-u", "RAY_AUTH_TOKEN", "-u", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE=disabled"):
        raise InputError(
            f"cluster.address must be a Ray cluster with token authentication; got {address}, which answers everybody."
            " Start it with RAY_AUTH_MODE=token."
        )
    if not _is_admitted(address):
        raise InputError(
            f"RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) must be the token of the Ray cluster at {address}, which refuses"
            " this one. Copy it from where the cluster was started."
        )


def _is_admitted(address: str, *prefix: str) -> bool:
    """Whether the cluster answers; asked in another process, since Ray reads the environment once, and logs."""
    command = [*prefix, sys.executable, "-c", KNOCK, address, str(PROBE_TIMEOUT_S)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=START_TIMEOUT_S)
    if done.returncode:
        raise ConnectionError((done.stderr.strip() or "no answer").splitlines()[-1])
    return "admitted" in done.stdout


def stop_ray() -> None:
    """End the Ray that was started here, or leave the one that was joined."""
    ray.shutdown()


def resources(cluster: ClusterConfig) -> list[dict[str, float]]:
    """CPUs and GPUs of each node: of the cluster at `cluster.address`, or of this machine, without starting Ray."""
    if cluster.address is None:
        return [{"CPU": float(_num_local_cpus()), "GPU": float(torch.cuda.device_count())}]
    start_ray(cluster)
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _num_local_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_num_workers(cluster: ClusterConfig, nodes: list[dict[str, float]]) -> tuple[int, int]:
    """(number of workers, GPUs per worker) for what the nodes have; raises InputError if that is too little."""
    per_worker = {"CPU": cluster.cpus_per_worker, "GPU": cluster.gpus_per_worker}
    if per_worker["GPU"] is None:
        per_worker["GPU"] = 1 if any(node.get("GPU", 0) >= 1 for node in nodes) else 0

    def fit(*names: str, on: list[dict[str, float]] = nodes) -> int:
        needed = {name: per_worker[name] for name in names if per_worker[name]}
        return sum(min(int(node.get(name, 0) / each + 1e-6) for name, each in needed.items()) for node in on)

    if cluster.num_nodes:
        fits = sorted((fit("CPU", "GPU", on=[node]) for node in nodes), reverse=True)[: cluster.num_nodes]
        if cluster.num_nodes > 1 or len(nodes) > 1:
            _require_nodes(cluster, nodes, fits, per_worker)
        num_fit = min(fits) * cluster.num_nodes
    else:
        num_fit = fit("CPU", "GPU")
    most = num_fit if per_worker["GPU"] or cluster.num_nodes else min(4, num_fit)
    num_workers = cluster.num_workers or max(1, most)
    if num_workers <= num_fit:
        return num_workers, per_worker["GPU"]
    short = "GPU" if per_worker["GPU"] and fit("GPU") < num_workers else "CPU"
    there = sum(node.get(short, 0) for node in nodes)
    remedy = f"Use at most {num_fit}" if num_fit else "cluster.gpus_per_worker=0 runs on CPUs"
    if short == "CPU" and there / num_workers >= 0.01:
        remedy += f", or cluster.cpus_per_worker={math.floor(100 * there / num_workers) / 100:g}"
    raise InputError(
        f"cluster.num_workers: {num_workers} workers need {num_workers * per_worker[short]:g} {short}s;"
        f" {there:g} are there. {remedy}."
    )


def reserve(
    cluster: ClusterConfig, num_workers: int, gpus_per_worker: int
) -> tuple[PlacementGroup, list[PlacementGroupSchedulingStrategy]]:
    """Resources for all workers at once or for none, and each worker's place among them.

    With `cluster.num_nodes` one bundle per node, each on a node of its own (STRICT_SPREAD); else one bundle per
    worker, on as few nodes as possible (PACK). Raises WorkerError if others hold them for longer than START_TIMEOUT_S.
    """
    per_bundle = num_workers // cluster.num_nodes if cluster.num_nodes else 1
    bundle = {"CPU": per_bundle * cluster.cpus_per_worker, "GPU": per_bundle * gpus_per_worker}
    bundles = [{name: amount for name, amount in bundle.items() if amount}] * (num_workers // per_bundle)
    group = placement_group(bundles, strategy="STRICT_SPREAD" if cluster.num_nodes else "PACK")
    if not group.wait(START_TIMEOUT_S):
        remove_placement_group(group)
        raise WorkerError(
            f"others hold the resources of {num_workers} workers; none was freed in {START_TIMEOUT_S:g} s"
        )
    return group, [PlacementGroupSchedulingStrategy(group, i // per_bundle) for i in range(num_workers)]


def _require_unique_gpus(addresses: list[tuple[str, list[int], str]]) -> None:
    """Raise WorkerError if two workers share a GPU: NCCL would wait for ever."""
    owners: dict[str, int] = {}
    for worker, (host, _, uuid) in enumerate(addresses):
        if uuid and owners.setdefault(uuid, worker) != worker:
            raise WorkerError(f"two workers have been given the same GPU, {uuid} on {host}")


def _require_nodes(
    cluster: ClusterConfig, nodes: list[dict[str, float]], fits: list[int], per_worker: dict[str, float]
) -> None:
    """Raise InputError unless `cluster.num_nodes` nodes are there and each has room for its share of the workers."""
    per_node = (cluster.num_workers or cluster.num_nodes) // cluster.num_nodes
    large_enough = sum(num_fit >= per_node for num_fit in fits)
    needed = f"{per_node * per_worker['GPU']:g} GPUs and {per_node * per_worker['CPU']:g} CPUs"
    kinds = Counter(f"{node.get('GPU', 0):g} GPUs and {node.get('CPU', 0):g} CPUs" for node in nodes)
    there = "; ".join(f"{count} with {kind}" for kind, count in kinds.items())
    require(
        large_enough == cluster.num_nodes,
        "cluster.num_nodes",
        cluster.num_nodes,
        f"at most {large_enough}, the nodes with {needed}",
        f"There: {there}." + (" Join a Ray cluster with cluster.address=HOST:PORT." if cluster.address is None else ""),
    )


class RayExecutor:
    """See Executor. Starts Ray unless it runs already; `stop_ray` ends it."""

    def __init__(self, job: Job, *, num_workers: int, gpus_per_worker: int) -> None:
        self.num_workers = num_workers
        cluster = job.config.cluster
        self._timeout_s = cluster.timeout_s
        self._actors: list = []
        start_ray(cluster)
        options = {"num_cpus": cluster.cpus_per_worker, "num_gpus": gpus_per_worker, "max_restarts": 0}
        actor_class = ray.remote(**options)(WorkerActor)
        job_ref = ray.put(job)
        self._placement, places = reserve(cluster, num_workers, gpus_per_worker)
        self._actors = [
            actor_class.options(scheduling_strategy=place).remote(job_ref, use_gpu=gpus_per_worker > 0)
            for place in places
        ]
        self._pending: dict[ray.ObjectRef, tuple[int, Task]] = {}
        self._results: dict[Task, ray.ObjectRef] = {}
        try:
            self._form_group()
        except BaseException:
            self.close()
            raise

    def _form_group(self) -> None:
        deadline_s = START_TIMEOUT_S + self.num_workers
        addresses = self._get([actor.address.remote() for actor in self._actors], deadline_s, "start")
        _require_unique_gpus(addresses)
        order = sorted(range(self.num_workers), key=lambda i: addresses[i])
        self._actors = [self._actors[i] for i in order]
        if self.num_workers == 1:
            return
        store = self._get([self._actors[0].serve_store.remote()], deadline_s, "serve the rendezvous store")[0]
        joined = [actor.join_group.remote(rank, self.num_workers, store) for rank, actor in enumerate(self._actors)]
        self._get(joined, deadline_s, "join the process group")

    def _get(self, refs: list, timeout_s: float, what: str) -> list:
        try:
            return ray.get(refs, timeout=timeout_s)
        except GetTimeoutError:
            ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
            missing = [rank for rank, ref in enumerate(refs) if ref not in ready]
            raise WorkerError(f"workers {missing} did not {what} within {timeout_s:g} s") from None
        except RayError as error:
            raise WorkerError(f"a worker could not {what}: {_reason(error)}") from error

    def submit(self, worker: int, task: Task, inputs: Sequence[Task]) -> None:
        """See Executor."""
        run = self._actors[worker].run.options(num_returns=2)
        record_ref, self._results[task] = run.remote(task, *(self._results[i] for i in inputs))
        self._pending[record_ref] = (worker, task)

    def wait(self) -> TaskRecord:
        """See Executor."""
        ready, _ = ray.wait(list(self._pending), num_returns=1, timeout=self._timeout_s)
        if not ready:
            at = "; ".join(f"rank {rank} is at {task}" for rank, task in self._oldest(self._pending).items())
            raise WorkerError(f"no task finished within cluster.timeout_s={self._timeout_s:g} s: {at}")
        worker, task = self._pending[ready[0]]
        try:
            record = ray.get(ready[0])
        except RayActorError as error:
            raise self._death(worker, error) from error
        except RayTaskError as error:
            if isinstance(error.cause, InputError):
                raise error.cause from None
            missing = self._find_missing(error)
            message = f"rank {worker} failed at {task}: {_reason(error.cause)}{missing}"
            raise WorkerError(message, str(error)) from error
        except RayError as error:  # out of memory, node lost, ...
            raise WorkerError(f"rank {worker} was lost at {task}: {_reason(error)}") from error
        del self._pending[ready[0]]
        return record

    def _find_missing(self, error: Exception) -> str:
        """Why a task really failed, if a peer is the cause: its collective fails with the peer that left it.

        Raises for a dead worker, and names those that still do not answer.
        """
        deadline = time.monotonic() + BLAME_TIMEOUT_S
        remaining = list(self._pending)
        while remaining and time.monotonic() < deadline:
            ready, remaining = ray.wait(remaining, num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
            for ref in ready:
                try:
                    ray.get(ref)
                except RayActorError as death:
                    raise self._death(self._pending[ref][0], death) from error
                except RayError:
                    continue
        silent = self._oldest(remaining)
        return "".join(f"; rank {rank} does not answer at {task}" for rank, task in silent.items())

    def _oldest(self, refs: Iterable[ray.ObjectRef]) -> dict[int, Task]:
        """What each rank that still has one of `refs` to finish is at: ranks run their tasks in order."""
        return dict(sorted((self._pending[ref] for ref in reversed(list(refs))), key=lambda entry: entry[0]))

    def _death(self, worker: int, error: RayActorError) -> WorkerError:
        """What the worker was at: the oldest of its tasks that has not finished."""
        return WorkerError(f"rank {worker} died at {self._oldest(self._pending)[worker]}: {_reason(error)}")

    def result(self, task: Task) -> Any:
        """See Executor."""
        try:
            return ray.get(self._results[task], timeout=self._timeout_s)
        except RayError as error:
            raise WorkerError(f"the result of {task} was lost: {_reason(error)}") from error

    def release(self, task: Task) -> None:
        """See Executor."""
        self._results.pop(task, None)

    def close(self) -> None:
        """See Executor."""
        for actor in self._actors:
            ray.kill(actor)
        remove_placement_group(self._placement)


def _reason(error: BaseException) -> str:
    """The telling line of an error that Ray decorated."""
    lines = [line.strip() for line in str(error).split("\n") if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
