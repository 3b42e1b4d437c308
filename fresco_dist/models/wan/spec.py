"""Wan model directories: what kind of model one holds, and whether everything it needs is there.

Reads configuration files and safetensors headers, never a weight. The families differ in their own configuration and
nowhere else: `boundary_ratio` (two experts), `expand_timesteps` (a clean first frame, timesteps per token),
`image_dim` (an image encoder), `pos_embed_seq_len` (a first and a last frame).
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fresco_dist.config import InputError, ModelConfig, SamplerConfig
from fresco_dist.method.prediction import risen_levels
from fresco_dist.models.checkpoint import defaults_of, model_path, read_json
from fresco_dist.models.places import CLIP_VISION, IMAGE, UMT5, WAN_TRANSFORMER, WAN_VAE
from fresco_dist.models.wan.lora import check_loras
from fresco_dist.models.weights import Weights, read_weights
from fresco_dist.schedule.spec import (
    ITEM_BYTES,
    PROMPT_TOKENS,
    ModelSpec,
    TransformerSpec,
    VaeSpec,
    one_stage,
    tile_and_stride,
)

TRANSFORMER = "models.transformers.transformer_wan", "WanTransformer3DModel"
VAE = "models.autoencoders.autoencoder_kl_wan", "AutoencoderKLWan"
SHIFT_KEY = {"FlowMatchEulerDiscreteScheduler": "shift", "UniPCMultistepScheduler": "flow_shift"}
EXPERTS = ("transformer", "transformer_2")  # high noise, low noise
TILE_PX = (256, 192)  # AutoencoderKLWan's own tile and stride


def read_spec(model: ModelConfig) -> ModelSpec:
    """Check the directory and read its configuration. Raises InputError, naming the file, if it cannot be used."""
    path = model_path(model)
    if not path.is_dir():
        raise InputError(f"model.path must be a directory in diffusers format; got {path}, which is not a directory.")
    index = read_index(path)
    num_experts = 1 if index["boundary_ratio"] is None else 2
    transformers = [read_transformer(path / name) for name in EXPERTS[:num_experts]]
    transformer = transformers[0]
    vae = defaults_of(*VAE) | read_json(path / "vae" / "config.json", "z_dim")
    scheduler = _read_scheduler(path)
    text_encoder = _read_text_encoder(path)
    has_image_encoder = transformer["image_dim"] is not None
    takes_two = transformer["pos_embed_seq_len"] is not None
    if has_image_encoder:
        _check_image_encoder(path)
    bytes_per_parameter = ITEM_BYTES[model.dtype]
    experts = [_read_expert(path / name, config) for name, config in zip(EXPERTS, transformers)]
    num_adapted, notes = check_loras(model.loras, [expert.tensors for expert in experts], fuse=model.fuse_loras)
    num_parameters = [expert.num_parameters + adapted for expert, adapted in zip(experts, num_adapted)]
    vae_bytes = read_weights(path / "vae", WAN_VAE).num_parameters * ITEM_BYTES[model.vae_dtype]
    tile, stride = tile_and_stride(model.vae_tile, TILE_PX, vae["scale_factor_spatial"])
    patch = vae["patch_size"] or 1  # of pixels, which the encoder takes and the decoder gives as channels
    return ModelSpec(
        latent_channels=vae["z_dim"],
        condition_channels=vae["z_dim"] if index["expand_timesteps"] else transformer["in_channels"] - vae["z_dim"],
        spatial_factor=vae["scale_factor_spatial"],
        temporal_factor=vae["scale_factor_temporal"],
        patch=transformer["patch_size"][1],
        weight_bytes=sum(num_parameters) * bytes_per_parameter + vae_bytes,
        text_encoder_bytes=text_encoder.num_parameters * bytes_per_parameter,
        encode_tile_px=(tile * patch, stride * patch),  # diffusers counts its own after patching
        decode_tile_px=(tile, stride),
        trained=read_json(path / "status.json", missing_ok=True).get("trained", True),
        embeds_pictures=has_image_encoder,
        stages=one_stage if num_experts == 1 else partial(stages_of, scheduler, index["boundary_ratio"]),
        transformer=transformer_spec(transformer, num_experts, num_parameters[0], bool(index["expand_timesteps"])),
        vae=vae_spec(vae),
        max_tokens=PROMPT_TOKENS,
        refuses=_refused_keys(index, num_experts, has_image_encoder, takes_two),
        requires={"image_last": "it is trained between two frames"} if takes_two else {},
        notes=tuple(notes),
    )


def make_scheduler(
    config: dict, num_steps: int, shift: float | None, sigmas: Sequence[float] | None, device: Any = "cpu"
) -> Any:
    """A noise scheduler from its configuration, which `read_spec` has checked; see Backbone."""
    import diffusers  # takes seconds, and planning a model with one expert does without
    import numpy as np

    name = config["_class_name"]
    if sigmas is not None:
        shift = 1.0  # schedulers shift the levels they are given too
    levels = None if sigmas is None else np.array(sigmas)  # UniPC multiplies them
    options = {} if shift is None else {SHIFT_KEY[name]: shift}
    scheduler = getattr(diffusers, name).from_config(config, **options)
    scheduler.set_timesteps(num_steps, device=device, sigmas=levels)
    return scheduler


def stage_of(scheduler_config: dict, boundary_ratio: float | None, timestep: float) -> int:
    """The expert for a timestep: 0, the high-noise one, down to and including the boundary, then 1."""
    boundary = (boundary_ratio or 0.0) * scheduler_config.get("num_train_timesteps", 1000)
    return int(timestep < boundary)


def stages_of(
    scheduler_config: dict, boundary_ratio: float | None, sampler: SamplerConfig, risen_until: int | None = None
) -> tuple[int, ...]:
    """The expert of each step."""
    scheduler = make_scheduler(scheduler_config, sampler.num_steps, sampler.shift, sampler.sigmas)
    if risen_until is not None:
        sigmas = risen_levels(scheduler.sigmas[: sampler.num_steps].tolist(), risen_until)
        scheduler = make_scheduler(scheduler_config, sampler.num_steps, None, sigmas)
    return tuple(stage_of(scheduler_config, boundary_ratio, timestep) for timestep in map(float, scheduler.timesteps))


def read_index(path: Path) -> dict:
    """`model_index.json` with the keys that tell the families apart; raises InputError for another pipeline.

    Wan2.2-TI2V-5B is published as a `WanPipeline` and loads as an image-to-video pipeline too.
    """
    defaults = {"boundary_ratio": None, "expand_timesteps": False}
    index = defaults | read_json(path / "model_index.json")
    name = index.get("_class_name")
    if name == "WanImageToVideoPipeline" or (name == "WanPipeline" and index["expand_timesteps"]):
        return index
    raise InputError(f"model.path: {path} holds a {name}; model.backbone=wan needs WanImageToVideoPipeline.")


def read_transformer(folder: Path) -> dict:
    """A transformer's configuration, with the defaults of what its file leaves out."""
    return defaults_of(*TRANSFORMER) | read_json(folder / "config.json", "in_channels")


