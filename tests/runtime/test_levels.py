"""Level programs that no configuration asks for yet, on the real worker: against a loop that is written out.

The loop knows no cell, task or state: whole canvases, diffusers' scheduler and torch's own resizing.
"""

import random
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from make_jobs import FRAMES, PROMPTS, denoise, denoise_prior, graph_of, make_job, outputs, results

from fresco_dist import models
from fresco_dist.config import DispatchConfig, DispatchMode
from fresco_dist.method.fixed_point import accumulate_, choose_scale, to_float
from fresco_dist.method.grid import Window, place_windows, vae_tiles
from fresco_dist.method.level import Grid, Guide, Level, Source, make_batches
from fresco_dist.method.noise import gaussian_noise
from fresco_dist.method.weights import denominator, window_weight
from fresco_dist.models.conditioning import Conditioning
from fresco_dist.models.tiling import blend_tiles, join_tiles
from fresco_dist.runtime.inprocess_executor import InProcessExecutor
from fresco_dist.runtime.job import Job
from fresco_dist.schedule.execute import execute
from fresco_dist.schedule.tasks import run_graph

SCHEDULERS = {"euler": "model_path", "unipc": "unipc_model_path"}
SMALL = ("tiles.window=[32,32]", "prior.area=512", "fusion.cutoff=0.5")


@pytest.fixture(params=SCHEDULERS)
def path(request):
    return request.getfixturevalue(SCHEDULERS[request.param])


def with_levels(job: Job, *levels: Level) -> Job:
    """The job with other levels."""
    return replace(job, plan=replace(job.plan, levels=levels))


def random_cells(canvas: tuple[int, int], seed: int) -> tuple[Window, ...]:
    """A canvas cut at random, down to one row or column."""
    generator = random.Random(seed)
    cuts = [[0, *sorted(generator.sample(range(1, size), 3)), size] for size in canvas]
    rows, columns = (list(zip(edges, edges[1:])) for edges in cuts)
    return tuple(Window(top, left, bottom - top, right - left) for top, bottom in rows for left, right in columns)


@pytest.mark.parametrize("cut", ["whole", "random", "others"])
def test_another_partition_into_cells_gives_the_same_bits(path, cut):
    """Pointwise work on cells of any shape: no vector's tail, no fused multiplication may tell."""
    job = make_job(path, *SMALL, "sampler.guidance_scale=3")
    below, top = job.plan.levels
    cells = {"whole": (top.whole,)}
    cells |= {name: random_cells(top.canvas, seed) for seed, name in enumerate(("random", "others"))}
    assert cells[cut] != top.cells
    assert torch.equal(denoise(job), denoise(with_levels(job, below, replace(top, cells=cells[cut]))))


def shifted(canvas: tuple[int, int], size: int, offset: int, min_weight: float) -> Grid:
    """Windows without overlap on a grid that is shifted, cut at the border."""
    rows, columns = ([*range(offset - size, side, size), side] for side in canvas)
    spans = [[(max(0, a), b) for a, b in zip(edges, edges[1:]) if b > 0] for edges in (rows, columns)]
    windows = [Window(top, left, bottom - top, right - left) for top, bottom in spans[0] for left, right in spans[1]]
    return Grid(tuple(windows), (0, 0), min_weight)


def program(job: Job, *, first_step: int = 0, guides: dict[int, dict] | None = None, **fields) -> Level:
    """The job's last level with windows that move, of four shapes, half of them batched; and guides by step."""
    top, weight = job.plan.canvas, 0.05
    steps = []
    for step in top.steps[first_step:]:
        k = first_step + len(steps)
        overlapping = place_windows(top.canvas, (8, 6), (4, 5))
        size, offset = {0: (6, 2), 1: (6, 4), 2: (0, 0), 3: (8, 2)}[k]
        grid = shifted(top.canvas, size, offset, weight) if size else Grid(tuple(overlapping), (4, 1), weight)
        branches = [step.batches[0].branches] * len(grid.windows)
        batches = make_batches(grid.windows, branches, 2 if k % 2 else 1, lambda window: 1.0)
        steps.append(replace(step, grid=grid, batches=batches, **(guides or {}).get(k, {})))
    return replace(top, steps=tuple(steps), first_step=first_step, **fields)


def loop(job: Job) -> torch.Tensor:
    """The latents of the last of two levels."""
    backbone = models.load(job.config.model, torch.device("cpu"))
    with torch.inference_mode():
        prompts = [backbone.encode_text(prompt) for prompt in PROMPTS]
        z = sample(backbone, job, 0, prompts, {})
        top = job.plan.canvas
        sources = {Source(0): enlarge(z, top)}
        if Source(0, through_pixels=True) in top.sources:
            sources[Source(0, through_pixels=True)] = encode_again(backbone, job, z)
        return sample(backbone, job, 1, prompts, sources)


def enlarge(z: torch.Tensor, level: Level) -> torch.Tensor:
    """Latents at the size of a level, by torch itself."""
    return F.interpolate(z[None], size=level.latent_shape[1:], mode="trilinear", align_corners=True)[0]


