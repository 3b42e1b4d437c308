"""Measures fusion on held-out pictures at several times the native side, with the embedded model.

    python -m fresco_dist.training.evaluate_canvas --out training_runs/evaluate_canvas --num-pictures 16

Each picture is animated from the same noise by MultiDiffusion, FrescoDiffusion and its regional variant; directions of
motion are left out of the prompts, so that windows may disagree. Writes `metrics.json` (means with 95% intervals, and
paired differences) and contact sheets; goes on from the pictures that `--out` holds. Never trains.
"""

import argparse
import json
import logging
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from PIL import Image
from scipy import stats

from fresco_dist import backbones
from fresco_dist.config import Config
from fresco_dist.engine import decoding_graph, denoising_graph, execute
from fresco_dist.inprocess_executor import InProcessExecutor
from fresco_dist.launch import CONFIG_FOLDER
from fresco_dist.media import contact_sheet, resize_image
from fresco_dist.metrics import prior_distance, seam_energy, sharpness, temporal_difference
from fresco_dist.plan import make_plan
from fresco_dist.training.prompts import VERBS, Motion
from fresco_dist.training.scenes import Scene, make_scene
from fresco_dist.worker import Job

logger = logging.getLogger(__name__)
WIDTH_PX, HEIGHT_PX = 384, 256  # four times the native side
OVERLAP = 0.25  # of neighbouring windows: 25 instead of the default's 49, for two CPU cores
METHODS = {
    "multidiffusion": ["fusion=multidiffusion"],
    "fresco": ["fusion=fresco"],
    "regional": ["fusion=regional"],
}


def open_scene(seed: int) -> Scene:
    """A held-out picture in which everything moves and the prompt names no direction."""
    rng = np.random.default_rng((seed, 0xCA))
    motions = {kind: Motion(options[0][0], int(rng.choice((-1, 1))), named=False) for kind, options in VERBS.items()}
    return make_scene(seed, width=WIDTH_PX, height=HEIGHT_PX, motions=motions)


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A bool mask (H, W) at `size` (width, height): true where most of it is."""
    return np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX)) > 127


def animate(scene: Scene, overrides: list[str]) -> tuple[Job, np.ndarray, np.ndarray | None]:
    """The job, its frames and its prior's frames (None without a prior), uint8 (F, H, W, 3)."""
    ConfigStore.instance().store(name="config_schema", node=Config)
    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        config = OmegaConf.to_object(
            compose(
                "config",
                ["cluster.executor=inprocess", f"seed={scene.seed}", f"tiles.overlap={OVERLAP}", *overrides],
            )
        )
    image = Image.fromarray(scene.frames(1)[0])
    plan = make_plan(config, backbones.read_spec(config.model), image.size, 1, prior="multi" not in overrides[0])
    C, T, H, W = plan.canvas.latent_shape
    activity = resize_mask(scene.activity_of(plan.num_frames), (W, H))
    job = Job(config, plan, (scene.prompt,), np.array(image), resize_image(image, plan.native_px), activity)
    executor = InProcessExecutor(job, use_gpu=False)
    results: dict = {}
    frames = np.zeros((plan.num_frames, HEIGHT_PX, WIDTH_PX, 3), dtype=np.uint8)
    tiles = [tile.scaled(plan.spec.spatial_factor) for row in plan.decode_tiles for tile in row]

    def paste(task, block) -> None:
        tile = tiles[task.index]
        frames[:, tile.top : tile.top + block.shape[1], tile.left : tile.left + block.shape[2]] = block

    keep = {"prior": lambda task, result: results.update(prior=result)}
    execute(denoising_graph(plan), executor, lambda record: None, keep)
    execute(decoding_graph(plan), executor, lambda record: None, {"pixels": paste})
    if "prior" not in results:
        return job, frames, None
    vae = backbones.load(config.model, torch.device("cpu")).vae
    with torch.inference_mode():
        prior = vae.to_pixels(vae.decode_tile(torch.tensor(results["prior"])), *plan.native_px[::-1])
    return job, frames, prior.numpy()


def measure(seed: int, methods: list[str], out: Path) -> dict[str, dict[str, float]]:
    """Metrics of every method on one picture, kept in `out`; draws the sheets of the first few."""
    done = out / f"picture_{seed}.json"
    if done.exists():
        return json.loads(done.read_text())
    torch.set_num_threads(1)
    scene = open_scene(seed)
    clips = {name: animate(scene, METHODS[name]) for name in methods}
    prior = clips["fresco"][2]
    moving = resize_mask(scene.activity_of(prior.shape[0]), prior.shape[2:0:-1])
    figures = {}
    for name, (job, frames, _) in clips.items():
        windows_px = [window.scaled(job.plan.spec.spatial_factor) for window in job.plan.canvas.windows]
        figures[name] = {
            "seam_energy": seam_energy(frames, windows_px),
            "prior_distance": prior_distance(frames, prior),
            "prior_distance_moving": prior_distance(frames, prior, moving),
            "prior_distance_background": prior_distance(frames, prior, ~moving),
            "temporal_difference": temporal_difference(frames, job.plan.native_px),
            "sharpness": sharpness(frames),
        }
        if seed < 4:
            contact_sheet(job.canvas_image, frames).save(out / f"picture_{seed}_{name}.png")
    done.write_text(json.dumps(figures))
    return figures


def interval(values: np.ndarray) -> list[float]:
    """Mean and half width of its 95% interval (Student's t)."""
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return [round(float(values.mean()), 4), round(float(half), 4)]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("training_runs/evaluate_canvas"))
    parser.add_argument("--num-pictures", type=int, default=16)
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=list(METHODS), help="multidiffusion and fresco among them"
    )
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args.out.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(args.processes) as pool:
        figures = list(pool.map(partial(measure, methods=args.methods, out=args.out), range(args.num_pictures)))
    metrics: dict = {"num_pictures": args.num_pictures, "mean_and_95_percent": {}, "difference_to_multidiffusion": {}}
    for name in args.methods:
        for key in figures[0][name]:
            values = np.array([figure[name][key] for figure in figures])
            plain = np.array([figure["multidiffusion"][key] for figure in figures])
            metrics["mean_and_95_percent"].setdefault(name, {})[key] = interval(values)
            metrics["difference_to_multidiffusion"].setdefault(name, {})[key] = interval(values - plain)
    (args.out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    logger.info("%s", json.dumps(metrics, indent=2))


if __name__ == "__main__":
    main()
