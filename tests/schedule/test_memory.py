"""Expected memory: counted where it can be, and estimates against the live tensors of real forwards."""

import dataclasses
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from live_bytes import LiveBytes
from make_jobs import make_config
from published_models import published
from test_plan import UHD, WAN
from transformers import UMT5Config, UMT5EncoderModel

from fresco_dist.config import Config, DispatchMode, InputError
from fresco_dist.models.checkpoint import defaults_of
from fresco_dist.models.wan.spec import VAE, transformer_spec, vae_spec
from fresco_dist.schedule.describe import describe, describe_memory
from fresco_dist.schedule.memory import (
    CONTEXT_GB,
    alternatives,
    check_fit,
    decode_bytes,
    forward_bytes,
    weight_bytes,
    worker_memory,
)
from fresco_dist.schedule.plan import Plan, make_plan
from fresco_dist.schedule.spec import ModelSpec
from fresco_dist.schedule.tasks import open_canvases


def spec_of(name: str, transformer: dict | None = None, vae: dict | None = None) -> ModelSpec:
    """The plan's view of a published model, some of its widths changed; without the bytes of its weights."""
    files = published(name)
    index = files["model_index.json"]
    transformer = files["transformer/config.json"] | (transformer or {})
    vae = defaults_of(*VAE) | files["vae/config.json"] | (vae or {})
    num_experts = 2 if index["boundary_ratio"] else 1
    num_parameters = _num_parameters(WanTransformer3DModel, transformer)
    return dataclasses.replace(
        WAN,
        latent_channels=vae["z_dim"],
        condition_channels=vae["z_dim"] if index["expand_timesteps"] else transformer["in_channels"] - vae["z_dim"],
        spatial_factor=vae["scale_factor_spatial"],
        transformer=transformer_spec(transformer, num_experts, num_parameters, index["expand_timesteps"]),
        vae=vae_spec(vae),
    )


@cache
def full_spec(name: str) -> ModelSpec:
    """The plan's view of a published model at full size: transformers and text encoder in bfloat16, VAE in float32."""
    files, spec = published(name), spec_of(name)
    vae_bytes = 4 * _num_parameters(AutoencoderKLWan, files["vae/config.json"])
    with torch.device("meta"):
        text_encoder = UMT5EncoderModel(UMT5Config(**files["text_encoder/config.json"]))
    return dataclasses.replace(
        spec,
        weight_bytes=2 * spec.transformer.num_experts * spec.transformer.num_parameters + vae_bytes,
        text_encoder_bytes=2 * sum(parameter.numel() for parameter in text_encoder.parameters()),
    )


def _num_parameters(component: type, config: dict) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in component.from_config(config).parameters())


def full_plan(name: str, *overrides: str) -> tuple[Plan, Config]:
    """A published model planned for ultra HD with the defaults of its file in conf/model."""
    files = {"wan2_2_ti2v_5b": "wan2_2_ti2v_5b", "wan2_1_i2v_14b": "wan2_1_i2v_14b_720p"}
    config = make_config(f"model={files.get(name, name)}", "model.path=/model", *overrides)
    return make_plan(config, full_spec(name), (3840, 2160), 8), config


def a14b_plan(*overrides: str) -> tuple[Plan, Config]:
    """Wan2.2-I2V-A14B at full size."""
    return full_plan("wan2_2_i2v_a14b", *overrides)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", ["wan2_2_i2v_a14b", "wan2_1_i2v_14b", "wan2_2_ti2v_5b"])
def test_activations_of_a_forward_are_estimated_within_a_tenth(name, dtype):
    config = published(name)["transformer/config.json"]
    heads = config["num_attention_heads"]
    width = {
        "num_attention_heads": 2,
        "ffn_dim": 256 * config["ffn_dim"] // (heads * 128),
        "num_layers": 2,
        "text_dim": 32,
    }
    if config["image_dim"] is not None:
        width |= {"image_dim": 32, "added_kv_proj_dim": 256}
    transformer = WanTransformer3DModel.from_config(config | width).to(torch_dtype := getattr(torch, dtype))
    for key, parameter in transformer.named_parameters():
        if any(kept in key for kept in transformer._keep_in_fp32_modules):
            parameter.data = parameter.data.float()
    spec = spec_of(name, width)
    side = 64 * spec.spatial_factor
    sizes = (f"tiles.window=[{side},{side}]", "video.num_frames=17", "fusion=multidiffusion")
    plan = make_plan(make_config(*sizes), spec, (side, side), 1)
    tokens = 5 * 32 * 32
    timestep = torch.full((1, tokens), 500.0) if spec.transformer.per_token_timesteps else torch.tensor([500])
    pictures = None if config["image_dim"] is None else torch.zeros(1, 257, 32, dtype=torch_dtype)
    hidden = torch.zeros(1, config["in_channels"], 5, 64, 64, dtype=torch_dtype)
    with torch.inference_mode(), LiveBytes() as seen:
        transformer(hidden, timestep, torch.zeros(1, 512, 32, dtype=torch_dtype), pictures, return_dict=False)
    assert forward_bytes(plan, torch_dtype.itemsize) == pytest.approx(seen.peak, rel=0.1)


