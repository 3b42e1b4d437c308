"""What writing a video takes in each format: seconds, memory, size of the file.

A clip is put together from random tiles, as a run's is, in a mapped file or in memory, and written, for each format in
a process of its own. Peak memory counts the pages of the mapped file that are in memory, which the system takes back
where it needs them; what the process itself has taken is told apart.

    python benchmarks/formats.py [--size 3840 2160] [--num-frames 81] [--formats h264 prores ...] [--in-memory]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from threading import Event, Thread

import numpy as np

from fresco_dist import models
from fresco_dist.config import FORMATS, VideoFormat
from fresco_dist.jobs.clip import Clip
from fresco_dist.media.video import write_video
from fresco_dist.method.grid import tile_cores
from fresco_dist.schedule.plan import Plan, make_plan
from fresco_dist.settings.schema import compose_config

BLOCK_PX, NOISE = 16, 512  # of a tile: blocks of random colours that move, and noise of so many of 65536 steps


def status_gb(key: str) -> float:
    """A figure of this process."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) / 1e6


def random_tile(rng: np.random.Generator, shape: tuple[int, ...], bits: int) -> np.ndarray:
    """(F, h, w, 3): blocks of colours that move by two pixels per frame, with noise."""
    num_frames, height, width, _ = shape
    coarse = rng.integers(0, 65536 - NOISE, (height // BLOCK_PX + 1, width // BLOCK_PX + 2, 3), dtype=np.uint16)
    blocks = coarse.repeat(BLOCK_PX, 0).repeat(BLOCK_PX, 1)[:height]
    tile = np.empty(shape, dtype=np.uint8 if bits == 8 else np.uint16)
    noise = rng.integers(0, NOISE, blocks.shape, dtype=np.uint16)
    for i in range(num_frames):
        moved = np.roll(blocks, 2 * i, axis=1) + np.roll(noise, 37 * i, axis=0)
        tile[i] = moved[:, :width] >> (16 - bits)
    return tile


def make_clip(plan: Plan, bits: int, path: Path | None) -> Clip:
    """All tiles of a plan's video."""
    clip, rng = Clip(plan, plan.top, bits), np.random.default_rng(0)
    clip.keep_at(path)
    for i, core in enumerate(tile_cores(plan.canvas.decode_tiles)):
        pixels = core.scaled(plan.spec.spatial_factor)
        clip.take(i, random_tile(rng, (plan.num_frames, pixels.height, pixels.width, 3), bits))
    return clip


def measure(name: str, size: tuple[int, int], num_frames: int, folder: Path, in_memory: bool) -> dict[str, float]:
    """Write a clip in one format."""
    encoding = FORMATS[VideoFormat(name)]
    size_px = f"video.max_size=[{size[0]},{size[1]}]"
    config = compose_config("model=synthetic", size_px, f"video.num_frames={num_frames}", f"video.format={name}")
    plan = make_plan(config, models.read_spec(config.model), size, 1)
    clip = make_clip(plan, encoding.bits, None if in_memory else folder / "clip")
    before_gb, peaks_gb, ended = status_gb("RssAnon"), [0.0], Event()

    def watch() -> None:
        while not ended.wait(0.02):
            peaks_gb[0] = max(peaks_gb[0], status_gb("RssAnon"))

    watcher = Thread(target=watch)
    watcher.start()
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    product = folder / encoding.file_name
    write_video(product, clip.frames, plan.output_px, config.video.rate, config.video.format)
    took_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    ended.set()
    watcher.join()
    files = product.iterdir() if product.is_dir() else [product]
    return {
        "clip_gb": clip.frames.nbytes / 1e9,
        "peak_gb": status_gb("VmHWM"),
        "own_gb": peaks_gb[0] - (before_gb if in_memory else 0.0),
        "seconds": took_s,
        "cpu_s": cpu_s,
        "file_gb": sum(file.stat().st_size for file in files) / 1e9,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=2, default=(3840, 2160), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--num-frames", type=int, default=81)
    parser.add_argument("--formats", nargs="+", choices=[name.value for name in FORMATS])
    parser.add_argument("--in-memory", action="store_true")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    names = args.formats or [name.value for name in FORMATS]
    if args.one:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(names[0], tuple(args.size), args.num_frames, Path(folder), args.in_memory)))
        return
    print(
        "| format | frames | clip (GB) | peak (GB) | of it the process's own (GB) | s | CPU s per frame | file (GB) |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name in names:
        command = [sys.executable, __file__, "--one", "--formats", name, "--num-frames", str(args.num_frames)]
        command += ["--size", *map(str, args.size), *(["--in-memory"] * args.in_memory)]
        found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        figures = [f"{found[key]:.2f}" for key in ("clip_gb", "peak_gb", "own_gb")]
        figures += [f"{found['seconds']:.0f}", f"{found['cpu_s'] / args.num_frames:.2f}", f"{found['file_gb']:.3f}"]
        print("|", " | ".join([name, str(args.num_frames), *figures]), "|", flush=True)


if __name__ == "__main__":
    main()
