"""Executing a graph: what a worker is given, what is dropped when, and how failures are told."""

import re
from collections import Counter

import numpy as np
import pytest
import torch
from make_jobs import denoise, graph_of, make_job

from fresco_dist.config import DispatchMode
from fresco_dist.media.timeline import draw_timeline
from fresco_dist.models.conditioning import Conditioning
from fresco_dist.models.synthetic.model import SyntheticBackbone
from fresco_dist.runtime.collectives import LocalGroup
from fresco_dist.runtime.inprocess_executor import InProcessExecutor
from fresco_dist.runtime.replicated_canvas import OutOfStep, ReplicatedCanvas
from fresco_dist.runtime.step import Denoiser
from fresco_dist.runtime.worker import Worker
from fresco_dist.schedule.execute import execute
from fresco_dist.schedule.graph import KINDS, Graph, Place, Task
from fresco_dist.schedule.tasks import run_graph
from fresco_dist.schedule.trace import TaskRecord, chrome_trace, phase_s, schedule_summary, span_s


class Recorder:
    """An executor of several imaginary workers that remembers what it holds."""

    def __init__(self, num_workers: int) -> None:
        self.num_workers = num_workers
        self.queue: list[tuple[int, Task, list]] = []
        self.held: dict[Task, int] = {}
        self.most_held = 0

    def submit(self, worker, task, node):
        self.queue.append((worker, task, [self.held[source] for source in node.sources]))
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
        chain.append(graph.add(Task("link", index=i), inputs={"of": chain[-1:]}))
        graph.add(Task("leaf", index=i), inputs={"of": chain[-2:]})
    graph.add(Task("everywhere", index=99), inputs={"of": chain[-1:]}, place=Place.EVERYWHERE)
    received = []
    executor = Recorder(num_workers=3)
    execute(graph, executor, lambda record: None, {"leaf": lambda task, result: received.append((task.index, result))})
    assert received == [(i, i) for i in range(1, 20)]
    assert executor.held == {}
    assert executor.most_held <= 12  # not the whole chain


def canvas() -> ReplicatedCanvas:
    job = make_job(None, "model=synthetic", "model.forward_s=0", "tiles.window=[32,32]", "fusion=multidiffusion")
    level = job.plan.canvas
    denoiser = Denoiser(
        SyntheticBackbone(0.0),
        level,
        seed=0,
        condition=lambda part, index: Conditioning(torch.zeros(*level.latent_shape[:2], part.height, part.width)),
        device=torch.device("cpu"),
        prompt_embeds={0: torch.zeros(1, 1)},
    )
    return ReplicatedCanvas(denoiser, [denoiser.first_cell(cell) for cell in level.cells])


NUM_WINDOWS = 6


def predict_all(state: ReplicatedCanvas, step: int = 0) -> None:
    for window in range(NUM_WINDOWS):
        state.predict(step, window, 0)


class BrokenGroup(LocalGroup):
    """A peer is lost in the middle: the buffer is partly reduced."""

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        tensor.add_(12345)
        raise RuntimeError("connection closed by peer")


def test_failed_commit_leaves_canvas_and_accumulator_as_they_were():
    """So that the step can be committed again with those who are left."""
    once, twice = canvas(), canvas()
    for state in (once, twice):
        predict_all(state)
    with pytest.raises(RuntimeError, match="connection closed"):
        twice.commit(0, BrokenGroup(), None, None)
    assert torch.equal(*(state.commit(0, LocalGroup(), None, None).x_CTHW for state in (once, twice)))


def test_several_canvases_can_be_made_from_one():
    """Points of a sweep that part there, or a commit that others have missed: its history is not used up."""
    state, x_CTHW = canvas(), canvas().x_CTHW
    for step in range(2):
        predict_all(state, step)
        after = [state.commit(step, LocalGroup(), None, None) for _ in range(2)]
        assert torch.equal(after[0].x_CTHW, after[1].x_CTHW) and torch.equal(state.x_CTHW, x_CTHW)
        assert not torch.equal(after[0].x_CTHW, state.x_CTHW)
        state, x_CTHW = after[0], after[0].x_CTHW.clone()