def _read_scheduler(path: Path) -> dict:
    """Raises InputError for what is not supported."""
    scheduler = read_json(path / "scheduler" / "scheduler_config.json")
    unsupported = {
        "noise drawn at every step (stochastic_sampling)": bool(scheduler.get("stochastic_sampling")),
        "a shift that depends on the size (use_dynamic_shifting)": bool(scheduler.get("use_dynamic_shifting")),
        f"the noise scheduler {scheduler.get('_class_name')}": scheduler.get("_class_name") not in SHIFT_KEY,
    }
    for feature, present in unsupported.items():
        if present:
            raise InputError(f"model.path: {path} needs {feature}, which is not supported yet.")
    return scheduler


def _read_expert(folder: Path, config: dict) -> Weights:
    """The weights of a transformer of this configuration."""
    places = WAN_TRANSFORMER if config["image_dim"] is not None else WAN_TRANSFORMER.without(IMAGE)
    return read_weights(folder, places, config["num_layers"])


def _read_text_encoder(path: Path) -> Weights:
    """Its weights; raises InputError if they or the tokenizer cannot be used."""
    tokenizer = path / "tokenizer"
    if not any((tokenizer / name).is_file() for name in ("tokenizer.json", "spiece.model")):
        raise InputError(f"model.path: {tokenizer} has no tokenizer.json or spiece.model. Copy the model again.")
    for name in sorted({"tokenizer_config.json"} | {file.name for file in tokenizer.glob("*.json")}):
        read_json(tokenizer / name)
    config = read_json(path / "text_encoder" / "config.json", "model_type", "num_layers")
    return read_weights(path / "text_encoder", UMT5, config["num_layers"])


def _check_image_encoder(path: Path) -> None:
    config = read_json(path / "image_encoder" / "config.json", "model_type", "num_hidden_layers")
    read_json(path / "image_processor" / "preprocessor_config.json")
    read_weights(path / "image_encoder", CLIP_VISION, config["num_hidden_layers"])


def transformer_spec(config: dict, num_experts: int, num_parameters: int, per_token: bool) -> TransformerSpec:
    """Widths and parameter counts from a transformer's configuration."""
    width, ffn_width = config["num_attention_heads"] * config["attention_head_dim"], config["ffn_dim"]
    per_block = 8 * width**2 + 2 * width * ffn_width  # two attentions of four square matrices, feed-forward of two
    if config["added_kv_proj_dim"] is not None:
        per_block += 2 * width * config["added_kv_proj_dim"]
    return TransformerSpec(
        num_experts=num_experts,
        num_parameters=num_parameters,
        block_parameters=config["num_layers"] * per_block,
        num_blocks=config["num_layers"],
        width=width,
        ffn_width=ffn_width,
        per_token_timesteps=per_token,
    )


def vae_spec(config: dict) -> VaeSpec:
    """Width, patch and kind of a VAE's decoder from its configuration."""
    width = (config["decoder_base_dim"] or config["base_dim"]) * config["dim_mult"][0]
    return VaeSpec(width=width, patch=config["patch_size"] or 1, residual=bool(config["is_residual"]))


def _refused_keys(index: dict, num_experts: int, has_image_encoder: bool, takes_two: bool) -> dict[str, str]:
    refused: dict[str, str] = {}
    if num_experts == 1:
        refused |= dict.fromkeys(("sampler.guidance_scale_2", "model.expert_offload"), "it has one transformer")
    if not has_image_encoder:
        refused["model.image_embedding"] = "it has no image encoder"
    if index["expand_timesteps"]:
        refused["image_last"] = "it is conditioned on its first frame alone"
    elif has_image_encoder and not takes_two:
        refused["image_last"] = "its image encoder is trained with a first frame alone"
    return refused
