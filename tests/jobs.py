"""Jobs made in Python, without the command line."""

from pathlib import Path

import numpy as np
import torch
from conftest import make_picture
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from fresco_dist import backbones
from fresco_dist.config import Config
from fresco_dist.engine import denoising_graph, execute
from fresco_dist.inprocess_executor import InProcessExecutor
from fresco_dist.launch import CONFIG_FOLDER
from fresco_dist.media import resize_image
from fresco_dist.plan import make_plan
from fresco_dist.prior_strength import needs_prior
from fresco_dist.worker import Job

PROMPTS = ("the figures walk left", "blurry still")
WIDTH, HEIGHT, FRAMES, STEPS = 64, 48, 9, 4


def make_config(*overrides: str) -> Config:
    """The composed configuration with these overrides."""
    ConfigStore.instance().store(name="config_schema", node=Config)
    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        return OmegaConf.to_object(compose("config", ["cluster.executor=inprocess", *overrides]))


def make_job(model_path: Path | None, *overrides: str, image=None, last=None) -> Job:
    """A job of one worker on a small random picture; no model path is for `model=synthetic`.

    `last` is the picture of the last frame, of the same size.
    """
    path = [] if model_path is None else [f"model.path={model_path}"]
    config = make_config(*path, f"video.num_frames={FRAMES}", f"sampler.num_steps={STEPS}", *overrides)
    image = image or make_picture(WIDTH, HEIGHT)
    prior = needs_prior(config.fusion, config.sampler.num_steps)
    plan = make_plan(config, backbones.read_spec(config.model), image.size, 1, prior)
    return Job(
        config,
        plan,
        PROMPTS[: len(plan.branches)],
        np.array(image),
        resize_image(image, plan.native_px),
        None,
        None if last is None else np.array(last),
        None if last is None else resize_image(last, plan.native_px),
    )


def denoise(job: Job, kind: str = "collect") -> torch.Tensor:
    """Our latents (C, T, H, W): the canvas, or those of the prior."""
    latents = []
    executor = InProcessExecutor(job, use_gpu=False)
    receive = {kind: lambda _, result: latents.append(result)}
    execute(denoising_graph(job.plan), executor, lambda record: None, receive)
    return torch.tensor(latents[0])
