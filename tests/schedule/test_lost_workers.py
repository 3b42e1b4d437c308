"""Whole runs in virtual time, of pure toy tasks: any schedule with any losses gives the sequential result."""

import copy
import dataclasses
import random
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_dispatch import SMALL, steps_graph
from test_plan import WAN

from fresco_dist.config import DispatchMode
from fresco_dist.schedule.execute import Failure, WorkerError, execute
from fresco_dist.schedule.graph import Task
from fresco_dist.schedule.plan import Plan, make_plan
from fresco_dist.schedule.simulate import SimulatedExecutor
from fresco_dist.schedule.tasks import Owners, run_graph


class ToyExecutor(SimulatedExecutor):
    """Tasks are pure functions of their inputs; predictions of the barrier are kept by the workers that made them."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.inputs: dict[Task, tuple[Task, ...]] = {}
        self.values: dict[Task, int] = {}
        self.counted = {worker: set() for worker in range(self.num_workers)}
        self.committed = {worker: {} for worker in range(self.num_workers)}

    def submit(self, worker, task, inputs):
        self.inputs[task] = tuple(chain.from_iterable(inputs.values()))
        super().submit(worker, task, inputs)

    def wait(self):
        event = super().wait()
        if isinstance(event, Failure):
            if event.task is None:
                del self.counted[event.worker]
            return event
        task, worker = event.task, event.worker
        self.values[task] = hash((task, *(self.values[source] for source in self.inputs[task])))
        if task.kind == "predict":
            assert task not in self.counted[worker] or self._loses_results
            self.counted[worker].add(task)
        if task.kind == "commit":
            self.committed[worker][task] = {t for t in self.counted[worker] if (t.step, t.job) == (task.step, task.job)}
            self.counted[worker] -= self.committed[worker][task]
        return event

    def regroup(self, undo):
        super().regroup(undo)
        for task in undo:
            for worker in self.counted:
                self.counted[worker] |= self.committed[worker].pop(task, set())


def random_plan(draw) -> Plan:
    """A few windows, some per forward, steps and branches, which may count at some steps alone, as may the prior."""
    num_steps = draw(st.integers(1, 3))
    config = copy.deepcopy(SMALL)
    sampler = config.sampler
    sampler.num_steps, sampler.guidance_scale = num_steps, draw(st.sampled_from([1.0, 3.0]))
    sampler.guidance_scale_2 = draw(st.sampled_from([None, 1.0, 3.0]))
    switch = draw(st.integers(0, 3))
    spec = dataclasses.replace(WAN, stages=lambda sampler, num_steps: tuple(int(i >= switch) for i in range(num_steps)))
    config.tiles.overlap, config.tiles.batch = draw(st.sampled_from([0.0, 0.25, 0.5])), draw(st.integers(1, 4))
    size = (draw(st.integers(2, 8)) * 32, draw(st.integers(2, 6)) * 32)
    plan = make_plan(config, spec, size, 1)
    return dataclasses.replace(plan, prior_steps=tuple(draw(st.booleans()) for _ in range(num_steps)))


@pytest.mark.parametrize("mode", list(DispatchMode))
@given(data=st.data())
def test_any_schedule_with_any_losses_gives_the_sequential_result(mode, data):
    plans = [random_plan(data.draw) for _ in range(data.draw(st.integers(1, 2)))]
    graph = run_graph(plans, [Owners.alone(i, plan.canvas.num_steps) for i, plan in enumerate(plans)], mode)
    num_workers = data.draw(st.integers(1, 6))
    times = st.floats(0.0, 60.0)
    losses = {worker: data.draw(times) for worker in range(1, num_workers) if data.draw(st.booleans())}
    generator = random.Random(data.draw(st.integers(0, 99)))
    speeds = [generator.choice([0.3, 1.0, 1.0, 2.0]) for _ in range(num_workers)]

    def duration_s(worker: int, task: Task) -> float:
        return generator.choice([0.5, 1.0, 1.0, 4.0]) / speeds[worker] if task.traits.forward else 0.01

    loses_results = mode is DispatchMode.wavefront and data.draw(st.booleans())
    executor = ToyExecutor(num_workers, duration_s, losses, loses_results=loses_results)
    results: dict[Task, int] = {}
    received = {kind: lambda task, _: results.update({task: executor.values[task]}) for kind in ("collect", "blend")}
    assert execute(graph, executor, lambda record: None, received) == {}

    reference = ToyExecutor(1, lambda worker, task: 1.0)
    expected: dict[Task, int] = {}
    receive = {kind: lambda task, _: expected.update({task: reference.values[task]}) for kind in ("collect", "blend")}
    execute(graph, reference, lambda record: None, receive)
    assert results == expected
    for job, plan in enumerate(plans):
        counted = [t for w in executor.counted for part in executor.committed[w].values() for t in part if t.job == job]
        if mode is DispatchMode.allreduce and not losses:
            assert len(counted) == len(set(counted))
            windows = sum(len(plan.canvas.batches[task.index]) for task in counted)
            assert windows == len(plan.canvas.windows) * sum(plan.branches_per_step(plan.canvas))
    assert not executor.held - {task for task in graph.nodes if task.kind == "load"} or losses


def test_run_ends_with_the_reason_when_no_worker_is_left():
    graph = steps_graph(num_windows=3, num_steps=3)
    executor = SimulatedExecutor(2, lambda worker, task: 1.0, losses={0: 1.5, 1: 2.5})
    with pytest.raises(WorkerError, match="rank 1 died"):
        execute(graph, executor, lambda record: None, {})


class ForgetfulExecutor(ToyExecutor):
    """Loses a worker together with the first tile that the driver asks for."""

    def result(self, task):
        if task.kind == "blend" and len(self._alive) == self.num_workers:
            worker = self._ran_on[task]
            self._losses[worker] = self.now_s
            del self.counted[worker]
            return self._lose(worker, self.now_s)
        return self.values[task]


@pytest.mark.parametrize("mode", list(DispatchMode))
def test_tile_that_is_lost_before_the_driver_has_it_is_made_again(mode):
    plan = make_plan(copy.deepcopy(SMALL), WAN, (256, 192), 1)
    graph = run_graph([plan], [Owners.alone(0, plan.canvas.num_steps)], mode)
    executor, received, losses = ForgetfulExecutor(3, lambda worker, task: 1.0), [], []
    receivers = {"blend": lambda task, value: received.append(task)}
    assert not execute(graph, executor, lambda record: None, receivers, losses.append)
    assert [failure.task for failure in losses] == [None]
    assert sorted(received) == sorted(task for task in graph.nodes if task.kind == "blend")
