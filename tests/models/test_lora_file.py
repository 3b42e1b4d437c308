"""What is refused of a LoRA file, from its header, and said of it."""

import json
from pathlib import Path

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from lora_files import RANK, load_transformer, tensors_of
from peft.utils.other import get_pattern_key
from published_models import make_published
from safetensors.torch import save_file

from fresco_dist.config import InputError, LoraConfig
from fresco_dist.models.wan.lora import check_loras
from fresco_dist.models.wan.lora_file import read_lora
from fresco_dist.models.wan.names import diffusers_name, wan_name


@pytest.fixture(scope="module")
def a14b_path(tmp_path_factory) -> Path:
    return make_published("wan2_2_i2v_a14b", tmp_path_factory.mktemp("lora") / "a14b")


@pytest.fixture(scope="module")
def i2v_path(tmp_path_factory) -> Path:
    """With an image encoder."""
    return make_published("wan2_1_i2v_14b", tmp_path_factory.mktemp("lora") / "i2v")


def test_names_are_those_that_the_stock_converter_takes(i2v_path):
    names = tensors_of(load_transformer(i2v_path))
    assert convert_wan_transformer_to_diffusers({wan_name(name): name for name in names}) == {n: n for n in names}
    for name in names:
        assert diffusers_name(name) == name == diffusers_name(wan_name(name)) == diffusers_name(f"model.{name}")


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
    ("[" * 100_000, "cannot be read"), ('{"lora_alpha": 1e999}', "cannot be read"),
    ('{"alpha_pattern": [1]}', "cannot be read"),
    ('{"alpha_pattern": {"blocks.(": 4}}', "cannot be read"), (f'{{"lora_alpha": 1{"0" * 400}}}', "cannot be read"),
])  # fmt: skip
def test_settings_beside_an_adapter_that_cannot_be_applied_are_refused(a14b_path, tmp_path, settings, reason):
    save_file(GOOD, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(settings)
    with pytest.raises(InputError, match=f"model.loras: .* does not fit this model: .*{reason}"):
        check_loras(
            [LoraConfig(str(tmp_path / "adapter_model.safetensors"))], [tensors_of(load_transformer(a14b_path))]
        )


@pytest.mark.parametrize("settings, factor", [
    ({"lora_alpha": "16"}, 4), ({"lora_alpha": 8, "alpha_pattern": {"blocks.0.*": "2"}}, 0.5), ({}, 1),
    ({"lora_alpha": 8, "alpha_pattern": {"blocks.1.*": 2}, "use_rslora": True}, 4),
])  # fmt: skip
def test_factor_is_that_of_the_settings_beside_an_adapter(a14b_path, tmp_path, settings, factor):
    """Of rank 4; other tools write numbers as texts."""
    save_file(GOOD, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    (pair,) = read_lora(tmp_path / "adapter_model.safetensors", tensors_of(load_transformer(a14b_path))).pairs.values()
    assert pair.scale(None) == factor


SLOW = [r"(.+)+!", r"(.*)*!", r"(.|b){1,99}!", r"(?:.+)+!", r".+)+(!", ".*" * 20 + "!", "(.|.)" * 20 + "!"]


@pytest.mark.parametrize("pattern", SLOW)
def test_pattern_that_might_be_matched_for_ever_is_refused(a14b_path, tmp_path, pattern):
    """Some of these would be."""
    save_file(GOOD, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"alpha_pattern": {pattern: 4}}))
    with pytest.raises(InputError, match=r"cannot be read \(alpha_pattern .* may take too long to match"):
        read_lora(tmp_path / "adapter_model.safetensors", tensors_of(load_transformer(a14b_path)))


@pytest.mark.parametrize("pattern, fits", [
    ("to_q", True), ("to_k", False), (r"^blocks\.0\.attn1\.to_q$", True), ("to_k|attn1.to_q|ffn.net.2", True),
    (r"blocks\.\d+\.attn1\..*", True), (r"blocks\.(\d+)\.attn(1|2)\.to_(q|k|v)", True), ("^attn1", False),
    (r"attn1.to_[qk]", True), (r"(?:blocks|layers)\.[0-9]{1,2}\..*to_q", True),
    ("blocks.1.*|blocks.2.*|.*ffn.*", False),
])  # fmt: skip
def test_patterns_fit_as_in_peft(a14b_path, tmp_path, pattern, fits):
    save_file(GOOD, tmp_path / "adapter_model.safetensors")
    settings = {"lora_alpha": 4, "alpha_pattern": dict.fromkeys(["norm", pattern], 8)}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    (pair,) = read_lora(tmp_path / "adapter_model.safetensors", tensors_of(load_transformer(a14b_path))).pairs.values()
    assert get_pattern_key([pattern], "blocks.0.attn1.to_q") == (pattern if fits else "blocks.0.attn1.to_q")
    assert pair.scale(None) == (2 if fits else 1)
