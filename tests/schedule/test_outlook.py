"""What the planner says and chooses before a run: from numbers alone, and in a real run's record."""

import dataclasses
import json
import re
from unittest import mock

import pytest
from make_jobs import keys_of, make_config
from test_memory import full_spec
from test_plan import UHD, WAN

from fresco_dist.config import DispatchMode
from fresco_dist.schedule.describe import describe, describe_schedule
from fresco_dist.schedule.outlook import (
    FIT_RANGE,
    Outlook,
    choose_grid,
    count_shared_forwards,
    look_ahead,
)
from fresco_dist.schedule.plan import make_plan
from fresco_dist.schedule.simulate import simulate_run
from fresco_dist.schedule.tasks import run_graph


def plan_of(config, num_workers: int, spec=WAN):
    return make_plan(config, spec, (3840, 2160), num_workers)


def text_of(*overrides: str, num_workers: int = 8) -> str:
    config = make_config(*UHD, *overrides)
    plan = plan_of(config, num_workers)
    return "\n".join([*describe(config, plan), *describe_schedule(config, plan)])


def test_advice_names_a_grid_that_keeps_the_workers_busier():
    hint = "tiles.overlap=0.51 gives 36 windows: 29 forwards long (now 22), workers 96% busy (now 89%)"
    assert f"\nhint      {hint}\n" in text_of("plan_only=true")
    assert "tiles.overlap" not in text_of("plan_only=true", num_workers=1)  # one worker never waits


@pytest.mark.parametrize(
    "overrides",
    [["video.max_size=[1280,720]"], ["tiles.overlap_steps=6"], ["fusion=multidiffusion", "metrics=true"]],
    ids=str,
)
def test_advice_names_nothing_that_would_not_cost_less(overrides):
    """One window; a recipe whose windows would overlap at all steps; a prior that is only measured by."""
    told = [line for line in text_of("plan_only=true", *overrides).splitlines() if "of the work" in line]
    assert all("prior.num_steps" not in line for line in told) and len(told) == (
        overrides[0] == "fusion=multidiffusion"
    )


def test_advice_leaves_out_what_other_settings_rule_out():
    spec = dataclasses.replace(WAN, embeds_pictures=True)
    config = make_config(*UHD, "model.image_embedding=window", "plan_only=true")
    plan = plan_of(config, 8, spec)
    assert not any("fresco_spot" in line for line in describe_schedule(config, plan))


@pytest.mark.parametrize(
    ("recipe", "hints"),
    [
        ("fresco", ["fusion=fresco_spot: 0.38 of the work", "fusion=fresco_spot prior.num_steps=3: 0.37 of the work"]),
        ("fresco_spot", ["prior.num_steps=3: 0.95 of the work"]),
        ("multidiffusion", ["fusion=spot: 0.36 of the work"]),
        ("spot", []),
    ],
)
def test_advice_names_what_would_cost_less_and_is_what_that_costs(recipe, hints):
    lines = text_of("plan_only=true", f"fusion={recipe}").splitlines()
    found = [line.removeprefix("hint      ") for line in lines if line.startswith("hint") and "of the work" in line]
    assert [line.split(", ")[0] for line in found] == hints
    now = simulate_run(plan_of(make_config(*UHD, f"fusion={recipe}"), 8), DispatchMode.wavefront)["makespan_s"]
    for line in found:
        overrides = line.split(":")[0].split()
        own = [] if overrides[0].startswith("fusion=") else [f"fusion={recipe}"]
        cheaper = plan_of(make_config(*UHD, *own, *overrides), 8)
        length = simulate_run(cheaper, DispatchMode.wavefront)["makespan_s"]
        told = re.search(r"([\d.]+) forwards long \(now ([\d.]+)\)$", line)
        # a recipe that is offered keeps the other's strengths, which may differ from its own defaults
        assert float(told[1]) == pytest.approx(length, rel=0.02) and float(told[2]) == pytest.approx(now, abs=0.01)
        assert length < now


def test_schedule_has_bounds_and_a_line_per_mode():
    lines = text_of("plan_only=true").splitlines()
    assert "bounds    19.5 forwards of work per worker, 11 one after the other" in lines
    assert [line.split()[1] for line in lines if line.startswith("schedule")] == ["wavefront:", "allreduce:"]
    (line,) = [line for line in text_of("dispatch.mode=allreduce").splitlines() if line.startswith("schedule")]
    assert line == "schedule  allreduce: 26 forwards long, workers 75% busy"


def test_what_is_quick_is_said_before_anything_is_simulated():
    config = make_config(*UHD)
    with mock.patch("fresco_dist.schedule.outlook.simulate_run", side_effect=AssertionError("simulated")):
        plan = plan_of(config, 8)
        assert [text.split()[0] for text in describe(config, plan)] == ["image", "memory", "bounds"]
        with pytest.raises(AssertionError, match="simulated"):
            next(describe_schedule(config, plan))


