"""Low-rank weights: every key layout against the formula, weights and experts against the stock pipeline."""

import json
from pathlib import Path

import pytest
import torch
from conftest import make_picture
from diffusers import WanTransformer3DModel
from make_jobs import denoise, make_job, stock_latents, stock_pipeline
from published_models import make_published
from safetensors.torch import save_file

from fresco_dist.config import Expert, InputError, LoraConfig
from fresco_dist.method.noise import gaussian_noise
from fresco_dist.models.wan.lora import check_loras, load_loras_

RANK, ALPHA, NUM_BLOCKS = 4, 2.0, 2
LAYERS = {  # diffusers' name: Wan's
    **{f"attn1.{ours}": f"self_attn.{theirs}" for ours, theirs in zip(("to_q", "to_k", "to_v", "to_out.0"), "qkvo")},
    **{f"attn2.{ours}": f"cross_attn.{theirs}" for ours, theirs in zip(("to_q", "to_k", "to_v", "to_out.0"), "qkvo")},
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
}


@pytest.fixture(scope="module")
def a14b_path(tmp_path_factory) -> Path:
    return make_published("wan2_2_i2v_a14b", tmp_path_factory.mktemp("lora") / "a14b")


def make_lora(
    transformer: WanTransformer3DModel, layout: str, path: Path, seed: int = 0, rank: int = RANK
) -> dict[str, torch.Tensor]:
    """Write random low-rank weights for every linear layer of the blocks; the deltas they mean, by layer."""
    generator, tensors, deltas = torch.Generator().manual_seed(seed), {}, {}
    for block in range(NUM_BLOCKS):
        for ours, theirs in LAYERS.items():
            name = f"blocks.{block}.{ours}"
            out_features, in_features = transformer.get_submodule(name).weight.shape
            down = 0.3 * torch.randn(rank, in_features, generator=generator)
            up = 0.3 * torch.randn(out_features, rank, generator=generator)
            deltas[name] = up @ down
            if layout == "peft":
                key = f"transformer.{name}"
                tensors |= {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}
                continue
            if layout == "wan":
                key = f"diffusion_model.blocks.{block}.{theirs}"
            else:
                key = f"lora_unet_blocks_{block}_{theirs.replace('.', '_')}"
            tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
            tensors[f"{key}.alpha"] = torch.tensor(ALPHA)
            deltas[name] *= ALPHA / rank
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return deltas


@pytest.mark.parametrize("layout", ["peft", "wan", "musubi"])
def test_fused_weights_are_the_formula(a14b_path, tmp_path, layout):
    transformer = WanTransformer3DModel.from_pretrained(a14b_path / "transformer")
    before = {name: tensor.clone() for name, tensor in transformer.state_dict().items()}
    deltas = make_lora(transformer, layout, tmp_path / "lora.safetensors")
    loras = [LoraConfig(str(tmp_path / "lora.safetensors"), 0.5)]
    num_alphas = 0 if layout == "peft" else len(deltas)
    num_parameters = RANK * sum(sum(delta.shape) for delta in deltas.values()) + num_alphas
    assert check_loras(loras, num_experts=2) == [num_parameters, num_parameters]
    load_loras_(transformer, loras, stage=0)
    after = transformer.state_dict()
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        delta = deltas.get(name.removesuffix(".weight"), torch.zeros(1))
        torch.testing.assert_close(tensor, before[name] + 0.5 * delta, rtol=0, atol=1e-6)


def test_each_expert_has_its_own_as_in_the_stock_pipeline(a14b_path, tmp_path):
    """Two files for the high-noise expert with a weight each, one for the low-noise expert; fused, and as adapters."""
    pipeline = stock_pipeline(a14b_path)
    files = {name: tmp_path / f"{name}.safetensors" for name in ("high_a", "high_b", "low")}
    for seed, (name, file) in enumerate(files.items()):
        make_lora(pipeline.transformer, "wan", file, seed)
        pipeline.load_lora_weights(
            str(tmp_path), weight_name=file.name, adapter_name=name, load_into_transformer_2=name == "low"
        )
    pipeline.transformer.set_adapters(["high_a", "high_b"], [0.7, -0.4])
    pipeline.transformer_2.set_adapters(["low"], [0.6])
    loras = [
        f"{{path:{files['high_a']},weight:0.7,expert:high_noise}}",
        f"{{path:{files['high_b']},weight:-0.4,expert:high_noise}}",
        f"{{path:{files['low']},weight:0.6,expert:low_noise}}",
    ]
    overrides, image = ["fusion=multidiffusion", "tiles.window=[480,640]"], make_picture(64, 64)
    plain = denoise(make_job(a14b_path, *overrides, image=image))
    noise = gaussian_noise(tuple(plain.shape), seed=0)
    theirs = stock_latents(pipeline, noise, image, guidance_scale=1.0)
    overrides.append(f"model.loras=[{','.join(loras)}]")
    fused, adapted = (
        denoise(make_job(a14b_path, *overrides, f"model.fuse_loras={fuse}", image=image)) for fuse in ("true", "false")
    )
    torch.testing.assert_close(fused, theirs, rtol=0, atol=1e-5)
    torch.testing.assert_close(adapted, theirs, rtol=0, atol=1e-6)
    assert float((fused - plain).abs().max()) > 0.01


