"""Low-rank weights: every key layout against the formula, and weights against the stock pipeline and PEFT."""

import json
import re
from pathlib import Path

import pytest
import torch
from conftest import make_picture
from diffusers import WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from make_jobs import denoise, make_job, stock_latents, stock_pipeline
from published_models import make_published
from safetensors.torch import load_file, save_file

from fresco_dist.config import Expert, InputError, LoraConfig
from fresco_dist.method.noise import gaussian_noise
from fresco_dist.models.wan.lora import check_loras, load_loras_
from fresco_dist.models.weights import Tensor

RANK, ALPHA, NUM_BLOCKS = 4, 2.0, 2
ATTENTION = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "o"}  # diffusers' name: Wan's
LAYERS = {
    **{f"attn1.{ours}": f"self_attn.{theirs}" for ours, theirs in ATTENTION.items()},
    **{f"attn2.{ours}": f"cross_attn.{theirs}" for ours, theirs in ATTENTION.items()},
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
}
# Prefix, whether layers have Wan's names, down and up, whether there is an alpha
LAYOUTS = {
    "diffusers": ("transformer.", False, ("lora_A", "lora_B"), False),
    "bare": ("", False, ("lora_A", "lora_B"), False),
    "peft": ("base_model.model.", False, ("lora_A.default", "lora_B.default"), False),
    "old diffusers": ("transformer.", False, ("lora.down", "lora.up"), False),
    "wan": ("diffusion_model.", True, ("lora_down", "lora_up"), True),
    "bare wan": ("", True, ("lora_A", "lora_B"), True),
    "kohya": ("lora_unet_", True, ("lora_down", "lora_up"), True),
    "two underscores": ("lora_unet__", True, ("lora_down", "lora_up"), True),
}
BLOCK = """self_attn.q self_attn.k self_attn.v self_attn.o self_attn.norm_q! self_attn.norm_k! cross_attn.q cross_attn.k
cross_attn.v cross_attn.o cross_attn.k_img cross_attn.v_img cross_attn.norm_q! cross_attn.norm_k! cross_attn.norm_k_img!
norm3 ffn.0 ffn.2 modulation?""".split()  # ! has no bias, ? is a parameter
REST = """patch_embedding text_embedding.0 text_embedding.2 time_embedding.0 time_embedding.2 time_projection.1 head.head
head.modulation? img_emb.proj.0 img_emb.proj.1 img_emb.proj.3 img_emb.proj.4""".split()


@pytest.fixture(scope="module")
def a14b_path(tmp_path_factory) -> Path:
    return make_published("wan2_2_i2v_a14b", tmp_path_factory.mktemp("lora") / "a14b")


@pytest.fixture(scope="module")
def i2v_path(tmp_path_factory) -> Path:
    """With an image encoder."""
    return make_published("wan2_1_i2v_14b", tmp_path_factory.mktemp("lora") / "i2v")


def load_transformer(path: Path) -> WanTransformer3DModel:
    return WanTransformer3DModel.from_pretrained(path / "transformer").eval()


def tensors_of(transformer: WanTransformer3DModel) -> dict[str, Tensor]:
    return {name: Tensor("F32", tuple(tensor.shape)) for name, tensor in transformer.state_dict().items()}


def make_lora(
    transformer: WanTransformer3DModel, layout: str, path: Path, seed: int = 0, rank: int = RANK
) -> dict[str, torch.Tensor]:
    """Write random low-rank weights for every linear layer of the blocks; the deltas they mean, by layer."""
    prefix, has_wan_names, (down_name, up_name), has_alpha = LAYOUTS[layout]
    generator, tensors, deltas = torch.Generator().manual_seed(seed), {}, {}
    for block in range(NUM_BLOCKS):
        for ours, theirs in LAYERS.items():
            name = f"blocks.{block}.{ours}"
            out_features, in_features = transformer.get_submodule(name).weight.shape
            down = 0.3 * torch.randn(rank, in_features, generator=generator)
            up = 0.3 * torch.randn(out_features, rank, generator=generator)
            deltas[name] = up @ down
            key = f"blocks.{block}.{theirs}" if has_wan_names else name
            key = prefix + (key.replace(".", "_") if prefix.startswith("lora_unet") else key)
            tensors |= {f"{key}.{down_name}.weight": down, f"{key}.{up_name}.weight": up}
            if has_alpha:
                tensors[f"{key}.alpha"] = torch.tensor(ALPHA)
                deltas[name] *= ALPHA / rank
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return deltas


