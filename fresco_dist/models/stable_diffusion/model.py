"""Stable Diffusion UNets in diffusers format: one frame, text alone, epsilon or v-prediction.

It shows that nothing outside `models/` knows what model runs. The picture gives the canvas its size; the model does
not see it. Follows `StableDiffusionPanoramaPipeline` (MultiDiffusion) with the DDIM scheduler, whose step is affine in
the model output, so that averaging outputs and averaging steps are the same. The safety checker is not loaded.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

from fresco_dist.config import ModelConfig
from fresco_dist.models.backbone import Backbone, floats_to_pixels, pixels_to_floats
from fresco_dist.models.checkpoint import model_path, read_json
from fresco_dist.models.conditioning import Conditioning
from fresco_dist.models.loading import load_component, loading
from fresco_dist.models.places import CLIP_TEXT, SD_UNET, SD_VAE


def load(
    model: ModelConfig, device: torch.device, tiles: Sequence[tuple[int, int, int, int]]
) -> "StableDiffusionBackbone":
    """UNet and VAE on `device`; the text encoder is loaded only by a worker that encodes texts."""
    return StableDiffusionBackbone(model_path(model), model, device)


class ImageVae:
    """See TileVae, for a VAE of images."""

    def __init__(self, vae: AutoencoderKL) -> None:
        self._vae = vae

    def encode_tile(self, video_3FHW: torch.Tensor) -> torch.Tensor:
        """Raw latent mean (C, 1, H, W), float32, of a tile of one frame in [-1, 1]; not yet normalised."""
        (image_3HW,) = video_3FHW.unbind(1)
        return self._vae.encode(image_3HW[None].to(self._vae.dtype)).latent_dist.mode()[0, :, None].float()

    def normalise(self, raw_CTHW: torch.Tensor) -> torch.Tensor:
        """Latents of about unit variance from raw ones."""
        return raw_CTHW.float() * self._vae.config.scaling_factor

    def decode_tile(self, latents_CTHW: torch.Tensor) -> torch.Tensor:
        """Raw decoded tile (3, 1, H, W)."""
        latents_1CHW = latents_CTHW[None, :, 0].to(self._vae.dtype) / self._vae.config.scaling_factor
        return self._vae.decode(latents_1CHW).sample[0, :, None].float()

    def to_pixels(self, raw: torch.Tensor, bits: int = 8) -> torch.Tensor:
        return floats_to_pixels(raw, bits)


class StableDiffusionBackbone(Backbone):
    """One replica."""

    vae: ImageVae
    encoder_names = ("_text_encoder",)

    def __init__(self, path: Path, model: ModelConfig, device: torch.device) -> None:
        self._path, self._device, self._dtype = path, device, getattr(torch, model.dtype.value)
        self._unet = load_component(UNet2DConditionModel, path / "unet", SD_UNET, torch_dtype=self._dtype).to(device)
        self._spatial_factor = 2 ** (
            len(read_json(path / "vae" / "config.json", "block_out_channels")["block_out_channels"]) - 1
        )
        vae_dtype = getattr(torch, model.vae_dtype.value)
        self.vae = ImageVae(load_component(AutoencoderKL, path / "vae", SD_VAE, torch_dtype=vae_dtype).to(device))
        self._scheduler_config = read_json(path / "scheduler" / "scheduler_config.json")

    @cached_property
    def _text_encoder(self) -> tuple[Any, Any]:
        """Tokenizer and encoder."""
        import transformers

        with loading(self._path / "tokenizer"):
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                self._path / "tokenizer", local_files_only=True, trust_remote_code=False
            )
        encoder = load_component(transformers.CLIPTextModel, self._path / "text_encoder", CLIP_TEXT, dtype=self._dtype)
        return tokenizer, encoder.to(self._device)

    def encode_text(self, text: str) -> torch.Tensor:
        tokenizer, encoder = self._text_encoder
        length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
        tokens = tokenizer([text], padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        return encoder(tokens.input_ids.to(self._device))[0][0].float().cpu()

    def encode_image(
        self, image_HW3: torch.Tensor, num_frames: int, last_HW3: torch.Tensor | None = None
    ) -> torch.Tensor:
        height, width = (side // self._spatial_factor for side in image_HW3.shape[:2])
        return torch.zeros(0, 1, height, width, device=self._device)

    def encode_clip(self, clip_FHW3: torch.Tensor) -> torch.Tensor:
        return self.vae.encode_tile(pixels_to_floats(clip_FHW3.to(self._device)))

    def normalise(self, raw_CTHW: torch.Tensor) -> torch.Tensor:
        return self.vae.normalise(raw_CTHW)

    def make_scheduler(self, num_steps: int, shift: float | None, sigmas: Sequence[float] | None = None) -> Any:
        assert shift is None and sigmas is None  # read_spec refuses them
        scheduler = DDIMScheduler.from_config(self._scheduler_config)
        scheduler.set_timesteps(num_steps, device=self._device)
        return scheduler

    def predict(
        self,
        x_BCTHW: torch.Tensor,
        conditions: Sequence[Conditioning],
        timestep: torch.Tensor,
        prompt_embeds: torch.Tensor,
    ) -> torch.Tensor:
        m_BCHW = self._unet(
            x_BCTHW[:, :, 0].to(self._dtype),
            timestep,
            encoder_hidden_states=prompt_embeds.expand(len(x_BCTHW), -1, -1).to(self._dtype),
            return_dict=False,
        )[0]
        return m_BCHW[:, :, None]
