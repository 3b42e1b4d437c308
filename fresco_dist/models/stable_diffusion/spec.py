"""Stable Diffusion directories: whether one holds a model that can be run, and what planning needs to know of it.

Reads configuration files and safetensors headers, never a weight.
"""

import math
from pathlib import Path

from fresco_dist.config import Attention, InputError, ModelConfig, require
from fresco_dist.models.checkpoint import defaults_of, model_path, read_json
from fresco_dist.models.places import CLIP_TEXT, SD_UNET, SD_VAE
from fresco_dist.models.weights import read_weights
from fresco_dist.schedule.spec import ITEM_BYTES, TRANSFORMER_KEYS, ModelSpec, tile_and_stride

TILE_OVERLAP = 0.25  # AutoencoderKL's default
UNET = "models.unets.unet_2d_condition", "UNet2DConditionModel"
VAE = "models.autoencoders.autoencoder_kl", "AutoencoderKL"
SCHEDULER = "schedulers.scheduling_ddim", "DDIMScheduler"
REFUSED = ("sampler.shift", "sampler.sigmas", "prior.sigmas", *TRANSFORMER_KEYS)


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
    unet = defaults_of(*UNET) | read_json(path / "unet" / "config.json", "cross_attention_dim")
    vae = defaults_of(*VAE) | read_json(path / "vae" / "config.json", "latent_channels")
    _check_supported(path, unet, vae)
    of_text = {"max_position_embeddings": 77} | read_json(path / "text_encoder" / "config.json", "num_hidden_layers")
    text_encoder = read_weights(path / "text_encoder", CLIP_TEXT, of_text["num_hidden_layers"])
    tokenizer = read_json(path / "tokenizer" / "tokenizer_config.json", missing_ok=True)
    max_length = tokenizer.get("model_max_length", math.inf)
    bytes_per_parameter = ITEM_BYTES[model.dtype]
    vae_bytes = read_weights(path / "vae", SD_VAE).num_parameters * ITEM_BYTES[model.vae_dtype]
    spatial_factor = 2 ** (len(vae["block_out_channels"]) - 1)
    own = vae["sample_size"], int(vae["sample_size"] * (1.0 - TILE_OVERLAP))
    tile = tile_and_stride(model.vae_tile, own, spatial_factor)
    return ModelSpec(
        latent_channels=vae["latent_channels"],
        condition_channels=0,
        spatial_factor=spatial_factor,
        temporal_factor=1,
        patch=2 ** (len(unet["block_out_channels"]) - 1),  # windows divide evenly at every level of the UNet
        weight_bytes=read_weights(path / "unet", SD_UNET).num_parameters * bytes_per_parameter + vae_bytes,
        text_encoder_bytes=text_encoder.num_parameters * bytes_per_parameter,
        encode_tile_px=tile,
        decode_tile_px=tile,
        flow_matching=False,
        max_frames=1,
        max_tokens=min(of_text["max_position_embeddings"], max_length),
        refuses=dict.fromkeys(REFUSED, "it is a UNet for images"),
    )


def _check_supported(path: Path, unet: dict, vae: dict) -> None:
    scheduler = defaults_of(*SCHEDULER) | read_json(path / "scheduler" / "scheduler_config.json")
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
