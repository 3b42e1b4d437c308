"""Models behind one protocol, found by name: no class path from a configuration is ever imported.

A backbone is one replica on one device. It knows nothing of windows, workers or other replicas.
"""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np
import torch

from fresco_dist.backbones.conditioning import Conditioning
from fresco_dist.config import InputError, ModelConfig
from fresco_dist.grid import Window, core_size
from fresco_dist.plan import ModelSpec

BACKBONES = ("stable_diffusion", "synthetic", "wan")


class TileVae(Protocol):
    """A VAE used tile by tile; `vae.TiledVae` says what each method does."""

    def assemble(self, tiles: Sequence[Sequence[Window]], encoded: Sequence[torch.Tensor]) -> torch.Tensor:
        """The raw latent canvas from its encoded tiles."""

    def decode_tile(self, latents_CTHW: torch.Tensor) -> torch.Tensor:
        """A raw decoded tile."""

    def blend_decoded(
        self, tile: torch.Tensor, above: torch.Tensor | None, left: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The tile blended with its neighbours' edges, and its own bottom and right edges."""

    def to_pixels(self, blended: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """uint8 (F, height, width, 3)."""


class Backbone(Protocol):
    """What the engine needs of a model. B windows of a batch, C channels, T latent frames, H, W latent cells."""

    vae: TileVae
    attention_backend: str
    compile_s: float  # seconds that compilation took; 0 if nothing was compiled

    def encode_prompts(self, prompts: list[str]) -> torch.Tensor:
        """Embeddings (len(prompts), tokens, features), float32 on the CPU. Loads and drops the text encoder."""

    def embed_pictures(self, pictures: Sequence[Sequence[torch.Tensor]]) -> list[torch.Tensor]:
        """For each group of pictures (uint8 (H, W, 3): first and, if given, last frame) their image embeddings.

        (pictures, tokens, features), float32 on the CPU; an empty list if the model has no image encoder, which is
        loaded and dropped.
        """

    def encode_image(
        self, image_HW3: torch.Tensor, num_frames: int, last_HW3: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Raw latents (C, T, H, W) of what the model conditions on.

        A clip that starts with `image_HW3` (uint8), ends with `last_HW3` if given, and is empty in between.
        """

    def make_condition(
        self, raw_CTHW: torch.Tensor, image_embeds: tuple[torch.Tensor, ...] = (), *, has_last: bool = False
    ) -> Conditioning:
        """What `predict` gets beside the noisy latents, on the canvas, from assembled raw latents."""

    def make_scheduler(self, num_steps: int, shift: float | None, sigmas: list[float] | None = None):
        """A fresh diffusers noise scheduler with its timesteps set; `sigmas` are used as given."""

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


def _module(name: str) -> ModuleType:
    if name not in BACKBONES:
        raise InputError(f"model.backbone must be one of {', '.join(BACKBONES)}; got {name}.")
    return import_module(f"fresco_dist.backbones.{name}")  # importing the others would take seconds


def read_spec(model: ModelConfig) -> ModelSpec:
    """What planning needs to know, from the model's configuration files; no weights are loaded."""
    return _module(model.backbone).read_spec(model)


def load(model: ModelConfig, device: torch.device, tiles: Sequence[tuple[int, int, int, int]] = ()) -> Backbone:
    """One replica on `device`.

    `tiles` are the shapes (B, T, H, W) in latent cells that it will predict, the most frequent first: attention is
    tried and code compiled for them. Raises InputError for what this device cannot do.
    """
    return _module(model.backbone).load(model, device, tiles)


def decode_clip(
    vae: TileVae, tiles: Sequence[Sequence[Window]], latents_CTHW: torch.Tensor, spatial_factor: int
) -> np.ndarray:
    """A whole clip, uint8 (F, H, W, 3), from normalised latents, one VAE tile after the other."""
    above: list[torch.Tensor | None] = [None] * len(tiles[0])
    rows = []
    for i, row in enumerate(tiles):
        right, cores = None, []
        for j, tile in enumerate(row):
            decoded = vae.decode_tile(latents_CTHW[(..., *tile.slices)])
            blended, above[j], right = vae.blend_decoded(decoded, above[j], right)
            height, width = core_size(tiles, i, j)
            cores.append(vae.to_pixels(blended, height * spatial_factor, width * spatial_factor).cpu())
        rows.append(torch.cat(cores, dim=2))
    return torch.cat(rows, dim=1).numpy()


def model_path(model: ModelConfig) -> Path:
    """The model's directory; null is the embedded model."""
    if model.path is None:
        return Path(__file__).parent.parent / "assets" / "fresco_tiny"
    return Path(model.path).expanduser()
