"""What previews cost: steps of 25 windows on a UHD canvas whose forwards only wait, with and without, in turns.

One worker in this process and one thread, so that nothing hides behind a forward. Prints the seconds per step and
their ratio, then what the looks themselves take: those of the worker, cell by cell, and the picture of the driver.

    python benchmarks/preview.py [--forward-s 0.2] [--repeats 3] [--num-steps 2]
"""

import argparse
import statistics
import time

import numpy as np

from fresco_dist import models
from fresco_dist.jobs.preview import Looks, encode_png, lay_out
from fresco_dist.runtime.inprocess_executor import InProcessExecutor
from fresco_dist.runtime.job import Job
from fresco_dist.runtime.step import Denoiser
from fresco_dist.schedule.execute import execute
from fresco_dist.schedule.plan import make_plan
from fresco_dist.schedule.tasks import run_graph
from fresco_dist.schedule.trace import TaskRecord, span_s
from fresco_dist.settings.schema import compose_config

SIZE_PX = (3840, 2160)
NUM_WINDOWS = 25


class Clock:
    """The wall and CPU seconds that a function takes, over all of its calls."""

    def __init__(self, function) -> None:
        self._function, self.wall_s, self.cpu_s, self.calls = function, 0.0, 0.0, 0

    def __call__(self, *arguments):
        wall_s, cpu_s = time.perf_counter(), time.thread_time()
        try:
            return self._function(*arguments)
        finally:
            self.wall_s += time.perf_counter() - wall_s
            self.cpu_s += time.thread_time() - cpu_s
            self.calls += 1


def make_job(forward_s: float, num_steps: int, preview: bool) -> Job:
    """Of the video's level alone."""
    overrides = ["model=synthetic", f"model.forward_s={forward_s}", f"sampler.num_steps={num_steps}"]
    overrides += ["fusion=multidiffusion", "cluster.executor=inprocess", f"preview={str(preview).lower()}"]
    config = compose_config(*overrides)
    plan = make_plan(config, models.read_spec(config.model), SIZE_PX, 1)
    assert len(plan.canvas.steps[0].grid.windows) == NUM_WINDOWS
    sizes_px = [plan.size_px(level) for level in range(len(plan.levels))]
    return Job(config, plan, ("",), tuple(np.full((height, width, 3), 90, np.uint8) for width, height in sizes_px))


def measure(job: Job, draw: Clock) -> float:
    """Seconds per step, drawing what a run would."""
    records: list[TaskRecord] = []
    looks, plan = Looks(), job.plan

    def observe(record: TaskRecord) -> None:
        records.append(record)
        if record.looks and (frames := looks.take(record, plan.levels[record.task.level])) is not None:
            draw(frames, plan.size_px(plan.top))

    assert not execute(run_graph([plan], [job.keys], job.config.dispatch.mode), _give(job), observe, {})
    steps = [record for record in records if record.task.kind in ("predict", "fuse")]
    return span_s(steps) / plan.canvas.num_steps


def _give(job: Job) -> InProcessExecutor:
    return InProcessExecutor(use_gpu=False).give([job])


def main() -> None:
    """Print seconds per step and their ratio, by turns, and what the parts take."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--forward-s", type=float, default=0.2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--num-steps", type=int, default=2)
    given = parser.parse_args()
    jobs = {preview: make_job(given.forward_s, given.num_steps, preview) for preview in (False, True)}
    canvas = jobs[True].plan.canvas
    print(f"canvas {canvas.latent_shape}, {NUM_WINDOWS} windows, {len(canvas.cells)} cells, {given.repeats} turns")
    looked = Clock(Denoiser.look)
    Denoiser.look = lambda *arguments: looked(*arguments)
    draw = Clock(lambda frames, size_px: encode_png(lay_out(frames, size_px)))
    measure(jobs[False], draw)  # warms up
    looked.wall_s = looked.cpu_s = 0.0
    ratios = []
    for turn in range(given.repeats):
        order = (False, True) if turn % 2 else (True, False)
        step_s = {preview: measure(jobs[preview], draw) for preview in order}
        ratios.append(step_s[True] / step_s[False])
        print(f"seconds per step {step_s[False]:.3f} without, {step_s[True]:.3f} with: {ratios[-1]:.4f}", flush=True)
    print(f"ratio: median {statistics.median(ratios):.4f}, min {min(ratios):.4f}, max {max(ratios):.4f}")
    forwards_s, steps = given.forward_s * NUM_WINDOWS, given.repeats * given.num_steps
    for name, clock in (("looks of the worker", looked), ("picture of the driver", draw)):
        cpu_s, wall_s = clock.cpu_s / steps, clock.wall_s / steps
        share = cpu_s / forwards_s
        print(f"{name}: {1e3 * cpu_s:.1f} ms CPU per step ({1e3 * wall_s:.1f} ms wall), {share:.2%} of its forwards")


if __name__ == "__main__":
    main()
