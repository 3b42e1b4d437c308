"""Prompts by region on the real worker, against a loop with whole-canvas masks that is written out."""

from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from make_jobs import FRAMES, PROMPTS, denoise, denoise_prior, make_job
from test_levels import enlarge, random_cells, with_levels

from fresco_dist import models
from fresco_dist.config import DispatchConfig, DispatchMode
from fresco_dist.method.level import Branch
from fresco_dist.method.noise import gaussian_noise
from fresco_dist.method.weights import denominator, window_weight
from fresco_dist.models.conditioning import Conditioning
from fresco_dist.models.tiling import blend_tiles, join_tiles
from fresco_dist.runtime.job import Job

SCHEDULERS = {"euler": "model_path", "unipc": "unipc_model_path"}
SMALL = ("tiles.window=[32,32]", "prior.area=512", "fusion.cutoff=0.5", "sampler.guidance_scale=3")
REGIONS = (  # the second and the third overlap, the last is said twice, a corner is left to the picture's prompt
    "regions=[{prompt: right, box: [0, 0, 0.3, 0.4]}, {prompt: still, box: [0.2, 0, 0.6, 1]},"
    " {prompt: the figures, box: [0.5, 0.3, 1, 1]}, {prompt: right, box: [0, 0.4, 0.2, 0.9]}]"
)


@pytest.fixture(params=SCHEDULERS)
def path(request):
    return request.getfixturevalue(SCHEDULERS[request.param])


def loop(job: Job) -> torch.Tensor:
    """The latents of the last of two levels."""
    backbone = models.load(job.config.model, torch.device("cpu"))
    with torch.inference_mode():
        return sample(backbone, job, 1, sample(backbone, job, 0, None))


def sample(backbone, job: Job, index: int, below: torch.Tensor | None) -> torch.Tensor:
    """The clean latents of a level: every window for every prompt, whether it counts there or not."""
    level, shares_PHW = job.plan.levels[index], torch.tensor(job.plan.shares[index], dtype=torch.float64)
    *positive, negative = map(backbone.encode_text, job.prompts)
    g, picture = job.config.sampler.guidance_scale, torch.tensor(job.pictures[index])
    tiles = [tile.scaled(job.plan.spec.spatial_factor) for tile in chain.from_iterable(level.encode_tiles)]
    encoded = [backbone.encode_image(picture[tile.slices], FRAMES) for tile in tiles]
    condition = backbone.make_condition(join_tiles(level.encode_tiles, blend_tiles(level.encode_tiles, encoded)))
    scheduler = backbone.make_scheduler(level.num_steps, None)
    x = gaussian_noise(level.latent_shape, seed=0, stream=level.stream)
    z = None if below is None else enlarge(below, level)
    for step, timestep, sigma in zip(level.steps, scheduler.timesteps, scheduler.sigmas.tolist()):
        weights = [window_weight(w, level.canvas, step.grid.overlap, step.grid.min_weight) for w in step.grid.windows]
        D = denominator(step.grid.windows, weights, level.canvas)
        N = torch.zeros(level.latent_shape, dtype=torch.float64)
        for window, weight_HW in zip(step.grid.windows, weights):
            part = (..., *window.slices)
            crop = [Conditioning(condition.canvas_CTHW[part])]
            *ms, m_negative = (
                backbone.predict(x[part][None], crop, timestep, prompt)[0].double() for prompt in (*positive, negative)
            )
            for m, share_HW in zip(ms, shares_PHW, strict=True):
                N[part] += weight_HW * share_HW[window.slices] * (m_negative + g * (m - m_negative))
        m, lam = N, step.prior.strengths[0] if step.prior else 0.0
        if lam:
            m = m + lam * sigma * (x - z)
        m = (m / (D + lam * sigma**2)).float()
        x = scheduler.step(m[None], timestep, x[None], return_dict=False)[0][0]
    return x


def otherwise(job: Job) -> torch.Tensor:
    """The latents in the other way of meeting, on cells that are cut otherwise."""
    assert job.config.dispatch.mode is DispatchMode.wavefront
    top = replace(job.plan.canvas, cells=random_cells(job.plan.canvas.canvas, 1))
    config = replace(job.config, dispatch=DispatchConfig(DispatchMode.allreduce))
    return denoise(replace(with_levels(job, job.plan.levels[0], top), config=config))


