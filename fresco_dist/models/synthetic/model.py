"""A backbone without weights whose forward only waits: it measures dispatch on a cluster before a model is there.

The wait releases the processor, so many workers run honestly on few cores. Its output is a pure function of its input.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from fresco_dist.config import ModelConfig
from fresco_dist.models.backbone import Backbone
from fresco_dist.models.conditioning import Conditioning
from fresco_dist.models.synthetic.spec import CHANNELS, SPATIAL_FACTOR, TEMPORAL_FACTOR


def load(model: ModelConfig, device: torch.device, tiles: Sequence[tuple[int, int, int, int]]) -> "SyntheticBackbone":
    """Nothing to load."""
    return SyntheticBackbone(model.forward_s)


class SyntheticVae:
    """See TileVae: grey pictures, without work."""

    def decode_tile(self, latents_CTHW: torch.Tensor) -> torch.Tensor:
        num_frames = TEMPORAL_FACTOR * (latents_CTHW.shape[1] - 1) + 1
        return torch.zeros(num_frames, *latents_CTHW.shape[2:])

    def to_pixels(self, raw: torch.Tensor, bits: int = 8) -> torch.Tensor:
        height, width = (side * SPATIAL_FACTOR for side in raw.shape[1:])
        grey, dtype = (127, torch.uint8) if bits == 8 else (127 * 257, torch.uint16)
        return torch.full((len(raw), height, width, 3), grey, dtype=dtype)


class SyntheticBackbone(Backbone):
    """Every forward waits `forward_s` seconds for each window."""

    attention_backend = "none"

    def __init__(self, forward_s: float) -> None:
        self._forward_s = forward_s
        self.vae = SyntheticVae()

    def encode_text(self, text: str) -> torch.Tensor:
        return torch.zeros(1, 1)

    def encode_image(
        self, image_HW3: torch.Tensor, num_frames: int, last_HW3: torch.Tensor | None = None
    ) -> torch.Tensor:
        return self.encode_clip(image_HW3.expand(num_frames, -1, -1, -1))

    def encode_clip(self, clip_FHW3: torch.Tensor) -> torch.Tensor:
        num_frames, height, width, _ = clip_FHW3.shape
        num_latent_frames = (num_frames - 1) // TEMPORAL_FACTOR + 1
        return torch.zeros(CHANNELS, num_latent_frames, height // SPATIAL_FACTOR, width // SPATIAL_FACTOR)

    def normalise(self, raw_CTHW: torch.Tensor) -> torch.Tensor:
        return raw_CTHW

    def make_scheduler(self, num_steps: int, shift: float | None, sigmas: Sequence[float] | None = None) -> Any:
        scheduler = FlowMatchEulerDiscreteScheduler(shift=shift or 1.0)
        scheduler.set_timesteps(num_steps, sigmas=sigmas)
        return scheduler

    def predict(
        self,
        x_BCTHW: torch.Tensor,
        conditions: Sequence[Conditioning],
        timestep: torch.Tensor,
        prompt_embeds: torch.Tensor,
    ) -> torch.Tensor:
        time.sleep(self._forward_s * len(x_BCTHW))
        return 0.5 * x_BCTHW
