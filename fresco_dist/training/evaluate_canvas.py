"""Measures fusion on held-out pictures at several times the native side, with the embedded model.

    python -m fresco_dist.training.evaluate_canvas --settings fusion=multidiffusion "fusion=fresco fusion.cutoff=1"

Each picture is animated from the same noise with every setting, and compared with the first setting's prior. In every
picture night or day comes: the moon or the sun in one panel says which, the prompt does not, so that windows may
disagree. Writes `metrics.json` (means with 95%
intervals, and paired differences to the first setting) and contact sheets (a row per setting, the prior below; first,
middle and last frame). Goes on from the pictures that `--out` holds, which is for one set of weights. Never trains.
"""

import argparse
import json
import logging
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import stats

from fresco_dist import models
from fresco_dist.config import DispatchMode
from fresco_dist.jobs.clip import Clip
from fresco_dist.jobs.job import tasks_of
from fresco_dist.media.metrics import grey, measure, seam_energy
from fresco_dist.media.pictures import resize_image
from fresco_dist.runtime.inprocess_executor import InProcessExecutor
from fresco_dist.runtime.job import Job
from fresco_dist.schedule.execute import execute
from fresco_dist.schedule.graph import Task
from fresco_dist.schedule.plan import make_plan
from fresco_dist.schedule.tasks import run_graph
from fresco_dist.schedule.trace import TaskRecord
from fresco_dist.settings.schema import compose_config
from fresco_dist.training.build import NATIVE_WIDTH_PX
from fresco_dist.training.loop import save_grid
from fresco_dist.training.pictures import night_or_day, open_scene
from fresco_dist.training.scenes import Scene

