"""Texts and pictures to embeddings, against the stock pipeline's own, and how long an encoder stays loaded."""

import socket
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from conftest import make_picture
from make_jobs import make_config, stock_pipeline
from published_models import make_published

from fresco_dist import models
from fresco_dist.config import InputError
from fresco_dist.models.backbone import Backbone
from fresco_dist.models.stable_diffusion.model import StableDiffusionBackbone
from fresco_dist.models.wan import encoders

PROMPTS = [
    "the figures walk left",
    "",
    "  the\n\tfigures\u00a0 \u3000walk ",
    "the <left> &amp;lt;walk&amp;gt; &amp;nbsp; &quot;still",  # ftfy resolves no entity beside a tag
    "\u201cthe\u201d \u00e2\u20ac\u0153walk\u00e2\u20ac\x9d \ufb01gures wa\u0301lk \U0001f3a8",
    "the left " * 400,
]


@pytest.fixture(scope="module")
def flf2v_path(tmp_path_factory):
    """A model with an image encoder, which may see two pictures."""
    return make_published("wan2_1_flf2v_14b", tmp_path_factory.mktemp("encoders") / "flf2v")


def load(path: Path) -> Backbone:
    """The model at a path, on the CPU."""
    return models.load(make_config(f"model.path={path}").model, torch.device("cpu"))


@pytest.fixture
def loaded(monkeypatch) -> list[weakref.ref]:
    """The encoders loaded so far, in order; each dies with the last that holds it."""
    made: list[weakref.ref] = []
    load_component = encoders.load_component

    def load(*args, **options):
        component = load_component(*args, **options)
        made.append(weakref.ref(component))
        return component

    monkeypatch.setattr(encoders, "load_component", load)
    return made


def test_text_is_encoded_as_the_stock_pipeline_does_alone(model_path):
    """Whatever was encoded before it."""
    backbone, pipeline = load(model_path), stock_pipeline(model_path)
    with torch.inference_mode():
        for prompt in PROMPTS:
            ours = backbone.encode_text(prompt)
            ((theirs,), _) = pipeline.encode_prompt(prompt, do_classifier_free_guidance=False, max_sequence_length=512)
            assert ours.dtype == torch.float32 and torch.equal(ours, theirs), prompt


@pytest.mark.parametrize("num_pictures", [1, 2])
def test_picture_is_embedded_as_the_stock_pipeline_does(flf2v_path, num_pictures):
    backbone = load(flf2v_path)
    pictures = [make_picture(64, 48, seed=seed) for seed in range(num_pictures)]
    with torch.inference_mode():
        ours = backbone.embed_picture([torch.tensor(np.array(picture)) for picture in pictures])
        theirs = stock_pipeline(flf2v_path).encode_image(pictures)
    assert len(ours) == num_pictures and ours.dtype == torch.float32 and torch.equal(ours, theirs)


def test_encoders_are_loaded_once_and_stay_until_they_are_dropped(flf2v_path, loaded):
    backbone, picture = load(flf2v_path), torch.zeros(48, 64, 3, dtype=torch.uint8)
    backbone.drop_encoders()  # none is there
    with torch.inference_mode():
        texts = [backbone.encode_text(prompt) for prompt in PROMPTS[:3]]
        assert [type(component()) for component in loaded] == [transformers.UMT5EncoderModel]
        pictures = [backbone.embed_picture([picture]) for _ in range(2)]
        assert [type(component()) for component in loaded] == [
            transformers.UMT5EncoderModel,
            transformers.CLIPVisionModel,
        ]
        backbone.drop_encoders()
        assert [component() for component in loaded] == [None, None]
        assert torch.equal(backbone.encode_text(PROMPTS[0]), texts[0]) and len(loaded) == 3
        assert torch.equal(backbone.embed_picture([picture]), pictures[1]) and len(loaded) == 4


def test_specification_says_whether_pictures_are_embedded(flf2v_path, model_path):
    specs = [models.read_spec(make_config(f"model.path={path}").model) for path in (flf2v_path, model_path)]
    assert [spec.embeds_pictures for spec in specs] == [True, False]


@pytest.mark.parametrize(
    "load_part",
    [
        lambda path: encoders.TextEncoder(path, torch.float32, torch.device("cpu")),
        lambda path: encoders.ImageEncoder(path, torch.device("cpu")),
        lambda path: StableDiffusionBackbone._text_encoder.func(SimpleNamespace(_path=path)),
    ],
    ids=["text", "picture", "stable_diffusion"],
)
def test_part_of_a_model_that_is_missing_is_asked_of_no_hub(load_part, tmp_path, monkeypatch):
    """A relative path of two names could be one of the hub's."""
    monkeypatch.chdir(tmp_path)
    asked: list = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *host, **_: asked.append(host) or (_ for _ in ()).throw(OSError))
    with pytest.raises(InputError, match="model.path: model/"):
        load_part(Path("model"))
    assert not asked
