"""Stable Diffusion UNets in diffusers format: one frame, text alone, epsilon or v-prediction.

It shows that nothing outside `backbones/` knows what model runs. The picture gives the canvas its size; the model does
not see it. Follows `StableDiffusionPanoramaPipeline` (MultiDiffusion) with the DDIM scheduler, whose step is affine in
the model output, so that averaging outputs and averaging steps are the same. The safety checker is not loaded.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

from fresco_dist.config import Attention, InputError, ModelConfig, require
from fresco_dist.method.grid import Window
from fresco_dist.models.checkpoint import check_weights, defaults_of, load_component, model_path, read_json
from fresco_dist.models.conditioning import Conditioning
from fresco_dist.schedule.spec import TRANSFORMER_KEYS, ModelSpec

TILE_OVERLAP = 0.25  # AutoencoderKL's default
REFUSED = ("sampler.shift", "sampler.sigmas", *TRANSFORMER_KEYS)


def read_spec(model: ModelConfig) -> ModelSpec:
    """Check the directory and read its configuration. Raises InputError, naming the file, if it cannot be used."""
    require(
        model.path is not None, "model.path", "null", "a directory in diffusers format", "No such model is bundled."
    )
    path = model_path(model)
    require(path.is_dir(), "model.path", path, "a directory in diffusers format", "It is not a directory.")
    attention, native = model.attention, (Attention.auto, Attention.native)
    require(attention in native, "model.attention", attention.value, "native or auto for this model", "Try native.")
    index = read_json(path / "model_index.json")
    classes = {name: (index.get(name) or [None, None])[1] for name in ("unet", "vae", "text_encoder")}
    expected = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}
    if classes != expected:
        raise InputError(f"model.path: {path} must hold {', '.join(expected.values())}; got {classes}.")
    unet = defaults_of(UNet2DConditionModel) | read_json(path / "unet" / "config.json", "cross_attention_dim")
    vae = defaults_of(AutoencoderKL) | read_json(path / "vae" / "config.json", "latent_channels")
    _check_supported(path, unet, vae)
    read_json(path / "text_encoder" / "config.json", "model_type")
    bytes_per_parameter = getattr(torch, model.dtype.value).itemsize
    vae_bytes = check_weights(path / "vae") * getattr(torch, model.vae_dtype.value).itemsize
    tile_px = vae["sample_size"]
    tile = (tile_px, int(tile_px * (1.0 - TILE_OVERLAP)))
    return ModelSpec(
        latent_channels=vae["latent_channels"],
        condition_channels=0,
        spatial_factor=2 ** (len(vae["block_out_channels"]) - 1),
        temporal_factor=1,
        patch=2 ** (len(unet["block_out_channels"]) - 1),  # windows divide evenly at every level of the UNet
        weight_bytes=check_weights(path / "unet") * bytes_per_parameter + vae_bytes,
        text_encoder_bytes=check_weights(path / "text_encoder") * bytes_per_parameter,
        encode_tile_px=tile,
        decode_tile_px=tile,
        max_frames=1,
        refuses=dict.fromkeys(REFUSED, "it is a UNet for images"),
    )


def _check_supported(path: Path, unet: dict, vae: dict) -> None:
    scheduler = defaults_of(DDIMScheduler) | read_json(path / "scheduler" / "scheduler_config.json")
    unsupported = {
        f"the noise scheduler {scheduler.get('_class_name')}": scheduler.get("_class_name") != "DDIMScheduler",
        "clipping of x0 (clip_sample)": scheduler["clip_sample"],
        "clipping of x0 (thresholding)": scheduler["thresholding"],
        "zero terminal SNR (rescale_betas_zero_snr)": scheduler["rescale_betas_zero_snr"],
        f"prediction_type {scheduler['prediction_type']}": scheduler["prediction_type"]
        not in ("epsilon", "v_prediction"),
        "an input other than latents": unet["in_channels"] != vae["latent_channels"],
        "further embeddings": any(unet[key] for key in ("addition_embed_type", "class_embed_type", "encoder_hid_dim")),
        "an embedded guidance scale (time_cond_proj_dim)": unet["time_cond_proj_dim"] is not None,
    }
    for feature, present in unsupported.items():
        if present:
            raise InputError(f"model.path: {path} needs {feature}, which is not supported.")


def load(
    model: ModelConfig, device: torch.device, tiles: Sequence[tuple[int, int, int, int]]
) -> "StableDiffusionBackbone":
    """UNet and VAE on `device`; the text encoder is loaded only by the worker that encodes the prompts."""
    return StableDiffusionBackbone(model_path(model), model, device)


class ImageVae:
    """See TileVae, for a VAE of images: tiles and blending are those of `AutoencoderKL.tiled_decode`."""

    def __init__(self, vae: AutoencoderKL) -> None:
        self._vae = vae
        self._extent = int(vae.config.sample_size * TILE_OVERLAP)

    def assemble(self, tiles: Sequence[Sequence[Window]], encoded: Sequence[torch.Tensor]) -> torch.Tensor:
        """Nothing is encoded: no channels, one frame, the canvas' size."""
        last = tiles[-1][-1]
        return encoded[0].new_zeros(0, 1, last.top + last.height, last.left + last.width)

    def decode_tile(self, latents_CTHW: torch.Tensor) -> torch.Tensor:
        """Raw decoded tile (3, 1, H, W)."""
        latents_1CHW = latents_CTHW[None, :, 0].to(self._vae.dtype) / self._vae.config.scaling_factor
        return self._vae.decode(latents_1CHW).sample[0, :, None].float()

    def blend_decoded(
        self, tile: torch.Tensor, above: torch.Tensor | None, left: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        tile_1CHW = tile[None, :, 0].clone()
        if above is not None:
            tile_1CHW = self._vae.blend_v(above[None, :, 0], tile_1CHW, self._extent)
        if left is not None:
            tile_1CHW = self._vae.blend_h(left[None, :, 0], tile_1CHW, self._extent)
        tile = tile_1CHW[0, :, None]
        return tile, tile[..., -self._extent :, :], tile[..., -self._extent :]

    def to_pixels(self, blended: torch.Tensor, height: int, width: int) -> torch.Tensor:
        video_3FHW = blended[..., :height, :width].float()
        return video_3FHW.clamp(-1.0, 1.0).mul(0.5).add(0.5).mul(255.0).round().byte().permute(1, 2, 3, 0)


class StableDiffusionBackbone:
    """One replica. See Backbone."""

    attention_backend = "native"
    compile_s = 0.0

    def __init__(self, path: Path, model: ModelConfig, device: torch.device) -> None:
        self._path, self._device, self._dtype = path, device, getattr(torch, model.dtype.value)
        self._unet = load_component(UNet2DConditionModel, path / "unet", torch_dtype=self._dtype).to(device)
        self._spatial_factor = 2 ** (
            len(read_json(path / "vae" / "config.json", "block_out_channels")["block_out_channels"]) - 1
        )
        vae_dtype = getattr(torch, model.vae_dtype.value)
        self.vae = ImageVae(load_component(AutoencoderKL, path / "vae", torch_dtype=vae_dtype).to(device))
        self._scheduler_config = read_json(path / "scheduler" / "scheduler_config.json")

    def encode_prompts(self, prompts: list[str]) -> torch.Tensor:
        tokenizer = transformers.AutoTokenizer.from_pretrained(self._path / "tokenizer", trust_remote_code=False)
        encoder = load_component(transformers.CLIPTextModel, self._path / "text_encoder", dtype=self._dtype)
        length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
        tokens = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        return encoder.to(self._device)(tokens.input_ids.to(self._device))[0].float().cpu()

    def embed_pictures(self, pictures: Sequence[Sequence[torch.Tensor]]) -> list[torch.Tensor]:
        return []

    def encode_image(
        self, image_HW3: torch.Tensor, num_frames: int, last_HW3: torch.Tensor | None = None
    ) -> torch.Tensor:
        height, width = (side // self._spatial_factor for side in image_HW3.shape[:2])
        return torch.zeros(0, 1, height, width, device=self._device)

    def make_condition(
        self, raw_CTHW: torch.Tensor, image_embeds: tuple[torch.Tensor, ...] = (), *, has_last: bool = False
    ) -> Conditioning:
        return Conditioning(raw_CTHW)

    def make_scheduler(self, num_steps: int, shift: float | None, sigmas: list[float] | None = None):
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

    def finish(self, x_CTHW: torch.Tensor, condition: Conditioning) -> torch.Tensor:
        return x_CTHW
