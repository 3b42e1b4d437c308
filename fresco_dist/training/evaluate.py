"""Measures the embedded model on held-out pictures through the stock image-to-video pipeline.

    python -m fresco_dist.training.evaluate --model fresco_dist/assets/fresco_tiny --out training_runs/evaluate

Owns the figures of the model card. Writes `metrics.json` and contact sheets (truth above, generated below). Pixel
differences are in grey levels of 0..255; speeds in px per frame at native size. Never trains.
"""

import argparse
import json
import logging
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import WanImageToVideoPipeline
from PIL import Image, ImageFilter

from fresco_dist.training import build
from fresco_dist.training.data import Clip, sample_clip
from fresco_dist.training.loop import save_grid
from fresco_dist.training.prompts import KINDS, SINGULAR, VERBS, Motion, prompt_of
from fresco_dist.training.scenes import Scene, make_scene
from fresco_dist.training.vae import evaluate as round_trip

logger = logging.getLogger(__name__)
NATIVE = (build.NATIVE_WIDTH_PX, build.NATIVE_HEIGHT_PX)
STATIC_MARGIN_PX = 4
# Kinds with a nameable direction and the axis of their motion: 1 along x, 0 along y.
DIRECTED = {
    "figures": ("walk", 1),
    "river": ("flows", 1),
    "clouds": ("drift", 1),
    "boats": ("sail", 1),
    "angels": ("fly", 0),
}


def animate(pipe: WanImageToVideoPipeline, image: np.ndarray, prompt: str, *, seed: int, steps: int) -> np.ndarray:
    """Stock pipeline on one native picture (H, W, 3) uint8; returns uint8 (F, H, W, 3)."""
    video = pipe(
        image=Image.fromarray(image),
        prompt=prompt,
        height=image.shape[0],
        width=image.shape[1],
        num_frames=build.NATIVE_FRAMES,
        num_inference_steps=steps,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(seed),
    ).frames[0]
    return (video * 255).round().astype(np.uint8)


def frame_psnr_db(first: np.ndarray, second: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((first.astype(float) - second) ** 2)))


def away_from(mask: np.ndarray) -> np.ndarray:
    """Pixels at least STATIC_MARGIN_PX away from `mask`."""
    grown = Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.MaxFilter(2 * STATIC_MARGIN_PX + 1))
    return np.asarray(grown) == 0


def mean_step(frames: np.ndarray, region: np.ndarray) -> float:
    """Mean absolute difference of consecutive frames inside `region`, in grey levels."""
    return float(np.abs(np.diff(frames.astype(float), axis=0)).mean(-1)[:, region].mean())


def speed(frames: np.ndarray, region: np.ndarray, axis: int) -> float:
    """Least-squares translation along `axis` (0: y, 1: x) per frame inside `region` (Lucas-Kanade, one window)."""
    grey = np.stack([np.asarray(Image.fromarray(f).convert("L").filter(ImageFilter.GaussianBlur(1.2))) for f in frames])
    grey = grey.astype(float)
    middle = (grey[1:] + grey[:-1]) / 2
    slopes = np.stack([np.gradient(middle, axis=1), np.gradient(middle, axis=2)])[:, :, region].reshape(2, -1)
    change = (grey[1:] - grey[:-1])[:, region].reshape(-1)
    solved = np.linalg.solve(slopes @ slopes.T + 1e-3 * np.eye(2), -slopes @ change)
    return float(solved[axis])


def measure_clip(clip: Clip, frames: np.ndarray) -> dict[str, float]:
    static = away_from(clip.moving)
    contrast = clip.frames[0].astype(float).std()
    return {
        "first_frame_psnr_db": frame_psnr_db(frames[0], clip.frames[0]),
        "static_step": mean_step(frames, static) if static.sum() > 50 else np.nan,
        "moving_step": mean_step(frames, clip.moving) if clip.moving.sum() > 50 else np.nan,
        "truth_moving_step": mean_step(clip.frames, clip.moving) if clip.moving.sum() > 50 else np.nan,
        "last_frame_static_psnr_db": frame_psnr_db(frames[-1][static], clip.frames[0][static])
        if static.sum() > 50
        else np.nan,
        "last_frame_contrast": frames[-1].astype(float).std() / contrast,
    }


def measure_native(pipe: WanImageToVideoPipeline, *, num_clips: int, steps: int, out: Path) -> dict[str, float]:
    """Means over held-out native clips (crops and thumbnails)."""
    figures, rows = [], []
    for seed in range(num_clips):
        clip = sample_clip(seed, height=NATIVE[1], width=NATIVE[0], num_frames=build.NATIVE_FRAMES)
        frames = animate(pipe, clip.frames[0], clip.prompt, seed=seed, steps=steps)
        figures.append(measure_clip(clip, frames))
        rows += [clip.frames[::2], frames[::2]]
    for start in range(0, len(rows), 12):
        save_grid(out / f"native_{start // 12}.png", rows[start : start + 12])
    return {key: float(np.nanmean([figure[key] for figure in figures])) for key in figures[0]}


