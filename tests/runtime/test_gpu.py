"""What only a GPU shows: the same run there, the collective of its workers, kernels, fp8 and moving weights."""

import socket

import pytest
import torch
import torch.distributed as dist
from make_jobs import graph_of, make_job
from published_models import make_published

from fresco_dist.runtime.collectives import ProcessGroup, serve_store
from fresco_dist.runtime.inprocess_executor import InProcessExecutor
from fresco_dist.schedule.execute import execute

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


def test_latents_on_the_gpu_are_close_to_those_on_the_cpu(model_path):
    job = make_job(model_path, "fusion.cutoff=1", "tiles.window=[32,32]", "prior.area=512")
    latents = []
    for use_gpu in (False, True):
        executor = InProcessExecutor(use_gpu=use_gpu).give([job])
        keep = {"collect": lambda _, result: latents.append(torch.tensor(result))}
        execute(graph_of(job), executor, lambda record: None, keep)
    torch.testing.assert_close(*latents, rtol=0, atol=1e-2)


@pytest.mark.skipif(not dist.is_nccl_available(), reason="needs NCCL")
def test_nccl_adds_up_integers():
    host = socket.gethostbyname(socket.gethostname())
    group = ProcessGroup(serve_store(host, 30.0), 0, 1, host, 30.0, cuda=True)
    total = group.sum_(torch.full((1000,), 2**30, dtype=torch.int32, device="cuda"))
    assert bool((total == 2**30).all())


@pytest.fixture
def wide_path(tmp_path_factory):
    """Two experts with heads of 64: kernels and float8 products refuse the small widths of the other tests."""
    return make_published("wan2_2_i2v_a14b", tmp_path_factory.mktemp("gpu") / "a14b", head_dim=64)


def _latents(path, *overrides: str) -> torch.Tensor:
    received = []
    job = make_job(path, "model.dtype=bfloat16", "fusion=multidiffusion", *overrides)
    executor = InProcessExecutor(use_gpu=True).give([job])
    keep = {"collect": lambda _, result: received.append(torch.tensor(result))}
    execute(graph_of(job), executor, lambda record: None, keep)
    return received[0]


@pytest.mark.parametrize("override", ["model.expert_offload=ahead", "model.expert_offload=swap", "model.offload=group"])
def test_moved_weights_predict_what_resident_ones_do(wide_path, override):
    assert torch.equal(_latents(wide_path, override), _latents(wide_path))


@pytest.mark.parametrize("override", ["model.quantization=fp8", "model.compile=true", "model.attention=auto"])
def test_faster_forwards_stay_near_plain_ones(wide_path, override):
    if "fp8" in override:
        pytest.importorskip("torchao")
    plain = _latents(wide_path)
    assert float((_latents(wide_path, override) - plain).abs().mean() / plain.std()) < 0.1
