"""Recipes: each is a file with a class and a YAML, and the levels that it makes."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import fresco_dist.conf
import numpy as np
import pytest
from make_jobs import make_config

from fresco_dist.config import InputError
from fresco_dist.method import recipes
from fresco_dist.method.level import Source
from fresco_dist.method.recipes import RECIPES
from fresco_dist.schedule.describe import describe_plan
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
    assert set(RECIPES) == files <= {path.stem for path in values.glob("*.yaml")}
    others = {path.stem for path in values.glob("*.yaml")} - files  # settings of a recipe
    assert {make_config(f"fusion={name}").fusion.method for name in others} == {"cascade"}
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


@pytest.mark.parametrize(("levels", "sizes"), [("null", [90, 180, 270]), ("4", [90, 108, 162, 216, 270])])
def test_demofusion_has_phases_that_grow_by_equal_steps(levels, sizes):
    """At UHD three phases, as the thumbnail's sides fit into it three times."""
    plan = plan_of("fusion=demofusion", f"prior.levels={levels}")
    assert [level.canvas[0] for level in plan.levels] == sizes and plan.needed == tuple(range(len(sizes)))
    assert len({level.stream for level in plan.levels}) == len(sizes)
    assert [level.standard for level in plan.levels] == [None] + [0] * (len(sizes) - 1)


def test_phases_of_a_picture_too_small_for_so_many_are_left_out():
    plan = plan_of("fusion=demofusion", "prior.levels=8", size=(1280, 736))
    assert [level.canvas for level in plan.levels] == [(90, 158), (92, 160)]


@pytest.mark.parametrize("name", ["demofusion", "dynamic_scaler"])
def test_jittered_and_rolled_windows_cover_the_canvas_at_every_step(name):
    plan = plan_of(f"fusion={name}", "sampler.num_steps=20", "tiles.overlap=0.3", size=(3000, 2000))
    grids = [step.grid for level in plan.levels[1:] for step in level.steps]
    assert len({grid.windows for grid in grids}) > 10
    for level in plan.levels[1:]:
        for grid in (step.grid for step in level.steps):
            count = np.zeros(level.canvas, dtype=int)
            for window in grid.windows:
                assert (window.height, window.width) == (90, 160) and window.top >= 0 and window.left >= 0
                count[window.slices] += 1
            assert count.min() >= 1 and count.sum() == len(grid.windows) * 90 * 160


def test_levels_that_start_later_have_the_steps_that_are_left():
    for name, first in (("dynamic_scaler", 2), ("supergen", 2), ("progressive", 3)):
        top = plan_of(f"fusion={name}").canvas
        assert (top.first_step, len(top.steps), top.num_steps) == (first, 6 - first, 6)
    assert plan_of("fusion=supergen").canvas.steps[0].residual.source == Source(0, through_pixels=True)


def test_progressive_levels_double_and_end_where_the_next_begins():
    plan = plan_of("fusion=progressive", size=(3872, 2160))
    below, between, top = plan.levels
    assert [level.canvas for level in plan.levels] == [(68, 122), (136, 242), (270, 484)]
    assert (below.todo, between.todo, top.todo) == (range(0, 1), range(1, 3), range(3, 6))
    assert not top.decides and plan.least.num_forwards == plan.num_forwards