def heading(kind: str, sign: int) -> dict[str, Motion]:
    """Everything moves; `kind` and all that travels along its axis go the way of `sign`, the rest as it likes."""
    axis = DIRECTED[kind][1]
    motions = {}
    for other, options in VERBS.items():
        verb, words = options[0]
        along = other in DIRECTED and DIRECTED[other][1] == axis
        motions[other] = Motion(verb, sign if along else 1, named=words is not None)
    return motions


def directed_scene(kind: str, seed: int, sign: int) -> tuple[Scene, tuple, np.ndarray]:
    """A held-out picture that holds `kind`, a native crop around one of them, and the pixels that only they touch."""
    while True:
        scene = make_scene(seed, width=256, height=160, motions=heading(kind, sign))
        found = [(panel, thing) for panel in scene.panels for thing in panel.things if thing.kind == kind]
        if found:
            break
        seed += 1000
    panel, thing = found[0]
    x, y = (panel.box[0] + panel.box[2] / 2, thing.y + 12) if kind == "river" else (thing.x, thing.y - 10)
    left = float(np.clip(x - NATIVE[0] / 2, 0, scene.width - NATIVE[0]))
    top = float(np.clip(y - NATIVE[1] / 2, 0, scene.height - NATIVE[1]))
    box = (left, top, *NATIVE)
    still = {other: Motion("stands still" if other in SINGULAR else "stand still", 0) for other in KINDS}
    alone = make_scene(seed, width=256, height=160, motions={**still, kind: scene.motions[kind]})
    return scene, box, alone.activity_of(build.NATIVE_FRAMES, box=box, size=NATIVE)


def measure_directions(
    pipe: WanImageToVideoPipeline, *, num_scenes: int, steps: int, out: Path
) -> dict[str, dict[str, float]]:
    """Same picture and noise, two named directions: speed along the axis for each, share of pairs in order."""
    results = {}
    for kind, (_, axis) in DIRECTED.items():
        speeds, truths, rows = [], [], []
        for index in range(num_scenes):
            pair, truth = [], []
            for sign in (-1, 1):
                scene, box, region = directed_scene(kind, 500 + index, sign)
                clip = scene.frames(build.NATIVE_FRAMES, box=box, size=NATIVE)
                present = {name: scene.motions[name] for name in scene.kinds}
                frames = animate(pipe, clip[0], prompt_of(present), seed=index, steps=steps)
                pair.append(speed(frames, region, axis))
                truth.append(speed(clip, region, axis))
                rows += [clip[::2], frames[::2]] if index < 2 else []
            speeds.append(pair)
            truths.append(truth)
        save_grid(out / f"direction_{kind}.png", rows)
        words = dict(VERBS[kind])[DIRECTED[kind][0]]
        assert words is not None
        low, high = np.mean(speeds, axis=0)
        results[kind] = {
            f"speed {words[0]}": float(low),
            f"speed {words[1]}": float(high),
            "truth": float(np.mean([t[1] - t[0] for t in truths]) / 2),
            "pairs_in_order": float(np.mean([pair[0] < pair[1] for pair in speeds])),
        }
    return results


@torch.no_grad()
def forward_seconds(pipe: WanImageToVideoPipeline) -> float:
    """Median time of one native forward on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    shape = (1, pipe.transformer.config.in_channels, (build.NATIVE_FRAMES - 1) // build.TEMPORAL_FACTOR + 1)
    x = torch.zeros(*shape, NATIVE[1] // build.SPATIAL_FACTOR, NATIVE[0] // build.SPATIAL_FACTOR)
    text, times = torch.zeros(1, build.TEXT_TOKENS, build.TEXT_DIM), []
    for _ in range(7):
        start = time.perf_counter()
        pipe.transformer(x, torch.tensor([500.0]), text)
        times.append(time.perf_counter() - start)
    torch.set_num_threads(threads)
    return float(np.median(times))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=build.ASSET_PATH)
    parser.add_argument("--out", type=Path, default=Path("training_runs/evaluate"))
    parser.add_argument("--num-clips", type=int, default=24)
    parser.add_argument("--num-scenes", type=int, default=6)
    parser.add_argument("--steps", type=int, default=build.NATIVE_STEPS)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args.out.mkdir(parents=True, exist_ok=True)
    pipe = WanImageToVideoPipeline.from_pretrained(args.model)
    pipe.set_progress_bar_config(disable=True)
    psnr_db, first_psnr_db, rows = round_trip(pipe.vae, num_clips=args.num_clips)
    save_grid(args.out / "round_trip.png", rows)
    metrics = {
        "vae": {"round_trip_psnr_db": psnr_db, "first_frame_psnr_db": first_psnr_db},
        "native": measure_native(pipe, num_clips=args.num_clips, steps=args.steps, out=args.out),
        "directions": measure_directions(pipe, num_scenes=args.num_scenes, steps=args.steps, out=args.out),
        "forward_s_one_thread": forward_seconds(pipe),
        "settings": {"num_clips": args.num_clips, "num_scenes": args.num_scenes, "steps": args.steps},
    }
    (args.out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    logger.info("%s", json.dumps(metrics, indent=2))


if __name__ == "__main__":
    main()