@pytest.mark.parametrize("override", ["model.expert_offload=swap", "model.compile=true"])
def test_adapters_go_where_the_weights_go(a14b_path, tmp_path, override):
    make_lora(WanTransformer3DModel.from_pretrained(a14b_path / "transformer"), "wan", tmp_path / "lora.safetensors")
    overrides = [f"model.loras=[{{path:{tmp_path}/lora.safetensors}}]", "model.fuse_loras=false"]
    overrides += ["fusion=multidiffusion", "tiles.window=[480,640]"]
    plain, changed = (denoise(make_job(a14b_path, *overrides, *more)) for more in ([], [override]))
    torch.testing.assert_close(changed, plain, rtol=0, atol=1e-4 if "compile" in override else 0)


def test_adapters_count_as_weights(a14b_path, tmp_path):
    deltas = make_lora(
        WanTransformer3DModel.from_pretrained(a14b_path / "transformer"), "peft", tmp_path / "lora.safetensors"
    )
    loras = f"model.loras=[{{path:{tmp_path}/lora.safetensors,expert:low_noise}}]"
    fused, adapted = (
        make_job(a14b_path, loras, f"model.fuse_loras={fuse}", "model.dtype=bfloat16").plan.spec.weight_bytes
        for fuse in ("true", "false")
    )
    assert adapted - fused == 2 * RANK * sum(sum(delta.shape) for delta in deltas.values())


def test_lora_for_no_expert_in_particular_is_for_both(a14b_path, tmp_path):
    for stage in (0, 1):
        transformer = WanTransformer3DModel.from_pretrained(a14b_path / "transformer")
        before = transformer.blocks[0].attn1.to_q.weight.clone()
        make_lora(transformer, "peft", tmp_path / "lora.safetensors")
        load_loras_(transformer, [LoraConfig(str(tmp_path / "lora.safetensors"))], stage)
        assert not torch.equal(transformer.blocks[0].attn1.to_q.weight, before)


@pytest.mark.parametrize(
    "key, width, reason",
    [
        ("transformer.blocks.7.attn1.to_q", 24, "it has no layer blocks.7.attn1.to_q"),
        ("transformer.blocks.1.attn1.to_q", 48, "size mismatch"),
    ],
)
def test_lora_of_another_model_is_refused(a14b_path, tmp_path, key, width, reason):
    """Also if a part of it would fit: nothing is left out in silence."""
    transformer = WanTransformer3DModel.from_pretrained(a14b_path / "transformer")
    tensors = {}
    for name, in_features in (("transformer.blocks.0.attn1.to_q", 24), (key, width)):
        tensors[f"{name}.lora_A.weight"] = torch.zeros(RANK, in_features)
        tensors[f"{name}.lora_B.weight"] = torch.zeros(24, RANK)
    save_file(tensors, tmp_path / "lora.safetensors")
    with pytest.raises(InputError, match=f"model.loras: .*lora.safetensors does not fit this model: .*{reason}"):
        load_loras_(transformer, [LoraConfig(str(tmp_path / "lora.safetensors"))], stage=0)


def test_expert_of_a_model_with_one_transformer_is_refused(tmp_path):
    with pytest.raises(InputError, match="expert must stay unset for a model with one transformer; got low_noise"):
        check_loras([LoraConfig(str(tmp_path / "lora.safetensors"), 1.0, Expert.low_noise)], num_experts=1)


@pytest.mark.parametrize(
    "content, words",
    [
        (None, ["model.loras", "is missing"]),
        (b"pickle", ["model.loras", "is not a safetensors file"]),
        ({"unet.down.lora_A.weight": torch.zeros(1)}, ["model.loras", "keys that start with", "got unet.down"]),
        ({"transformer.blocks.0.weight": torch.zeros(1)}, ["model.loras", "keys that start with"]),
    ],
)
def test_command_file_that_is_no_lora_is_refused_before_loading(command, a14b_path, tmp_path, content, words):
    path = tmp_path / "lora.safetensors"
    if isinstance(content, dict):
        save_file(content, path)
    elif content is not None:
        path.write_bytes(content)
    done = command(f"model.path={a14b_path}", f"model.loras=[{{path:{path}}}]", "plan_only=true")
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert [word for word in words if word not in line] == [], line


def test_command_few_step_preset(command, folder, a14b_path, tmp_path):
    """The README's command, on small weights: six steps, no guidance, each expert with its own file."""
    transformer = WanTransformer3DModel.from_pretrained(a14b_path / "transformer")
    for seed, name in enumerate(("high", "low")):
        make_lora(transformer, "wan", tmp_path / f"{name}.safetensors", seed)
    loras = [f"{{path: {tmp_path / name}.safetensors, expert: {name}_noise}}" for name in ("high", "low")]
    overrides = ["model=wan2_2_i2v_a14b_turbo", f"model.path={a14b_path}", f"model.loras=[{', '.join(loras)}]"]
    done = command(*overrides, "sampler.num_steps=6")
    assert done.returncode == 0, done.stderr
    run = json.loads((folder / "run.json").read_text())
    assert run["config"]["sampler"] == {
        "num_steps": 6, "guidance_scale": 1.0, "guidance_scale_2": None, "shift": 5.0, "sigmas": None,
        "stop_after": None,
    }  # fmt: skip
    assert [lora["expert"] for lora in run["config"]["model"]["loras"]] == ["high_noise", "low_noise"]
    assert run["attention_backend"] == "native"


def test_command_few_step_preset_needs_the_weights(command, a14b_path):
    done = command("model=wan2_2_i2v_a14b_turbo", f"model.path={a14b_path}")
    assert done.returncode == 2 and "model.loras must be given" in done.stderr, done.stderr
