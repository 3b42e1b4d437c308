"""Recipes: each is a file with a class and a YAML, and the levels that it makes."""

from pathlib import Path

import fresco_dist.conf
import pytest
from make_jobs import make_config

from fresco_dist.method import recipes
from fresco_dist.method.level import Source
from fresco_dist.method.recipes import RECIPES
from fresco_dist.schedule.plan import Plan, make_plan
from fresco_dist.schedule.spec import ModelSpec

SPEC = ModelSpec(
    latent_channels=4,
    condition_channels=4,
    spatial_factor=8,
    temporal_factor=4,
    patch=2,
    weight_bytes=0,
    text_encoder_bytes=0,
    encode_tile_px=(256, 192),
    decode_tile_px=(256, 192),
)


def plan_of(*overrides: str, size: tuple[int, int] = (3840, 2160)) -> Plan:
    return make_plan(make_config("model=synthetic", "video.max_size=[16384,16384]", *overrides), SPEC, size, 1)


def test_recipe_is_a_file_with_a_yaml():
    folder, values = Path(recipes.__file__).parent, Path(fresco_dist.conf.__file__).parent / "fusion"
    files = {path.stem for path in folder.glob("*.py")} - {"__init__", "base"}
    assert set(RECIPES) == files == {path.stem for path in values.glob("*.yaml")}
    assert all(recipe.__module__.endswith(f".{name}") for name, recipe in RECIPES.items())


@pytest.mark.parametrize("name", ["spot", "fresco_spot", "cascade"])
def test_windows_side_by_side_cost_the_canvas_once_per_step(name):
    """In units of full windows; a partial one costs its share of their area where widths are not known."""
    plan = plan_of(f"fusion={name}")
    for step in plan.canvas.steps:
        assert step.cost == pytest.approx(9.0)
        assert sum(w.height * w.width for w in step.grid.windows) == 270 * 480
    shapes = {shape[2:] for shape in plan.canvas.tile_shapes}
    assert len(shapes) <= 16 and max(shapes) == (90, 160) and min(shapes) >= (23, 40)


def test_windows_moved_inside_are_full_ones():
    plan = plan_of("fusion=spot", "tiles.border=inside")
    assert set(plan.tile_shapes) == {(1, 21, 90, 160)}
    assert {len(step.grid.windows) for step in plan.canvas.steps} <= {9, 12, 16}


def test_windows_overlap_in_the_first_steps_that_are_asked_for():
    plan = plan_of("fusion=spot", "tiles.overlap_steps=2", "tiles.overlap=0.25")
    assert [any(step.grid.overlap) for step in plan.canvas.steps] == [True, True, False, False, False, False]
    assert plan.canvas.steps[0].grid == plan_of("tiles.overlap=0.25").canvas.steps[0].grid


def test_keys_of_windows_that_move_have_no_effect_elsewhere_and_that_is_said():
    notes = plan_of("tiles.overlap_steps=2", "tiles.border=inside").notes
    assert [note.split(" has no effect")[0] for note in notes] == ["tiles.overlap_steps=2", "tiles.border=inside"]
    assert plan_of("fusion=spot", "tiles.overlap_steps=2", "tiles.border=inside").notes == ()


@pytest.mark.parametrize(
    ("size", "num_levels"), [((1280, 720), 2), ((3840, 2160), 2), ((3904, 2160), 3), ((16384, 8192), 4)]
)
def test_cascade_has_as_many_levels_as_keep_them_within_a_factor_of_three(size, num_levels):
    plan = plan_of("fusion=cascade", size=size)
    assert len(plan.levels) == num_levels and plan.needed == tuple(range(num_levels))
    for below, level in zip(plan.levels, plan.levels[1:]):
        for small, large in zip(below.canvas, level.canvas):
            assert small <= large <= 3.1 * small and not large % 2  # a little more by rounding down
    assert [level.steps[0].prior.source for level in plan.levels[1:]] == [Source(i) for i in range(num_levels - 1)]
    assert len({level.stream for level in plan.levels}) == num_levels


def test_cascade_of_one_prior_is_fresco_spot():
    assert plan_of("fusion=cascade").levels == plan_of("fusion=fresco_spot").levels
    assert len(plan_of("fusion=cascade", "prior.levels=3").levels) == 4


def test_local_priors_are_windows_by_themselves_that_hold_the_level_above():
    plan = plan_of("fusion=cascade", "fusion.local_priors=true", size=(16384, 8192))
    assert len(plan.levels) == 6
    for alone, held in zip(plan.levels[1:5:2], plan.levels[2:5:2]):
        assert alone.canvas == held.canvas and alone.stream != held.stream
        assert len({id(step.grid) for step in alone.steps}) == 1 and alone.cells == alone.steps[0].grid.windows
        assert all(4 * w.height >= 90 and 4 * w.width >= 160 for w in alone.cells)
