"""Prompts by region with the embedded model: does each part of a picture move its own way?

Held-out pictures of four times the native side, whose panels fall into three regions: in the first all that travels is
told to go to the left, in the second to the right, in the third all is told to stand still. Each picture is animated
from the same noise with one prompt for all (which names no direction), with prompts blended by their regions, and with
the dominant prompt of each window. The truth is the picture drawn with the wanted motions; what the model can do at
best are three clips, each with the prompt of one region for all of the picture and looked at there (alone).

    python benchmarks/regions.py --out training_runs/regions --num-pictures 16

Speeds are in px per frame, by optical flow, where things that travel sideways would be in a region. Writes a JSON file
and a contact sheet per picture (rows: truth, the settings, alone; first, middle and last frame), goes on from those
that `--out` holds, and prints means with 95% intervals.
"""

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fresco_dist import models
from fresco_dist.jobs.inputs import Inputs
from fresco_dist.runtime.job import Job
from fresco_dist.schedule.plan import make_plan
from fresco_dist.settings.schema import compose_config
from fresco_dist.training.build import NATIVE_FRAMES
from fresco_dist.training.evaluate import DIRECTED, heading, mean_step, speed
from fresco_dist.training.evaluate_canvas import OVERLAP, SIZE_PX, animate, interval
from fresco_dist.training.loop import save_grid
from fresco_dist.training.prompts import KINDS, SINGULAR, Motion, prompt_of
from fresco_dist.training.scenes import BORDER_PX, Scene, make_scene

REGIONS = ("left", "right", "still")
SETTINGS = {"one prompt": [], "blend": ["region_mode=blend"], "dominant": ["region_mode=dominant"]}
SIDEWAYS = {kind for kind, (_, axis) in DIRECTED.items() if axis == 1}
MIN_MOVING_PX = 400  # fewer say little of a speed


@dataclass(frozen=True)
class Region:
    """Some panels of a picture: what they are told, where they are, and where something may travel, bool (H, W)."""

    prompt: str
    mask: np.ndarray
    travelled: np.ndarray


def motions_of(region: str) -> dict[str, Motion]:
    """What each kind does in a region."""
    if region == "still":
        return {kind: Motion("stands still" if kind in SINGULAR else "stand still", 0) for kind in KINDS}
    return heading("figures", -1 if region == "left" else 1)


def draw(seed: int, motions: dict[str, Motion]) -> Scene:
    """The picture of a seed; the same things in the same places, whatever they do."""
    return make_scene(seed, width=SIZE_PX[0], height=SIZE_PX[1], motions=motions)


def with_panels(scene: Scene, members: list[int], kinds: set[str] = frozenset(KINDS)) -> Scene:
    """The same with these panels alone, and in them only what is of some kinds."""
    panels = [scene.panels[i] for i in members]
    return replace(scene, panels=[replace(p, things=[t for t in p.things if t.kind in kinds]) for p in panels])


def mask_of(scene: Scene, members: list[int]) -> np.ndarray:
    """Where some panels are, with the borders around them: bool (H, W)."""
    mask = np.zeros((scene.height, scene.width), dtype=bool)
    for x, y, w, h in (scene.panels[i].box for i in members):
        top, left = round(y - BORDER_PX), round(x - BORDER_PX)
        mask[top : round(y + h + BORDER_PX), left : round(x + w + BORDER_PX)] = True
    return mask


def make_regions(seed: int) -> tuple[Scene, np.ndarray, list[Region]]:
    """A picture in which all moves, the frames that are wanted of it, and its regions, from left to right.

    Of the seeds that differ by thousands the first with enough that travels in each region.
    """
    while True:
        scenes = [draw(seed, motions_of(region)) for region in REGIONS]
        order = sorted(range(len(scenes[0].panels)), key=lambda i: scenes[0].panels[i].box[0])
        groups = [list(map(int, group)) for group in np.array_split(order, len(REGIONS))]
        regions = []
        for scene, members in zip(scenes, groups):
            moving = [with_panels(draw(seed, motions_of(way)), members, SIDEWAYS) for way in ("left", "right")]
            travelled = np.logical_or(*(one.activity_of(NATIVE_FRAMES) for one in moving))
            own = with_panels(scene, members)
            prompt = prompt_of({kind: scene.motions[kind] for kind in own.kinds}, opening=scene.opening)
            regions.append(Region(prompt, mask_of(scene, members), travelled))
        if all(region.travelled.sum() >= MIN_MOVING_PX for region in regions):
            break
        seed += 1000
    panels = {i: scene.panels[i] for scene, members in zip(scenes, groups) for i in members}
    wanted = replace(scenes[0], panels=[panels[i] for i in sorted(panels)])
    return scenes[0], wanted.frames(NATIVE_FRAMES), regions


