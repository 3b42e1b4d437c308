"""Looks at what steps come to: those of the last step are the video's own latents, in colours."""

import numpy as np
import pytest
import torch
from make_jobs import STEPS, graph_of, make_job
from published_models import make_published

from fresco_dist.jobs.preview import Looks
from fresco_dist.models.look import Look
from fresco_dist.runtime.collectives import LocalGroup
from fresco_dist.runtime.inprocess_executor import InProcessExecutor
from fresco_dist.schedule.execute import execute

GRID = ("tiles.window=[32,32]", "tiles.overlap=0.5")


def watched(job) -> tuple[dict, torch.Tensor, Look]:
    """The frames of each (level, step), the latents (C, T, H, W), and the map."""
    executor, looks, frames, final = InProcessExecutor(use_gpu=False).give([job]), Looks(), {}, {}

    def observe(record) -> None:
        if record.looks and (seen := looks.take(record, job.plan.levels[record.task.level])) is not None:
            frames[record.task.level, record.task.step] = seen

    assert not execute(graph_of(job), executor, observe, {"collect": lambda task, x: final.update(x=torch.tensor(x))})
    (look,) = executor._worker._maps.values()
    return frames, final["x"], look


@pytest.mark.parametrize("mode", ["allreduce", "wavefront"])
@pytest.mark.parametrize("name", ["wan", "wan2_2_ti2v_5b", "unipc"])
def test_look_at_the_last_step_is_the_videos_latents_in_colours(name, mode, model_path, unipc_model_path, tmp_path):
    """Also where the first latent frame is the picture's, and the model's own is of no use."""
    path = {"wan": model_path, "unipc": unipc_model_path}.get(name) or make_published(name, tmp_path / "model")
    job = make_job(path, *(GRID if name != "wan2_2_ti2v_5b" else ()), f"dispatch.mode={mode}")
    frames, x_CTHW, look = watched(job)
    assert sorted(frames) == [(level, step) for level in range(len(job.plan.levels)) for step in range(STEPS)]
    last = x_CTHW.shape[1] - 1
    expected = look(x_CTHW[:, [0, last // 2, last]])
    seen = frames[job.plan.top, STEPS - 1]
    assert seen.shape == (3, *x_CTHW.shape[2:], 3) and np.ptp(seen) > 20
    assert np.abs(seen.astype(int) - expected).max() <= 1
    assert np.abs(frames[job.plan.top, 0].astype(int) - expected).mean() > 1  # and an earlier one is not


def test_look_at_a_commit_is_shared_out_among_the_workers(model_path):
    """Each looks at some cells, and all of them at all."""

    class OneOfTwo(LocalGroup):
        world_size = 2

        def __init__(self, rank: int) -> None:
            self.rank = rank

    job, seen = make_job(model_path, *GRID, "dispatch.mode=allreduce", "fusion=multidiffusion"), []
    for group in (LocalGroup(), OneOfTwo(0), OneOfTwo(1)):
        executor = InProcessExecutor(use_gpu=False).give([job])
        executor._worker.join(group)
        records = []
        assert not execute(graph_of(job), executor, records.append, {})
        seen.append(next(record.looks for record in records if record.task.kind == "commit"))
    whole, even, odd = seen
    assert sorted(whole) == list(range(len(job.plan.canvas.cells)))
    assert not even.keys() & odd.keys() and abs(len(even) - len(odd)) <= 1
    assert whole.keys() == {**even, **odd}.keys()
    assert all(np.array_equal(whole[i], look) for i, look in {**even, **odd}.items())


def test_no_look_is_made_where_none_is_asked_for(model_path):
    executor, records = InProcessExecutor(use_gpu=False).give([job := make_job(model_path, "preview=false")]), []
    assert not execute(graph_of(job), executor, records.append, {})
    assert not any(record.looks or record.blind for record in records) and not executor._worker._maps
