"""Memory bandwidth of accumulate and fuse over that of a plain copy of the same canvas.

Bytes moved at least: accumulate reads a prediction, reads and writes the accumulator; fuse reads and writes N and
reads x and z; a copy reads and writes. Everything in 4-byte cells. Each repeat measures all of them in turn, so that a
drift of the machine cancels in the ratio.

    python benchmarks/fusion_bandwidth.py [--device cpu] [--repeats 7] [--shape 16 21 270 480]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from fresco_dist.method.fixed_point import accumulate_, check_range, choose_scale
from fresco_dist.method.fusion import fuse_


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """Time of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(device: torch.device, shape: tuple[int, int, int, int], repeats: int) -> dict[str, list[float]]:
    """GB/s of each operation on a canvas of `shape`, once per repeat, after one that warms up."""
    generator = torch.Generator(device).manual_seed(0)
    N, x, z, target = (torch.randn(shape, generator=generator, device=device) for _ in range(4))
    total = torch.zeros(shape, dtype=torch.int32, device=device)
    weight_HW = torch.rand(shape[2:], generator=generator, device=device) + 0.05
    scale = choose_scale(4.0, 1.0)
    cells = N.numel()
    operations: dict[str, tuple[int, Callable[[], object]]] = {
        "copy": (8, lambda: target.copy_(x)),
        "accumulate": (12, lambda: (check_range(x), accumulate_(total, x, weight_HW, scale))),
        "fuse": (16, lambda: fuse_(N, weight_HW, x, z, lam=1.0, a=1.0, b=0.5)),
        "fuse, regional": (16, lambda: fuse_(N, weight_HW, x, z, lam=weight_HW, a=1.0, b=0.5)),
        "fuse, no prior": (8, lambda: fuse_(N, weight_HW, x, None, lam=0.0, a=1.0, b=0.5)),
    }
    rates: dict[str, list[float]] = {name: [] for name in operations}
    for repeat in range(repeats + 1):
        for name, (bytes_per_cell, function) in operations.items():
            rate = bytes_per_cell * cells / seconds(function, device) / 1e9
            if repeat:  # the first one warms up
                rates[name].append(rate)
    return rates


def print_table(rates: dict[str, list[float]]) -> None:
    """Bandwidths and their ratios to the copy of the same repeat."""
    print("| operation | GB/s, median | over copy, median | min | max |")
    print("|---|---|---|---|---|")
    for name, values in rates.items():
        ratios = [value / copy for value, copy in zip(values, rates["copy"])]
        print(
            f"| {name} | {statistics.median(values):.1f} | {statistics.median(ratios):.2f}"
            f" | {min(ratios):.2f} | {max(ratios):.2f} |"
        )


def main() -> None:
    """Print bandwidths and their ratios to the copy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--shape", type=int, nargs=4, default=[16, 21, 270, 480], metavar=("C", "T", "H", "W"))
    arguments = parser.parse_args()
    device, shape = torch.device(arguments.device), tuple(arguments.shape)
    threads = f"{torch.get_num_threads()} threads" if device.type == "cpu" else torch.cuda.get_device_name(device)
    print(f"canvas {shape}, {arguments.repeats} repeats, {threads}")
    print_table(measure(device, shape, arguments.repeats))


if __name__ == "__main__":
    main()
