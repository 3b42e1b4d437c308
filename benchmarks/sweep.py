"""What a sweep saves: 4 prior strengths x 3 cutoffs at once, against the same points one by one.

Warm: from the first task after loading to the last one, on workers that stay: all points as one graph, or a graph per
point, in which nothing is shared. Commands: the whole sweep, or a command per point, the interpreter's start and the
products included. Asserts that all ways give the same latents, and that forwards done are as many as the plan tells.

    python benchmarks/sweep.py [--model fresco_tiny] [--num-workers 2] [--repeats 1]
    python benchmarks/sweep.py --model synthetic --num-workers 4       # forwards that only wait
"""

import argparse
import hashlib
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np

from fresco_dist import models
from fresco_dist.media.pictures import read_image, resize_image
from fresco_dist.runtime.job import Job
from fresco_dist.runtime.ray_cluster import start_ray, stop_ray
from fresco_dist.runtime.ray_executor import RayExecutor
from fresco_dist.schedule.execute import execute
from fresco_dist.schedule.plan import make_plan
from fresco_dist.schedule.tasks import run_graph
from fresco_dist.schedule.trace import TaskRecord, span_s
from fresco_dist.settings.schema import compose_config

STRENGTHS, CUTOFFS = (0, 1, 2, 4), (0, 0.2, 0.5)
POINTS = [[f"fusion.prior_strength={s}", f"fusion.cutoff={c}"] for s, c in itertools.product(STRENGTHS, CUTOFFS)]
SWEEP = [f"fusion.prior_strength={','.join(map(str, STRENGTHS))}", f"fusion.cutoff={','.join(map(str, CUTOFFS))}"]
PICTURE = Path(str(files("fresco_dist") / "assets" / "fresco.png"))
SMALL = ["video.max_size=[192,128]", "video.num_frames=9", "tiles.window=[64,96]", "prior.area=6144"]
WAYS = ("warm: one by one", "warm: as a sweep", "commands: one by one", "commands: as a sweep")


def make_job(overrides: Sequence[str], num_workers: int) -> Job:
    """The bundled picture, made small, with these settings."""
    config = compose_config(*overrides)
    picture = read_image(PICTURE)
    plan = make_plan(config, models.read_spec(config.model), picture.size, num_workers)
    prompt = PICTURE.with_suffix(".txt").read_text().strip()
    pictures = tuple(resize_image(picture, plan.size_px(level)) for level in range(len(plan.levels)))
    return Job(config, plan, (prompt,), pictures)


def run_warm(jobs: Sequence[Job], *, together: bool) -> tuple[float, int, list[str]]:
    """Seconds, forwards done, and the digest of each job's latents, on workers that are kept between the graphs."""
    parts = [slice(None)] if together else [slice(i, i + 1) for i in range(len(jobs))]
    digests: dict[str, str] = {}
    seconds, forwards = 0.0, 0

    def take(task, latents: np.ndarray) -> None:
        digests[task.of] = hashlib.sha256(np.ascontiguousarray(latents)).hexdigest()

    config = jobs[0].config
    start_ray(config.cluster)
    num_workers = jobs[0].plan.num_workers
    executor = RayExecutor(config.cluster, config.model.backbone, num_workers=num_workers, gpus_per_worker=0)
    try:
        executor.give(jobs)
        for part in parts:
            plans, keys = [job.plan for job in jobs[part]], [job.keys for job in jobs[part]]
            graph = run_graph(plans, keys, jobs[0].config.dispatch.mode)
            records: list[TaskRecord] = []
            assert not execute(graph, executor, records.append, {"collect": take})
            seconds += span_s([record for record in records if record.task.kind != "load"])
            done = sum(record.task.traits.forward for record in records)  # of one window each
            assert done == sum(task.traits.forward for task in graph.nodes)
            forwards += done
    finally:
        executor.close()
    return seconds, forwards, [digests[job.keys.levels[-1].last] for job in jobs]


def run_command(overrides: Sequence[str]) -> tuple[float, str]:
    """Seconds of a command, the interpreter's start included, and what it says."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-m", "fresco_dist.launch", *overrides]
    began_s = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return time.perf_counter() - began_s, done.stdout


def read_digest(folder: Path) -> str:
    return json.loads((folder / "run.json").read_text())["latents_sha256"]


def measure(jobs: Sequence[Job], overrides: Sequence[str], folder: Path) -> dict[str, tuple[float, float]]:
    """Seconds and forwards of each of WAYS."""
    *one_by_one, expected = run_warm(jobs, together=False)
    *as_sweep, digests = run_warm(jobs, together=True)
    assert digests == expected
    singles_s = 0.0
    for i, point in enumerate(POINTS):
        out = folder / f"single_{i}"
        singles_s += run_command([*overrides, *point, f"hydra.run.dir={out}"])[0]
        assert read_digest(out) == expected[i]
    sweep_s, said = run_command(["-m", *overrides, *SWEEP, f"hydra.sweep.dir={folder / 'sweep'}"])
    assert [read_digest(folder / "sweep" / str(i)) for i in range(len(POINTS))] == expected
    (planned, naive) = map(int, re.findall(r"(\d+) forwards instead of (\d+)", said)[0])
    assert (planned, naive) == (as_sweep[1], one_by_one[1])
    return dict(zip(WAYS, (one_by_one, as_sweep, (singles_s, naive), (sweep_s, planned)), strict=True))


def main() -> None:
    """Print a row per way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("fresco_tiny", "synthetic"), default="fresco_tiny")
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    overrides = [f"model={arguments.model}", f"cluster.num_workers={arguments.num_workers}", *SMALL]
    overrides += ["cluster.gpus_per_worker=0", "cluster.cpus_per_worker=0.1"]
    jobs = [make_job([*overrides, *point], arguments.num_workers) for point in POINTS]
    measured: dict[str, list[tuple[float, float]]] = {}
    for _ in range(arguments.repeats):
        with tempfile.TemporaryDirectory() as folder:
            for way, result in measure(jobs, overrides, Path(folder)).items():
                measured.setdefault(way, []).append(result)
    stop_ray()
    print(f"{arguments.model}, {arguments.num_workers} workers, {len(POINTS)} points, {arguments.repeats} runs")
    print("| | seconds, median (min - max) | forwards | over one by one |")
    print("|---|---|---|---|")
    for way, results in measured.items():
        seconds = [result[0] for result in results]
        others_s = statistics.median(result[0] for result in measured[way.partition(":")[0] + ": one by one"])
        median = statistics.median(seconds)
        print(f"| {way} | {median:.1f} ({min(seconds):.1f} - {max(seconds):.1f}) | {results[0][1]:g} |", end="")
        print(f" {median / others_s:.2f} |")


if __name__ == "__main__":
    main()
