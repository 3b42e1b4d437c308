"""Wan image-to-video models in diffusers format: noisy latents, mask and image latents concatenated.

Follows `WanImageToVideoPipeline` call by call: one window as large as the canvas reproduces it in float32. (In bfloat16
the stock Euler scheduler rounds the latents to bfloat16 after every step; here they stay float32.) Sizes come from the
model's own configuration. Loads safetensors only, and never code from a model directory.
"""

from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import AutoencoderKLWan, WanImageToVideoPipeline, WanTransformer3DModel

from fresco_dist.backbones import model_path
from fresco_dist.backbones.checkpoint import check_weights, defaults_of, load_component, read_json
from fresco_dist.config import Attention, InputError, ModelConfig
from fresco_dist.plan import ModelSpec
from fresco_dist.vae import STRIDE_PX, TILE_PX, TiledVae, encode_tile_px

SHIFT_KEY = {"FlowMatchEulerDiscreteScheduler": "shift", "UniPCMultistepScheduler": "flow_shift"}
MAX_SEQUENCE_LENGTH = 512  # WanImageToVideoPipeline's default


def read_spec(model: ModelConfig) -> ModelSpec:
    """Check the directory and read its configuration. Raises InputError, naming the file, if it cannot be used."""
    path = model_path(model)
    if not path.is_dir():
        raise InputError(f"model.path must be a directory in diffusers format; got {path}, which is not a directory.")
    index = read_json(path / "model_index.json")
    if index.get("_class_name") != "WanImageToVideoPipeline":
        raise InputError(
            f"model.path: {path} holds a {index.get('_class_name')}; model.backbone=wan needs WanImageToVideoPipeline."
        )
    transformer = defaults_of(WanTransformer3DModel) | read_json(path / "transformer" / "config.json", "in_channels")
    vae = defaults_of(AutoencoderKLWan) | read_json(path / "vae" / "config.json", "z_dim")
    scheduler = read_json(path / "scheduler" / "scheduler_config.json")
    unsupported = {
        "two experts (boundary_ratio)": index.get("boundary_ratio") is not None,
        "per-token timesteps (expand_timesteps)": bool(index.get("expand_timesteps")),
        "a CLIP image encoder (image_dim)": transformer.get("image_dim") is not None,
        "noise drawn at every step (stochastic_sampling)": bool(scheduler.get("stochastic_sampling")),
        "a shift that depends on the size (use_dynamic_shifting)": bool(scheduler.get("use_dynamic_shifting")),
        f"the noise scheduler {scheduler.get('_class_name')}": scheduler.get("_class_name") not in SHIFT_KEY,
    }
    for feature, present in unsupported.items():
        if present:
            raise InputError(f"model.path: {path} needs {feature}, which is not supported yet.")
    tokenizer = path / "tokenizer"
    if not any((tokenizer / name).is_file() for name in ("tokenizer.json", "spiece.model")):
        raise InputError(f"model.path: {tokenizer} has no tokenizer.json or spiece.model. Copy the model again.")
    for name in sorted({"tokenizer_config.json"} | {file.name for file in tokenizer.glob("*.json")}):
        read_json(tokenizer / name)
    read_json(path / "text_encoder" / "config.json", "model_type")
    bytes_per_parameter = getattr(torch, model.dtype.value).itemsize
    status = path / "status.json"
    return ModelSpec(
        latent_channels=vae["z_dim"],
        condition_channels=transformer["in_channels"] - vae["z_dim"],
        spatial_factor=vae["scale_factor_spatial"],
        temporal_factor=vae["scale_factor_temporal"],
        patch=transformer["patch_size"][1],
        weight_bytes=check_weights(path / "transformer") * bytes_per_parameter + check_weights(path / "vae") * 4,
        text_encoder_bytes=check_weights(path / "text_encoder") * bytes_per_parameter,
        encode_tile_px=encode_tile_px(vae["patch_size"]),
        decode_tile_px=(TILE_PX, STRIDE_PX),
        trained=read_json(status)["trained"] if status.is_file() else True,
    )


def load(model: ModelConfig, device: torch.device) -> "WanBackbone":
    """Transformer and VAE on `device`; the text encoder is loaded only by the worker that encodes the prompts."""
    return WanBackbone(model_path(model), model, device)


