"""SAM 3 on small random weights of transformers' own class, against transformers' own pre- and postprocessing."""

import importlib
import json
import sys
from types import ModuleType, SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import make_picture
from make_jobs import make_config
from safetensors.torch import load_file, save_file
from sam3_model import OVERRIDES, WORDS, make_sam3

from fresco_dist.config import InputError
from fresco_dist.models.sam3 import Sam3, check_sam3

CPU = torch.device("cpu")
SIZES = {"smaller than what it sees": (96, 48), "larger": (300, 220)}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_sam3(tmp_path_factory.mktemp("sam3"))


def settings(path, *overrides):
    return make_config("fusion=regional", "fusion.activity_map=sam3", f"sam3.path={path}", *OVERRIDES, *overrides).sam3


class Stub(ModuleType):
    """Has everything."""

    def __getattr__(self, name):
        return mock.MagicMock()


def stock_postprocessing():
    """Sam3ImageProcessor's; its file imports torchvision, which this function does not use."""
    names = ["torchvision", "torchvision.ops", "torchvision.ops.boxes", "torchvision.transforms.v2.functional"]
    names += ["torchvision.transforms", "torchvision.transforms.v2", "torchvision.io"]
    stubs = {name: Stub(name) for name in names}
    with mock.patch.dict(sys.modules, stubs):
        module = importlib.import_module("transformers.models.sam3.image_processing_sam3")
    return module.Sam3ImageProcessor.post_process_instance_segmentation


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_masks_are_those_of_the_stock_postprocessing(path, size):
    picture, config, model = np.asarray(make_picture(*size)), settings(path), Sam3(path, CPU)
    height, width = (min(side, round(side * 112 / max(size))) for side in size[::-1])
    pixels = model._pixels(picture)
    tokens = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    num_found = 0
    for prompt in config.prompts:
        ids = torch.tensor([[tokens[prompt], *[0] * 31]])
        with torch.inference_mode():
            features = model._model.get_vision_features(pixel_values=pixels)
            outputs = model._model(
                pixel_values=pixels, input_ids=ids, attention_mask=(torch.arange(32) < 1)[None].long()
            )
            (stock,) = stock_postprocessing()(None, outputs, 0.08, 0.5, [(height, width)])
            ours = list(model._masks(features, prompt, config, (height, width)))
        assert len(ours) == len(stock["masks"])
        for mask, expected in zip(ours, stock["masks"]):
            assert np.array_equal(mask, expected.numpy().astype(bool))
        num_found += len(ours)
    assert num_found > 3


def test_picture_is_resized_and_normed_as_the_processor_says(path):
    picture = np.full((40, 60, 3), 255, dtype=np.uint8)
    picture[:, 30:] = 0
    pixels = Sam3(path, CPU)._pixels(picture)
    assert pixels.shape == (1, 3, 112, 112)
    assert (pixels[..., :50] == 1).all() and (pixels[..., 62:] == -1).all()
    smooth = make_picture(448, 448)
    expected = np.asarray(smooth.resize((112, 112), 2), dtype=np.float32) / 127.5 - 1  # Pillow's antialiased bilinear
    assert np.abs(Sam3(path, CPU)._pixels(np.asarray(smooth))[0].movedim(0, -1).numpy() - expected).max() < 1.5 / 127.5


def test_map_is_the_mean_over_prompts_of_what_masks_cover(path):
    picture, model = np.asarray(make_picture(96, 48)), Sam3(path, CPU)
    maps, counts = {}, {}
    for prompts in (["person"], ["vegetation"], ["person", "vegetation"]):
        config = settings(path, f"sam3.prompts={prompts}")
        maps[len(maps)], found = model.activity_map(picture, config)
        counts |= found
    assert set(np.unique(maps[0])) <= {0.0, 1.0}
    assert np.array_equal(maps[2], (maps[0] + maps[1]) / 2)
    assert counts.keys() == {"person", "vegetation"} and all(found >= kept for found, kept in counts.values())
    assert 0 < maps[2].mean() < 1


def test_published_layout_of_a_video_model_is_read(path, tmp_path):
    """facebook/sam3: model_type sam3_video, the detector below detector_model, a tracker beside it."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((path / name).read_bytes())
    detector = json.loads((path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "sam3_video", "detector_config": detector}))
    tensors = {f"detector_model.{name}": tensor for name, tensor in load_file(path / "model.safetensors").items()}
    save_file({**tensors, "tracker_model.memory": torch.ones(3)}, tmp_path / "model.safetensors", {"format": "pt"})
    picture, config = np.asarray(make_picture(96, 48)), settings(path)
    ours, expected = (Sam3(folder, CPU).activity_map(picture, config) for folder in (tmp_path, path))
    assert np.array_equal(ours[0], expected[0]) and ours[1] == expected[1]


def test_incomplete_directory_is_refused(path, tmp_path):
    with pytest.raises(InputError, match="sam3.path must be a directory with config.json"):
        check_sam3(tmp_path)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((path / name).read_bytes())
    tensors = load_file(path / "model.safetensors")
    del tensors[next(iter(tensors))]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    check_sam3(tmp_path)
    with pytest.raises(InputError, match="lacks tensors"):
        Sam3(tmp_path, CPU)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "sam2"}))
    with pytest.raises(InputError, match="sam3.path"):
        check_sam3(tmp_path)


def test_without_presence_no_mask_has_the_score(path):
    model, config = Sam3(path, CPU), settings(path, "sam3.score_threshold=0")
    model._model.forward = lambda **_: SimpleNamespace(
        pred_logits=torch.full((1, 2), 9.0), presence_logits=torch.full((1, 1), -200.0),
        pred_masks=torch.ones(1, 2, 4, 4),
    )  # fmt: skip
    assert list(model._masks(None, "person", config, (4, 4))) == []