def encode_again(backbone, job: Job, z: torch.Tensor) -> torch.Tensor:
    """The decoded thumbnail at the size of the canvas, encoded in VAE tiles."""
    below, top = job.plan.levels

    def tiled(tiles, function, whole, factor=1):
        rows = [tile.scaled(factor) for tile in chain.from_iterable(tiles)]
        return join_tiles(tiles, blend_tiles(tiles, (function(whole[(..., *tile.slices)]) for tile in rows)))

    frames_3FHW = backbone.vae.to_pixels(tiled(below.decode_tiles, backbone.vae.decode_tile, z)).permute(3, 0, 1, 2)
    size = job.plan.size_px(1)[::-1]
    large = F.interpolate(frames_3FHW.float(), size=size, mode="bilinear", align_corners=True).round().byte()
    encode = lambda tile_3FHW: backbone.encode_clip(tile_3FHW.permute(1, 2, 3, 0))  # noqa: E731
    return backbone.normalise(tiled(top.encode_tiles, encode, large, job.plan.spec.spatial_factor))


def sample(backbone, job: Job, index: int, prompts, sources: dict[Source, torch.Tensor]) -> torch.Tensor:
    """The clean latents of a level."""
    level = job.plan.levels[index]
    picture = torch.tensor(job.pictures[index])
    encoded = []
    for tile in chain.from_iterable(level.encode_tiles):
        encoded.append(backbone.encode_image(picture[tile.scaled(job.plan.spec.spatial_factor).slices], FRAMES))
    condition = backbone.make_condition(join_tiles(level.encode_tiles, blend_tiles(level.encode_tiles, encoded)))
    noise = x = gaussian_noise(level.latent_shape, seed=0, stream=level.stream)
    scheduler = backbone.make_scheduler(level.num_steps, level.shift, level.sigmas)
    sigmas = [float(sigma) for sigma in scheduler.sigmas]
    for k in range(level.first_step, level.num_steps):
        step = level.at(k)
        if step.residual:
            c, z = step.residual.strengths[0], sources[step.residual.source]
            x = (1 - c) * x + c * ((1 - sigmas[k]) * z + sigmas[k] * noise)
            scheduler = backbone.make_scheduler(level.num_steps, None)  # what it remembers is of another canvas
            scheduler.set_begin_index(k)
        weights = [window_weight(w, level.canvas, step.grid.overlap, step.grid.min_weight) for w in step.grid.windows]
        D = denominator(step.grid.windows, weights, level.canvas)
        scale = choose_scale(float(D.max()), level.sum_abs_coefficients)
        N = torch.zeros(level.latent_shape, dtype=torch.int32)
        for window, weight in zip(step.grid.windows, weights):
            for branch in step.batches[0].branches:
                crop, at = x[(..., *window.slices)][None], scheduler.timesteps[k]
                given = [Conditioning(condition.canvas_CTHW[(..., *window.slices)])]
                m = backbone.predict(crop, given, at, prompts[branch.prompt])[0]
                accumulate_(N[(..., *window.slices)], m, weight * branch.coefficient, scale)
        m = to_float(N, scale)
        if step.prior:
            lam, b = step.prior.strengths[0], sigmas[k]
            m = (m + lam * b * (x - sources[step.prior.source])) / (D + lam * b**2)
        else:
            m = m / D
        x = scheduler.step(m[None], scheduler.timesteps[k], x[None], return_dict=False)[0][0]
    return x


def assert_is_what_the_loop_gives(job: Job) -> None:
    """In both ways of meeting, with the same bits."""
    ours = denoise(job)
    torch.testing.assert_close(ours, loop(job), rtol=0, atol=5e-5)
    assert job.config.dispatch.mode is DispatchMode.wavefront
    config = replace(job.config, dispatch=DispatchConfig(DispatchMode.allreduce))
    assert torch.equal(ours, denoise(replace(job, config=config)))


def test_windows_may_differ_from_step_to_step(path):
    """Some overlap, some are cut at the border; a forward takes those of one shape alone."""
    job = make_job(path, *SMALL, "sampler.guidance_scale=3")
    top = program(job)
    assert len(top.tile_shapes) > 4 and len({step.grid for step in top.steps}) == 4
    assert_is_what_the_loop_gives(with_levels(job, job.plan.levels[0], top))


@pytest.mark.parametrize("through_pixels", [False, True], ids=["latents", "pixels"])
def test_level_may_start_from_the_level_below(path, through_pixels):
    """At the second of four steps, at that step's noise level; the prior counts once more at the third."""
    job = make_job(path, *SMALL)
    below, source = job.plan.levels[0], Source(0, through_pixels)
    below = replace(below, decode_tiles=vae_tiles(below.canvas, 6, 4))
    guides = {1: {"residual": Guide(source, (1.0, 1.0)), "prior": None}, 2: {"prior": Guide(source, (0.7, 0.7))}}
    top = program(job, first_step=1, guides=guides, encode_tiles=vae_tiles(job.plan.canvas.canvas, 6, 4))
    assert_is_what_the_loop_gives(with_levels(job, below, top))


