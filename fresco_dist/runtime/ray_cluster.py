"""The Ray cluster that workers run on: start or join it, see what it has, choose and reserve what a run needs.

Only the modules named ray_* import ray. A cluster is joined only if it asks for a token.
"""

import math
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from threading import current_thread, main_thread

import ray
from ray._private import services
from ray.exceptions import AuthenticationError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from fresco_dist.config import ClusterConfig, InputError, require
from fresco_dist.runtime import machine
from fresco_dist.runtime.ray_head import PULSE_S, Head, Tell, pid_of, say_nothing
from fresco_dist.schedule.execute import WorkerError

PROBE_TIMEOUT_S = 10.0
KNOCK_TIMEOUT_S = 120.0  # with the start of an interpreter

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


REAPER = """read -r _; kill -s KILL -- "-$1" 2>/dev/null"""  # its input ends with the process at the other end

_ours: ClusterConfig | None = None  # for whom Ray, which there is once per process, was started or joined here
_reaper: subprocess.Popen | None = None


def start_ray(cluster: ClusterConfig) -> None:
    """Start Ray on this machine, or join the cluster at `cluster.address`; once, or again if its head is lost.

    `api.requests` sees to the token and to the folder of Ray's sockets.
    """
    global _ours, _reaper
    if _ours is not None and (_ours.address != cluster.address or Head().loss()):
        stop_ray()
    if ray.is_initialized():
        return
    _ours = cluster
    handler, is_main = signal.getsignal(signal.SIGTERM), current_thread() is main_thread()
    options = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if cluster.address is None:
            with _processes_apart():
                ray.init(address="local", include_dashboard=False, num_cpus=machine.num_cpus(), **options)
            _reaper = _reap(pid_of("raylet"))
        else:
            _probe(cluster.address)
            _require_token(cluster.address)
            ray.init(address=cluster.address, **options)
    except (OSError, AuthenticationError) as error:
        if cluster.address is None:
            raise
        raise InputError(f"cluster.address: cannot join Ray at {cluster.address}: {reason(error)}") from error
    except SystemExit:  # ray.init has a SIGTERM handler of its own
        signal.signal(signal.SIGTERM, handler)
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        if is_main:  # Ray itself leaves signals alone elsewhere
            signal.signal(signal.SIGTERM, handler)


@contextmanager
def _processes_apart() -> Iterator[None]:
    """Each process that Ray starts meanwhile leads a process group; it still dies with this process.

    Terminals, `timeout` and batch systems signal whole groups. Ray shields its processes from SIGINT alone, and once
    they are gone nothing ends in order.
    """
    popen = services.ConsolePopen
    services.ConsolePopen = partial(popen, process_group=0)
    try:
        yield
    finally:
        services.ConsolePopen = popen


def _reap(group: int) -> subprocess.Popen:
    """Kills a process group once its input ends or this process: Ray's agents outlive a killed raylet by a minute."""
    return subprocess.Popen(["sh", "-c", REAPER, "sh", str(group)], stdin=subprocess.PIPE, process_group=0)


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
    done = subprocess.run(command, capture_output=True, text=True, timeout=KNOCK_TIMEOUT_S)
    if done.returncode:
        raise ConnectionError((done.stderr.strip() or "no answer").splitlines()[-1])
    return "admitted" in done.stdout


def stop_ray() -> None:
    """End what `start_ray` has started, or leave what it has joined."""
    global _ours, _reaper
    if _ours is not None:
        ray.shutdown()
    if _reaper is not None:
        _reaper.communicate()
    _ours = _reaper = None


def resources(cluster: ClusterConfig) -> list[dict[str, float]]:
    """CPUs and GPUs of each node: of the cluster at `cluster.address`, or of this machine, without starting Ray."""
    if cluster.address is None:
        return [{"CPU": float(machine.num_cpus()), "GPU": float(machine.num_gpus())}]
    start_ray(cluster)
    return [node["Resources"] for node in Head().ask(ray.nodes) if node["Alive"]]


def choose_num_workers(cluster: ClusterConfig, nodes: list[dict[str, float]]) -> tuple[int, int]:
    """(number of workers, GPUs per worker) for what the nodes have; raises InputError if that is too little."""
    gpus_per_worker = cluster.gpus_per_worker
    if gpus_per_worker is None:
        gpus_per_worker = 1 if any(node.get("GPU", 0) >= 1 for node in nodes) else 0
    per_worker = {"CPU": cluster.cpus_per_worker, "GPU": gpus_per_worker}

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
    most = num_fit if gpus_per_worker or cluster.num_nodes else min(4, num_fit)
    num_workers = cluster.num_workers or max(1, most)
    if num_workers <= num_fit:
        return num_workers, gpus_per_worker
    short = "GPU" if gpus_per_worker and fit("GPU") < num_workers else "CPU"
    there = sum(node.get(short, 0) for node in nodes)
    if num_fit:
        remedy = f"cluster.num_workers={num_fit} comes to the same, bit for bit"
    elif short == "GPU":
        remedy = "cluster.gpus_per_worker=0 runs on CPUs"
    else:  # how many threads a worker has belongs to the result
        remedy = f"Try cluster.cpus_per_worker={math.floor(100 * max(node.get('CPU', 0) for node in nodes)) / 100:g}"
    raise InputError(
        f"cluster.num_workers: {num_workers} workers need {num_workers * per_worker[short]:g} {short}s;"
        f" {there:g} are there. {remedy}."
    )


def reserve(
    cluster: ClusterConfig, num_workers: int, gpus_per_worker: int, tell: Tell = say_nothing
) -> tuple[PlacementGroup, list[PlacementGroupSchedulingStrategy]]:
    """Resources for all workers at once or for none, and each worker's place among them.

    With `cluster.num_nodes` one bundle per node, each on a node of its own (STRICT_SPREAD); else one bundle per
    worker, on as few nodes as possible (PACK). Raises WorkerError if others hold them for longer than
    `cluster.start_timeout_s`.
    """
    per_bundle = num_workers // cluster.num_nodes if cluster.num_nodes else 1
    bundle = {"CPU": per_bundle * cluster.cpus_per_worker, "GPU": per_bundle * gpus_per_worker}
    bundles = [{name: amount for name, amount in bundle.items() if amount}] * (num_workers // per_bundle)
    head = Head()
    group = head.ask(lambda: placement_group(bundles, strategy="STRICT_SPREAD" if cluster.num_nodes else "PACK"))
    needed = ", ".join(f"{len(bundles) * amount:g} {name}s" for name, amount in bundles[0].items())
    for _ in head.pulses(cluster.start_timeout_s, tell, lambda: f"for others to free {needed}"):
        if group.wait(PULSE_S):
            return group, [PlacementGroupSchedulingStrategy(group, i // per_bundle) for i in range(num_workers)]
    head.ask(lambda: remove_placement_group(group))
    raise WorkerError(
        f"others hold the resources of {num_workers} workers ({needed}); they did not free them within"
        f" cluster.start_timeout_s={cluster.start_timeout_s:g} s. Raise it to wait longer."
    )


def _require_nodes(
    cluster: ClusterConfig, nodes: list[dict[str, float]], fits: list[int], per_worker: dict[str, float]
) -> None:
    """Raise InputError unless `cluster.num_nodes` nodes are there and each has room for its share of the workers."""
    assert cluster.num_nodes is not None
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


def reason(error: BaseException) -> str:
    """The telling line of an error that Ray decorated."""
    lines = [line.strip() for line in str(error).split("\n") if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
