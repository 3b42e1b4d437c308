"""Progressive resolution: the Hadamard step by itself, and the recipe against a loop that is written out.

The loop knows whole canvases alone; the matrix is scipy's, resizing is by repeating.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_picture
from make_jobs import FRAMES, PROMPTS, make_job, results
from scipy.linalg import hadamard

from fresco_dist import models
from fresco_dist.config import DispatchConfig, DispatchMode
from fresco_dist.method.fixed_point import accumulate_, choose_scale, to_float
from fresco_dist.method.grid import Window
from fresco_dist.method.noise import gaussian_noise
from fresco_dist.method.rise import rise
from fresco_dist.method.weights import denominator, window_weight
from fresco_dist.models.conditioning import Conditioning
from fresco_dist.models.tiling import blend_tiles, join_tiles
from fresco_dist.runtime.job import Job

SMALL = ("tiles.window=[32,32]", "fusion=progressive", "sampler.num_steps=6")
SCHEDULERS = {"euler": "model_path", "unipc": "unipc_model_path"}


@pytest.fixture(params=SCHEDULERS)
def path(request):
    return request.getfixturevalue(SCHEDULERS[request.param])


def test_cell_becomes_four_whose_noise_is_white_and_of_the_level_of_the_time_shift():
    """Of a canvas that is all 0 but for noise, and of one that is all 5 without any."""
    sigma, shape = 0.6, (8, 1, 128, 128)
    level = 2 * sigma / (1 + sigma)
    draw = lambda stream: gaussian_noise(shape, seed=3, stream=stream)  # noqa: E731
    noises = [draw(stream) for stream in (1, 2, 3)]
    part = Window(0, 0, 256, 256)
    noise = rise(sigma * draw(0), noises, part, level)
    assert float(noise.mean()) == pytest.approx(0, abs=0.005)
    assert float(noise.std()) == pytest.approx(level, rel=0.005)
    spectrum = torch.fft.fft2(noise[:, 0].double()).abs().square().mean(0)
    quarters = [
        spectrum[rows, columns].mean()
        for rows in (slice(0, 64), slice(64, 128))
        for columns in (slice(0, 64), slice(64, 128))
    ]
    assert max(quarters) / min(quarters) < 1.05  # as much in every part of the spectrum
    signal = rise(torch.full(shape, (1 - sigma) * 5.0), [torch.zeros(shape)] * 3, part, level)
    torch.testing.assert_close(signal, torch.full_like(signal, (1 - level) * 5.0))


def test_part_of_a_risen_canvas_is_what_lies_there():
    """At odd and even edges, also where the canvas above has one row less."""
    shape = (4, 2, 6, 5)
    z, noises = torch.randn(shape), [torch.randn(shape) for _ in range(3)]
    whole = rise(z, noises, Window(0, 0, 12, 10), 0.8)
    for part in (Window(0, 0, 11, 9), Window(3, 2, 5, 7), Window(4, 5, 1, 1), Window(11, 9, 1, 1)):
        below = (
            slice(part.top // 2, (part.top + part.height + 1) // 2),
            slice(part.left // 2, (part.left + part.width + 1) // 2),
        )
        of_part = rise(z[(..., *below)], [noise[(..., *below)] for noise in noises], part, 0.8)
        assert torch.equal(of_part, whole[(..., *part.slices)])


def risen(z: torch.Tensor, size: tuple[int, int], sigma: float, stream: int) -> torch.Tensor:
    """All of a level of twice the sides, cut to `size`; its noise is that of the streams 65536 + 3 x its own and on."""
    noises = [gaussian_noise(z.shape, seed=0, stream=65536 + 3 * stream + k) for k in range(3)]
    stacked = torch.stack([z, *(sigma * noise for noise in noises)]) / (1 + sigma)
    children = torch.tensordot(torch.tensor(hadamard(4), dtype=torch.float32), stacked, dims=1)
    large = z.repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)
    for j in range(4):
        large[..., j // 2 :: 2, j % 2 :: 2] = children[j]
    return large[..., : size[0], : size[1]]


class Loop:
    """Levels one after the other; `begins` are their first steps, and before which step all of the video is there."""

    def __init__(self, job: Job, begins: list[int], max_variance: float | None = None) -> None:
        self.backbone = models.load(job.config.model, torch.device("cpu"))
        self.job, self.begins, self.max_variance = job, begins, max_variance
        self.variances: list[float] = []
        self.base = [float(sigma) for sigma in self.backbone.make_scheduler(6, None).sigmas]

    def run(self) -> torch.Tensor:
        with torch.inference_mode():
            prompts = [self.backbone.encode_text(prompt) for prompt in PROMPTS]
            before: list[torch.Tensor] = []  # each step, of the level below
            for level in range(len(self.job.plan.levels)):
                before = self.level(level, prompts, before)
        return before[-1]

    def level(self, index: int, prompts, below: list[torch.Tensor]) -> list[torch.Tensor]:
        level, top = self.job.plan.levels[index], len(self.job.plan.levels) - 1
        stream = 0 if index == top else index + 1
        first = 0 if index == 0 else self.begins[index]
        rises_until = -1 if index == 0 else self.begins[-1] if index == top else first
        end = 6 if index == top else self.begins[-1] if index + 1 == top else self.begins[index + 1]
        sigmas = [2 * s / (1 + s) if k <= rises_until else s for k, s in enumerate(self.base[:6])]
        new_scheduler = lambda: self.backbone.make_scheduler(6, None, sigmas)  # noqa: E731
        canvas, spec = level.canvas, self.job.plan.spec
        picture = torch.tensor(self.job.pictures[index])
        tiles = [tile for row in level.encode_tiles for tile in row]
        encoded = [self.backbone.encode_image(picture[t.scaled(spec.spatial_factor).slices], FRAMES) for t in tiles]
        condition = self.backbone.make_condition(
            join_tiles(level.encode_tiles, blend_tiles(level.encode_tiles, encoded))
        )
        windows, overlap = self.windows(canvas, index)
        weights = [window_weight(w, canvas, overlap, 0.05) for w in windows]
        D = denominator(windows, weights, canvas)
        scale = choose_scale(float(D.max()), level.sum_abs_coefficients)
        up = torch.ones(canvas, dtype=torch.bool)
        if index == top and self.max_variance is not None:
            up = self.up(windows, canvas, below, index)
        x = gaussian_noise(level.latent_shape, seed=0, stream=stream)
        # a multistep scheduler remembers what it has stepped: cells that begin later have one of their own
        schedulers = {True: new_scheduler(), False: new_scheduler()}
        canvases = [torch.full_like(x, torch.nan)] * first
        for k in range(first, end):
            if k <= rises_until:
                from_below = risen(below[k], canvas, self.base[k], stream)
                x = from_below if k == first else torch.where(up, x, from_below)
                schedulers[False] = new_scheduler()
                schedulers[False].set_begin_index(k)
            if k == first:
                schedulers[True].set_begin_index(k)
            canvases.append(x)
            N = torch.zeros(level.latent_shape, dtype=torch.int32)
            for window, weight in zip(windows, weights):
                for prompt, coefficient in ((0, 3.0), (1, -2.0)):
                    given = [Conditioning(condition.canvas_CTHW[(..., *window.slices)])]
                    crop, at = x[(..., *window.slices)][None], new_scheduler().timesteps[k]
                    m = self.backbone.predict(crop, given, at, prompts[prompt])[0]
                    accumulate_(N[(..., *window.slices)], m, weight * coefficient, scale)
            m = to_float(N, scale) / D
            timestep = new_scheduler().timesteps[k]
            stepped = {of: s.step(m[None], timestep, x[None], return_dict=False)[0][0] for of, s in schedulers.items()}
            x = torch.where(up, stepped[True], stepped[False])
            if k + 1 == rises_until:  # all go on alike
                schedulers[True] = new_scheduler()
                schedulers[True].set_begin_index(k + 1)
        return [*canvases, x]

    def windows(self, canvas: tuple[int, int], index: int) -> tuple[list[Window], tuple[int, int]]:
        """8 x 8 cells, half over each other; the smallest level is one."""
        if index == 0:
            return [Window(0, 0, *canvas)], (0, 0)
        starts = [sorted({*range(0, max(1, side - 7), 4), max(0, side - 8)}) for side in canvas]
        sides = [min(8, side) for side in canvas]
        return [Window(top, left, *sides) for top in starts[0] for left in starts[1]], (4, 4)

    def up(self, windows: list[Window], canvas: tuple[int, int], below: list[torch.Tensor], index: int) -> torch.Tensor:
        """Where all windows have settled; estimates are what two canvases of the level below lie on a line with."""
        first, settling = self.begins[index], self.begins[index - 1] if index > 1 else 0
        sigma = [2 * s / (1 + s) if index > 1 and k <= settling else s for k, s in enumerate(self.base)]
        steps = range(settling, first)
        clean = [(sigma[k] * below[k + 1] - sigma[k + 1] * below[k]) / (sigma[k] - sigma[k + 1]) for k in steps]
        variance = torch.stack(clean).double().var(dim=0, correction=0)
        up = torch.ones(canvas, dtype=torch.bool)
        for w in windows:
            rows, columns = (
                slice(w.top // 2, -(-(w.top + w.height) // 2)),
                slice(w.left // 2, -(-(w.left + w.width) // 2)),
            )
            self.variances.append(float(variance[..., rows, columns].mean()))
            up[w.slices] &= self.variances[-1] <= self.max_variance
        return up


@pytest.mark.parametrize(("levels", "begins"), [(1, [0, 3, 3]), (2, [0, 1, 3, 3])])
def test_level_takes_over_from_the_one_below_as_the_loop_says(path, levels, begins):
    job = make_job(path, *SMALL, f"prior.levels={levels}", "sampler.guidance_scale=3", image=make_picture(64, 64))
    ours = denoise_top(job)
    torch.testing.assert_close(ours, Loop(job, begins).run(), rtol=0, atol=5e-5)
    assert torch.equal(
        ours, denoise_top(replace(job, config=replace(job.config, dispatch=DispatchConfig(DispatchMode.allreduce))))
    )


def denoise_top(job: Job) -> torch.Tensor:
    (latents,) = results(job, "collect", level=job.plan.top).values()
    return torch.tensor(latents)


@pytest.mark.parametrize(("levels", "begins"), [(1, [0, 3, 5]), (2, [0, 1, 3, 5])])
def test_windows_that_have_settled_go_up_first_as_the_loop_says(path, levels, begins):
    """The threshold is the variance between the two in the middle; no forward is made of the others."""
    given = [*SMALL, f"prior.levels={levels}", "sampler.guidance_scale=3", "fusion.rise_latest=0.84"]
    picture = make_picture(64, 64)
    probe = Loop(make_job(path, *given, "fusion.max_variance=1", image=picture), begins, 1.0)
    probe.run()
    ordered = sorted(probe.variances)
    threshold = sum(ordered[len(ordered) // 2 - 1 : len(ordered) // 2 + 1]) / 2
    job = make_job(path, *given, f"fusion.max_variance={threshold}", image=picture)
    torch.testing.assert_close(denoise_top(job), Loop(job, begins, threshold).run(), rtol=0, atol=5e-5)
    decided = [goes_up for goes_up, _ in results(job, "decide", level=job.plan.top).values()]
    assert 0 < sum(decided) < len(decided)
    predictions = results(job, "predict", level=job.plan.top)
    left_out = {(task.step, task.index) for task, made in predictions.items() if made is None}
    windows = job.plan.canvas.steps[0].grid.windows
    waits = np.zeros(job.plan.canvas.canvas, dtype=bool)
    for window, is_up in zip(windows, decided):
        waits[window.slices] |= not is_up
    needed = [not waits[window.slices].all() for window in windows]
    assert 0 < sum(needed) < len(needed)
    assert left_out == {(step, i) for step in (3, 4) for i, is_needed in enumerate(needed) if not is_needed}
    assert job.plan.least.num_forwards == job.plan.num_forwards - 2 * 2 * len(decided)
