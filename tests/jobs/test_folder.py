"""What run.json tells of a plan, and which products it vouches for."""

import json
from dataclasses import replace

import pytest
from make_jobs import make_job

from fresco_dist.jobs.folder import RunFolder
from fresco_dist.method.grid import place_windows
from fresco_dist.method.level import Grid
from fresco_dist.schedule.describe import describe_plan
from fresco_dist.schedule.plan import Plan


def plan_whose_windows_move() -> Plan:
    """One window of 6 x 8 latent cells at each of four steps, but six of 3 x 4 at the second."""
    plan = make_job(None, "model=synthetic").plan
    level = plan.canvas
    grid = Grid(tuple(place_windows(level.canvas, (3, 4), (3, 2))), (0, 2), 0.05)
    batches = tuple(replace(level.steps[0].batches[0], windows=(i,), cost=0.25) for i in range(len(grid.windows)))
    steps = [replace(step, grid=grid, batches=batches) if k == 1 else step for k, step in enumerate(level.steps)]
    return replace(plan, levels=(plan.levels[0], replace(level, steps=tuple(steps))))


def grid_of(plan: Plan, folder) -> dict:
    RunFolder(folder).write_run("done", {}, plan)
    return json.loads((folder / "run.json").read_text())["grid"]


def test_run_tells_the_windows_of_each_step_where_they_differ(tmp_path):
    plan = make_job(None, "model=synthetic").plan
    assert grid_of(plan, tmp_path).keys() == {"num_windows", "windows", "overlap", "batch"}
    moving = grid_of(plan_whose_windows_move(), tmp_path)
    assert moving["num_windows"] == len(moving["windows"]) == 1
    assert [len(windows) for windows in moving["windows_by_step"]] == [1, 6, 1, 1]
    assert moving["windows_by_step"][1][1] == [0, 2, 3, 4]


def test_plan_tells_steps_with_other_windows_and_what_they_cost():
    text = describe_plan(plan_whose_windows_move())
    assert "windows   1 to 6 of 64 x 48 px at most, which differ from step to step" in text
    assert "forwards  13: 9 windows in all x 1 branch + prior 4; together as long as" in text


@pytest.fixture
def done_folder(tmp_path) -> RunFolder:
    """Of a run that has written two products."""
    folder = RunFolder(tmp_path)
    for name in ("video.mp4", "trace.json"):
        folder.write(name, lambda partial: partial.write_text("new"))
    folder.write_run("done", {"seed": 1}, make_job(None, "model=synthetic").plan, files_sha256="")
    return folder


def test_folder_is_done_for_the_same_configuration_alone(done_folder):
    assert done_folder.is_done({"seed": 1}, str) and not done_folder.is_done({"seed": 2}, str)


@pytest.mark.parametrize("change", [lambda path: path.write_text("old"), lambda path: path.unlink()])
def test_folder_is_not_done_with_another_product_than_the_run_wrote(done_folder, change):
    change(done_folder.path / "video.mp4")
    assert not done_folder.is_done({"seed": 1}, str)


@pytest.mark.parametrize(
    "change",
    [
        lambda run: run | {"status": "failed"},
        lambda run: {key: value for key, value in run.items() if key != "products"},  # of an earlier version
        lambda run: run | {"products": None},
        lambda run: [],
    ],
)
def test_folder_is_not_done_by_another_run_json(done_folder, change):
    path = done_folder.path / "run.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    assert not done_folder.is_done({"seed": 1}, str)