logger = logging.getLogger(__name__)
SIZE_PX = 384, 256  # four times the native side
OVERLAP = 0.25  # of neighbouring windows: 25 instead of the default's 49, for two CPU cores
SETTINGS = ("fusion=multidiffusion", "fusion=fresco")


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A bool mask (H, W) at `size` (width, height): true where most of it is."""
    return np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX)) > 127


def make_job(scene: Scene, overrides: list[str]) -> Job:
    """A job of one worker on a scene, with the activity of its things."""
    fixed = ["cluster.executor=inprocess", "metrics=true", "dispatch.mode=wavefront", f"tiles.overlap={OVERLAP}"]
    config = compose_config(*fixed, f"seed={scene.seed}", *overrides)
    image = Image.fromarray(scene.frames(1)[0])
    plan = make_plan(config, models.read_spec(config.model), image.size, 1)
    H, W = plan.canvas.canvas
    active = scene.activity_of(plan.num_frames)
    activity = resize_mask(active, (W, H))
    maps = tuple(resize_mask(active, level.canvas[::-1]) for level in plan.levels)
    pictures = tuple(resize_image(image, plan.size_px(level)) for level in range(len(plan.levels)))
    return Job(config, plan, (scene.prompt,), pictures, activity, maps)


def animate(jobs: Sequence[Job]) -> tuple[list[np.ndarray], np.ndarray, list[float]]:
    """The frames of each job and those of the first one's prior, uint8 (F, H, W, 3), and each job's seconds of work.

    What they share is done once, and counted for each.
    """
    graph = run_graph([job.plan for job in jobs], [job.keys for job in jobs], DispatchMode.wavefront)
    clips = {job.keys.levels[i].clip: Clip(job.plan, i) for job in jobs for i in (0, job.plan.top)}
    seconds: dict[Task, float] = {}

    def observe(record: TaskRecord) -> None:
        seconds[record.task] = record.end_s - record.start_s

    def paste(task: Task, result: tuple) -> None:
        if task.of in clips:  # else its pixels are for the level above alone
            clips[task.of].take(task.index, result[-1])

    dropped = execute(graph, InProcessExecutor(use_gpu=False).give(jobs), observe, {"blend": paste})
    assert not dropped, next(iter(dropped.values()))
    work_s = [sum(seconds[task] for task in tasks_of(graph, job.keys) if task.traits.forward) for job in jobs]
    clip_of = [clips[job.keys.levels[-1].clip].frames for job in jobs]
    return clip_of, clips[jobs[0].keys.levels[0].clip].frames, work_s


def light_changes(frames: np.ndarray, num_parts: int = 4) -> np.ndarray:
    """Grey levels by which each part of a clip, uint8 (F, H, W, 3), is lighter at its end; so many along each side."""
    luma = grey(frames[[0, -1]])
    blocks = [np.array_split(rows, num_parts, axis=2) for rows in np.array_split(luma, num_parts, axis=1)]
    first, last = np.array([[block.mean((1, 2)) for block in row] for row in blocks]).reshape(-1, 2).T
    return last - first


def measure_light(frames: np.ndarray, sign: int, num_parts: int = 4) -> dict[str, float]:
    """Of a clip, uint8 (F, H, W, 3), in which night (`sign` -1) or day (+1) should come, in parts of the native size.

    `light_change` is the mean change in grey levels, positive the right way; `light_right` the share of the parts that
    go the right way; `light_unevenness` the standard deviation over the parts in grey levels, which is not 0 for the
    truth: at night dark parts change less.
    """
    changes = light_changes(frames, num_parts)
    return {
        "light_change": float(sign * changes.mean()),
        "light_right": float((sign * changes > 0).mean()),
        "light_unevenness": float(changes.std()),
    }


def measure_picture(seed: int, settings: list[str], out: Path, size_px: tuple[int, int]) -> dict[str, dict[str, float]]:
    """Metrics with every setting, of prior and truth, on one picture; kept in `out` with the contact sheet."""
    done, of = out / f"picture_{seed}.json", {"size": list(size_px), "compared with": settings[0]}
    figures: dict[str, Any] = json.loads(done.read_text()) if done.exists() else {"of": of}
    assert figures["of"] == of, f"{done} is of {figures['of']}: choose another --out"
    if figures.keys() >= {*settings, "truth"}:
        return figures
    torch.set_num_threads(1)
    sign, light = night_or_day(seed), partial(measure_light, num_parts=size_px[0] // NATIVE_WIDTH_PX)
    scene = open_scene(seed, *size_px, light_sign=sign)
    jobs = [make_job(scene, setting.split()) for setting in settings]
    clips, prior, work_s = animate(jobs)
    plan = jobs[0].plan
    for setting, job, frames, seconds in zip(settings, jobs, clips, work_s):
        found = measure(frames, prior, plan.size_px(0), plan.seams_px, job.activity)
        figures[setting] = found | light(frames, sign)
        windows = [window.scaled(job.plan.spec.spatial_factor) for window in job.plan.canvas.steps[-1].grid.windows]
        figures[setting]["seam_energy_last"] = seam_energy(frames, windows)  # at its own windows of the last step
        figures[setting] |= {"forwards": job.plan.cost, "seconds": seconds}
    figures["prior"] = light(prior, sign)
    figures["truth"] = light(scene.frames(len(prior)), sign)
    enlarged = np.stack([resize_image(Image.fromarray(frame), size_px) for frame in prior])
    save_grid(out / f"picture_{seed}.png", [clip[[0, len(clip) // 2, -1]] for clip in (*clips, enlarged)])
    done.write_text(json.dumps(figures))
    return figures


def interval(values: np.ndarray) -> list[float]:
    """Mean and half width of its 95% interval (Student's t) of the values that are numbers."""
    values = values[~np.isnan(values)]
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return [round(float(values.mean()), 4), round(float(half), 4)]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("training_runs/evaluate_canvas"))
    parser.add_argument("--first-picture", type=int, default=0, help="seed; settings are chosen on 100 and after")
    parser.add_argument("--num-pictures", type=int, default=16)
    parser.add_argument("--size", type=int, nargs=2, default=SIZE_PX, metavar=("WIDTH", "HEIGHT"), help="in pixels")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), help="overrides, the first to compare with")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args.out.mkdir(parents=True, exist_ok=True)
    seeds = range(args.first_picture, args.first_picture + args.num_pictures)
    with ProcessPoolExecutor(args.processes) as pool:
        of_picture = partial(measure_picture, settings=args.settings, out=args.out, size_px=tuple(args.size))
        figures = list(pool.map(of_picture, seeds))
    first = args.settings[0]
    metrics: dict = {"seeds": [seeds[0], seeds[-1]], "mean_and_95_percent": {}, f"difference_to {first}": {}}
    for name in (*args.settings, "prior", "truth"):
        for key in figures[0][name]:
            values, plain = (np.array([figure[setting][key] for figure in figures]) for setting in (name, first))
            metrics["mean_and_95_percent"].setdefault(name, {})[key] = interval(values)
            metrics[f"difference_to {first}"].setdefault(name, {})[key] = interval(values - plain)
    (args.out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    logger.info("%s", json.dumps(metrics, indent=2))


if __name__ == "__main__":
    main()
