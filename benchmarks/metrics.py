"""What measuring a clip takes, and what it takes from the command: CPU time, memory, how late its event loop wakes.

A clip of random frames in a memory-mapped file, as the store keeps it, is measured beside a loop that sleeps for a
millisecond at a time, as one that waits for workers does: in a thread of the same process, and in a process of its own.

    python benchmarks/metrics.py [--size 3840 2160] [--num-frames 16 64]
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import numpy as np

from fresco_dist.jobs.measuring import Measurer
from fresco_dist.media.metrics import measure
from fresco_dist.method.grid import Window

TICK_S = 0.001
PRIOR_PX = 832, 480


def make_clip(path: Path, num_frames: int, size: tuple[int, int]) -> np.ndarray:
    """Uint8 (F, H, W, 3) in a file; each frame is the first, shifted."""
    first = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    clip = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(num_frames, *first.shape))
    for i in range(num_frames):
        clip[i] = np.roll(first, 3 * i, axis=1)
    clip.flush()
    return clip


def lateness_ms(work: Callable[[], object]) -> list[float]:
    """By how much a loop wakes too late, each time, while `work` is done in a thread."""
    thread, late = Thread(target=work), []
    thread.start()
    while thread.is_alive():
        before_s = time.perf_counter()
        time.sleep(TICK_S)
        late.append(1e3 * (time.perf_counter() - before_s - TICK_S))
    return late


def cpu_s(pid: int | str) -> float:
    """CPU time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_gb(pid: int) -> float:
    """The most memory that a process has had."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=2, default=(3840, 2160), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--num-frames", type=int, nargs="+", default=[16, 64])
    args = parser.parse_args()
    width, height = args.size
    seams = [Window(0, 0, height, width // 2), Window(0, width // 2, height, width - width // 2)]
    config = SimpleNamespace(dino_path=None, cluster=SimpleNamespace(timeout_s=600.0))
    job = SimpleNamespace(config=config, plan=SimpleNamespace(seams_px=seams))
    measurer = Measurer(None)
    print(
        "| frames | measured in | CPU s of the command | of the other | loop late, 99% (ms) | worst (ms) | peak (GB) |"
    )
    print("|---|---|---|---|---|---|---|")
    for num_frames in args.num_frames:
        with tempfile.TemporaryDirectory() as folder:
            clip, prior = (make_clip(Path(folder) / f"{px[0]}.npy", num_frames, px) for px in (args.size, PRIOR_PX))
            there = lambda: measurer.measure(clip, prior, job)  # noqa: B023, E731
            here = lambda: measure(clip, prior, PRIOR_PX, seams)  # noqa: B023, E731
            measurer.measure(clip[:1], prior[:1], job)  # it is there
            for name, work in {"another process": there, "a thread": here, "none": lambda: time.sleep(5)}.items():
                pids = ["self", measurer._process.pid]
                began_s = [cpu_s(pid) for pid in pids]
                late = lateness_ms(work)
                took_s = [f"{cpu_s(pid) - before_s:.1f}" for pid, before_s in zip(pids, began_s)]
                ms = [f"{np.quantile(late, 0.99):.1f}", f"{max(late):.0f}"]
                print(
                    "|", " | ".join([str(num_frames), name, *took_s, *ms, f"{peak_gb(pids[1]):.2f}"]), "|", flush=True
                )
    measurer.close()


if __name__ == "__main__":
    main()
