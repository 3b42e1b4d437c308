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
from fresco_dist.schedule.resume import going_on
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

    @property
    def plans(self) -> list[Plan]:
        """What is left of each job."""
        return going_on([job.plan for job in self.jobs], [job.keys for job in self.jobs], self.canvases.__contains__)

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
        graph = run_graph(self.plans, keys, mode, stored, decoded, checkpoints=True)
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


def test_canvas_that_one_job_makes_on_its_way_is_no_start_for_another():
    """One looks at every step of the thumbnail, of which a canvas is stored; the other only goes on from it."""
    overrides = ("fusion=progressive", "prior.levels=1", "tiles.overlap=0.25")
    plans = [uhd_plan(*overrides, "fusion.max_variance=null"), uhd_plan(*overrides, "fusion.max_variance=0.1")]
    keys = [make_keys(plan) for plan in plans]
    stored = keys[0].levels[0].canvas[2]
    assert stored == keys[1].levels[0].canvas[2]
    alone = [going_on([plan], [of_job], {stored}.__contains__)[0] for plan, of_job in zip(plans, keys)]
    assert [plan.levels[0].given for plan in alone] == [2, None]
    together = going_on(plans, keys, {stored}.__contains__)
    assert [plan.levels[0].given for plan in together] == [None, None]
    run_graph(together, keys, DispatchMode.wavefront, checkpoints=True)


def test_pixels_of_a_clip_that_another_job_only_shows_are_all_made_again():
    plans = [uhd_plan("fusion=fresco", "metrics=true"), uhd_plan("fusion=supergen", "metrics=true")]
    keys = [make_keys(plan) for plan in plans]
    clip = keys[0].levels[0].clip
    assert clip == keys[1].levels[0].clip
    graph = run_graph(plans, keys, DispatchMode.wavefront, decoded={clip: {0, 1, 2}})
    made = {task.index for task in graph.nodes if task.kind == "blend" and task.of == clip}
    assert made == set(range(sum(map(len, plans[0].levels[0].decode_tiles))))
    alone = run_graph(plans[:1], keys[:1], DispatchMode.wavefront, decoded={clip: made})
    assert not any(task.kind == "blend" and task.of == clip for task in alone.nodes)


def test_canvas_where_only_some_windows_have_gone_up_is_not_stored():
    plan = uhd_plan("fusion=progressive", "fusion.max_variance=0.1", "sampler.num_steps=12", "fusion.rise_latest=0.84")
    graph = run_graph([plan], [make_keys(plan)], DispatchMode.wavefront, checkpoints=True)
    assert plan.canvas.undecided == range(6, 10)
    stored = {task.step + 1 for task in graph.nodes if task.kind == "checkpoint" and task.level == plan.top}
    assert stored == {10, 11}