def test_canvas_may_be_pulled_to_the_level_below_before_any_step(path):
    """DemoFusion's residual, the first step included: a multistep scheduler then begins anew."""
    job = make_job(path, *SMALL)
    below, top = job.plan.levels
    pulls = [Guide(Source(0), (c, c)) for c in (1.0, 0.6, 0.3)] + [None]
    steps = (replace(step, residual=pull, prior=None) for step, pull in zip(top.steps, pulls, strict=True))
    level = replace(top, steps=tuple(steps))
    assert_is_what_the_loop_gives(with_levels(job, below, level))
    assert not torch.allclose(denoise(with_levels(job, below, level)), denoise(job), atol=1e-2)


def test_strength_of_a_guide_may_be_a_map(model_path):
    """A residual before the first step, the second of four: 1 where motion is expected, 0.25 elsewhere."""
    job = make_job(model_path, *SMALL, "fusion=multidiffusion")
    below, top = job.plan.levels
    activity = torch.zeros(top.canvas, dtype=torch.bool)
    activity[:, 5:] = True
    level = program(job, first_step=1, guides={1: {"residual": Guide(Source(0), (1.0, 0.25))}})
    job = replace(with_levels(job, below, level), maps=(np.zeros(0), activity.numpy()))
    x = torch.empty(level.latent_shape)
    for cell, (x_CTHW, _) in zip(level.cells, outputs(job, "start"), strict=True):
        x[(..., *cell.slices)] = torch.tensor(x_CTHW)
    z, noise = enlarge(denoise_prior(job), level), gaussian_noise(level.latent_shape, seed=0)
    sigma = float(models.load(job.config.model, torch.device("cpu")).make_scheduler(4, None).sigmas[1])
    n = (1 - sigma) * z + sigma * noise
    torch.testing.assert_close(x, torch.where(activity, n, 0.75 * noise + 0.25 * n), rtol=0, atol=1e-4)


RECIPES = {
    "spot": ("fusion=spot",),
    "spot, some steps overlap": ("fusion=spot", "tiles.overlap_steps=2"),
    "fresco_spot": ("fusion=fresco_spot", "sampler.guidance_scale=3"),
    "fresco_spot, moved inside": ("fusion=fresco_spot", "tiles.border=inside", "tiles.batch=2"),
    "fresco, cheap prior": ("prior.sigmas=[1,0.4]",),
    "fresco_spot, cheap prior": ("fusion=fresco_spot", "prior.num_steps=2", "sampler.sigmas=[1,0.9,0.6,0.3]"),
}


@pytest.mark.parametrize("overrides", RECIPES.values(), ids=RECIPES)
def test_recipe_is_what_the_loop_gives(path, overrides):
    assert_is_what_the_loop_gives(make_job(path, *SMALL, *overrides))


def test_windows_that_move_are_elsewhere_at_each_step(model_path):
    """Few grids, drawn by the seed; none twice in a row."""
    job = make_job(model_path, *SMALL, "fusion=spot", "sampler.num_steps=12")
    grids = [step.grid for step in job.plan.canvas.steps]
    seams = [({w.top for w in grid.windows} - {0}, {w.left for w in grid.windows} - {0}) for grid in grids]
    for one, two in zip(seams, seams[1:]):
        assert all(rows.isdisjoint(others) for rows, others in zip(one, two))
    assert 2 < len({id(grid) for grid in grids}) == len(set(grids)) <= 16
    other = make_job(model_path, *SMALL, "fusion=spot", "sampler.num_steps=12", "seed=1")
    assert [step.grid for step in other.plan.canvas.steps] != grids


TOGETHER = {
    "demofusion": ["fusion.detail=3", "fusion.detail=1", "fusion.residual_time=step"],
    "dynamic_scaler": ["fusion.motion_guidance=[]", "fusion.motion_guidance=[0.5]", "fusion.through=pixels"],
    "progressive": ["fusion.max_variance=null", "fusion.max_variance=0.4", "fusion.rise_latest=0.9"],
}


@pytest.mark.parametrize("recipe", TOGETHER)
def test_jobs_that_differ_in_what_is_taken_from_below_alone_run_together(model_path, recipe):
    """They share what all their steps have in common; each has the bits that it has by itself."""
    fixed = (*SMALL[:2], f"fusion={recipe}", "sampler.num_steps=6")
    jobs = [make_job(model_path, *fixed, change) for change in TOGETHER[recipe]]
    graph = run_graph([job.plan for job in jobs], [job.keys for job in jobs], DispatchMode.wavefront)
    found = {}
    receive = {"collect": lambda task, result: found.update({task.of: result})}
    dropped = execute(graph, InProcessExecutor(use_gpu=False).give(jobs), lambda record: None, receive)
    assert not dropped, next(iter(dropped.values()))
    assert len(graph.nodes) < sum(len(graph_of(job).nodes) for job in jobs)
    for job in jobs:
        (alone,) = results(job, "collect", level=job.plan.top).values()
        assert np.array_equal(found[job.keys.levels[-1].last], alone)
