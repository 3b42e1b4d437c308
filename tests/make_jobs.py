"""Jobs made in Python, without the command line."""

from pathlib import Path
from typing import Any

import torch
from conftest import make_picture
from diffusers import WanImageToVideoPipeline
from PIL import Image

from fresco_dist import models
from fresco_dist.config import Config
from fresco_dist.jobs.inputs import Inputs
from fresco_dist.media.pictures import resize_image
from fresco_dist.method.grid import Tiles
from fresco_dist.models.backbone import TileVae
from fresco_dist.models.tiling import blend_tiles, join_tiles
from fresco_dist.runtime.inprocess_executor import InProcessExecutor
from fresco_dist.runtime.job import Job
from fresco_dist.schedule.execute import execute
from fresco_dist.schedule.graph import Graph, Task
from fresco_dist.schedule.keys import Content, Keys, make_keys
from fresco_dist.schedule.plan import Plan, make_plan
from fresco_dist.schedule.tasks import run_graph
from fresco_dist.settings.schema import compose_config

PROMPTS = ("the figures walk left", "blurry still")
WIDTH, HEIGHT, FRAMES, STEPS = 64, 48, 9, 4


def make_config(*overrides: str) -> Config:
    """The composed configuration with these overrides."""
    return compose_config("cluster.executor=inprocess", *overrides)


def make_job(model_path: Path | None, *overrides: str, image=None, last=None) -> Job:
    """A job of one worker on a small random picture; no model path is for `model=synthetic`.

    `last` is the picture of the last frame, of the same size.
    """
    path = [] if model_path is None else [f"model.path={model_path}"]
    config = make_config(*path, f"video.num_frames={FRAMES}", f"sampler.num_steps={STEPS}", *overrides)
    image = image or make_picture(WIDTH, HEIGHT)
    shares = Inputs().shares(config, image.size)
    plan = make_plan(config, models.read_spec(config.model), image.size, 1, shares)
    sizes_px = [plan.size_px(level) for level in range(len(plan.levels))]
    pictures, last_pictures = (
        tuple(resize_image(picture, size) for size in sizes_px) if picture else None for picture in (image, last)
    )
    prompts = (PROMPTS[0], *config.region_prompts, PROMPTS[1])
    maps = Inputs().maps(config, plan)
    return Job(config, plan, prompts, pictures, maps=maps, last_pictures=last_pictures)


def keys_of(config: Config, plan: Plan) -> Keys:
    """The keys of a job that is not made, its files as if their names were all they hold."""
    content = Content(
        texts=(config.prompt or "", config.negative_prompt),
        pictures=(str(config.image),) * len(plan.levels),
        maps=(str(config.fusion.activity_map or config.fusion.detail_map),) * len(plan.levels),
        seed=config.seed,
    )
    return make_keys(plan, content)


def keys_by_seed(plan: Plan, num_jobs: int) -> list[Keys]:
    """Of jobs that share nothing but texts."""
    pictures = [(str(job),) * len(plan.levels) for job in range(num_jobs)]
    return [make_keys(plan, Content(seed=job, pictures=pictures[job])) for job in range(num_jobs)]


def graph_of(job: Job) -> Graph:
    """The graph of a job that is alone."""
    return run_graph([job.plan], [job.keys], job.config.dispatch.mode)


def denoise(job: Job) -> torch.Tensor:
    """The latents (C, T, H, W) of the canvas."""
    return torch.tensor(outputs(job, "collect")[-1])


def denoise_prior(job: Job) -> torch.Tensor:
    """The latents (C, T, H, W) of the thumbnail."""
    x_CTHW, _ = outputs(job, "fuse", level=0)[-1]
    return torch.tensor(x_CTHW)


def outputs(job: Job, kind: str, level: int = 1) -> list[Any]:
    """The results of all tasks of a kind on a level, by step and place."""
    return list(results(job, kind, level).values())


def results(job: Job, kind: str, level: int = 1) -> dict[Task, Any]:
    """The same, by task."""
    found = {}
    receive = {kind: lambda task, result: found.update({task: result}) if task.level == level else None}
    dropped = execute(graph_of(job), InProcessExecutor(use_gpu=False).give([job]), lambda record: None, receive)
    assert not dropped, next(iter(dropped.values()))
    return dict(sorted(found.items()))


def decode_clip(vae: TileVae, tiles: Tiles, latents_CTHW: torch.Tensor) -> torch.Tensor:
    """A whole clip, uint8 (F, H, W, 3), from normalised latents, one VAE tile after the other."""
    raw = (vae.decode_tile(latents_CTHW[(..., *tile.slices)]) for row in tiles for tile in row)
    return join_tiles(tiles, map(vae.to_pixels, blend_tiles(tiles, raw)), dim=1)


def stock_pipeline(path: Path) -> WanImageToVideoPipeline:
    """The stock diffusers pipeline, quiet."""
    pipeline = WanImageToVideoPipeline.from_pretrained(path)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stock_latents(
    pipeline: WanImageToVideoPipeline | Path, noise_CTHW: torch.Tensor, image: Image.Image, **options
) -> torch.Tensor:
    """Latents (C, T, H, W) of the stock pipeline, or of the one saved at a path, on the jobs' prompts and steps."""
    if isinstance(pipeline, Path):
        pipeline = stock_pipeline(pipeline)
    return pipeline(
        image=image,
        prompt=PROMPTS[0],
        negative_prompt=PROMPTS[1],
        height=image.height,
        width=image.width,
        num_frames=FRAMES,
        num_inference_steps=STEPS,
        latents=noise_CTHW[None],
        output_type="latent",
        **options,
    ).frames[0]
