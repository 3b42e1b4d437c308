"""A model of which every component can be taken apart: two experts and an image encoder, which no published one has."""

import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from make_jobs import make_config
from published_models import make_published
from safetensors.torch import load_file, save_file

from fresco_dist import models
from fresco_dist.config import InputError, ModelConfig
from fresco_dist.models import places
from fresco_dist.models.loading import load_component

COMPONENTS = {
    "transformer": (WanTransformer3DModel, places.WAN_TRANSFORMER),
    "transformer_2": (WanTransformer3DModel, places.WAN_TRANSFORMER),
    "vae": (AutoencoderKLWan, places.WAN_VAE),
    "text_encoder": (transformers.UMT5EncoderModel, places.UMT5),
    "image_encoder": (transformers.CLIPVisionModel, places.CLIP_VISION),
}
E4M3 = torch.float8_e4m3fn


def weights_file(folder: Path) -> Path:
    (file,) = folder.glob("*.safetensors")
    return file


@cache
def model_config() -> ModelConfig:
    return make_config().model


def spec_of(path: Path) -> models.ModelSpec:
    return models.read_spec(replace(model_config(), path=str(path)))


def change(file: Path, **tensors: torch.Tensor | None) -> None:
    """Set tensors of a file, or drop them; `__` in a name is a dot."""
    held = load_file(file)
    for name, tensor in tensors.items():
        held.pop(name.replace("__", "."), None)
        if tensor is not None:
            held[name.replace("__", ".")] = tensor
    save_file(held, file, metadata={"format": "pt"})


def load(path: Path, name: str, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    component, place = COMPONENTS[name]
    option = "dtype" if place.stem == places.TRANSFORMERS else "torch_dtype"  # as the libraries call it
    return load_component(component, path / name, place, **{option: dtype}).state_dict()


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def make_source(folder: Path) -> Path:
    """Save the model below a folder."""
    path = make_published("wan2_1_i2v_14b", folder / "i2v")
    shutil.copytree(make_published("wan2_2_i2v_a14b", folder / "a14b") / "transformer_2", path / "transformer_2")
    index = json.loads((path / "model_index.json").read_text())
    index |= {"boundary_ratio": 0.9, "transformer_2": ["diffusers", "WanTransformer3DModel"]}
    (path / "model_index.json").write_text(json.dumps(index))
    return path


def assert_refused(path: Path, words: list[str]) -> None:
    """In one line, before anything is loaded."""
    with pytest.raises(InputError) as caught:
        spec_of(path)
    line = str(caught.value)
    assert line.startswith("model.path") and "\n" not in line
    assert [word for word in words if word not in line] == [], line
