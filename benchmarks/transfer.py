"""Which way data should go from worker to worker: Ray's object store, or straight over torch.distributed (gloo).

Two real Ray actors on this machine, one array at a time, the driver telling each what to do, as in a run: from the call
until the receiver has read every value. Sizes are those of a wavefront at 3840 x 2160 px and 81 frames: a cell of the
canvas, and the prediction of a window of 1280 x 720 px.

    python benchmarks/transfer.py [--repeats 20]
"""

import argparse
import os
import statistics
import time
from datetime import timedelta
from typing import Any

import numpy as np
import ray
import torch

from fresco_dist.runtime.collectives import connect_store, serve_store

CELL, WINDOW = (16, 21, 45, 80), (16, 21, 90, 160)
TIMEOUT_S = 60.0
ROUTES = ("object store", "direct")


@ray.remote(num_cpus=0.1)
class Peer:
    """A worker that makes an array, or takes one."""

    def __init__(self, rank: int) -> None:
        torch.set_num_threads(1)
        self._rank, self._group, self._store = rank, None, None

    def serve(self) -> tuple[str, int]:
        """Serve the store at which both meet."""
        host = ray.util.get_node_ip_address()
        self._store = serve_store(host, TIMEOUT_S)
        return host, self._store.port

    def join(self, address: tuple[str, int]) -> None:
        """Form a group of two."""
        store = self._store or connect_store(address, TIMEOUT_S)
        options = torch.distributed.ProcessGroupGloo._Options()
        device = torch.distributed.ProcessGroupGloo.create_device(hostname=ray.util.get_node_ip_address())
        options._devices, options._timeout = [device], timedelta(seconds=TIMEOUT_S)
        self._group = torch.distributed.ProcessGroupGloo(store, self._rank, 2, options)

    def make(self, shape: tuple[int, ...]) -> np.ndarray:
        """An array, as a task's result."""
        return np.ones(shape, dtype=np.int32)

    def take(self, array: np.ndarray) -> int:
        """Read an array that is a task's input."""
        return int(torch.tensor(array).sum())

    def send(self, shape: tuple[int, ...]) -> None:
        """Make an array and send it to the other."""
        self._group.send([torch.from_numpy(self.make(shape))], 1, 0).wait()

    def receive(self, shape: tuple[int, ...]) -> int:
        """Read an array from the other."""
        array = torch.empty(shape, dtype=torch.int32)
        self._group.recv([array], 0, 0).wait()
        return int(array.sum())


def measure(route: str, sender: Any, receiver: Any, shape: tuple[int, ...]) -> float:
    """Seconds from the call until the receiver has read every value."""
    start_s = time.perf_counter()
    if route == "object store":
        total = ray.get(receiver.take.remote(sender.make.remote(shape)), timeout=TIMEOUT_S)
    else:
        _, total = ray.get([sender.send.remote(shape), receiver.receive.remote(shape)], timeout=TIMEOUT_S)
    assert total == np.prod(shape)
    return time.perf_counter() - start_s


def main() -> None:
    """Print one row per size and route."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    ray.init(address="local", include_dashboard=False, num_cpus=2, logging_level="ERROR")
    sender, receiver = Peer.remote(0), Peer.remote(1)
    address = ray.get(sender.serve.remote(), timeout=TIMEOUT_S)
    ray.get([sender.join.remote(address), receiver.join.remote(address)], timeout=TIMEOUT_S)
    print("| array | route | ms, median | min | max |\n|---|---|---|---|---|")
    for name, shape in {"cell": CELL, "window": WINDOW}.items():
        times_s: dict[str, list[float]] = {route: [] for route in ROUTES}
        for repeat in range(arguments.repeats + 3):
            for route in ROUTES:
                seconds = measure(route, sender, receiver, shape)
                if repeat >= 3:  # the first ones warm up
                    times_s[route].append(seconds)
        for route, values in times_s.items():
            middle, low, high = (1000 * f(values) for f in (statistics.median, min, max))
            print(f"| {name}, {4 * np.prod(shape) / 1e6:.1f} MB | {route} | {middle:.1f} | {low:.1f} | {high:.1f} |")
    ray.shutdown()


if __name__ == "__main__":
    main()