@pytest.mark.parametrize("fusion", ["fresco", "fresco_spot"])
def test_blended_prompts_are_those_of_a_loop_with_masks_on_the_whole_canvas(path, fusion):
    """Windows that overlap and windows that move; guidance with one negative branch for all."""
    job = make_job(path, *SMALL, REGIONS, f"fusion={fusion}")
    assert job.prompts == (PROMPTS[0], "right", "still", "the figures", PROMPTS[1])
    batches = [batch for level in job.plan.levels for step in level.steps for batch in step.batches]
    assert len({len(batch.branches) for batch in batches}) > 1
    for batch in batches:
        *shared, negative = batch.branches
        assert negative == Branch(4, -2.0) and {branch.coefficient for branch in shared} == {3.0}
    ours = denoise(job)
    torch.testing.assert_close(ours, loop(job), rtol=0, atol=5e-5)
    assert torch.equal(ours, otherwise(job))
    assert not torch.allclose(ours, denoise(make_job(path, *SMALL, f"fusion={fusion}")), atol=1e-2)


def test_region_that_is_all_of_the_picture_is_a_run_with_its_prompt_alone(path):
    """Its text takes the place of the picture's, which is not even encoded."""
    alone = make_job(path, *SMALL)
    whole = make_job(path, *SMALL, f"regions=[{{prompt: {PROMPTS[0]}, box: [0, 0, 1, 1]}}]")
    whole = replace(whole, prompts=("blurry", *whole.prompts[1:]))
    assert alone.plan.prompts == (0, 1) and whole.plan.prompts == (1, 2)
    assert torch.equal(denoise(whole), denoise(alone)) and torch.equal(denoise_prior(whole), denoise_prior(alone))


def test_halves_with_hard_edges_along_windows_are_two_runs_side_by_side(model_path):
    """Windows that do not overlap and a step that does nothing but theirs: no window sees the other half."""
    small = ("tiles.window=[48,32]", "tiles.overlap=0", "fusion=multidiffusion", "region_feather=0")
    halves = make_job(model_path, *small, "regions=[{prompt: right, box: [0.5, 0, 1, 1]}]")
    assert halves.plan.num_forwards == make_job(model_path, *small).plan.num_forwards
    ours, other = denoise(halves), make_job(model_path, *small)
    left, right = denoise(other), denoise(replace(other, prompts=("right", PROMPTS[1])))
    W = ours.shape[-1] // 2
    assert torch.equal(ours[..., :W], left[..., :W]) and torch.equal(ours[..., W:], right[..., W:])
    assert not torch.equal(left, right)


def test_dominant_window_has_the_one_prompt_that_has_most_of_it(path):
    job = make_job(path, *SMALL, REGIONS, "region_mode=dominant")
    plain = make_job(path, *SMALL)
    assert job.plan.canvas.num_forwards == plain.plan.canvas.num_forwards
    seen = set()
    for step in job.plan.canvas.steps:
        for batch in step.batches:
            (window,) = (step.grid.windows[i] for i in batch.windows)
            most = int(np.argmax([share_HW[window.slices].sum() for share_HW in job.plan.shares[-1].astype(float)]))
            assert batch.branches == (Branch(most, 3.0), Branch(4, -2.0))
            seen.add(most)
    assert len(seen) > 1
    blended = make_job(path, *SMALL, REGIONS)
    assert job.plan.levels[0] == blended.plan.levels[0]  # the thumbnail's one window sees all regions
    ours = denoise(job)
    assert torch.equal(ours, otherwise(job))
    assert not torch.allclose(ours, denoise(plain), atol=1e-2)


def test_windows_for_the_same_prompts_are_predicted_in_one_forward(model_path):
    """Three above that see the picture's prompt alone, three below that see the region's, too."""
    region = "regions=[{prompt: right, box: [0, 0.8, 1, 1]}]"
    one, two = (make_job(model_path, *SMALL, region, f"tiles.batch={size}") for size in (1, 2))
    batches = [(len(batch.windows), len(batch.branches)) for batch in two.plan.canvas.steps[0].batches]
    assert batches == [(2, 2), (1, 2), (2, 3), (1, 3)]
    torch.testing.assert_close(denoise(two), denoise(one), rtol=0, atol=1e-5)