def make_whole_lora(reference: WanTransformer3DModel, path: Path) -> dict[str, torch.Tensor]:
    """Write changes of every tensor of `reference`, as LightX2V does; what they add, by diffusers' names.

    Where a tensor of Wan's is in diffusers' model, its own converter for checkpoints says.
    """
    layers = [f"blocks.{block}.{layer}" for block in range(NUM_BLOCKS) for layer in BLOCK] + REST
    names = [name for layer in layers for name in _tensors_of_layer(layer)]
    ours_of = {theirs: ours for ours, theirs in convert_wan_transformer_to_diffusers({n: n for n in names}).items()}
    shapes = {name: tensor.shape for name, tensor in reference.state_dict().items()}
    assert set(ours_of.values()) == set(shapes)
    generator, tensors, deltas = torch.Generator().manual_seed(0), {}, {}
    for theirs, ours in ours_of.items():
        layer, _, kind = theirs.rpartition(".")
        key, shape = f"diffusion_model.{layer}", shapes[ours]
        if kind == "weight" and len(shape) > 1:
            down = 0.2 * torch.randn(RANK, *shape[1:], generator=generator)
            up = 0.2 * torch.randn(shape[0], RANK, *[1] * (len(shape) - 2), generator=generator)
            tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
            tensors[f"{key}.alpha"] = torch.tensor(ALPHA)
            deltas[ours] = torch.einsum("or,r...->o...", up.flatten(1), down) * ALPHA / RANK
            continue
        part = {"weight": "diff", "bias": "diff_b", "modulation": "diff_m"}[kind]
        deltas[ours] = tensors[f"{key}.{part}"] = 0.2 * torch.randn(shape, generator=generator)
    save_file(tensors, path)
    return deltas


def _tensors_of_layer(layer: str) -> list[str]:
    name = layer.rstrip("!?")
    kinds = {"!": [".weight"], "?": [""]}.get(layer[-1], [".weight", ".bias"])
    return [name + kind for kind in kinds]


def assert_changed_by(transformer: torch.nn.Module, before: dict, deltas: dict, weight: float = 1.0) -> None:
    after = transformer.state_dict()
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        delta = deltas.get(name, deltas.get(name.removesuffix(".weight"), torch.zeros(1)))
        torch.testing.assert_close(tensor, before[name] + weight * delta, rtol=0, atol=1e-6)


def state_of(transformer: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in transformer.state_dict().items()}


def output_of(transformer: WanTransformer3DModel) -> torch.Tensor:
    """What it makes of fixed inputs."""
    config, generator = transformer.config, torch.Generator().manual_seed(0)
    hidden = torch.randn(1, config.in_channels, 2, 8, 8, generator=generator)
    embeds = torch.randn(1, 512, config.text_dim, generator=generator)
    images = config.image_dim and torch.randn(1, 257, config.image_dim, generator=generator)
    with torch.inference_mode():
        return transformer(hidden, torch.tensor([500]), embeds, images, return_dict=False)[0]


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
    assert_changed_by(transformer, before, {})


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