@pytest.mark.parametrize("name", ["wan2_2_i2v_a14b", "wan2_2_ti2v_5b"])
def test_activations_of_a_decoded_tile_are_estimated_within_a_tenth(name):
    narrow = {"base_dim": 16} | ({"decoder_base_dim": 16} if "ti2v" in name else {})
    vae = AutoencoderKLWan.from_config(published(name)["vae/config.json"] | narrow).eval()
    spec = dataclasses.replace(spec_of(name, vae=narrow), decode_tile_px=(64, 48))
    plan = make_plan(make_config("video.num_frames=17"), spec, (256, 256), 1)
    side = 64 // spec.spatial_factor
    with torch.inference_mode(), LiveBytes() as seen:
        vae.decode(torch.zeros(1, vae.config.z_dim, 5, side, side))
    assert decode_bytes(plan, 4) == pytest.approx(seen.peak, rel=0.1)


def test_weights_of_the_published_a14b_are_counted():
    """Two experts of 14.3 billion parameters in bfloat16 and the VAE's 127 million in float32."""
    plan, config = a14b_plan()
    assert weight_bytes(plan, config.model) / 1e9 == pytest.approx(2 * 28.6 + 0.5, abs=0.1)
    for override, expected in {
        "model.expert_offload=swap": 28.6 + 0.5,
        "model.quantization=fp8": 2 * 14.7 + 0.5,
        "model.offload=group": 0.5 + 28.6 * 2 / 40 + 0.5,
    }.items():
        plan, config = a14b_plan(override)
        assert weight_bytes(plan, config.model) / 1e9 == pytest.approx(expected, abs=0.6), override


def test_second_expert_that_comes_later_never_meets_the_text_encoder():
    """11.4 GB of it, against canvas and forward: `ahead` needs less than `hold` by what they differ in."""
    held, later = (
        worker_memory(plan, config)
        for plan, config in map(a14b_plan, (f"model.expert_offload={policy}" for policy in ("hold", "ahead")))
    )
    expert_gb = 28.6
    assert later.weights / 1e9 == pytest.approx(held.weights / 1e9 - expert_gb, abs=0.1)
    assert later.second_expert / 1e9 == pytest.approx(expert_gb, abs=0.1)
    assert later.peak_gb == pytest.approx((held.weights + held.canvas + max(held.forward, held.decode)) / 1e9)
    assert "second expert 28.6" in describe_memory(later) and "second" not in describe_memory(held)


def test_linear_layers_of_the_blocks_are_counted():
    for name in ("wan2_2_i2v_a14b", "wan2_1_i2v_14b", "wan2_2_ti2v_5b"):
        with torch.device("meta"):
            transformer = WanTransformer3DModel.from_config(published(name)["transformer/config.json"])
        linear = (m for m in transformer.blocks.modules() if isinstance(m, torch.nn.Linear))
        assert spec_of(name).transformer.block_parameters == sum(module.weight.numel() for module in linear)


def test_expected_peak_is_the_larger_of_canvas_and_text_encoder():
    """A wavefront holds the windows of a forward and a cell beside it, an all-reduce canvases as well."""
    config = make_config(*UHD)
    plan = make_plan(config, WAN, (3840, 2160), 8)
    assert worker_memory(plan, config).peak_gb == pytest.approx(28 + 11)
    small = dataclasses.replace(WAN, text_encoder_bytes=10**6)
    plan = make_plan(config, small, (3840, 2160), 8)
    parts = 4 * 21 * 2 * 90 * 160 * (8 * 16 + 20)  # the thumbnail is one window and one cell
    assert worker_memory(plan, config).peak_gb == pytest.approx(28 + parts / 1e9)
    config = make_config(*UHD, "dispatch.mode=allreduce")
    assert worker_memory(plan, config).peak_gb == pytest.approx(28 + (parts + 4 * 21 * 270 * 480 * 10 * 16) / 1e9)


