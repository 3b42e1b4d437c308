"""Attention backends: tried on the run's own shapes, refused with a reason, and the one in use named."""

import json
from contextlib import contextmanager

import pytest
import torch
from diffusers import WanTransformer3DModel

from fresco_dist.config import Attention, InputError
from fresco_dist.models import attention
from fresco_dist.models.attention import AUTO_ORDER, choose_attention, set_attention


def choose(chosen: Attention) -> Attention:
    return choose_attention(
        chosen, device=torch.device("cpu"), dtype=torch.float32, heads=(2, 12), lengths=[(64, 64), (64, 512)]
    )


@pytest.mark.parametrize("chosen", [Attention.native, Attention.auto])
def test_native_runs_and_auto_finds_it_on_a_cpu(chosen):
    assert choose(chosen) is Attention.native


def test_a_transformer_uses_what_was_chosen(model_path):
    transformer = WanTransformer3DModel.from_pretrained(model_path / "transformer")
    set_attention(transformer, Attention.native)
    modules = [block.get_submodule(name) for block in transformer.blocks for name in ("attn1", "attn2")]
    assert {module.processor._attention_backend.value for module in modules} == {"native"}


@pytest.mark.parametrize("name", ["cudnn", "flash", "flash3", "sage"])
def test_backend_that_needs_a_gpu_is_refused_on_a_cpu(name):
    with pytest.raises(InputError, match=f"model.attention={name} cannot run here: {name}: it needs a CUDA GPU"):
        choose(Attention(name))


def test_lack_of_memory_is_not_blamed_on_the_kernel():
    long = [(2**45, 2**45)]
    with pytest.raises(torch.OutOfMemoryError, match="allocate"):
        choose_attention(Attention.auto, device=torch.device("cpu"), dtype=torch.float32, heads=(2, 12), lengths=long)


def test_every_backend_is_tried_on_every_shape_and_the_first_that_runs_is_taken(monkeypatch):
    """auto goes on after a failure; each candidate sees the run's own lengths, heads and dtype."""
    tried = []

    active = []

    @contextmanager
    def attention_backend(name):
        active.append(name)
        yield

    def dispatch(query, key, value):
        tried.append((active[-1], tuple(query.shape), tuple(key.shape), query.dtype))
        if active[-1] == "xformers" and key.shape[1] == 512:
            raise ValueError("keys are too long\nand more")

    monkeypatch.setattr(attention, "attention_backend", attention_backend)
    monkeypatch.setattr(attention, "dispatch_attention_fn", dispatch)
    assert choose(Attention.auto) is Attention.native
    shapes = [((1, 64, 2, 12), (1, length, 2, 12), torch.float32) for length in (64, 512)]
    assert tried == [(name, *shape) for name in ("xformers", "native") for shape in shapes]
    with pytest.raises(InputError, match="model.attention=xformers cannot run here: xformers: keys are too long Try"):
        choose(Attention.xformers)


def test_auto_never_takes_a_backend_of_lower_precision():
    assert Attention.sage not in AUTO_ORDER and AUTO_ORDER[-1] is Attention.native
    assert set(AUTO_ORDER) | {Attention.sage, Attention.auto} == set(Attention)


def test_running_out_of_memory_is_no_reason_to_take_another(monkeypatch):
    def dispatch(*args, **options):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(attention, "dispatch_attention_fn", dispatch)
    with pytest.raises(torch.OutOfMemoryError):
        choose(Attention.native)


def test_command_records_what_auto_took(command, folder):
    assert command("model.attention=auto").returncode == 0
    assert json.loads((folder / "run.json").read_text())["attention_backend"] == "native"


def test_command_refuses_a_backend_that_cannot_run_before_weights_are_read(command, monkeypatch):
    monkeypatch.setattr("fresco_dist.models.wan.model.Experts", None)
    done = command("model.attention=sage")
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert "model.attention=sage cannot run here" in line and "Try native" in line
