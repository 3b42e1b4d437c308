"""Runs that end anywhere and go on from what was stored: any levels, workers and modes, with losses on the way."""

import random

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st
from make_jobs import make_config
from test_lost_workers import jobs
from test_plan import UHD, WAN
from toy_levels import ToyExecutor, ToyJob, run_loop

from fresco_dist.config import DispatchMode
from fresco_dist.method.grid import tile_cores
from fresco_dist.schedule.describe import describe
from fresco_dist.schedule.execute import execute
from fresco_dist.schedule.graph import Task
from fresco_dist.schedule.keys import make_keys
from fresco_dist.schedule.plan import Plan, make_plan
from fresco_dist.schedule.simulate import simulate_run
from fresco_dist.schedule.tasks import run_graph


class PulledPlug(Exception):
    """The driver is gone."""


class Kept:
    """What outlives a run: canvases, encodings, latents and pixels, by key."""

    def __init__(self, given_jobs: list[ToyJob], data) -> None:
        self.jobs, self.data = given_jobs, data
        self.canvases: dict[str, np.ndarray] = {}
        self.encoded: dict[str, dict[int, int]] = {}
        self.latents: dict[str, np.ndarray] = {}
        self.pixels: dict[str, dict[int, np.ndarray]] = {}

    def plan(self, job: ToyJob) -> Plan:
        """What is left of a job."""

        def latest(level: int) -> int | None:
            canvas, first = job.keys.levels[level].canvas, job.plan.levels[level].first_step
            stored = [k for k, key in enumerate(canvas) if k > 0 and key in self.canvases]
            return first + stored[-1] if stored else None

        return job.plan.going_on_from(latest)

    @property
    def stored(self) -> dict[str, object]:
        """What need not be made."""
        whole = {}
        for job in self.jobs:
            for keys, level in zip(job.keys.levels, job.plan.levels):
                parts = self.encoded.get(keys.inputs, {})
                if len(parts) == sum(map(len, level.encode_tiles)):
                    whole[keys.inputs] = [parts[i] for i in sorted(parts)]
        return self.canvases | whole

    def run(self, mode: DispatchMode, ends_after: int | None) -> int:
        """The rest of all jobs, or as many tasks of it; how many there were."""
        data, num_workers = self.data, self.data.draw(st.integers(1, 4))
        times = st.floats(0.0, 40.0)
        losses = {worker: data.draw(times) for worker in range(1, num_workers) if data.draw(st.booleans())}
        generator = random.Random(data.draw(st.integers(0, 99)))
        stored = self.stored
        executor = ToyExecutor(
            self.jobs,
            num_workers,
            lambda worker, task: generator.choice([0.5, 1.0, 4.0]) if task.traits.forward else 0.01,
            losses,
            loses_results=data.draw(st.booleans()),
            stored=stored,
        )
        decoded = {key: frozenset(tiles) for key, tiles in self.pixels.items()}
        keys = [job.keys for job in self.jobs]
        graph = run_graph([self.plan(job) for job in self.jobs], keys, mode, stored, decoded, checkpoints=True)
        records = []

        def observe(record) -> None:
            records.append(record)
            if ends_after is not None and len(records) > ends_after:
                raise PulledPlug

        dropped = execute(
            graph,
            executor,
            observe,
            {
                "collect": lambda task, _: self.latents.update({task.of: executor.values[task]}),
                "blend": lambda task, _: self.pixels.setdefault(task.of, {}).update(
                    {task.index: executor.values[task]}
                ),
            },
            late_receivers={
                "checkpoint": lambda task, fetch: self.canvases.update({task.of: fetch()}),
                "encode": lambda task, fetch: self.encoded.setdefault(task.of, {}).update({task.index: fetch()}),
            },
            wanted=lambda task: task.kind != "checkpoint" or generator.random() < 0.6,
        )
        assert not dropped
        return sum(record.task.traits.forward for record in records)


@given(data=st.data(), given_jobs=jobs())
def test_run_that_ends_anywhere_goes_on_to_the_sequential_result(data, given_jobs):
    kept = Kept(given_jobs, data)
    modes = st.sampled_from(list(DispatchMode))
    num_ends = data.draw(st.integers(1, 3))
    for _ in range(num_ends):
        try:
            kept.run(data.draw(modes), data.draw(st.integers(0, 60)))
        except PulledPlug:
            event("ended early")
    kept.run(data.draw(modes), None)
    for job in given_jobs:
        expected, clips = run_loop(job)
        assert np.array_equal(kept.latents[job.keys.levels[-1].last], expected)
        for level, clip in clips.items():
            for i, core in enumerate(tile_cores(job.plan.levels[level].decode_tiles)):
                assert np.array_equal(kept.pixels[job.keys.levels[level].clip][i], clip[core.slices])
    event(f"{len(kept.canvases)} canvases stored")


def uhd_plan(*overrides: str) -> Plan:
    """25 windows of 1280 x 720 px, six steps, on 8 workers."""
    return make_plan(make_config(*UHD, *overrides), WAN, (3840, 2160), 8)


@pytest.mark.parametrize("mode", list(DispatchMode))
def test_what_is_stored_is_not_predicted_again(mode):
    """The canvas before step 4 of 6: 50 windows are left, and nothing of a prior that no later step takes."""
    plan = uhd_plan().going_on_from(lambda level: 4 if level == 1 else 6)
    assert plan.needed == (1,) and plan.num_forwards == 50 and plan.cost == 50
    graph = run_graph([plan], [make_keys(plan)], mode)
    assert sum(task.traits.forward for task in graph.nodes) == 50
    assert plan.critical_path == 2 and simulate_run(plan, mode)["lower_bound_s"] == 50 / 8


def test_keys_do_not_depend_on_what_is_stored():
    plan = uhd_plan()
    assert make_keys(plan.going_on_from(lambda level: 5 if level == 1 else None)) == make_keys(plan)


@pytest.mark.parametrize(
    ("given_steps", "line"),
    [
        ({1: 4, 0: 6}, "stored    step 4 of 6: 50 of 156 forwards left"),
        ({1: None, 0: 5}, "stored    prior, step 5 of 6: 151 of 156 forwards left"),
        ({1: 6, 0: 6}, "stored    step 6 of 6: 0 of 156 forwards left"),
    ],
)
def test_plan_tells_what_is_stored(given_steps, line):
    config = make_config(*UHD)
    texts = "\n".join(describe(config, uhd_plan().going_on_from(given_steps.get)))
    assert line in texts and "forwards  156:" in texts


def test_run_whose_prior_is_stored_as_far_as_it_goes_starts_with_the_canvas():
    plan = uhd_plan().going_on_from(lambda level: 6 if level == 0 else None)
    graph = run_graph([plan], [make_keys(plan)], DispatchMode.wavefront)
    prior = [task for task in graph.nodes if task.level == 0]
    assert [task.kind for task in prior] == ["start"]
    fuse = next(task for task in graph.nodes if task.kind == "fuse")
    assert graph.nodes[fuse].inputs["prior"] == (Task("start", 6, 0, level=0, of=prior[0].of),)