def make_jobs(seed: int, out: Path, scene: Scene, regions: list[Region]) -> list[Job]:
    """A job for each setting, as the command would make it."""
    picture, inputs = out / f"picture_{seed}_input.png", Inputs()
    Image.fromarray(scene.frames(1)[0]).save(picture)
    unnamed = {kind: replace(scene.motions[kind], named=False) for kind in scene.kinds}
    entries = []
    for name, region in zip(REGIONS, regions):
        mask = out / f"picture_{seed}_{name}.png"
        Image.fromarray(region.mask).save(mask)
        entries.append(f'{{prompt: "{region.prompt}", mask: "{mask}"}}')
    common = ["cluster.executor=inprocess", "metrics=true", f"tiles.overlap={OVERLAP}", f"seed={seed}"]
    common += [f'image="{picture}"', f'prompt="{prompt_of(unnamed, opening=scene.opening)}"']
    jobs = []
    for overrides in SETTINGS.values():
        config = compose_config(*common, *overrides, *([f"regions=[{', '.join(entries)}]"] if overrides else []))
        image_px = inputs.image_px(config)
        plan = make_plan(config, models.read_spec(config.model), image_px, 1, inputs.shares(config, image_px))
        jobs.append(inputs.job(config, plan))
    return jobs


def measure(clips: Sequence[np.ndarray], regions: list[Region]) -> dict[str, float]:
    """How fast the regions travel to the right, and by how many grey levels they change from frame to frame.

    Each in a clip, uint8 (F, H, W, 3). `directions` is the share of the two travelling regions that go their way.
    """
    left, right, still = (speed(frames, region.travelled, 1) for frames, region in zip(clips, regions))
    changes = [mean_step(frames, region.travelled) for frames, region in zip(clips, regions)]
    return {
        "speed, left": left,
        "speed, right": right,
        "speed, still": still,
        "directions": float(np.mean([left < 0, right > 0])),
        "change, left and right": float(np.mean(changes[:2])),
        "change, still": changes[2],
    }


def measure_picture(seed: int, out: Path) -> dict[str, dict[str, float]]:
    """Figures of one picture, by setting; kept in `out` with the contact sheet."""
    done = out / f"picture_{seed}.json"
    if done.exists():
        return json.loads(done.read_text())
    torch.set_num_threads(1)
    scene, wanted, regions = make_regions(seed)
    jobs = make_jobs(seed, out, scene, regions)
    alone = [replace(jobs[0], prompts=(region.prompt, "")) for region in regions]
    clips, _, work_s = animate([*jobs, *alone])
    figures = {"truth": measure([wanted] * 3, regions), "alone": measure(clips[len(jobs) :], regions)}
    for name, job, frames, seconds in zip(SETTINGS, jobs, clips, work_s):
        figures[name] = measure([frames] * 3, regions) | {"forwards": job.plan.num_forwards, "seconds": seconds}
    save_grid(out / f"picture_{seed}.png", [clip[[0, len(clip) // 2, -1]] for clip in (wanted, *clips)])
    done.write_text(json.dumps(figures, indent=1))
    return figures


def print_table(figures: list[dict[str, dict[str, float]]]) -> None:
    """Means over the pictures with half widths of their 95% intervals, or the values of one picture."""
    columns = list(figures[0]["blend"])
    print(f"| {len(figures)} pictures | {' | '.join(columns)} |")
    print("|---" * (len(columns) + 1) + "|")
    for name in ("truth", *SETTINGS, "alone"):
        cells = []
        for column in columns:
            values = np.array([of[name].get(column, np.nan) for of in figures])
            if np.isnan(values).all():
                cells.append("-")
            elif len(values) == 1:
                cells.append(f"{values[0]:.3g}")
            else:
                mean, half = interval(values)
                cells.append(f"{mean:.3g} +- {half:.2g}")
        print(f"| {name} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("training_runs/regions"))
    parser.add_argument("--first-picture", type=int, default=0, help="seed")
    parser.add_argument("--num-pictures", type=int, default=16)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    out = args.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    seeds = range(args.first_picture, args.first_picture + args.num_pictures)
    with ProcessPoolExecutor(args.processes) as pool:
        print_table(list(pool.map(partial(measure_picture, out=out), seeds)))


if __name__ == "__main__":
    main()
