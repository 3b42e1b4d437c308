"""What a worker needs of a model: one replica on one device, with defaults for what few models have.

It knows nothing of windows, workers or other replicas. B windows of a batch, C channels, T latent frames, F frames,
H, W latent cells.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import torch

from fresco_dist.models.conditioning import Conditioning


class TileVae(Protocol):
    """A VAE used tile by tile; `tiling` puts the tiles together."""

    def decode_tile(self, latents_CTHW: torch.Tensor) -> torch.Tensor:
        """What the decoder makes of normalised latents, float32 (..., H, W), H and W in a unit of its own."""

    def to_pixels(self, raw: torch.Tensor) -> torch.Tensor:
        """uint8 (F, height, width, 3) of a decoded tile, or of any part of it."""


class Backbone(ABC):
    """A model replica."""

    vae: TileVae
    attention_backend = "native"
    compile_s = 0.0  # seconds that compilation took; 0 if nothing was compiled

    @abstractmethod
    def encode_prompts(self, prompts: list[str]) -> torch.Tensor:
        """Embeddings (len(prompts), tokens, features), float32 on the CPU. Loads and drops the text encoder."""

    def embed_pictures(self, pictures: Sequence[Sequence[torch.Tensor]]) -> list[torch.Tensor]:
        """For each group of pictures (uint8 (H, W, 3): first and, if given, last frame) their image embeddings.

        (pictures, tokens, features), float32 on the CPU; an empty list if the model has no image encoder, which is
        loaded and dropped.
        """
        return []

    @abstractmethod
    def encode_image(
        self, image_HW3: torch.Tensor, num_frames: int, last_HW3: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Raw latents (C, T, H, W) of what the model conditions on.

        A clip that starts with `image_HW3` (uint8), ends with `last_HW3` if given, and is empty in between.
        """

    def make_condition(
        self, raw_CTHW: torch.Tensor, image_embeds: tuple[torch.Tensor, ...] = (), *, has_last: bool = False
    ) -> Conditioning:
        """What `predict` gets beside the noisy latents, on the canvas, from assembled raw latents: by default those."""
        return Conditioning(raw_CTHW)

    @abstractmethod
    def make_scheduler(self, num_steps: int, shift: float | None, sigmas: list[float] | None = None):
        """A fresh diffusers noise scheduler with its timesteps set; `sigmas` are used as given."""

    @abstractmethod
    def predict(
        self,
        x_BCTHW: torch.Tensor,
        conditions: Sequence[Conditioning],
        timestep: torch.Tensor,
        prompt_embeds: torch.Tensor,
    ) -> torch.Tensor:
        """Model output (B, C, T, H, W) for a batch of windows, with a condition each, and one guidance branch."""

    def finish(self, x_CTHW: torch.Tensor, condition: Conditioning) -> torch.Tensor:
        """The clean latents from those after the last step; cell by cell, so any crop will do."""
        return x_CTHW
