"""How much time dispatch adds to the steps: real Ray actors whose forwards only wait.

Wall time from the first prediction to the last commit over the barrier's own bound, S x ceil(T / N) x c, where T
windows of c seconds each meet at a barrier after each of S steps on N workers.

    python benchmarks/dispatch_overhead.py [--forward-s 0.2 1.0] [--repeats 3] [--num-workers 8]
"""

import argparse
import math
import os
import statistics

import numpy as np
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from fresco_dist import backbones
from fresco_dist.config import Config
from fresco_dist.engine import denoising_graph, execute
from fresco_dist.launch import CONFIG_FOLDER
from fresco_dist.plan import make_plan
from fresco_dist.ray_executor import RayExecutor
from fresco_dist.trace import TaskRecord, span_s
from fresco_dist.worker import Job

GRIDS = {25: (5, 5), 36: (6, 6), 72: (8, 9)}
WINDOW_PX, STRIDE_PX = 32, 16
NUM_STEPS = 6


def make_job(num_windows: int, forward_s: float, num_workers: int) -> Job:
    """A job of `num_windows` windows on the synthetic backbone, without a prior."""
    rows, columns = GRIDS[num_windows]
    size = (STRIDE_PX * (columns + 1), STRIDE_PX * (rows + 1))
    overrides = ["model=synthetic", f"model.forward_s={forward_s}", "fusion=multidiffusion", "video.num_frames=5"]
    overrides += [f"sampler.num_steps={NUM_STEPS}", f"tiles.window=[{WINDOW_PX},{WINDOW_PX}]", "tiles.overlap=0.5"]
    overrides += [f"cluster.num_workers={num_workers}", "cluster.cpus_per_worker=0.1"]
    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        config = OmegaConf.to_object(compose("config", overrides))
    plan = make_plan(config, backbones.read_spec(config.model), size, num_workers, prior=False)
    assert len(plan.canvas.windows) == num_windows
    picture = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    return Job(config, plan, ("",), picture, picture[:16, :16], None)


def measure(job: Job, num_workers: int, repeats: int) -> list[float]:
    """Wall time of the steps in seconds, once per repeat, after one that warms up."""
    executor = RayExecutor(job, num_workers=num_workers, gpus_per_worker=0)
    times = []
    try:
        for _ in range(repeats + 1):
            records: list[TaskRecord] = []
            execute(denoising_graph(job.plan), executor, records.append, {})
            times.append(span_s(records, "predict", "commit"))
    finally:
        executor.close()
    return times[1:]


def main() -> None:
    """Print one row per window count and forward time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--forward-s", type=float, nargs="+", default=[0.2, 1.0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--num-workers", type=int, default=8)
    arguments = parser.parse_args()
    ConfigStore.instance().store(name="config_schema", node=Config)
    print(f"{arguments.num_workers} workers, {NUM_STEPS} steps, {arguments.repeats} runs, {os.cpu_count()} CPUs")
    print("| windows | forward s | bound s | steps s, median | over bound, median | min | max |")
    print("|---|---|---|---|---|---|---|")
    for forward_s in arguments.forward_s:
        for num_windows in GRIDS:
            job = make_job(num_windows, forward_s, arguments.num_workers)
            times = measure(job, arguments.num_workers, arguments.repeats)
            bound = NUM_STEPS * math.ceil(num_windows / arguments.num_workers) * forward_s
            ratios = sorted(t / bound for t in times)
            median = statistics.median(times)
            print(
                f"| {num_windows} | {forward_s:g} | {bound:.1f} | {median:.2f} | {median / bound:.3f}"
                f" | {ratios[0]:.3f} | {ratios[-1]:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
