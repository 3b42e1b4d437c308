"""The Ray actor around a worker. The driver imports this file, so torch and models are imported in the actor alone."""

import os
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import ray

from fresco_dist.config import Config
from fresco_dist.runtime.environment import OFFLINE, set_defaults
from fresco_dist.runtime.job import Job
from fresco_dist.schedule.graph import Task

if TYPE_CHECKING:
    from fresco_dist.schedule.trace import TaskRecord


class Address(NamedTuple):
    """Where a worker is; ranks are ordered by it."""

    host: str
    gpu_ids: list[int]
    gpu_uuid: str
    node_id: str


class WorkerActor:
    """A worker with an address. Its class becomes a Ray actor with the resources of the configuration."""

    def __init__(self, backbone: str, timeout_s: float, *, use_gpu: bool) -> None:
        set_defaults(os.environ, OFFLINE)
        from fresco_dist import models
        from fresco_dist.runtime.worker import Worker

        models.import_family(backbone)  # now, while the driver simulates and Ray starts the others
        self._worker = Worker(use_gpu=use_gpu)
        self._use_gpu, self._timeout_s = use_gpu, timeout_s
        self._store: Any = None

    def address(self) -> Address:
        """Node address, GPU ids, the GPU's UUID, and the node."""
        uuid = ""
        if self._use_gpu:
            import torch

            uuid = str(torch.cuda.get_device_properties(0).uuid)
        node_id = ray.get_runtime_context().get_node_id()
        return Address(ray.util.get_node_ip_address(), ray.get_gpu_ids(), uuid, node_id)

    def number(self, index: int) -> None:
        """Learn by which number the driver calls this worker."""
        self._worker.index = index

    def take(self, jobs: Sequence[Job], stored: Mapping[str, Any]) -> None:
        """See Worker."""
        self._worker.take(jobs, stored)

    def numerics(self, config: Config) -> dict[str, str]:
        """What decides the bits of what it makes."""
        from fresco_dist.runtime.numerics import numerics

        return numerics(config, self._worker.device)

    def run(
        self, task: Task, counts: Mapping[str, int], states: Mapping[str, Task], beside: bool, *inputs: Any
    ) -> "tuple[TaskRecord, Any]":
        """See Worker; `counts` says how many of `inputs` each name has. An error tells its `task`."""
        remaining = iter(inputs)
        given = {name: list(islice(remaining, count)) for name, count in counts.items()}
        try:
            return self._worker.run(task, given, states, beside)
        except Exception as error:
            error.task = task  # type: ignore[attr-defined]  # for RayExecutor
            raise

    def forget(self, task: Task) -> None:
        """See Worker."""
        self._worker.forget(task)

    def serve_store(self, timeout_s: float) -> tuple[str, int]:
        """Serve a new rendezvous store (rank 0 only); its host and port."""
        from fresco_dist.runtime import collectives

        host = ray.util.get_node_ip_address()
        self._store = collectives.serve_store(host, timeout_s)
        return host, self._store.port

    def join_group(self, rank: int, world_size: int, address: tuple[str, int] | None, timeout_s: float) -> None:
        """Meet all workers in a process group within `timeout_s`, and add up one number to see that it works."""
        import torch

        from fresco_dist.runtime import collectives

        if address is None:
            self._worker.join(collectives.LocalGroup())
            return
        host = ray.util.get_node_ip_address()
        store = self._store if rank == 0 else collectives.connect_store(address, timeout_s)
        collectives.meet(store, rank, world_size, timeout_s)
        group = collectives.ProcessGroup(store, rank, world_size, host, self._timeout_s, cuda=self._use_gpu)
        group.sum_(torch.ones(1, dtype=torch.int32, device=self._worker.device))
        self._worker.join(group)