def test_window_counts_once_in_a_step():
    state = canvas()
    state.predict(0, 0, 0)
    with pytest.raises(AssertionError, match="counted twice"):
        state.predict(0, 0, 0)


def test_task_whose_state_is_not_there_is_told_so():
    """What makes it has failed: the task is done again, and nobody is to blame."""
    job = make_job(None, "model=synthetic", "dispatch.mode=allreduce")
    worker = InProcessExecutor(use_gpu=False).give([job])._worker
    begin, predict = Task("begin", level=1), Task("predict", 0, 0, 0, level=1)
    with pytest.raises(OutOfStep, match="predict, level 1, step 0, tile 0, branch 0 comes before begin, level 1"):
        worker.run(predict, {}, {"level": begin}, False)


def test_commit_refuses_a_step_that_is_not_whole():
    class WithAPeer(LocalGroup):
        """A peer that has predicted window 0 too."""

        def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
            tensor[-1] += 1
            return tensor

    missing, repeated = canvas(), canvas()
    missing.predict(0, 0, 0)
    with pytest.raises(OutOfStep, match="1 of 6 predictions are in"):
        missing.commit(0, LocalGroup(), None, None)
    predict_all(repeated)
    with pytest.raises(OutOfStep, match="7 of 6 predictions are in"):
        repeated.commit(0, WithAPeer(), None, None)


@pytest.mark.parametrize("scheduler", ["euler", "unipc"])
def test_wavefront_gives_the_bits_of_the_all_reduce(request, scheduler):
    """Many cells, guidance, a prior at several steps, and the history of a multistep scheduler that travels."""
    path = request.getfixturevalue({"euler": "model_path", "unipc": "unipc_model_path"}[scheduler])
    overrides = ["tiles.window=[32,32]", "sampler.guidance_scale=3", "fusion.cutoff=0.5", "prior.area=512"]
    jobs = [make_job(path, *overrides, f"dispatch.mode={mode}") for mode in ("allreduce", "wavefront")]
    level = jobs[0].plan.canvas
    assert len(level.cells) == 6 and [step.prior is not None for step in level.steps] == [True, True, False, False]
    assert torch.equal(*(denoise(job) for job in jobs))


@pytest.mark.parametrize("mode", list(DispatchMode))
def test_jobs_that_share_work_give_the_bits_of_jobs_alone(model_path, mode):
    """Points of a sweep: the prior is made once, and predictions as long as canvases are equal."""
    points = ("fusion=multidiffusion", "fusion.cutoff=0", "fusion.cutoff=0.4", "fusion.cutoff=0.3")
    overrides = ["tiles.window=[32,32]", "prior.area=512", f"dispatch.mode={mode.value}"]
    alone = [make_job(model_path, *overrides, point) for point in points]
    keys = [job.keys for job in alone]
    first = {key: job for job in reversed(range(4)) for key in keys[job]}
    assert [[first[key] for key in of_job.levels[1].canvas] for of_job in keys] == [
        [0, 0, 0, 0, 0],
        [0, 1, 1, 1, 1],
        [0, 1, 2, 2, 2],  # steps 0 and 1 of 4 have s <= 0.4
        [0, 1, 1, 1, 1],  # step 1 has s = 1/3
    ]
    graph = run_graph([job.plan for job in alone], keys, mode)
    counts = Counter((task.kind, task.level) for task in graph.nodes)
    assert counts["predict", 0] == 4 and counts["predict", 1] == 6 * (4 + 3 + 2)
    assert counts["encode_text", -1] == 1
    found = {}
    receive = {"collect": lambda task, result: found.update({task.of: torch.tensor(result)})}
    assert not execute(graph, InProcessExecutor(use_gpu=False).give(alone), lambda record: None, receive)
    for of_job, job in zip(keys, alone, strict=True):
        assert torch.equal(found[of_job.levels[1].last], denoise(job))