A, B = torch.zeros(RANK, 24), torch.zeros(24, RANK)
Q = "transformer.blocks.0.attn1.to_q"
GOOD = {f"{Q}.lora_A.weight": A, f"{Q}.lora_B.weight": B}
REFUSED = {
    "no LoRA": ({"unet.down.lora_A.weight": A}, "it has no layer unet.down"),
    "weights": ({"transformer.blocks.0.weight": A}, "is of a kind that is not supported"),
    "empty": ({}, "none of its 0 tensors"),
    "another block": (GOOD | {"blocks.7.attn1.to_q.lora_A.weight": A}, "it has no layer blocks.7.attn1.to_q"),
    "a text encoder": (GOOD | {"lora_te1_text_model_q.alpha": torch.ones(())}, "no layer lora_te1_text_model_q"),
    "another width": ({f"{Q}.lora_A.weight": torch.zeros(4, 48), f"{Q}.lora_B.weight": B}, "do not make up"),
    "two ranks": ({f"{Q}.lora_A.weight": torch.zeros(2, 24), f"{Q}.lora_B.weight": B}, "do not make up"),
    "no rank": ({f"{Q}.lora_A.weight": A[:0], f"{Q}.lora_B.weight": B[:, :0]}, "do not make up"),
    "no up": ({f"{Q}.lora_A.weight": A}, "has no counterpart"),
    "alpha alone": (GOOD | {"blocks.1.attn1.to_q.alpha": torch.ones(())}, "to_q.alpha has no counterpart"),
    "alpha per row": (GOOD | {f"{Q}.alpha": torch.ones(24)}, "must be one number"),
    "twice": (GOOD | {"diffusion_model.blocks.0.self_attn.q.lora_down.weight": A}, "are both for"),
    "two adapters": ({f"{Q}.lora_A.{n}.weight": A for n in "ab"} | {f"{Q}.lora_B.a.weight": B}, "are both for"),
    "integers": (GOOD | {f"{Q}.lora_A.weight": A.to(torch.int8)}, "is in I8"),
    "another shape": ({"blocks.0.norm3.diff": torch.zeros(48)}, "blocks.0.norm2.weight of"),
    "DoRA": (GOOD | {f"{Q}.dora_scale": torch.ones(24, 1)}, "dora_scale makes it a DoRA"),
    "PEFT's DoRA": (GOOD | {f"{Q}.lora_magnitude_vector.weight": torch.ones(24)}, "makes it a DoRA"),
    "LoKr": ({f"{Q}.lokr_w1": A, f"{Q}.lokr_w2": B}, "lokr_w1 is of a kind that is not supported"),
    "LoHa": ({f"{Q}.hada_w1_a": A}, "hada_w1_a is of a kind"),
    "Tucker": (GOOD | {f"{Q}.lora_mid.weight": A}, "lora_mid.weight is of a kind"),
    "bias alone": (GOOD | {"blocks.1.attn1.to_q.lora_B.bias": torch.ones(24)}, "has no pair of low-rank weights"),
    "bias where none is": ({"blocks.0.attn1.norm_q.diff_b": torch.ones(24)}, "no layer blocks.0.attn1.norm_q"),
    "images alone": ({"diffusion_model.blocks.0.cross_attn.k_img.diff_b": torch.ones(24)}, "none of its 1 tensors"),
}


@pytest.mark.parametrize("tensors, reason", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_applied_is_refused_and_named(a14b_path, tmp_path, tensors, reason):
    """Also if a part of it would fit: nothing that changes the meaning is left out in silence."""
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, tmp_path / "lora.safetensors")
    loras = [LoraConfig(str(tmp_path / "lora.safetensors"))]
    with pytest.raises(InputError, match="model.loras: .*lora.safetensors does not fit this model: ") as caught:
        check_loras(loras, [tensors_of(load_transformer(a14b_path))])
    assert reason in str(caught.value), caught.value


def test_image_layer_beyond_those_of_a_model_with_images_is_refused(i2v_path, tmp_path):
    save_file(GOOD | {"blocks.9.cross_attn.k_img.diff_b": torch.ones(24)}, tmp_path / "lora.safetensors")
    with pytest.raises(InputError, match="no layer blocks.9.cross_attn.k_img"):
        check_loras([LoraConfig(str(tmp_path / "lora.safetensors"))], [tensors_of(load_transformer(i2v_path))])


@pytest.mark.parametrize("settings, reason", [
    ('{"use_dora": true}', "DoRA"), ("{", "cannot be read"), ('{"lora_alpha": "much"}', "cannot be read"),
])  # fmt: skip
def test_settings_beside_an_adapter_that_cannot_be_applied_are_refused(a14b_path, tmp_path, settings, reason):
    save_file(GOOD, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(settings)
    with pytest.raises(InputError, match=f"model.loras: .* does not fit this model: .*{reason}"):
        check_loras([LoraConfig(str(tmp_path / "adapter_model.safetensors"))], [tensors_of(load_transformer(a14b_path))])


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
