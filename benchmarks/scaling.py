"""How close the schedules come to all forwards / workers: real Ray actors whose forwards only wait.

For each grid, a prior of 6 forwards and 6 steps on the same workers with both dispatch modes, and once more with the
prior before everything else. Wall time from the first forward to the last fused cell, over work / workers; the same
from the simulator.

    python benchmarks/scaling.py [--forward-s 0.2 1.0] [--repeats 3] [--num-workers 8] [--windows 25 36 72]
"""

import argparse
import os
import statistics
from dataclasses import replace

import numpy as np

from fresco_dist import models
from fresco_dist.config import DispatchMode
from fresco_dist.runtime.job import Job
from fresco_dist.runtime.ray_cluster import start_ray, stop_ray
from fresco_dist.runtime.ray_executor import RayExecutor
from fresco_dist.schedule.execute import execute
from fresco_dist.schedule.graph import Graph, Task
from fresco_dist.schedule.plan import make_plan
from fresco_dist.schedule.simulate import SimulatedExecutor
from fresco_dist.schedule.tasks import run_graph
from fresco_dist.schedule.trace import TaskRecord, span_s
from fresco_dist.settings.schema import compose_config

GRIDS = {25: (5, 5), 36: (6, 6), 72: (8, 9)}
WINDOW_PX, STRIDE_PX = 32, 16
NUM_STEPS = 6


def make_job(num_windows: int, forward_s: float, num_workers: int, mode: DispatchMode) -> Job:
    """A job of `num_windows` windows, each overlapping its neighbours by half, on the synthetic backbone."""
    rows, columns = GRIDS[num_windows]
    size = (STRIDE_PX * (columns + 1), STRIDE_PX * (rows + 1))
    overrides = ["model=synthetic", f"model.forward_s={forward_s}", "video.num_frames=5", "prior.area=1024"]
    overrides += [f"sampler.num_steps={NUM_STEPS}", f"tiles.window=[{WINDOW_PX},{WINDOW_PX}]", "tiles.overlap=0.5"]
    overrides += [f"cluster.num_workers={num_workers}", "cluster.cpus_per_worker=0.1", f"dispatch.mode={mode.value}"]
    config = compose_config(*overrides)
    plan = make_plan(config, models.read_spec(config.model), size, num_workers)
    assert len(plan.canvas.steps[0].grid.windows) == num_windows and plan.num_forwards == NUM_STEPS * (num_windows + 1)
    sizes_px = [plan.size_px(level) for level in range(len(plan.levels))]
    return Job(config, plan, ("",), tuple(np.zeros((height, width, 3), np.uint8) for width, height in sizes_px))


def graph_of(job: Job, prior_first: bool) -> Graph:
    """The job's graph; with `prior_first`, nothing is predicted before the prior is there."""
    graph = run_graph([job.plan], [job.keys], job.config.dispatch.mode)
    if prior_first:
        prior = Task("fuse", NUM_STEPS - 1, 0, level=0)
        for task, node in graph.nodes.items():
            if task.kind == "predict" and (task.level, task.step) == (job.plan.top, 0):
                graph.nodes[task] = replace(node, after=node.after | {prior})
    return graph


def wall_s(records: list[TaskRecord]) -> float:
    """From the first forward to the last fused cell."""
    return span_s([record for record in records if record.task.kind in ("predict", "fuse", "commit")])


def measure(job: Job, prior_first: bool, num_workers: int, repeats: int) -> list[float]:
    """Wall times in seconds, after one run that warms up."""
    cluster = job.config.cluster
    start_ray(cluster)
    executor = RayExecutor(cluster, job.config.model.backbone, num_workers=num_workers, gpus_per_worker=0)
    times = []
    try:
        executor.give([job])
        for _ in range(repeats + 1):
            records: list[TaskRecord] = []
            assert not execute(graph_of(job, prior_first), executor, records.append, {})
            times.append(wall_s(records))
    finally:
        executor.close()
    return times[1:]


def simulate(job: Job, prior_first: bool, num_workers: int) -> float:
    """The same in virtual time, where only forwards take time."""
    executor = SimulatedExecutor(num_workers, lambda worker, task: job.config.model.forward_s * task.traits.forward)
    records: list[TaskRecord] = []
    execute(graph_of(job, prior_first), executor, records.append, {})
    return wall_s(records)


def main() -> None:
    """Print one row per forward time, grid and schedule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--forward-s", type=float, nargs="+", default=[0.2, 1.0])
    parser.add_argument("--windows", type=int, nargs="+", default=list(GRIDS), choices=list(GRIDS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--num-workers", type=int, default=8)
    arguments = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    workers = arguments.num_workers
    print(f"{workers} workers, {NUM_STEPS} steps, prior of {NUM_STEPS} forwards, {arguments.repeats} runs")
    print("| forward s | windows | schedule | over work / workers, median | min | max | simulated |")
    print("|---|---|---|---|---|---|---|")
    schedules = {
        "prior first, barrier": (DispatchMode.allreduce, True),
        "allreduce": (DispatchMode.allreduce, False),
        "wavefront": (DispatchMode.wavefront, False),
    }
    for forward_s in arguments.forward_s:
        for num_windows in arguments.windows:
            for name, (mode, prior_first) in schedules.items():
                job = make_job(num_windows, forward_s, workers, mode)
                bound_s = job.plan.num_forwards * forward_s / workers
                ratios = sorted(t / bound_s for t in measure(job, prior_first, workers, arguments.repeats))
                simulated = simulate(job, prior_first, workers) / bound_s
                print(
                    f"| {forward_s:g} | {num_windows} | {name} | {statistics.median(ratios):.3f}"
                    f" | {ratios[0]:.3f} | {ratios[-1]:.3f} | {simulated:.3f} |",
                    flush=True,
                )
    stop_ray()


if __name__ == "__main__":
    main()