class WanBackbone:
    """One replica."""

    def __init__(self, path: Path, model: ModelConfig, device: torch.device) -> None:
        self._path, self._device, self._dtype = path, device, getattr(torch, model.dtype.value)
        self._transformer = load_component(WanTransformer3DModel, path / "transformer", torch_dtype=self._dtype).to(
            device
        )
        self.vae = TiledVae(load_component(AutoencoderKLWan, path / "vae", torch_dtype=torch.float32).to(device))
        self.attention_backend = self._set_attention(model.attention)
        self._scheduler_config = read_json(path / "scheduler" / "scheduler_config.json")

    def encode_prompts(self, prompts: list[str]) -> torch.Tensor:
        """See Backbone; the pipeline's own prompt cleaning, padding and zeroing."""
        tokenizer = transformers.AutoTokenizer.from_pretrained(self._path / "tokenizer", trust_remote_code=False)
        text_encoder = load_component(transformers.UMT5EncoderModel, self._path / "text_encoder", dtype=self._dtype)
        pipeline = WanImageToVideoPipeline(tokenizer, text_encoder.to(self._device), vae=None, scheduler=None)
        embeds, _ = pipeline.encode_prompt(
            prompts, do_classifier_free_guidance=False, max_sequence_length=MAX_SEQUENCE_LENGTH, device=self._device
        )
        return embeds.float().cpu()

    def encode_image(self, image_HW3: torch.Tensor, num_frames: int) -> torch.Tensor:
        """See Backbone."""
        image_3HW = image_HW3.to(self._device).permute(2, 0, 1).float() / 255.0 * 2.0 - 1.0
        video_3FHW = image_3HW.new_zeros(3, num_frames, *image_3HW.shape[1:])
        video_3FHW[:, 0] = image_3HW
        return self.vae.encode_tile(video_3FHW)

    def make_condition(self, raw_CTHW: torch.Tensor) -> torch.Tensor:
        """Mask channels (1 on the first latent frame), one per frame of a latent frame, then the image latents."""
        mask_channels = self.vae.vae.config.scale_factor_temporal
        mask_CTHW = raw_CTHW.new_zeros(mask_channels, *raw_CTHW.shape[1:])
        mask_CTHW[:, 0] = 1.0
        return torch.cat([mask_CTHW, self.vae.normalise(raw_CTHW)])

    def make_scheduler(self, num_steps: int, shift: float | None):
        """See Backbone."""
        name = self._scheduler_config["_class_name"]  # one of SHIFT_KEY: read_spec has checked it
        options = {} if shift is None else {SHIFT_KEY[name]: shift}
        scheduler = getattr(diffusers, name).from_config(self._scheduler_config, **options)
        scheduler.set_timesteps(num_steps, device=self._device)
        return scheduler

    def predict(
        self, x_CTHW: torch.Tensor, condition_CTHW: torch.Tensor, timestep: torch.Tensor, prompt_embeds: torch.Tensor
    ) -> torch.Tensor:
        """See Backbone."""
        return self._transformer(
            hidden_states=torch.cat([x_CTHW, condition_CTHW])[None].to(self._dtype),
            timestep=timestep.expand(1),
            encoder_hidden_states=prompt_embeds[None].to(self._dtype),
            return_dict=False,
        )[0][0]

    def _set_attention(self, attention: Attention) -> str:
        """Switch the backend and try it on one token, so that one that cannot run is refused at start."""
        if attention is Attention.native:
            self._transformer.set_attention_backend(attention.value)
            return attention.value
        config = self._transformer.config
        try:
            self._transformer.set_attention_backend(attention.value)
            channels, embeds = config.in_channels - config.out_channels, torch.zeros(1, config.text_dim)
            x_CTHW = torch.zeros(config.out_channels, *config.patch_size, device=self._device)
            condition_CTHW = torch.zeros(channels, *config.patch_size, device=self._device)
            with torch.inference_mode():
                self.predict(x_CTHW, condition_CTHW, torch.zeros(1, device=self._device), embeds.to(self._device))
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, NotImplementedError, ImportError) as error:
            reason = str(error).strip().split("\n")[0]
            raise InputError(f"model.attention={attention.value} cannot run here: {reason} Try native.") from error
        return attention.value