def test_large_canvas_is_planned_without_a_simulation():
    """The whole command's choices and texts at 5293 windows."""
    overrides = ("tiles.window=[64,96]", "prior.area=6144", "tiles.fit=true", "tiles.batch=null", "plan_only=true")
    with mock.patch("fresco_dist.schedule.outlook.simulate_run", side_effect=AssertionError("simulated")):
        config, plan = choose_grid(make_config(*UHD, *overrides), WAN, (3840, 2160), 8, None)
        lines = [*describe(config, plan), *describe_schedule(config, plan)]
    assert len(plan.canvas.steps[0].grid.windows) == 5293 and config.tiles.overlap == 0.5
    assert [line for line in lines if not line.startswith("tasks")][-2:] == [
        "bounds    3970.31 forwards of work per worker, 9.5 one after the other",
        "schedule  not simulated: 31764 forwards, more than 10000; not below the bounds",
    ]


@pytest.mark.parametrize("mode", list(DispatchMode))
@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("fusion.cutoff=0.5", "prior.num_steps=3"),
        ("fusion=multidiffusion",),
        ("fusion=multidiffusion", "metrics=true"),
        ("tiles.batch=4", "sampler.guidance_scale=3"),
    ],
)
def test_bounds_are_those_of_the_graph(mode, overrides):
    plan = plan_of(make_config(*UHD, *overrides), 8)
    summary = simulate_run(plan, mode)
    assert (plan.work_per_worker, plan.critical_path) == (summary["lower_bound_s"], summary["critical_path_s"])
    assert look_ahead(plan, mode) == Outlook(summary["makespan_s"], pytest.approx(summary["busy_fraction"]))


@pytest.mark.parametrize("mode", [mode.value for mode in DispatchMode])
def test_shared_forwards_are_those_of_the_graph(mode):
    settings = [(0, 0), (1, 0), (2, 0), (2, 0.5), (2, 0.5)]
    overrides = [(f"fusion.prior_strength={strength}", f"fusion.cutoff={cutoff}") for strength, cutoff in settings]
    configs = [make_config(*UHD, f"dispatch.mode={mode}", *pair) for pair in overrides] + [make_config(*UHD, "seed=1")]
    plans = [plan_of(config, 8) for config in configs]
    keys = list(map(keys_of, configs, plans))
    graph = run_graph(plans, keys, configs[0].dispatch.mode)
    assert (
        count_shared_forwards(plans, keys)
        == sum(task.traits.forward for task in graph.nodes)
        < sum(plan.num_forwards for plan in plans)
    )


@pytest.mark.parametrize("num_workers", [3, 8])
def test_fit_takes_the_overlap_that_keeps_workers_busiest(num_workers):
    config = make_config(*UHD, "tiles.fit=true")
    chosen, plan = choose_grid(config, WAN, (3840, 2160), num_workers, None)
    assert not chosen.tiles.fit and 0.5 <= chosen.tiles.overlap <= 0.5 + FIT_RANGE
    assert plan == plan_of(chosen, num_workers)
    busy = {}
    for hundredth in range(50, 61):
        other = make_config(*UHD, f"tiles.overlap={hundredth / 100}")
        busy[hundredth / 100] = simulate_run(plan_of(other, num_workers), other.dispatch.mode)["busy_fraction"]
    assert busy[chosen.tiles.overlap] >= max(busy.values()) - 0.01


@pytest.mark.parametrize(
    ("gpu_memory_gb", "num_workers", "batch"),
    [
        (None, 1, 1),  # nothing is known of the GPU
        (80.0, 1, 1),  # 75 GB with one window, 15 more with each
        (100.0, 1, 2),
        (141.0, 1, 5),
        (141.0, 25, 1),  # two would leave workers idle
    ],
)
def test_batch_is_the_largest_that_fits_and_keeps_the_workers_busy(gpu_memory_gb, num_workers, batch):
    config, spec = make_config(*UHD, "tiles.batch=null"), full_spec("wan2_2_i2v_a14b")
    chosen, plan = choose_grid(config, spec, (3840, 2160), num_workers, gpu_memory_gb)
    assert chosen.tiles.batch == plan.batch == batch


def test_plan_says_why_it_batches_nothing(command):
    done = command("model=synthetic", "tiles.batch=null", "plan_only=true")
    assert "note      tiles.batch is 1 since no GPU is known here" in done.stdout


def test_run_records_what_the_planner_chose_and_repeats_it_anywhere(command, folder):
    small = ["tiles.window=[32,32]", "prior.area=1024", "video.num_frames=5", "cluster.gpu_memory_gb=80"]
    assert command(*small, "tiles.fit=true", "tiles.batch=null").returncode == 0
    run = json.loads((folder / "run.json").read_text())
    grid = run["grid"]
    assert grid["batch"] > 1 and 0.5 <= grid["overlap"] <= 0.6  # one worker: it never waits
    assert command(*small, f"tiles.overlap={grid['overlap']}", f"tiles.batch={grid['batch']}").returncode == 0
    again = json.loads((folder / "run.json").read_text())
    assert again["grid"] == grid and again["latents_sha256"] == run["latents_sha256"]