def test_windows_that_go_up_first_make_the_plan_a_range():
    plan = plan_of("fusion=progressive", "fusion.max_variance=0.1", "tiles.overlap=0.25")
    one_step = plan.canvas.steps[0].num_forwards
    assert plan.levels[1].todo == range(1, 4) and plan.least.num_forwards == plan.num_forwards - one_step
    text = describe_plan(plan)
    assert f"forwards  {plan.num_forwards - one_step} to {plan.num_forwards}: " in text
    for cell, window in product(plan.canvas.cells, plan.canvas.steps[0].grid.windows):
        assert not window.overlaps(cell) or window.intersection(cell) == cell  # wholly, or not at all
    (note,) = plan_of("fusion=progressive", "fusion.max_variance=0.1", "dispatch.mode=allreduce").notes
    assert note.startswith("dispatch.mode=allreduce has no effect")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["fusion=demofusion", "fusion.detail=null"], "fusion.detail must be given"),
        (["fusion=demofusion", "fusion.detail=-1"], "fusion.detail must be in"),
        (["fusion=demofusion", "fusion.detail_map=a.png"], "fusion.detail_background must be given with"),
        (["fusion=cascade", "fusion.detail_background=1"], "fusion.detail_background must be given with"),
        (["fusion=cascade", "fusion.detail_background=1", "fusion.detail_map=a.png"], "fusion.detail must be given"),
        (["fusion=cascade", "fusion.start=1"], "fusion.start must be greater than 0"),
        (["fusion=supergen", "fusion.start=0"], "fusion.start must be greater than 0"),
        (["fusion=supergen", "sampler.num_steps=1"], "sampler.num_steps must be at least 2"),
        (["fusion=cascade", "fusion.start=0.5", "prior.num_steps=1", "prior.levels=2"], "and so prior.num_steps"),
        (["fusion=cascade", 'fusion.detail_map=""'], "fusion.detail_map must be a picture or null"),
        (["fusion=regional", 'fusion.activity_map=""'], "fusion.activity_map must be a picture or null"),
        (["fusion=supergen", "fusion.loop_steps=0"], "fusion.loop_steps must be in"),
        (["fusion=supergen", "sampler.stop_after=2"], "sampler.stop_after must be greater than 2 .*Try 3"),
        (["fusion=dynamic_scaler", "fusion.motion_guidance=[0.5,2]"], "fusion.motion_guidance must be weights"),
        (["fusion=dynamic_scaler", "fusion.motion_guidance=[1,1,1,1]"], "fusion.motion_guidance must be at most 3 wei"),
        (["fusion=progressive", "sampler.num_steps=2"], "sampler.num_steps must be enough for 2 levels"),
        (["fusion=progressive", "fusion.rise=1"], "fusion.rise must be greater than 0 and less than 1"),
        (["fusion=progressive", "fusion.rise=0.1"], "sampler.num_steps must be enough"),
        (["fusion=progressive", "prior.levels=5", "sampler.num_steps=20"], "prior.levels must be at most 3"),
        (["fusion=progressive", "prior.num_steps=3"], "prior.num_steps must be null"),
        (["fusion=progressive", "prior.sigmas=[1,0.5]"], "prior.num_steps must be null|prior.sigmas must be null"),
        (["fusion=progressive", "fusion.max_variance=-1"], "fusion.max_variance must be at least 0"),
        (["fusion=progressive", "fusion.max_variance=1", "fusion.rise_latest=0.5"], "fusion.rise_latest must be later"),
        (["fusion=progressive", "fusion.max_variance=1", "fusion.rise=0.4"], "fusion.max_variance must be null unless"),
        (
            ["fusion=progressive", "fusion.max_variance=1", "fusion.rise=0.4"],
            "Try fusion.rise=0.67 fusion.rise_latest=0.84",
        ),
    ],
)
def test_what_a_recipe_cannot_do_is_refused(overrides, message):
    with pytest.raises(InputError, match=message):
        plan_of(*overrides)


@pytest.mark.parametrize(
    ("overrides", "note"),
    [
        (["fusion=demofusion", "prior.levels=8"], "prior.levels=8 is more than the picture has room for: there are"),
        (["fusion=cascade", "fusion.local_priors=true", "prior.levels=1"], "fusion.local_priors=true has no effect"),
        (["fusion=cascade", "fusion.residual_time=snr"], "fusion.residual_time=snr has no effect"),
        (["fusion=progressive", "metrics=true"], "what the smallest level is expected to be after 3 of its steps"),
    ],
)
def test_what_of_a_recipe_has_no_effect_is_said(overrides, note):
    assert any(note in text for text in plan_of(*overrides, size=(1600, 992)).notes)
    assert not plan_of(*overrides[:1], size=(1600, 992)).notes


def test_canvas_that_cannot_be_halved_is_refused():
    with pytest.raises(InputError, match="fusion must be another recipe .* got progressive. Try fusion=fresco"):
        plan_of("fusion=progressive", size=(32, 16))


def test_hadamard_step_is_for_flow_matching():
    config = make_config("model=synthetic", "fusion=progressive")
    with pytest.raises(InputError, match="flow matching alone; got progressive. Try fusion=demofusion"):
        make_plan(config, replace(SPEC, flow_matching=False), (3840, 2160), 1)