def test_canvases_that_are_open_at_once_are_counted():
    """Two pictures at a time on 8 workers, three and one where these wait for each other, with all of their points."""
    config = make_config(*UHD)
    plan = make_plan(config, dataclasses.replace(WAN, text_encoder_bytes=0), (3840, 2160), 8)
    points = {
        "six pictures": [(job, job) for job in range(6)],
        "six strengths": [(0, job) for job in range(6)],
        "of both": [(job // 3, job) for job in range(18)],
    }
    expected = {"six pictures": (2, 4), "six strengths": (1, 6), "of both": (2, 12)}
    for name, ends in points.items():
        assert (
            tuple(open_canvases(plan, DispatchMode[mode], ends) for mode in ("wavefront", "allreduce"))
            == expected[name]
        )
    assert worker_memory(plan, config, 6).canvas == worker_memory(plan, config).canvas  # the others are not whole
    config = make_config(*UHD, "dispatch.mode=allreduce")
    one, two, three = (worker_memory(plan, config, num_open).canvas for num_open in (1, 2, 3))
    assert two - one == three - two == 4 * 21 * 270 * 480 * 10 * 16
    _, memory, _ = describe(config, plan, num_open=2)
    assert f"canvas {two / 1e9:.1f}" in memory
    check_fit(plan, config, 31.5)
    with pytest.raises(InputError, match="at least 32"):
        check_fit(plan, config, 31.5, num_open=2)


@pytest.mark.parametrize(
    "gpu_memory_gb, overrides, remedy",
    [
        (141, [], None),
        (80, [], None),
        (48, [], "model.quantization=fp8 would fit"),
        (48, ["model.quantization=fp8"], None),
        (48, ["model.expert_offload=swap"], None),
        (24, [], "model.offload=group would fit"),
        (24, ["model.offload=group"], None),
        (12, [], "No setting of this model would fit"),
        (12, ["model.offload=group"], "No setting of this model would fit"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_setting_that_would(gpu_memory_gb, overrides, remedy):
    plan, config = a14b_plan(*overrides)
    expected = pytest.raises(
        InputError, match=f"cluster.gpu_memory_gb must be at least .* got {gpu_memory_gb}.*{remedy}"
    )
    with nullcontext() if remedy is None else expected:
        check_fit(plan, config, gpu_memory_gb)


def test_every_suggestion_needs_less_and_is_what_the_setting_then_needs():
    plan, config = a14b_plan()
    peak_gb = worker_memory(plan, config).peak_gb
    suggested = alternatives(plan, config)
    assert [name for name, _ in suggested] == [
        "model.quantization=fp8", "model.expert_offload=ahead", "model.expert_offload=swap", "model.offload=group"
    ]  # fmt: skip
    for override, expected_gb in suggested:
        changed_plan, changed = a14b_plan(override)
        assert worker_memory(changed_plan, changed).peak_gb == expected_gb < peak_gb


def test_command_plan_for_another_machine_is_refused_if_it_cannot_fit(command, folder):
    done = command("plan_only=true", "cluster.gpu_memory_gb=0.5")
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert "cluster.gpu_memory_gb must be at least" in line and "got 0.5" in line
    done = command("plan_only=true", "cluster.gpu_memory_gb=24")
    assert done.returncode == 0 and "memory    about 0.0 GB per worker" in done.stdout


SETTINGS = {  # columns of the table in launch/README.md
    "none": [],
    "model.expert_offload=swap": ["model.expert_offload=swap"],
    "model.quantization=fp8": ["model.quantization=fp8"],
    "model.offload=group": ["model.offload=group"],
}
MODELS = {"wan2_2_i2v_a14b": 2, "wan2_1_i2v_14b": 1, "wan2_2_ti2v_5b": 1}  # number of experts


def expected_row(name: str) -> list[str]:
    """Peak with CUDA in GB, setting by setting."""
    row = []
    for setting, overrides in SETTINGS.items():
        if "swap" in setting and MODELS[name] == 1:
            row.append("-")
            continue
        plan, config = full_plan(name, *overrides)
        row.append(f"{worker_memory(plan, config).peak_gb + CONTEXT_GB:.0f}")
    return row


@pytest.mark.parametrize("name", MODELS)
def test_the_readmes_table_is_the_planners(name):
    (line,) = [
        line
        for line in (Path(__file__).parents[2] / "launch" / "README.md").read_text().splitlines()
        if line.startswith(f"| `{name}") and line.count("|") == 6
    ]
    assert [cell.strip() for cell in line.strip("|").split("|")][1:] == expected_row(name)
