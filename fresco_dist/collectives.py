"""Process groups: the only module that knows torch.distributed. Groups are objects that are passed in, never global.

NCCL among GPUs, gloo among CPUs. Every wait has the group's timeout; gloo's default would be half an hour.
"""

from datetime import timedelta
from typing import Protocol

import torch
import torch.distributed as dist


class Group(Protocol):
    """Ranks that add up tensors."""

    rank: int
    world_size: int

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Add up `tensor` over all ranks, in place; every rank must call it."""


class LocalGroup:
    """A group of one."""

    rank = 0
    world_size = 1

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor itself."""
        return tensor


class ProcessGroup:
    """Ranks in several processes."""

    def __init__(self, store: dist.Store, rank: int, world_size: int, host: str, timeout_s: float, cuda: bool) -> None:
        self.rank, self.world_size = rank, world_size
        timeout = timedelta(seconds=timeout_s)
        if cuda:
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = timeout
            self._group = dist.ProcessGroupNCCL(store, rank, world_size, options)
        else:
            options = dist.ProcessGroupGloo._Options()
            options._devices = [dist.ProcessGroupGloo.create_device(hostname=host)]
            options._timeout = timeout
            self._group = dist.ProcessGroupGloo(store, rank, world_size, options)

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """See Group. Raises RuntimeError if a rank is gone or the timeout passes; `tensor` is then partly reduced."""
        self._group.allreduce([tensor]).wait()
        return tensor


def serve_store(host: str, timeout_s: float) -> dist.TCPStore:
    """The rendezvous store, served by this process on a free port of `host` (rank 0's own address)."""
    return dist.TCPStore(
        host, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=timeout_s)
    )  # fmt: skip


def join(
    store: dist.TCPStore | tuple[str, int], *, rank: int, world_size: int, host: str, timeout_s: float, cuda: bool
) -> Group:
    """The group of all workers; `host` is this worker's own address, `store` that of rank 0 (or served here)."""
    if world_size == 1:
        return LocalGroup()
    if isinstance(store, tuple):
        store = dist.TCPStore(*store, is_master=False, timeout=timedelta(seconds=timeout_s))
    return ProcessGroup(store, rank, world_size, host, timeout_s, cuda)
