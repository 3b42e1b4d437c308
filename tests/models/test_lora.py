"""Low-rank weights: every key layout against the formula, and weights against the stock pipeline and PEFT."""

import json
import re
from pathlib import Path

import pytest
import torch
from conftest import make_picture
from diffusers import WanTransformer3DModel
from lora_files import (
    LAYOUTS,
    RANK,
    assert_changed_by,
    load_transformer,
    make_lora,
    make_whole_lora,
    output_of,
    state_of,
    tensors_of,
)
from make_jobs import denoise, make_job, stock_latents, stock_pipeline
from published_models import make_published
from safetensors.torch import load_file, save_file

from fresco_dist.config import Expert, InputError, LoraConfig
from fresco_dist.method.noise import gaussian_noise
from fresco_dist.models.wan.lora import check_loras, load_loras_


@pytest.fixture(scope="module")
def a14b_path(tmp_path_factory) -> Path:
    return make_published("wan2_2_i2v_a14b", tmp_path_factory.mktemp("lora") / "a14b")


@pytest.fixture(scope="module")
def i2v_path(tmp_path_factory) -> Path:
    """With an image encoder."""
    return make_published("wan2_1_i2v_14b", tmp_path_factory.mktemp("lora") / "i2v")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fused_weights_are_the_formula_and_adapters_add_the_same(a14b_path, tmp_path, layout):
    transformer, adapted = load_transformer(a14b_path), load_transformer(a14b_path)
    before = state_of(transformer)
    deltas = make_lora(transformer, layout, tmp_path / "lora.safetensors")
    loras = [LoraConfig(str(tmp_path / "lora.safetensors"), 0.5)]
    experts = [tensors_of(transformer)] * 2
    assert check_loras(loras, experts) == ([0, 0], [])
    num_parameters = RANK * sum(sum(delta.shape) for delta in deltas.values())
    assert check_loras(loras, experts, fuse=False) == ([num_parameters] * 2, [])
    load_loras_(transformer, loras, stage=0)
    assert_changed_by(transformer, before, deltas, 0.5)
    load_loras_(adapted, loras, stage=0, fuse=False)
    assert torch.equal(adapted.blocks[0].attn1.to_q.base_layer.weight, before["blocks.0.attn1.to_q.weight"])
    torch.testing.assert_close(output_of(adapted), output_of(transformer), rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", ["diffusers", "wan", "kohya"])
def test_weights_are_those_of_the_stock_loader(i2v_path, tmp_path, layout):
    """With a bias, where that knows how."""
    pipeline, ours = stock_pipeline(i2v_path), load_transformer(i2v_path)
    file = tmp_path / "lora.safetensors"
    make_lora(ours, layout, file)
    if layout == "wan":
        biases = {"diffusion_model.blocks.0.self_attn.q.diff_b": torch.randn(24)}
        save_file(load_file(file) | biases, file)
    pipeline.load_lora_weights(str(tmp_path), weight_name=file.name)
    pipeline.fuse_lora(lora_scale=0.7)
    pipeline.unload_lora_weights()
    load_loras_(ours, [LoraConfig(str(file), 0.7)], 0)
    theirs = pipeline.transformer.state_dict()
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("fuse", [True, False])
def test_every_tensor_can_be_changed(i2v_path, tmp_path, fuse):
    """Norms, biases, modulations, convolution and image layers; what no adapter can be is added to the weights."""
    transformer, other = load_transformer(i2v_path), load_transformer(i2v_path)
    before = state_of(transformer)
    deltas = make_whole_lora(transformer, tmp_path / "lora.safetensors")
    assert deltas.keys() == before.keys()
    loras = [LoraConfig(str(tmp_path / "lora.safetensors"), 0.5)]
    _, notes = check_loras(loras, [tensors_of(transformer)], fuse=fuse)
    load_loras_(transformer, loras, 0, fuse=fuse)
    if fuse:
        assert notes == []
        assert_changed_by(transformer, before, deltas, 0.5)
        return
    added = sum(delta.dim() != 2 for delta in deltas.values())
    assert len(notes) == 1 and f": {added} tensors are changed as no adapter can" in notes[0]
    other.load_state_dict({name: before[name] + 0.5 * delta for name, delta in deltas.items()})
    torch.testing.assert_close(output_of(transformer), output_of(other), rtol=0, atol=1e-4)


def test_image_layers_of_a_sibling_model_are_left_out_and_counted(i2v_path, a14b_path, tmp_path):
    """A published few-step LoRA of Wan 2.1 on Wan 2.2, which has no image encoder."""
    sibling, transformer = load_transformer(i2v_path), load_transformer(a14b_path)
    before = state_of(transformer)
    deltas = make_whole_lora(sibling, tmp_path / "lora.safetensors")
    held = load_file(tmp_path / "lora.safetensors")
    left_out = [name for name in held if re.search("k_img|v_img|img_emb", name)]
    loras = [LoraConfig(str(tmp_path / "lora.safetensors"))]
    numbers, notes = check_loras(loras, [tensors_of(transformer)] * 2)
    assert numbers == [0, 0]
    assert notes == [
        f"model.loras: {tmp_path}/lora.safetensors: {len(left_out)} of {len(held)} tensors have no place in this model"
        " and are left out (img_emb, k_img, v_img)"
    ]
    load_loras_(transformer, loras, 0)
    assert_changed_by(transformer, before, {name: delta for name, delta in deltas.items() if name in before})


def test_command_says_what_is_left_out_once(command, folder, i2v_path, a14b_path, tmp_path):
    make_whole_lora(load_transformer(i2v_path), tmp_path / "lora.safetensors")
    loras = f"model.loras=[{{path:{tmp_path}/lora.safetensors}}]"
    done = command(f"model.path={a14b_path}", loras, "tiles.window=[64,96]", "prior.area=6144", "sampler.num_steps=1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("note      model.loras: ") == 1 and "are left out (img_emb, k_img, v_img)" in done.stdout


@pytest.mark.parametrize("options", [{}, {"alpha_pattern": {"to_q": 1}, "rank_pattern": {"to_q": 2}},
                                     {"use_rslora": True}, {"lora_bias": True}],
                         ids=["alpha", "patterns", "rslora", "bias"])  # fmt: skip
@pytest.mark.parametrize("fuse", [True, False])
def test_adapter_saved_by_peft_is_what_peft_makes_of_it(i2v_path, tmp_path, options, fuse):
    """Its factor stands in the settings beside the file, in which no alpha is."""
    import peft

    config = peft.LoraConfig(r=4, lora_alpha=12, target_modules=["to_q", "to_out.0", "add_k_proj"], **options)
    model = peft.get_peft_model(load_transformer(i2v_path), config)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path)
    ours, theirs = load_transformer(i2v_path), model.merge_and_unload()
    loras = [LoraConfig(str(tmp_path / "adapter_model.safetensors"))]
    plain = output_of(ours)
    load_loras_(ours, loras, 0, fuse=fuse)
    torch.testing.assert_close(output_of(ours), output_of(theirs), rtol=0, atol=2e-5)
    assert float((output_of(ours) - plain).abs().max()) > 0.01


def test_alpha_in_the_metadata_that_diffusers_writes_counts(a14b_path, tmp_path):
    pipeline = stock_pipeline(a14b_path)
    import peft

    pipeline.transformer.add_adapter(peft.LoraConfig(r=4, lora_alpha=12, target_modules=["to_q"], lora_dropout=0.0))
    for name, parameter in pipeline.transformer.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    pipeline.save_lora_weights(
        tmp_path,
        transformer_lora_layers=peft.get_peft_model_state_dict(pipeline.transformer),
        transformer_lora_adapter_metadata=pipeline.transformer.peft_config["default"].to_dict(),
    )
    (file,) = tmp_path.glob("*.safetensors")
    ours = load_transformer(a14b_path)
    load_loras_(ours, [LoraConfig(str(file))], 0)
    torch.testing.assert_close(output_of(ours), output_of(pipeline.transformer), rtol=0, atol=1e-5)


def test_low_precision_weights_are_rounded_once(a14b_path, tmp_path):
    """Two files that cancel each other leave bfloat16 weights as they were."""
    transformer = load_transformer(a14b_path).to(torch.bfloat16)
    before = state_of(transformer)
    make_lora(transformer, "wan", tmp_path / "lora.safetensors")
    path = str(tmp_path / "lora.safetensors")
    load_loras_(transformer, [LoraConfig(path, 1.0), LoraConfig(path, -1.0)], 0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in transformer.state_dict().items())


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


def test_expert_of_a_model_with_one_transformer_is_refused(tmp_path):
    with pytest.raises(InputError, match="expert must stay unset for a model with one transformer; got low_noise"):
        check_loras([LoraConfig(str(tmp_path / "lora.safetensors"), 1.0, Expert.low_noise)], [{}])


@pytest.mark.parametrize(
    "content, words",
    [
        (None, ["model.loras", "is missing"]),
        (b"pickle", ["model.loras", "is not a safetensors file"]),
        ({"unet.down.lora_A.weight": torch.zeros(1)}, ["model.loras", "it has no layer unet.down"]),
        ({"transformer.blocks.0.weight": torch.zeros(1)}, ["model.loras", "of a kind that is not supported"]),
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
