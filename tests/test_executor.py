"""Executing a graph: what a worker is given, what is dropped when, and how failures are told."""

import numpy as np
import pytest
import torch
from jobs import make_job

from fresco_dist.backbones.conditioning import Conditioning
from fresco_dist.backbones.synthetic import SyntheticBackbone
from fresco_dist.collectives import LocalGroup
from fresco_dist.denoiser import Denoiser
from fresco_dist.dispatch import Graph, Place, Task
from fresco_dist.engine import denoising_graph, execute
from fresco_dist.executor import WorkerError
from fresco_dist.inprocess_executor import InProcessExecutor
from fresco_dist.trace import TaskRecord, chrome_trace, schedule_summary, span_s


class Recorder:
    """An executor of several imaginary workers that remembers what it holds."""

    def __init__(self, num_workers: int) -> None:
        self.num_workers = num_workers
        self.queue: list[tuple[int, Task, list]] = []
        self.held: dict[Task, int] = {}
        self.most_held = 0

    def submit(self, worker, task, inputs):
        self.queue.append((worker, task, [self.held[source] for source in inputs]))
        self.held[task] = task.index

    def wait(self) -> TaskRecord:
        worker, task, _ = self.queue.pop(0)
        self.most_held = max(self.most_held, len(self.held))
        return TaskRecord(task, worker, 0.0, 0.0, 0.0)

    def result(self, task):
        return self.held[task]

    def release(self, task):
        self.held.pop(task, None)


def test_results_reach_their_receiver_once_and_are_dropped_after_the_last_use():
    graph = Graph()
    chain = [graph.add(Task("link", index=0))]
    for i in range(1, 20):
        chain.append(graph.add(Task("link", index=i), inputs=chain[-1:]))
        graph.add(Task("leaf", index=i), inputs=chain[-2:])
    graph.add(Task("everywhere", index=99), inputs=chain[-1:], place=Place.EVERYWHERE)
    received = []
    executor = Recorder(num_workers=3)
    execute(graph, executor, lambda record: None, {"leaf": lambda task, result: received.append((task.index, result))})
    assert received == [(i, i) for i in range(1, 20)]
    assert executor.held == {}
    assert executor.most_held <= 12  # not the whole chain


def denoiser(config_overrides=()) -> Denoiser:
    job = make_job(None, "model=synthetic", "model.forward_s=0", "tiles.window=[32,32]", *config_overrides)
    backbone = SyntheticBackbone(0.0)
    condition = Conditioning(torch.zeros(job.plan.canvas.latent_shape))
    embeds = torch.zeros(1, 1, 1)
    return Denoiser(
        backbone,
        job.plan.canvas,
        job.plan.branches,
        config=job.config,
        stream=0,
        condition=condition,
        prompt_embeds=embeds,
    )


class BrokenGroup(LocalGroup):
    """A peer is lost in the middle: the buffer is partly reduced."""

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        tensor.add_(12345)
        raise RuntimeError("connection closed by peer")


def test_failed_commit_leaves_canvas_and_accumulator_as_they_were():
    """So that the step can be committed again with those who are left."""
    once, twice = denoiser(), denoiser()
    for state in (once, twice):
        for window in range(len(state._layout.windows)):
            state.predict(window, 0)
    with pytest.raises(RuntimeError, match="connection closed"):
        twice.commit(BrokenGroup(), None, 0.0)
    for state in (once, twice):
        state.commit(LocalGroup(), None, 0.0)
    assert torch.equal(once.x_CTHW, twice.x_CTHW)


def test_window_counts_once_in_a_step():
    state = denoiser()
    state.predict(0, 0)
    with pytest.raises(AssertionError, match="counted twice"):
        state.predict(0, 0)


def test_commit_refuses_a_step_that_is_not_whole():
    class WithAPeer(LocalGroup):
        """A peer that has predicted window 0 too."""

        def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
            tensor[-1] += 1
            return tensor

    missing, repeated = denoiser(), denoiser()
    missing.predict(0, 0)
    with pytest.raises(AssertionError, match="1 of . predictions are in"):
        missing.commit(LocalGroup(), None, 0.0)
    for window in range(len(repeated._layout.windows)):
        repeated.predict(window, 0)
    with pytest.raises(AssertionError, match="predictions are in"):
        repeated.commit(WithAPeer(), None, 0.0)


def test_prediction_out_of_range_is_told_with_rank_step_and_tile(monkeypatch):
    job = make_job(None, "model=synthetic", "model.forward_s=0", "tiles.window=[32,32]", "fusion=multidiffusion")
    predict, calls = SyntheticBackbone.predict, iter(range(1000))
    monkeypatch.setattr(
        SyntheticBackbone, "predict", lambda *args: predict(*args) * (float("nan") if next(calls) == 7 else 1.0)
    )
    message = r"rank 0 failed at predict, step 1, tile 1, branch 0: .*fixed-point range"
    with pytest.raises(WorkerError, match=message):
        execute(denoising_graph(job.plan), InProcessExecutor(job, use_gpu=False), lambda record: None, {})


def test_summary_and_trace_tell_who_did_what_when():
    records = [
        TaskRecord(Task("load"), 0, 0.0, 5.0, 1.0),
        TaskRecord(Task("predict", 0, 3, 0), 0, 5.0, 7.0, 1.0),
        TaskRecord(Task("predict", 0, 4, 0), 1, 6.0, 9.0, 1.0),
        TaskRecord(Task("commit", 0), 0, 7.0, 9.0, 1.0),
    ]
    assert schedule_summary(records, 2) == {"busy_fraction": 5 / 8, "lower_bound_s": 2.5, "makespan_s": 4.0}
    assert span_s(records, "predict", "commit") == 4.0 and span_s(records, "decode") == 0.0
    events = chrome_trace(records)["traceEvents"]
    assert [event["args"]["name"] for event in events if event["ph"] == "M"] == ["worker 0", "worker 1"]
    tile = next(event for event in events if event["name"] == "predict, step 0, tile 4, branch 0")
    assert (tile["tid"], tile["ts"], tile["dur"]) == (1, 6e6, 3e6)


def test_latents_do_not_depend_on_the_seed_of_torch_or_numpy(model_path):
    job = make_job(model_path, "fusion=multidiffusion", "sampler.num_steps=1")
    latents = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        np.random.seed(seed)
        executor = InProcessExecutor(job, use_gpu=False)
        execute(
            denoising_graph(job.plan),
            executor,
            lambda record: None,
            {"collect": lambda _, result: latents.append(result)},
        )
    assert np.array_equal(*latents)
