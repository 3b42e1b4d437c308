"""The plan from numbers alone."""

import dataclasses
from itertools import zip_longest

import pytest
from make_jobs import make_config

from fresco_dist.config import InputError
from fresco_dist.jobs.inputs import Inputs
from fresco_dist.method.grid import fit_area
from fresco_dist.method.level import Branch, make_branches, sum_abs_coefficients
from fresco_dist.schedule.describe import describe_plan
from fresco_dist.schedule.outlook import lighter_plans
from fresco_dist.schedule.plan import Plan, make_plan, replan
from fresco_dist.schedule.spec import ModelSpec

WAN = ModelSpec(
    latent_channels=16,
    condition_channels=20,
    spatial_factor=8,
    temporal_factor=4,
    patch=2,
    weight_bytes=28 * 10**9,
    text_encoder_bytes=11 * 10**9,
    encode_tile_px=(256, 192),
    decode_tile_px=(256, 192),
)
UHD = ("video.num_frames=81", "tiles.window=[720,1280]", "prior.area=921600", "sampler.num_steps=6")


def test_plan_of_a_uhd_clip_counts_what_the_method_counts():
    plan = make_plan(make_config(*UHD), WAN, (3840, 2160), 8)
    assert plan.canvas.latent_shape == (16, 21, 270, 480)
    assert plan.size_px(0) == (1280, 720)
    assert [len(step.grid.windows) for step in plan.canvas.steps] == [25] * 6
    assert plan.num_forwards == 25 * 6 + 6
    assert len(plan.canvas.decode_tiles) * len(plan.canvas.decode_tiles[0]) == 12 * 20
    assert "forwards  156" in describe_plan(plan) and "25 of 1280 x 720 px" in describe_plan(plan)


def test_guidance_doubles_the_forwards_and_keeps_the_sum():
    assert make_branches(1.0) == make_branches(1.0, 1.0) == ((Branch(0, 1.0),),) * 2
    assert make_branches(3.5) == ((Branch(0, 3.5), Branch(1, -2.5)),) * 2
    plan = make_plan(make_config(*UHD, "sampler.guidance_scale=3.5", "fusion=multidiffusion"), WAN, (3840, 2160), 8)
    assert plan.num_forwards == 300