@pytest.mark.parametrize("mode", ["dispatch.mode=allreduce", "dispatch.mode=wavefront"])
def test_prediction_out_of_range_is_told_with_rank_step_and_tile(monkeypatch, mode):
    job = make_job(None, "model=synthetic", "model.forward_s=0", "tiles.window=[32,32]", "fusion=multidiffusion", mode)
    predict, calls = SyntheticBackbone.predict, iter(range(1000))
    monkeypatch.setattr(
        SyntheticBackbone, "predict", lambda *args: predict(*args) * (float("nan") if next(calls) == 7 else 1.0)
    )
    message = r"rank 0 failed at predict, level 1, step \d, tile \d, branch 0: .*fixed-point range"
    dropped = execute(graph_of(job), InProcessExecutor(use_gpu=False).give([job]), lambda record: None, {})
    assert re.search(message, str(dropped[Task("collect", level=1, of=job.keys.levels[1].last)]))


def test_summary_and_trace_tell_who_did_what_when():
    records = [
        TaskRecord(Task("load"), 0, 0.0, 5.0, 1.0),
        TaskRecord(Task("predict", 0, 3, 0), 0, 5.0, 7.0, 1.0),
        TaskRecord(Task("predict", 0, 4, 0), 1, 6.0, 9.0, 1.0),
        TaskRecord(Task("commit", 0), 0, 7.0, 9.0, 1.0),
        TaskRecord(Task("fuse", 0, 0), 1, 7.0, 8.0, 1.0, beside=True),
    ]
    graph = Graph()
    first = graph.add(records[1].task)
    graph.add(records[2].task, after=[first])
    summary = {"busy_fraction": 5 / 8, "lower_bound_s": 2.5, "critical_path_s": 5.0, "makespan_s": 4.0}
    assert schedule_summary(records, 2, graph) == summary
    assert span_s(records[1:4]) == 4.0 and span_s([]) == 0.0
    events = chrome_trace(records)["traceEvents"]
    names = [event["args"]["name"] for event in events if event["ph"] == "M"]
    assert names == [
        "worker 0",
        "worker 1",
        "worker 1, beside",
    ]
    tile = next(event for event in events if event["name"] == "predict, step 0, tile 4, branch 0")
    assert (tile["tid"], tile["ts"], tile["dur"]) == (2, 6e6, 3e6)


def test_phases_tell_the_prior_from_the_steps():
    """Of three levels; texts are nobody's, and the decoded thumbnail no part of the video's decoding."""
    spans = {
        Task("load"): (0.0, 1.0),
        Task("encode_text", index=0): (1.0, 2.0),
        Task("encode", index=0, level=0): (2.0, 3.0),
        Task("encode", index=0, level=2): (1.5, 4.0),
        Task("predict", 0, 0, 0, level=0): (4.0, 5.0),
        Task("predict", 0, 0, 0, level=1): (5.0, 8.0),
        Task("predict", 0, 0, 0, level=2): (6.0, 9.5),
        Task("fuse", 0, 0, level=2): (9.5, 10.0),
        Task("decode", index=0, level=0): (8.0, 30.0),
        Task("decode", index=0, level=2): (10.0, 12.0),
    }
    records = [TaskRecord(task, 0, *span, 1.0) for task, span in spans.items()]
    assert phase_s(records) == {"load": 1.0, "encode": 3.0, "prior": 6.0, "steps": 4.0, "decode": 2.0}
    assert set(phase_s([]).values()) == {0.0}


def test_timeline_has_a_legend_of_what_ran_beside_no_label():
    kinds = ("predict", "predict", "fuse", "blend")
    records = [
        TaskRecord(Task(kind, 0, i, 0), i % 2, float(i), i + 1.0, 1.0, beside=i > 1) for i, kind in enumerate(kinds)
    ]
    figure = draw_timeline(records)
    figure.canvas.draw()
    (legend,), (axes,) = figure.legends, figure.axes
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["predict (steps alternate)", "beside the forwards: blend, fuse", "other"]
    assert not legend.get_window_extent().overlaps(axes.get_tightbbox())


def test_latents_do_not_depend_on_the_seed_of_torch_or_numpy(model_path):
    job = make_job(model_path, "fusion=multidiffusion", "sampler.num_steps=1")
    latents = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        np.random.seed(seed)
        latents.append(denoise(job))
    assert torch.equal(*latents)


def test_every_kind_of_task_in_a_graph_is_known_and_has_its_function():
    """A kind that is missing in the table would be scheduled as one that is neither a forward nor a collective."""
    assert all(callable(getattr(Worker, f"_{kind}", None)) for kind in KINDS)
