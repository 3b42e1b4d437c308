"""What a worker needs of a model: one replica on one device, with defaults for what few models have.

It knows nothing of windows, workers or other replicas. B windows of a batch, C channels, T latent frames, F frames,
H, W latent cells.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from fresco_dist.models.conditioning import Conditioning

# What diffusers' noise schedulers that `make_scheduler` gives remember from one step to the next: their attributes that
# change. What a cell brings with it sets no others.
_INDICES = ("_begin_index", "_step_index")
_MULTISTEP = ("model_outputs", "timestep_list", "last_sample", "lower_order_nums", "this_order")
HISTORY = {
    "DDIMScheduler": (),
    "FlowMatchEulerDiscreteScheduler": _INDICES,
    "UniPCMultistepScheduler": (*_INDICES, *_MULTISTEP),
}


class TileVae(Protocol):
    """A VAE used tile by tile; `tiling` puts the tiles together."""

    def decode_tile(self, latents_CTHW: torch.Tensor) -> torch.Tensor:
        """What the decoder makes of normalised latents, float32 (..., H, W), H and W in a unit of its own."""

    def to_pixels(self, raw: torch.Tensor, bits: int = 8) -> torch.Tensor:
        """uint8, or with 16 `bits` uint16, (F, height, width, 3) of a decoded tile, or of any part of it."""


def pixels_to_floats(pixels: torch.Tensor) -> torch.Tensor:
    """What VAEs encode, float32 (3, ...) in [-1, 1], of uint8 pixels (..., 3)."""
    return pixels.movedim(-1, 0).float() / 255.0 * 2.0 - 1.0


def floats_to_pixels(video_3FHW: torch.Tensor, bits: int = 8) -> torch.Tensor:
    """What VAEs decode, clamped to [-1, 1]: all values of uint8 or, with 16 `bits`, of uint16, (F, H, W, 3)."""
    scaled = video_3FHW.clamp(-1.0, 1.0).mul(0.5).add(0.5).mul(2.0**bits - 1.0).round()
    return scaled.to(torch.uint8 if bits == 8 else torch.uint16).permute(1, 2, 3, 0)


class Backbone(ABC):
    """A model replica."""

    vae: TileVae
    attention_backend = "native"
    compile_s = 0.0  # seconds that compilation took; 0 if nothing was compiled
    encoder_names: tuple[str, ...] = ()  # cached properties that hold a text or image encoder

    @abstractmethod
    def encode_text(self, text: str) -> torch.Tensor:
        """Embeddings (tokens, features) of one text, float32 on the CPU: whatever else is encoded, the same.

        The text encoder is loaded at the first call and stays until `drop_encoders`.
        """

    def embed_picture(self, pictures: Sequence[torch.Tensor]) -> torch.Tensor:
        """Image embeddings (pictures, tokens, features), float32 on the CPU; if `ModelSpec.embeds_pictures` alone.

        `pictures` are uint8 (H, W, 3): the first frame and, if given, the last. The image encoder is loaded at the
        first call and stays until `drop_encoders`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no image encoder")

    def drop_encoders(self) -> None:
        """Forget text and image encoders, whose memory is then free; the next call loads them again."""
        for name in self.encoder_names:
            vars(self).pop(name, None)

    @abstractmethod
    def encode_image(
        self, image_HW3: torch.Tensor, num_frames: int, last_HW3: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Raw latents (C, T, H, W) of what the model conditions on.

        A clip that starts with `image_HW3` (uint8), ends with `last_HW3` if given, and is empty in between.
        """

    @abstractmethod
    def encode_clip(self, clip_FHW3: torch.Tensor) -> torch.Tensor:
        """Raw latents (C, T, H, W), float32, of a whole clip (uint8), or of a tile of it; see `normalise`."""

    @abstractmethod
    def normalise(self, raw_CTHW: torch.Tensor) -> torch.Tensor:
        """Latents of zero mean and unit variance, as `predict` and `vae` know them, from assembled raw latents."""

    def make_condition(
        self, raw_CTHW: torch.Tensor, image_embeds: tuple[torch.Tensor, ...] = (), *, has_last: bool = False
    ) -> Conditioning:
        """What `predict` gets beside the noisy latents, of any part of the canvas, from its raw latents.

        By default those. What it makes of a latent cell depends on no other one.
        """
        return Conditioning(raw_CTHW)

    @abstractmethod
    def make_scheduler(self, num_steps: int, shift: float | None, sigmas: Sequence[float] | None = None) -> Any:
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

    def finish(self, x_CTHW: torch.Tensor, condition: Callable[[], Conditioning]) -> torch.Tensor:
        """The clean latents from those after the last step; cell by cell, so any crop will do.

        Or of some latent frames, the first among them. `condition` makes what `predict` was given, for who needs it.
        """
        return x_CTHW
