"""Whole runs in virtual time, of random level programs: any schedule with any losses gives what a plain loop does."""

import copy
import random

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st
from test_dispatch import SMALL, steps_graph
from test_plan import WAN
from toy_levels import ToyExecutor, ToyJob, at_once, fork, from_latents, plans, run_loop

from fresco_dist.config import DispatchMode
from fresco_dist.method.grid import tile_cores
from fresco_dist.schedule.execute import WorkerError, execute
from fresco_dist.schedule.graph import Task
from fresco_dist.schedule.plan import make_plan
from fresco_dist.schedule.simulate import SimulatedExecutor
from fresco_dist.schedule.tasks import run_graph


@st.composite
def jobs(draw) -> list[ToyJob]:
    """One or two, of which the second may be the first but for what is taken from below after some step."""
    first = ToyJob(draw(plans()), 0)
    if draw(st.booleans()):
        return [first]
    if draw(st.booleans()):
        return [first, ToyJob(draw(plans()), 1)]
    change = draw(st.sampled_from((at_once, from_latents, None)))
    if change:
        return [first, ToyJob(change(first.plan), 0)]
    return [first, ToyJob(fork(first.plan, draw(st.integers(0, len(first.plan.canvas.steps) - 1))), 0)]


@pytest.mark.parametrize("mode", list(DispatchMode))
@given(data=st.data(), given_jobs=jobs())
def test_any_schedule_of_any_levels_with_any_losses_gives_the_sequential_result(mode, data, given_jobs):
    graph = run_graph([job.plan for job in given_jobs], [job.keys for job in given_jobs], mode)
    num_workers = data.draw(st.integers(1, 5))
    times = st.floats(0.0, 60.0)
    losses = {worker: data.draw(times) for worker in range(1, num_workers) if data.draw(st.booleans())}
    generator = random.Random(data.draw(st.integers(0, 99)))
    speeds = [generator.choice([0.3, 1.0, 1.0, 2.0]) for _ in range(num_workers)]

    def duration_s(worker: int, task: Task) -> float:
        return generator.choice([0.5, 1.0, 1.0, 4.0]) / speeds[worker] if task.traits.forward else 0.01

    loses_results = data.draw(st.booleans())
    executor = ToyExecutor(given_jobs, num_workers, duration_s, losses, loses_results=loses_results)
    latents, pixels = {}, {}

    def take_pixels(task: Task, _) -> None:
        pixels[task.of, task.level, task.index] = executor.values[task]

    receivers = {"collect": lambda task, _: latents.update({task.of: executor.values[task]}), "blend": take_pixels}
    assert execute(graph, executor, lambda record: None, receivers) == {}

    for job in given_jobs:
        expected, clips = run_loop(job)
        assert np.array_equal(latents[job.keys.levels[-1].last], expected)
        for level, clip in clips.items():
            for i, core in enumerate(tile_cores(job.plan.levels[level].decode_tiles)):
                assert np.array_equal(pixels[job.keys.levels[level].clip, level, i], clip[core.slices])
    if not losses:
        assert not executor.held and not any(executor.states.values()), "kept after its last use"
    event(f"{len(given_jobs)} jobs, {max(len(job.plan.needed) for job in given_jobs)} levels, {len(losses)} losses")


def test_run_ends_with_the_reason_when_no_worker_is_left():
    graph = steps_graph(num_windows=3, num_steps=3)
    executor = SimulatedExecutor(2, lambda worker, task: 1.0, losses={0: 1.5, 1: 2.5})
    with pytest.raises(WorkerError, match="rank 1 died"):
        execute(graph, executor, lambda record: None, {})


class ForgetfulExecutor(ToyExecutor):
    """Loses a worker together with a tile that the driver asks for; on a node of its own, with all that it made."""

    def __init__(self, bad: int, *args, **options) -> None:
        super().__init__(*args, **options)
        self._bad = bad  # the first or the last that is asked for

    def result(self, task):
        asked = len({known for known in self.values if known.kind == "blend"})
        if task.kind == "blend" and asked == self._bad and len(self._alive) == self.num_workers:
            worker = self._ran_on[task]
            self._losses[worker] = self.now_s
            self.states.pop(worker)
            return self._lose(worker, self.now_s)
        return self.values.get(task)


@pytest.mark.parametrize("bad", [1, 4], ids=["first", "last"])
@pytest.mark.parametrize("mode", list(DispatchMode))
def test_tile_that_is_lost_before_the_driver_has_it_is_made_again(mode, bad):
    """From as far back as it takes: with the last tile, all that it was made from has been released."""
    plan = make_plan(copy.deepcopy(SMALL), WAN, (320, 320), 1)
    assert sum(map(len, plan.canvas.decode_tiles)) == 4
    job = ToyJob(plan, 0)
    graph = run_graph([plan], [job.keys], mode)
    executor = ForgetfulExecutor(bad, [job], 3, lambda worker, task: 1.0, loses_results=True)
    received, losses = {}, []
    receivers = {"blend": lambda task, value: received.update({task.index: value})}
    assert not execute(graph, executor, lambda record: None, receivers, losses.append)
    assert [failure.task for failure in losses] == [None]
    _, clips = run_loop(job)
    for i, core in enumerate(tile_cores(plan.canvas.decode_tiles)):
        assert np.array_equal(received[i], clips[plan.top][core.slices])