def test_branch_without_weight_needs_no_forward():
    """Two experts at three steps each, guidance for the second alone; the prior takes two steps, one each."""
    halves = lambda sampler, risen=None: tuple(2 * k // sampler.num_steps for k in range(sampler.num_steps))  # noqa: E731
    spec = dataclasses.replace(WAN, stages=halves)
    scales = ["sampler.guidance_scale=1", "sampler.guidance_scale_2=3", "prior.num_steps=2"]
    plan = make_plan(make_config(*UHD, *scales), spec, (3840, 2160), 8)
    assert plan.num_forwards == 25 * (3 * 1 + 3 * 2) + 1 + 2
    assert "forwards  228: 6 steps x 25 windows x 2 branches, but 1 at 3 steps + prior 3" in describe_plan(plan)


@pytest.mark.parametrize(
    ("scales", "stages"),
    [
        ((3.5, None), [(3.5, -2.5)] * 2),
        ((3.0, 1.0), [(3.0, -2.0), (1.0,)]),
        ((1.0, 4.0), [(1.0,), (4.0, -3.0)]),
    ],
)
def test_branch_coefficients_follow_the_expert_and_sum_to_one(scales, stages):
    branches = make_branches(*scales)
    assert [tuple(branch.coefficient for branch in stage) for stage in branches] == stages
    assert [sum(stage) for stage in stages] == [1.0, 1.0]
    assert sum_abs_coefficients(branches) == sum(max(map(abs, each)) for each in zip_longest(*stages, fillvalue=0.0))


@pytest.mark.parametrize(
    ("image_px", "canvas_px", "output_px"),
    [
        ((3840, 2160), (3840, 2160), (3840, 2160)),
        ((2160, 3840), (2160, 3840), (2160, 3840)),  # the cap is turned for portrait images
        ((7680, 4320), (3840, 2160), (3840, 2160)),
        ((20000, 300), (3840, 48), (3840, 58)),  # reduced keeping its shape, then snapped, then resized back
        ((1001, 1003), (992, 992), (1000, 1002)),  # video has even sides
        ((17, 31), (16, 16), (16, 30)),
    ],
)
def test_canvas_is_capped_and_snapped_and_the_video_keeps_the_shape(image_px, canvas_px, output_px):
    plan = make_plan(make_config(*UHD), WAN, image_px, 1)
    assert (plan.size_px(plan.top), plan.output_px) == (canvas_px, output_px)


@pytest.mark.parametrize("image_px", [(15, 400), (20000, 60)])
def test_picture_that_is_too_narrow_is_refused(image_px):
    with pytest.raises(InputError, match="at least 16 px high and wide"):
        make_plan(make_config(*UHD), WAN, image_px, 1)


@pytest.mark.parametrize(
    ("image_px", "expected"), [((3840, 2160), (1280, 720)), ((1000, 1000), (960, 960)), ((20000, 200), (9600, 96))]
)
def test_prior_keeps_the_aspect_ratio_within_the_area(image_px, expected):
    assert fit_area(image_px, 921600, 16) == expected
    assert expected[0] * expected[1] <= 921600


def test_frame_count_must_fit_the_model():
    with pytest.raises(InputError, match=r"video\.num_frames must be 1 plus a multiple of 4.*got 80\. Try 77"):
        make_plan(make_config(*UHD, "video.num_frames=80"), WAN, (3840, 2160), 8)


def test_reduction_and_snapping_are_said():
    plan = make_plan(make_config(*UHD), WAN, (8000, 4000), 1)
    assert any("reduced to 3840 x 1920" in note for note in plan.notes)
    plan = make_plan(make_config(*UHD), WAN, (1001, 1003), 1)
    assert any("snapped" in note for note in plan.notes)


REGION = "regions=[{prompt: a, box: [0, 0, 0.25, 1]}, {prompt: b, box: [0.9, 0.9, 1, 1]}]"


def regional_plan(*overrides: str, image_px: tuple[int, int] = (3840, 2160)) -> Plan:
    config = make_config(*UHD, REGION, *overrides)
    return make_plan(config, WAN, image_px, 8, Inputs().shares(config, image_px))


def test_windows_are_predicted_for_the_prompts_that_count_in_them():
    """25 windows at 0, 640, ... 2560 and 0, 360, ... 1440 px; edges of 108 px around 960, 3456 and 1944 px."""
    plan = regional_plan()
    first = plan.canvas.steps[0]
    prompts = {
        (first.grid.windows[i].left * 8, first.grid.windows[i].top * 8): {branch.prompt for branch in batch.branches}
        for batch in first.batches
        for i in batch.windows
    }
    for (left, top), seen in prompts.items():
        wanted = {0} | ({1} if left < 960 else set()) | ({2} if left == 2560 and top == 1440 else set())
        assert seen == wanted, (left, top)
    assert plan.num_forwards == 6 * (25 + 10 + 1) + 6 * 3
    described = describe_plan(plan)
    assert "forwards  234: 6 steps x 25 windows x 1.44 branches on average + prior 18" in described
    assert "regions   3 prompts by region, blended: 1.44 per window on average" in described
    guided = describe_plan(regional_plan("sampler.guidance_scale=3"))
    assert "forwards  390: 6 steps x 25 windows x 2.44 branches on average + prior 24" in guided
    assert "regions   3 prompts by region, blended: 1.44 per window on average" in guided


def test_dominant_costs_no_forward_and_says_what_it_leaves_out():
    plan = regional_plan("region_mode=dominant")
    assert plan.canvas.num_forwards == 25 * 6 and plan.prompts == (0, 1, 2)  # the thumbnail's window takes all
    described = describe_plan(plan)
    assert "x 1 branch + prior 18" in described
    assert "regions   2 prompts by region, one for each window: 1 per window on average" in described
    assert 'region_mode=dominant leaves "b" out: no window is mostly in its region' in plan.notes


def test_windows_that_move_are_predicted_for_what_they_see_at_each_step():
    plan = regional_plan("fusion=fresco_spot")
    level, shares_PHW = plan.canvas, plan.shares[-1]
    assert len({id(step.grid) for step in level.steps}) > 1
    for step in level.steps:
        for batch in step.batches:
            for window in (step.grid.windows[i] for i in batch.windows):
                counts = [p for p in range(3) if shares_PHW[(p, *window.slices)].max() > 0]
                assert [branch.prompt for branch in batch.branches] == counts


def test_other_tiles_keep_the_shares_of_the_prompts():
    config = make_config(*UHD, REGION)
    plan = regional_plan()
    for other, one in zip(replan(config, plan, overlap=0.25).shares, plan.shares, strict=True):
        assert other is one


def test_region_mode_without_regions_is_told_to_have_no_effect():
    plan = make_plan(make_config(*UHD, "region_mode=dominant"), WAN, (3840, 2160), 8)
    assert "region_mode=dominant has no effect without regions" in plan.notes


def test_what_would_cost_less_is_counted_with_the_regions_prompts():
    config = make_config(*UHD, REGION)
    (_, moving), *_ = lighter_plans(config, regional_plan())
    assert moving.num_forwards == regional_plan("fusion=fresco_spot").num_forwards > 6 * 3
