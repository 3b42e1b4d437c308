"""Process groups: the only module that knows torch.distributed. Groups are objects that are passed in, never global.

NCCL among GPUs, gloo among CPUs. Every wait has the group's timeout; gloo's default would be half an hour.
"""

import socket
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

    def leave(self) -> None:
        """Be missed by the others at once, instead of at their timeout; this rank's sums fail from here on."""


class LocalGroup:
    """A group of one."""

    rank = 0
    world_size = 1

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor itself."""
        return tensor

    def leave(self) -> None:
        """Nobody waits."""


class ProcessGroup:
    """Ranks in several processes; `host` is this process's own address, by which it reaches the others."""

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
        if self._group is None:
            raise RuntimeError("this rank has left its group")
        self._group.allreduce([tensor]).wait()
        return tensor

    def leave(self) -> None:
        """See Group: the connections close with the group."""
        self._group = None


def serve_store(host: str, timeout_s: float) -> dist.TCPStore:
    """The rendezvous store, served by this process on a free port of `host` alone (rank 0's own address)."""
    listener = socket.create_server((host, 0))
    port = listener.getsockname()[1]
    return dist.TCPStore(
        host,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout_s),
        master_listen_fd=listener.detach(),
    )


def connect_store(address: tuple[str, int], timeout_s: float) -> dist.TCPStore:
    """The store that rank 0 serves at `address` (host, port)."""
    return dist.TCPStore(*address, is_master=False, timeout=timedelta(seconds=timeout_s))
