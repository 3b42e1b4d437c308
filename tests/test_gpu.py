"""What only a GPU shows: the same engine there, and the collective of its workers."""

import socket

import pytest
import torch
import torch.distributed as dist
from jobs import graph_of, make_job

from fresco_dist.collectives import ProcessGroup, serve_store
from fresco_dist.engine import execute
from fresco_dist.inprocess_executor import InProcessExecutor

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


def test_latents_on_the_gpu_are_close_to_those_on_the_cpu(model_path):
    job = make_job(model_path, "fusion.cutoff=1", "tiles.window=[32,32]", "prior.area=512")
    latents = []
    for use_gpu in (False, True):
        executor = InProcessExecutor([job], use_gpu=use_gpu)
        keep = {"collect": lambda _, result: latents.append(torch.tensor(result))}
        execute(graph_of(job), executor, lambda record: None, keep)
    torch.testing.assert_close(*latents, rtol=0, atol=1e-2)


@pytest.mark.skipif(not dist.is_nccl_available(), reason="needs NCCL")
def test_nccl_adds_up_integers():
    host = socket.gethostbyname(socket.gethostname())
    group = ProcessGroup(serve_store(host, 30.0), 0, 1, host, 30.0, cuda=True)
    total = group.sum_(torch.full((1000,), 2**30, dtype=torch.int32, device="cuda"))
    assert bool((total == 2**30).all())
