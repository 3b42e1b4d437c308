"""Process groups: the only module that knows torch.distributed. Groups are objects that are passed in, never global.

NCCL among GPUs, gloo among CPUs. Every wait has the group's timeout; gloo's default would be half an hour.
"""

import os
import socket
import struct
import sys
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist

SIOCGIFADDR = 0x8915  # linux/sockios.h: the address of an interface


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
        self._group: Any  # torch's, or None
        timeout = timedelta(seconds=timeout_s)
        if cuda:
            interface = interface_of(host)
            if interface is not None:  # "=": this one and not those whose names begin alike
                os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={interface}")
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = timeout
            self._group = dist.ProcessGroupNCCL(store, rank, world_size, options)
        else:
            options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]  # missing in torch's stubs
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


def interface_of(host: str) -> str | None:
    """Name of this machine's network interface with the IPv4 address `host`; None if there is none, or off Linux."""
    if sys.platform != "linux":
        return None
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                reply = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:
                continue  # it has no IPv4 address
            if socket.inet_ntoa(reply[20:24]) == host:
                return name
    return None


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


def meet(store: dist.Store, rank: int, world_size: int, timeout_s: float) -> None:
    """Wait until all ranks are at the store; raises RuntimeError after `timeout_s`.

    A process group that is formed without one of its ranks would wait for as long as its sums may take.
    """
    store.set(f"rank {rank}", "here")
    store.wait([f"rank {other}" for other in range(world_size)], timedelta(seconds=timeout_s))
