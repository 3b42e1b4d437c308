"""Where a run takes place, how work reaches the workers, and where what they make is kept."""

import math
from dataclasses import dataclass

from fresco_dist.config.checks import require
from fresco_dist.config.choices import DispatchMode, ExecutorKind


@dataclass
class ClusterConfig:
    """Where it runs. Null num_workers = one per GPU, without GPUs one per CPU up to 4.

    `num_nodes` spreads the workers evenly over that many nodes; null packs them on as few as possible.
    `cpus_per_worker` is Ray's `num_cpus`; its whole part (at least 1) is the number of threads of a worker, and
    belongs to the result. `timeout_s` bounds every wait for a task, `start_timeout_s` those for room and for
    workers to start; `address` joins a running Ray cluster.
    """

    executor: ExecutorKind
    num_nodes: int | None
    num_workers: int | None
    cpus_per_worker: float
    gpus_per_worker: int | None
    address: str | None
    timeout_s: float
    start_timeout_s: float
    gpu_memory_gb: float | None = None  # null: that of the GPUs at hand

    def __post_init__(self) -> None:
        memory = self.gpu_memory_gb
        allowed = "greater than 0 and finite, or null"
        finite = memory is None or 0 < memory < math.inf
        require(finite, "cluster.gpu_memory_gb", memory, allowed, "Try 80.")
        key = "cluster.num_workers"
        require(self.num_workers is None or self.num_workers >= 1, key, self.num_workers, "at least 1", "Try 1.")
        require(
            self.executor is ExecutorKind.ray or self.num_workers in (None, 1),
            key,
            self.num_workers,
            "1 with cluster.executor=inprocess",
            "Use cluster.executor=ray for more workers.",
        )
        num_nodes = 1 if self.num_nodes is None else self.num_nodes
        require(num_nodes >= 1, "cluster.num_nodes", self.num_nodes, "at least 1", "null takes as few as possible.")
        remedy = f"Try {num_nodes}."
        allowed = f"a multiple of cluster.num_nodes ({num_nodes})"
        require(self.num_workers is None or self.num_workers % num_nodes == 0, key, self.num_workers, allowed, remedy)
        require(self.cpus_per_worker > 0, "cluster.cpus_per_worker", self.cpus_per_worker, "greater than 0", "Try 1.")
        require(
            self.gpus_per_worker in (None, 0, 1),
            "cluster.gpus_per_worker",
            self.gpus_per_worker,
            "0 or 1",
            "A worker holds one model replica on one GPU.",
        )
        for name, usual in (("timeout_s", 1800), ("start_timeout_s", 120)):
            seconds, allowed = getattr(self, name), "greater than 0 and at most 1e6 seconds"
            require(0 < seconds <= 1e6, f"cluster.{name}", seconds, allowed, f"Try {usual}.")

    @property
    def num_threads(self) -> int:
        """CPU threads of one worker."""
        return max(1, int(self.cpus_per_worker))


@dataclass
class DispatchConfig:
    """How work reaches the workers."""

    mode: DispatchMode


@dataclass
class StoreConfig:
    """Where canvases, encodings and decoded tiles are kept, so that a run goes on where it ended.

    Null path: in the run folder, or the sweep's, until all is done. `max_gb`: the oldest go first; null: no limit.
    """

    enabled: bool
    path: str | None = None
    max_gb: float | None = None

    def __post_init__(self) -> None:
        size = self.max_gb
        allowed = "greater than 0 and finite, or null"
        require(size is None or 0 < size < math.inf, "store.max_gb", size, allowed, "Try 100.")
        require(self.path != "", "store.path", '""', "a folder, or null", "null keeps it in the run folder.")
        for name in ("path", "max_gb"):
            value = getattr(self, name)
            required = self.enabled or value is None
            require(required, f"store.{name}", value, "null with store.enabled=false", "Leave one of them out.")
