"""A backbone without weights whose forward only waits: it measures dispatch on a cluster before a model is there.

The wait releases the processor, so many workers run honestly on few cores. Its output is a pure function of its input.
"""

import time

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from fresco_dist.config import ModelConfig
from fresco_dist.plan import ModelSpec

CHANNELS, SPATIAL_FACTOR, TEMPORAL_FACTOR, PATCH, TILE_PX = 4, 8, 4, 2, 1 << 20


def read_spec(model: ModelConfig) -> ModelSpec:
    """A small latent video model in Wan's proportions; one VAE tile."""
    return ModelSpec(
        latent_channels=CHANNELS,
        condition_channels=CHANNELS,
        spatial_factor=SPATIAL_FACTOR,
        temporal_factor=TEMPORAL_FACTOR,
        patch=PATCH,
        weight_bytes=0,
        encode_tile_px=(TILE_PX, TILE_PX),
        decode_tile_px=(TILE_PX, TILE_PX),
    )


def load(model: ModelConfig, device: torch.device) -> "SyntheticBackbone":
    """Nothing to load."""
    return SyntheticBackbone(model.forward_s)


class SyntheticVae:
    """Grey pictures, without work."""

    def assemble(self, tiles, encoded: list[torch.Tensor]) -> torch.Tensor:
        return encoded[0]

    def decode_tile(self, latents_CTHW: torch.Tensor) -> torch.Tensor:
        _, T, H, W = latents_CTHW.shape
        return torch.zeros(3, TEMPORAL_FACTOR * (T - 1) + 1, H * SPATIAL_FACTOR, W * SPATIAL_FACTOR)

    def blend_decoded(self, tile: torch.Tensor, above: None, left: None) -> tuple[torch.Tensor, ...]:
        return tile, tile[..., -1:, :], tile[..., -1:]

    def to_pixels(self, blended: torch.Tensor, height: int, width: int) -> torch.Tensor:
        return blended.add(127.0).byte().permute(1, 2, 3, 0)


class SyntheticBackbone:
    """See Backbone: every forward waits `forward_s` seconds."""

    attention_backend = "none"

    def __init__(self, forward_s: float) -> None:
        self._forward_s = forward_s
        self.vae = SyntheticVae()

    def encode_prompts(self, prompts: list[str]) -> torch.Tensor:
        return torch.zeros(len(prompts), 1, 1)

    def encode_image(self, image_HW3: torch.Tensor, num_frames: int) -> torch.Tensor:
        height, width = (side // SPATIAL_FACTOR for side in image_HW3.shape[:2])
        return torch.zeros(CHANNELS, (num_frames - 1) // TEMPORAL_FACTOR + 1, height, width)

    def make_condition(self, raw_CTHW: torch.Tensor) -> torch.Tensor:
        return raw_CTHW

    def make_scheduler(self, num_steps: int, shift: float | None):
        scheduler = FlowMatchEulerDiscreteScheduler(shift=shift or 1.0)
        scheduler.set_timesteps(num_steps)
        return scheduler

    def predict(self, x_CTHW, condition_CTHW, timestep, prompt_embeds) -> torch.Tensor:
        time.sleep(self._forward_s)
        return 0.5 * x_CTHW
