"""Weights as they are loaded: float8 ones multiplied by their scales, in every component, and nothing left over."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from make_jobs import denoise, make_job
from safetensors.torch import load_file, save_file
from weight_folders import COMPONENTS, E4M3, change, load, make_source, spec_of, weights_file

from fresco_dist.config import InputError


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return make_source(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def path(source, tmp_path) -> Path:
    return Path(shutil.copytree(source, tmp_path / "model"))


def quantise(file: Path, suffix: str, scale_shape: Callable[[torch.Size], tuple]) -> dict[str, torch.Tensor]:
    """Make all matrices of a file float8 with scales beside them; what each then means, by name."""
    held, meant = load_file(file), {}
    generator = torch.Generator().manual_seed(0)
    for name, tensor in list(held.items()):
        meant[name] = tensor.float()
        if tensor.dim() != 2 or not name.endswith(".weight"):
            continue
        shape = scale_shape(tensor.shape)
        scale = 0.01 + torch.rand(shape, generator=generator)
        grid = scale.reshape(shape if len(shape) == 2 else (shape + (1, 1))[:2])
        rows, columns = (-(-side // count) for side, count in zip(tensor.shape, grid.shape))
        whole = torch.kron(grid, torch.ones(rows, columns))[: tensor.shape[0], : tensor.shape[1]]
        held[name] = (tensor.float() / whole).to(E4M3)
        meant[name] = held[name].float() * whole
        held[f"{name.removesuffix('.weight')}.{suffix}"] = scale
    save_file(held, file, metadata={"format": "pt"})
    return meant


SCALES = {
    "a number": ("scale_weight", lambda shape: ()),
    "one of a vector": ("weight_scale", lambda shape: (1,)),
    "per row": ("weight_scale", lambda shape: (shape[0],)),
    "per row, as a column": ("scale_weight", lambda shape: (shape[0], 1)),
    "per block": ("weight_scale_inv", lambda shape: tuple(side // 2 if side % 2 == 0 else side for side in shape)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("suffix, shape", SCALES.values(), ids=SCALES)
def test_float8_weights_are_multiplied_by_their_scales(path, suffix, shape, dtype):
    meant = quantise(weights_file(path / "transformer"), suffix, shape)
    for name, tensor in load(path, "transformer", dtype).items():
        assert torch.equal(tensor, meant[name].to(tensor.dtype)), name


@pytest.mark.parametrize("name", COMPONENTS)
def test_float8_is_scaled_and_counted_in_every_component(source, path, name):
    """With the scales of activations and the marker that ComfyUI puts beside them, in shards where they are large."""
    file = weights_file(path / name)
    meant = quantise(file, "scale_weight", lambda shape: ())
    extra = {f"{key.removesuffix('.weight')}.scale_input": torch.ones(()) for key in meant if key.endswith(".weight")}
    held = load_file(file) | extra | {"scaled_fp8": torch.zeros(2).to(E4M3)}
    for i, part in enumerate((dict(list(held.items())[::2]), dict(list(held.items())[1::2])), 1):
        save_file(part, file.with_name(f"{file.stem}-0000{i}-of-00002.safetensors"), metadata={"format": "pt"})
    shard_of = {key: f"{file.stem}-0000{1 + i % 2}-of-00002.safetensors" for i, key in enumerate(held)}
    file.with_name(f"{file.name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shard_of}))
    file.unlink()
    assert any(tensor.dtype == E4M3 for tensor in held.values())
    for key, tensor in load(path, name).items():
        same = next(meant[k] for k in (key, f"vision_model.{key}", "shared.weight") if k in meant)
        torch.testing.assert_close(tensor, same, rtol=0, atol=0)
    assert spec_of(path) == spec_of(source)


def test_float8_without_scales_is_taken_as_it_is(path):
    file = weights_file(path / "transformer")
    held = {name: t.to(E4M3) if t.dim() == 2 else t for name, t in load_file(file).items()}
    save_file(held, file, metadata={"format": "pt"})
    spec_of(path)
    for name, tensor in load(path, "transformer").items():
        assert torch.equal(tensor, held[name].float())


def test_float8_gives_the_latents_of_what_it_means(path):
    file, runs = weights_file(path / "transformer"), []
    meant = quantise(file, "scale_weight", lambda shape: ())
    for _ in range(2):
        runs.append(denoise(make_job(path, "sampler.num_steps=1", "fusion=multidiffusion", "tiles.window=[480,640]")))
        save_file(meant, file, metadata={"format": "pt"})
    torch.testing.assert_close(*runs, rtol=0, atol=1e-5)


def test_tensor_of_known_words_without_a_place_is_refused_when_loading(path):
    """What the words cannot tell, the library does."""
    change(weights_file(path / "transformer"), blocks__0__attn1__proj_out__bias=torch.ones(24))
    with pytest.raises(InputError, match="1 tensors that have no place in the model, blocks.0.attn1.proj_out.bias"):
        load(path, "transformer")


def test_tied_weights_that_a_file_holds_twice_are_scaled_once(path):
    file = weights_file(path / "text_encoder")
    change(file, encoder__embed_tokens__weight=load_file(file)["shared.weight"].clone())
    held, scale = load_file(file), torch.tensor(0.5)
    names = ("shared", "encoder.embed_tokens")
    scales = {f"{name}.scale_weight": scale.clone() for name in names}
    change(file, **{f"{name}.weight": held[f"{name}.weight"].to(E4M3) for name in names}, **scales)
    meant = held["shared.weight"].to(E4M3).float() * scale
    assert torch.equal(load(path, "text_encoder")["shared.weight"], meant)
