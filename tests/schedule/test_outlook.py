"""What the planner says and chooses before a run: from numbers alone, and in a real run's record."""

import json

import pytest
from make_jobs import make_config
from test_memory import full_spec
from test_plan import PRIOR_FIRST, UHD, WAN

from fresco_dist.schedule.outlook import FIT_RANGE, describe_advice, describe_schedule, fit_batch, fit_overlap
from fresco_dist.schedule.plan import make_plan
from fresco_dist.schedule.simulate import simulate_run


def plan_of(config, num_workers: int, spec=WAN):
    return make_plan(config, spec, (3840, 2160), num_workers, PRIOR_FIRST)


def test_advice_names_a_grid_that_keeps_the_workers_busier():
    config = make_config(*UHD)
    advice = describe_advice(config, plan_of(config, 8))
    assert advice == (
        "hint      tiles.overlap=0.51 gives 36 windows: 29 forwards long (now 22), workers 96% busy (now 89%)"
    )
    assert describe_advice(config, plan_of(config, 1)) == ""  # one worker never waits


def test_schedule_has_bounds_and_a_line_per_mode():
    config = make_config(*UHD)
    bounds, *modes = describe_schedule(plan_of(config, 8), list(type(config.dispatch.mode))).splitlines()
    assert bounds == "bounds    19.5 forwards of work per worker, 11 one after the other"
    assert [line.split()[1] for line in modes] == ["allreduce:", "wavefront:"]


@pytest.mark.parametrize("num_workers", [3, 8])
def test_fit_takes_the_overlap_that_keeps_workers_busiest(num_workers):
    config = make_config(*UHD, "tiles.fit=true")
    chosen = fit_overlap(config, plan_of(config, num_workers))
    assert not chosen.tiles.fit and 0.5 <= chosen.tiles.overlap <= 0.5 + FIT_RANGE
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
    config = make_config(*UHD, "tiles.batch=null")
    plan = plan_of(config, num_workers, full_spec("wan2_2_i2v_a14b"))
    assert fit_batch(config, plan, gpu_memory_gb).tiles.batch == batch


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
