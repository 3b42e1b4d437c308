"""Folders of weights: variants, shards, float8 with scales, and what has no place, for every component."""

import json
import os
import shutil
import tracemalloc
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import transformers
from diffusers import AutoencoderKL, AutoencoderKLWan, UNet2DConditionModel, WanTransformer3DModel
from make_jobs import make_config
from published_models import published
from safetensors.torch import load_file, save_file
from weight_folders import (
    COMPONENTS,
    E4M3,
    assert_refused,
    assert_same,
    change,
    load,
    make_source,
    model_config,
    spec_of,
    weights_file,
)

from fresco_dist import models
from fresco_dist.config import InputError
from fresco_dist.models import places
from fresco_dist.models.checkpoint import model_path
from fresco_dist.models.fingerprint import digest_folder
from fresco_dist.models.wan.names import wan_name
from fresco_dist.models.weights import block_of, read_header, read_weights


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return make_source(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def path(source, tmp_path) -> Path:
    return Path(shutil.copytree(source, tmp_path / "model"))


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("name", COMPONENTS)
def test_only_variant_is_loaded_and_counted(source, path, name, shards):
    """As the libraries themselves save one."""
    component, _ = COMPONENTS[name]
    before, size = load(source, name), "2KB" if shards else "1GB"
    weights_file(path / name).unlink()
    component.from_pretrained(source / name).save_pretrained(path / name, variant="fp16", max_shard_size=size)
    assert (len(list((path / name).glob("*.safetensors"))) > 1) == shards
    assert_same(load(path, name), before)
    assert spec_of(path) == spec_of(source)


@pytest.mark.parametrize("name", COMPONENTS)
def test_weights_without_a_variant_come_first_and_are_counted_alone(source, path, name):
    component, _ = COMPONENTS[name]
    model = component.from_pretrained(source / name).half()
    model.save_pretrained(path / name, variant="fp16")
    model.save_pretrained(path / name, variant="bf16", max_shard_size="10KB")
    assert_same(load(path, name), load(source, name))
    assert spec_of(path) == spec_of(source)


def test_several_variants_without_a_default_are_named(path):
    file = weights_file(path / "vae")
    for variant in ("fp16", "non_ema.fp16"):
        shutil.copy(file, file.with_suffix(f".{variant}.safetensors"))
    file.unlink()
    with pytest.raises(InputError, match="vae has several variants and none without: fp16, non_ema.fp16. Rename"):
        spec_of(path)


@pytest.mark.parametrize("name", ["transformer", "text_encoder"])
def test_shards_and_a_single_file_are_counted_as_the_library_loads_them(source, path, name):
    """diffusers loads the shards, transformers the single file."""
    component, place = COMPONENTS[name]
    model = component.from_pretrained(source / name)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    single, kept = weights_file(path / name), path / "kept"
    single.rename(kept)
    model.save_pretrained(path / name, max_shard_size="10KB")
    kept.rename(single)
    total = float(sum(tensor.float().abs().sum() for tensor in load(path, name).values()))
    assert (total == 0.0) == (place.stem == places.DIFFUSERS)
    assert spec_of(path) == spec_of(source)


Q = "blocks__0__attn1__to_q"
BROKEN = {
    "another tensor": ({"foo__bar": torch.ones(1)}, ["has foo.bar", "no place in the model (foo)"]),
    "two names": (
        {"blocks__0__self_attn__q__weight": torch.ones(1)},
        ["blocks.0.attn1.to_q.weight and blocks.0.self_attn.q.weight are both blocks.0.attn1.to_q.weight of the model"],
    ),
    "a prefix": ({"model__diffusion_model__foo": torch.ones(1)}, ["has model.diffusion_model.foo", "the model (foo)"]),
    "too many blocks": ({"blocks__2__norm2__weight": torch.ones(24)}, ["blocks must be 2 of transformer", "got 3"]),
    "scale of no weight": ({"foo__scale_weight": torch.ones(())}, ["has foo.scale_weight, but no foo.weight"]),
    "scale of plain weights": ({f"{Q}__scale_weight": torch.ones(())}, ["in F32, which needs no scale"]),
    "scales of some": (
        {f"{Q}__weight": torch.ones(24, 24).to(E4M3), f"{Q}__weight_scale": torch.ones(()),
         "blocks__0__attn1__to_k__weight": torch.ones(24, 24).to(E4M3)},
        ["scales for 1 float8 weights and none for blocks.0.attn1.to_k.weight"],
    ),
    "two scales": (
        {f"{Q}__weight": torch.ones(24, 24).to(E4M3), f"{Q}__weight_scale": torch.ones(()),
         f"{Q}__scale_weight": torch.ones(())},
        ["to_q.weight has two scales"],
    ),
    "scales of odd shape": (
        {f"{Q}__weight": torch.ones(24, 24).to(E4M3), f"{Q}__weight_scale": torch.ones(5)},
        ["weight_scale of shape (5,)", "one per row, or one per block"],
    ),
    "second scale": (
        {f"{Q}__weight": torch.ones(24, 24).to(E4M3), f"{Q}__weight_scale": torch.ones(()),
         f"{Q}__weight_scale_2": torch.ones(())},
        ["weight_scale_2", "no place in the model"],
    ),
    "int8": ({f"{Q}__weight": torch.ones(24, 24, dtype=torch.int8)}, ["to_q.weight as I8", "only float8 ones"]),
    "4 bits": (
        {f"{Q}__weight": torch.ones(288, 1, dtype=torch.uint8), f"{Q}__weight__absmax": torch.ones(9)},
        ["to_q.weight as U8"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("changes, words", BROKEN.values(), ids=BROKEN)
def test_what_has_no_place_is_refused_and_named(path, changes, words):
    change(weights_file(path / "transformer"), **changes)
    assert_refused(path, [str(path / "transformer"), *words])


def test_command_refuses_what_has_no_place_before_anything_is_loaded(command, path):
    change(weights_file(path / "vae"), foo__bar=torch.ones(1))
    done = command(f"model.path={path}", "plan_only=true")
    assert done.returncode == 2 and not done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: model.path: {path}/vae/") and "has foo.bar, which has no place" in line


@pytest.mark.parametrize("name", ["vae", "text_encoder", "image_encoder", "transformer_2"])
def test_tensor_without_a_place_is_refused_in_every_component(path, name):
    change(weights_file(path / name), foo__bar=torch.ones(1))
    assert_refused(path, [str(path / name), "foo.bar"])


def test_image_layers_of_a_transformer_without_an_encoder_are_refused(path):
    change(weights_file(path / "transformer_2"), blocks__0__attn2__add_k_proj__bias=torch.ones(24))
    with pytest.raises(InputError, match="add_k_proj.bias, which has no place in the model"):
        spec_of(path)


def save_in_wans_names(folder: Path, prefix: str, *, float8: bool = False, parts: int = 1) -> None:
    """Rewrite the weights of a transformer as other tools have them."""
    held = load_file(weights_file(folder))
    weights_file(folder).unlink()
    renamed: dict[str, torch.Tensor] = {}
    for name, tensor in held.items():
        is_scaled = float8 and tensor.dim() == 2 and name.startswith("blocks")
        renamed[prefix + wan_name(name)] = (tensor * 64).to(E4M3) if is_scaled else tensor
        if is_scaled:
            renamed[prefix + wan_name(name).replace("weight", "scale_weight")] = torch.tensor(1 / 64)
    if float8:
        renamed[f"{prefix}scaled_fp8"] = torch.zeros(2).to(E4M3)
    names, weight_map = sorted(renamed), {}
    for i in range(parts):
        stem = "diffusion_pytorch_model" + (f"-{i + 1:05}-of-{parts:05}" if parts > 1 else "")
        save_file({name: renamed[name] for name in names[i::parts]}, folder / f"{stem}.safetensors")
        weight_map |= dict.fromkeys(names[i::parts], f"{stem}.safetensors")
    if parts > 1:
        index = folder / "diffusion_pytorch_model.safetensors.index.json"
        index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize("name", ["transformer", "transformer_2"])
@pytest.mark.parametrize("prefix, parts", [("", 3), ("model.diffusion_model.", 1), ("diffusion_model.", 1)])
def test_transformer_in_wans_own_names_is_loaded_as_the_stock_converter_names_it(source, path, name, prefix, parts):
    save_in_wans_names(path / name, prefix, parts=parts)
    files = [load_file(file) for file in (path / name).glob("*.safetensors")]
    held = {key.removeprefix(prefix): tensor for file in files for key, tensor in file.items()}
    stock = WanTransformer3DModel.from_single_file(held, config=str(path / name))
    assert_same(load(path, name), stock.state_dict())
    for dtype in (torch.float32, torch.bfloat16):
        ours, theirs = load(path, name, dtype), load(source, name, dtype)
        assert_same(ours, theirs)
        assert {key: tensor.dtype for key, tensor in ours.items()} == {key: t.dtype for key, t in theirs.items()}
    assert spec_of(path) == spec_of(source)


def test_float8_weights_in_wans_own_names_are_scaled(source, path):
    save_in_wans_names(path / "transformer", "model.diffusion_model.", float8=True)
    assert spec_of(path) == spec_of(source)
    ours, theirs = load(path, "transformer"), load(source, "transformer")
    for name, tensor in theirs.items():
        is_scaled = tensor.dim() == 2 and name.startswith("blocks")
        expected = (tensor * 64).to(E4M3).float() / 64 if is_scaled else tensor
        assert torch.equal(ours[name], expected), name
    change(weights_file(path / "transformer"), model__diffusion_model__head__head__bias=None)
    with pytest.raises(InputError, match="transformer lacks 1 of its tensors .* proj_out.bias first"):
        load(path, "transformer")


def test_leftovers_of_older_libraries_are_no_weights(source, path):
    change(weights_file(path / "image_encoder"), embeddings__position_ids=torch.arange(257)[None])
    change(weights_file(path / "transformer"), blocks__0__attn2__norm_added_q__weight=torch.ones(24))
    assert spec_of(path) == spec_of(source)
    assert_same(load(path, "image_encoder"), load(source, "image_encoder"))
    assert_same(load(path, "transformer"), load(source, "transformer"))


def test_what_a_file_system_of_apple_leaves_beside_a_file_is_no_weights(source, path):
    file = weights_file(path / "vae")
    file.with_name(f"._{file.name}").write_bytes(b"\0" * 100)
    assert spec_of(path) == spec_of(source)


def _index(folder: Path, shard_of: dict) -> None:
    file = weights_file(folder)
    shard = file.with_name(f"{file.stem}-00001-of-00001.safetensors")
    file.rename(shard)
    whole = dict.fromkeys(load_file(shard), shard.name) | shard_of
    file.with_name(f"{file.name}.index.json").write_text(json.dumps({"weight_map": whole}))


def _two_shards(folder: Path) -> None:
    file = weights_file(folder)
    for i in (1, 2):
        shutil.copy(file, file.with_name(f"{file.stem}-0000{i}-of-00002.safetensors"))
    names = {"a": f"{file.stem}-00001-of-00002.safetensors", "b": f"{file.stem}-00002-of-00002.safetensors"}
    file.with_name(f"{file.name}.index.json").write_text(json.dumps({"weight_map": names}))
    file.unlink()


def set_in(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def _cut_sizes(folder: Path) -> None:
    """A header that promises more numbers than bytes."""
    file = weights_file(folder)
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["proj_out.bias"]["shape"][0] += 1
    text = json.dumps(header).encode().ljust(end - 8)
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])


FOLDERS = {
    "index of a missing tensor": (lambda f: _index(f, {"foo": "x.safetensors"}), ["x.safetensors is missing"]),
    "index of a tensor elsewhere": (
        lambda f: _index(f, {"foo": "diffusion_pytorch_model-00001-of-00001.safetensors"}), ["lacks foo, which"],
    ),
    "index of no files": (lambda f: _index(f, {"foo": 3}), ["lists no files of this folder"]),
    "index of another folder": (lambda f: _index(f, {"foo": "../vae/a"}), ["lists no files of this folder"]),
    "two shards with one tensor": (_two_shards, ["both have"]),
    "shards without an index": (
        lambda f: weights_file(f).rename(f / "diffusion_pytorch_model-00001-of-00001.safetensors"),
        ["must have diffusion_pytorch_model.safetensors, or shards and", "got diffusion_pytorch_model-00001"],
    ),
    "another name": (lambda f: weights_file(f).rename(f / "wan_fp8.safetensors"), ["got wan_fp8.safetensors"]),
    "transformers' name": (lambda f: weights_file(f).rename(f / "model.safetensors"), ["got model.safetensors"]),
    "more numbers than bytes": (_cut_sizes, ["proj_out.bias has", "bytes for"]),
    "settings of a quantiser": (
        lambda f: set_in(f / "config.json", quantization_config={"quant_method": "torchao"}),
        ["quantization_config (torchao)"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage, words", FOLDERS.values(), ids=FOLDERS)
def test_folder_that_cannot_be_loaded_is_refused(path, damage, words):
    damage(path / "transformer")
    assert_refused(path, [str(path / "transformer"), *words])


@pytest.mark.parametrize(
    "damage",
    [*(damage for damage, _ in FOLDERS.values()), lambda f: (f / "config.json").write_text("{")],
    ids=[*FOLDERS, "settings that are no JSON"],
)
def test_folder_that_cannot_be_loaded_is_told_by_the_key_that_names_it(path, damage):
    damage(path / "transformer")
    with pytest.raises(InputError, match="^sam3.path: "):
        read_weights(path / "transformer", places.WAN_TRANSFORMER, key="sam3.path")


@pytest.mark.parametrize("weight, scale, block", [
    ((512, 256), (4, 2), (128, 128)), ((200, 130), (2, 2), (128, 128)), ((24, 16), (24, 1), (1, 16)),
    ((24, 16), (24,), (1, 16)), ((24, 16), (12, 4), (2, 4)), ((24, 16), (16,), None), ((24, 16), (5, 1), None),
    ((24, 16), (), (24, 16)), ((8, 4, 1, 2, 2), (8,), (1, 4, 1, 2, 2)), ((24, 16), (0, 1), None),
])  # fmt: skip
def test_blocks_of_scales_are_told_by_the_shapes(weight, scale, block):
    assert block_of(weight, scale) == block


def test_words_are_those_of_the_libraries():
    """Of the published configurations, with fewer blocks."""
    few, made = {"num_layers": 2}, []
    with torch.device("meta"):
        for name in ("wan2_1_flf2v_14b", "wan2_2_i2v_a14b", "wan2_2_ti2v_5b"):
            files = published(name)
            transformer = WanTransformer3DModel.from_config(files["transformer/config.json"] | few)
            has_images = transformer.config.image_dim is not None
            place = places.WAN_TRANSFORMER if has_images else places.WAN_TRANSFORMER.without(places.IMAGE)
            made += [(place, transformer), (places.WAN_VAE, AutoencoderKLWan.from_config(files["vae/config.json"]))]
        text, gated = files["text_encoder/config.json"] | few, {"feed_forward_proj": "relu"}
        made += [
            (places.UMT5, transformers.UMT5EncoderModel(transformers.UMT5Config(**text))),
            (places.UMT5, transformers.UMT5EncoderModel(transformers.UMT5Config(**text | gated))),
            (places.CLIP_VISION, transformers.CLIPVisionModel(transformers.CLIPVisionConfig(num_hidden_layers=2))),
            (places.CLIP_TEXT, transformers.CLIPTextModel(transformers.CLIPTextConfig(num_hidden_layers=2))),
            (places.SD_UNET, UNet2DConditionModel()),
            (places.SD_VAE, AutoencoderKL()),
        ]
    for place, model in made:
        words = {word for key in model.state_dict() for word in key.split(".") if not word.isdigit()}
        assert words <= place.words, words - place.words


def test_stable_diffusion_takes_variants_and_counts_what_it_loads(sd_path, tmp_path):
    path = Path(shutil.copytree(sd_path, tmp_path / "sd"))
    options = ("model=stable_diffusion", "video.num_frames=1")
    before = models.read_spec(make_config(f"model.path={sd_path}", *options).model)
    for name in ("unet", "vae", "text_encoder"):
        file = weights_file(path / name)
        file.rename(file.with_suffix(".fp16.safetensors"))
        if name != "unet":
            shutil.copy(sd_path / name / file.name, file)
    config = make_config(f"model.path={path}", *options)
    assert models.read_spec(config.model) == before
    backbone = models.load(config.model, torch.device("cpu"))
    stock = UNet2DConditionModel.from_pretrained(sd_path / "unet", torch_dtype=torch.bfloat16)
    assert_same(backbone._unet.state_dict(), stock.state_dict())


def test_header_of_an_empty_file_is_no_tensors(tmp_path):
    save_file({}, tmp_path / "empty.safetensors")
    assert read_header(tmp_path / "empty.safetensors") == ({}, {})


@pytest.mark.parametrize("read", [read_header, lambda path: digest_folder(path.parent, "model.path")])
def test_header_that_no_library_would_take_is_not_read(tmp_path, read):
    """Of a damaged file, or of one that is none, the first eight bytes may be any number."""
    file = tmp_path / "a.safetensors"
    file.write_bytes((150_000_000).to_bytes(8, "little"))
    os.truncate(file, 200_000_000)
    tracemalloc.start()
    try:
        with suppress(InputError):
            read(file)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10_000_000


def test_embedded_model_is_read():
    path = model_path(model_config())
    assert read_weights(path / "vae", places.WAN_VAE).variant is None
