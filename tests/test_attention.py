"""Attention backends: tried on the run's own shapes, refused with a reason, and the one in use named."""

import json

import pytest
import torch
from diffusers import WanTransformer3DModel

from fresco_dist.backbones import attention
from fresco_dist.backbones.attention import AUTO_ORDER, set_attention
from fresco_dist.config import Attention, InputError


@pytest.fixture
def transformer(model_path) -> WanTransformer3DModel:
    return WanTransformer3DModel.from_pretrained(model_path / "transformer")


def choose(transformer: WanTransformer3DModel, chosen: Attention) -> str:
    return set_attention(
        [transformer],
        chosen,
        device=torch.device("cpu"),
        dtype=torch.float32,
        heads=(2, 12),
        lengths=[(64, 64), (64, 512)],
    )


def _in_use(transformer: WanTransformer3DModel) -> set[str]:
    modules = (block.get_submodule(name) for block in transformer.blocks for name in ("attn1", "attn2"))
    return {module.processor._attention_backend.value for module in modules}


@pytest.mark.parametrize("chosen", [Attention.native, Attention.auto])
def test_native_runs_and_auto_finds_it_on_a_cpu(transformer, chosen):
    assert choose(transformer, chosen) == "native"
    assert _in_use(transformer) == {"native"}


@pytest.mark.parametrize("name", ["cudnn", "flash", "flash3", "sage"])
def test_backend_that_needs_a_gpu_is_refused_on_a_cpu(transformer, name):
    with pytest.raises(InputError, match=f"model.attention={name} cannot run here: {name}: it needs a CUDA GPU"):
        choose(transformer, Attention(name))


def test_every_backend_is_tried_on_every_shape_and_the_first_that_runs_is_taken(transformer, monkeypatch):
    """auto goes on after a failure; each candidate sees the run's own lengths, heads and dtype."""
    tried = []

    def dispatch(query, key, value, *, backend):
        tried.append((backend, tuple(query.shape), tuple(key.shape), query.dtype))
        if backend == "xformers" and key.shape[1] == 512:
            raise ValueError("keys are too long\nand more")
        return query

    monkeypatch.setattr(attention, "dispatch_attention_fn", dispatch)
    monkeypatch.setattr(WanTransformer3DModel, "set_attention_backend", lambda self, name: None)
    assert choose(transformer, Attention.auto) == "native"
    shapes = [((1, 64, 2, 12), (1, length, 2, 12), torch.float32) for length in (64, 512)]
    assert tried == [(name, *shape) for name in ("xformers", "native") for shape in shapes]
    with pytest.raises(InputError, match="model.attention=xformers cannot run here: xformers: keys are too long Try"):
        choose(transformer, Attention.xformers)


def test_auto_never_takes_a_backend_of_lower_precision():
    assert Attention.sage not in AUTO_ORDER and AUTO_ORDER[-1] is Attention.native
    assert set(AUTO_ORDER) | {Attention.sage, Attention.auto} == set(Attention)


def test_running_out_of_memory_is_no_reason_to_take_another(transformer, monkeypatch):
    def dispatch(*args, **options):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(attention, "dispatch_attention_fn", dispatch)
    with pytest.raises(torch.OutOfMemoryError):
        choose(transformer, Attention.native)


def test_command_records_what_auto_took(command, folder):
    assert command("model.attention=auto").returncode == 0
    assert json.loads((folder / "run.json").read_text())["attention_backend"] == "native"


def test_command_refuses_a_backend_that_cannot_run_at_start(command, folder):
    done = command("model.attention=sage")
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert "model.attention=sage cannot run here" in line and "Try native" in line
