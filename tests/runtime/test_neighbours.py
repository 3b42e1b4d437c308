"""Recipes of neighbouring methods, on the real worker: against loops written from what their papers say.

A loop knows no cell, task or state, and takes nothing of the plan but sizes: where windows lie, how far they are
moved, what is re-noised to which level and how strongly a canvas is pulled is all worked out here. `cascade` alone
takes its windows from the plan: where those lie is drawn by a rule of this project's own.

z: clean latents, x: noisy ones; m: what the model predicts; a level's x is signal * z + noise * eps. H, W latent cells.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from itertools import chain, product
from math import cos, log, pi, sqrt

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_picture
from diffusers import DDIMScheduler
from make_jobs import PROMPTS, make_job, outputs
from PIL import Image

from fresco_dist import models
from fresco_dist.config import DispatchConfig, DispatchMode
from fresco_dist.method.fixed_point import accumulate_, choose_scale, to_float
from fresco_dist.method.noise import gaussian_noise
from fresco_dist.models.conditioning import Conditioning
from fresco_dist.models.tiling import blend_tiles, join_tiles
from fresco_dist.runtime.job import Job

MODELS = {"euler": "model_path", "unipc": "unipc_model_path", "epsilon": "sd_path", "velocity": "sd_velocity_path"}
SMALL = ("video.num_frames=5", "tiles.window=[32,32]", "prior.area=512")  # 2, 12, 16 cells; windows of 8, 8
PICTURE = (
    "model=stable_diffusion",
    "model.dtype=float32",
    "video.num_frames=1",
    "tiles.window=[64,64]",
    "tiles.overlap=0.5",
    "prior.area=2048",
    "sampler.guidance_scale=1",
)

Box = tuple[int, int, int, int]  # top, left, height, width
SDXL_BETAS = np.linspace(sqrt(0.00085), sqrt(0.012), 1000) ** 2


@pytest.fixture(scope="session")
def sd_velocity_path(request, tmp_path_factory):
    """The small random Stable Diffusion, taken for one that predicts velocities."""
    path = shutil.copytree(request.getfixturevalue("sd_path"), tmp_path_factory.mktemp("models") / "velocity")
    config = path / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"prediction_type": "v_prediction"}))
    return path


@pytest.fixture
def detail_map(tmp_path):
    """A picture that is light at the left, up to the side of a cell."""
    light = np.zeros((96, 128), np.uint8)
    light[:, :80] = 255
    Image.fromarray(light).save(tmp_path / "light.png")
    return tmp_path / "light.png"


class Loop:
    """The model and the job of a loop; everything that the methods have in common."""

    def __init__(self, job: Job) -> None:
        self.job, self.config, self.fusion, self.spec = job, job.config, job.config.fusion, job.plan.spec
        self.num_steps = job.config.sampler.num_steps
        self.backbone = models.load(job.config.model, torch.device("cpu"))
        self.prompts = [self.backbone.encode_text(prompt) for prompt in PROMPTS]
        g = job.config.sampler.guidance_scale
        self.coefficients = (g, 1 - g) if g != 1 else (1.0,)
        tiles = job.config.tiles
        sides = [px // self.spec.spatial_factor for px in tiles.window]
        self.window = [side // self.spec.patch * self.spec.patch for side in sides]
        self.stride = [max(1, round(side * (1 - tiles.overlap))) for side in self.window]

    @property
    def top(self) -> int:
        return self.job.plan.top

    def shape(self, level: int) -> tuple[int, int, int, int]:
        return self.job.plan.levels[level].latent_shape

    def stream(self, level: int) -> int:
        """Of its noise: the video's is 0, the thumbnail's 1."""
        return 0 if level == self.top else level + 1

    def condition(self, level: int) -> torch.Tensor:
        picture, tiles = torch.tensor(self.job.pictures[level]), self.job.plan.levels[level].encode_tiles
        encode = lambda crop: self.backbone.encode_image(crop, self.config.video.num_frames)  # noqa: E731
        crops = (picture[tile.scaled(self.spec.spatial_factor).slices] for tile in chain.from_iterable(tiles))
        return self.backbone.make_condition(join_tiles(tiles, blend_tiles(tiles, map(encode, crops)))).canvas_CTHW

    def enlarged(self, z: torch.Tensor, level: int) -> torch.Tensor:
        """The clean latents of the level below at the size of a level, as `fusion.through` says."""
        if self.fusion.through.value == "latents":
            return F.interpolate(z[None], size=self.shape(level)[1:], mode="trilinear", align_corners=True)[0]
        vae, factor = self.backbone.vae, self.spec.spatial_factor
        tiles = self.job.plan.levels[level - 1].decode_tiles
        raw = (vae.decode_tile(z[(..., *tile.slices)]) for tile in chain.from_iterable(tiles))
        clip_FHW3 = vae.to_pixels(join_tiles(tiles, blend_tiles(tiles, raw)))
        size_px = [side * factor for side in self.shape(level)[2:]]
        clip_F3HW = clip_FHW3.movedim(-1, 1).float()
        clip_F3HW = F.interpolate(clip_F3HW, size=size_px, mode="bilinear", align_corners=True).round().byte()
        clip_FHW3, tiles = clip_F3HW.movedim(1, -1), self.job.plan.levels[level].encode_tiles
        crops = (clip_FHW3[(slice(None), *tile.scaled(factor).slices)] for tile in chain.from_iterable(tiles))
        return self.backbone.normalise(join_tiles(tiles, blend_tiles(tiles, map(self.backbone.encode_clip, crops))))

    def levels_of_noise(self, scheduler, i: int) -> tuple[float, float]:
        """Signal and noise of x at step i."""
        if isinstance(scheduler, DDIMScheduler):
            abar = float(scheduler.alphas_cumprod[scheduler.timesteps[i]])
            return sqrt(abar), sqrt(1 - abar)
        sigma = float(scheduler.sigmas[i])
        return 1 - sigma, sigma

    def x0_terms(self, scheduler, i: int) -> tuple[float, float]:
        """a and b of x0 = a x - b m."""
        signal, noise = self.levels_of_noise(scheduler, i)
        if not isinstance(scheduler, DDIMScheduler):
            return 1.0, noise
        if scheduler.config.prediction_type == "epsilon":
            return 1 / signal, noise / signal
        return signal, noise

    def fade(self, scheduler, i: int) -> float:
        """(1 + cos(pi (1 - u))) / 2 at step i."""
        signal, noise = self.levels_of_noise(scheduler, i)
        time = self.fusion.residual_time.value
        if time == "timestep":
            u = float(scheduler.timesteps[i]) / 1000
        elif time == "unshifted":
            u = 1 - i / self.num_steps
        elif time == "step":
            u = 1 - i / (self.num_steps - 1)
        else:
            abar = np.cumprod(1 - SDXL_BETAS)
            logs, times = np.log((1 - abar) / abar), np.arange(1000) / 1000
            u = float(np.interp(log(noise**2 / signal**2), logs, times)) if signal > 0 else 1.0
        return (1 + cos(pi * (1 - u))) / 2

    def pull(self, level: int, scheduler, i: int) -> float | torch.Tensor:
        """c of the skip residual at step i, where the map is light and where it is dark."""
        fade = self.fade(scheduler, i)
        if self.fusion.detail_map is None:
            return fade**self.fusion.detail
        light = torch.tensor(self.job.maps[level])
        return torch.where(light, fade**self.fusion.detail, fade**self.fusion.detail_background)

    def denoise(
        self,
        level: int,
        boxes: Callable[[int], list[Box]],
        *,
        z: torch.Tensor | None = None,
        first: int = 0,
        pull: Callable[..., float | torch.Tensor | None] = lambda scheduler, i: None,
        hold: Callable[[int], float] = lambda i: 0.0,
    ) -> torch.Tensor:
        """The clean latents of a level from step `first` on: `pull` is c, `hold` lambda, `z` what both are towards."""
        condition, shape = self.condition(level), self.shape(level)
        x = eps = gaussian_noise(shape, seed=self.config.seed, stream=self.stream(level))
        scheduler = self.backbone.make_scheduler(self.num_steps, None)
        for i in range(first, self.num_steps):
            c = pull(scheduler, i)
            if c is not None:
                signal, noise = self.levels_of_noise(scheduler, i)
                x = (1 - c) * x + c * (signal * z + noise * eps)
                scheduler = self.backbone.make_scheduler(self.num_steps, None)  # with no history
                if not isinstance(scheduler, DDIMScheduler):
                    scheduler.set_begin_index(i)
            N, D = self.predict(x, condition, boxes(i), scheduler.timesteps[i])
            lam = hold(i)
            if lam:
                a, b = self.x0_terms(scheduler, i)
                m = (N + lam * b * (a * x - z)) / (D + lam * b**2)
            else:
                m = N / D
            x = scheduler.step(m[None], scheduler.timesteps[i], x[None], return_dict=False)[0][0]
        return x

    def predict(
        self, x: torch.Tensor, condition: torch.Tensor, boxes: list[Box], timestep: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum and number of the predictions of all windows, which count alike."""
        D = torch.zeros(x.shape[2:])
        for top, left, height, width in boxes:
            D[top : top + height, left : left + width] += 1
        assert D.min() >= 1
        scale = choose_scale(float(D.max()), sum(map(abs, self.coefficients)))
        N = torch.zeros(x.shape, dtype=torch.int32)
        for top, left, height, width in boxes:
            at = (..., slice(top, top + height), slice(left, left + width))
            for prompt, coefficient in zip((self.prompts[0], self.prompts[-1]), self.coefficients):
                m = self.backbone.predict(x[at][None], [Conditioning(condition[at])], timestep, prompt)[0]
                accumulate_(N[at], m, torch.full((height, width), coefficient), scale)
        return to_float(N, scale), D

    def thumbnail(self) -> torch.Tensor:
        """Its clean latents: one window, all steps."""
        return self.denoise(0, lambda i: [(0, 0, *self.shape(0)[2:])])

    def first_step(self) -> int:
        """The step at which a level goes on from the one below."""
        return min(max(1, round(self.fusion.start * self.num_steps)), self.num_steps - 1)

    def rolled(self, stride: list[int], i: int) -> list[Box]:
        """Full windows of the canvas every `stride`, from an offset that grows with the step; those outside moved in.

        Offsets are of a window's distance to the next one, and begin anew.
        """
        starts, sizes = [], []
        for side, nominal, distance in zip(self.shape(1)[2:], self.window, stride):
            window = min(nominal, side)
            offset = i % self.fusion.loop_steps * max(1, distance // self.fusion.loop_steps)
            places = range(offset - 100 * distance, side + 100 * distance, distance)
            starts.append(sorted({min(max(0, place), side - window) for place in places}))
            sizes.append(window)
        return [(top, left, *sizes) for top, left in product(*starts)]


def jittered(loop: Loop, level: int, i: int) -> list[Box]:
    """Windows that overlap, those inside moved by up to a quarter of the overlap; none leaves the canvas."""
    placed, sizes = [], []
    for side, nominal, stride in zip(loop.shape(level)[2:], loop.window, loop.stride):
        window = min(nominal, side)
        placed.append([*range(0, side - window, stride), side - window])
        sizes.append(window)
    boxes = []
    for number, place in enumerate(product(*placed)):
        digest = sha256(repr((loop.config.seed, loop.stream(level), i, number)).encode()).digest()
        moved = []
        for axis, start in enumerate(place):
            most, last = (loop.window[axis] - loop.stride[axis]) // 4, loop.shape(level)[2 + axis] - sizes[axis]
            word = int.from_bytes(digest[4 * axis : 4 * axis + 4], "big")
            by = word % (2 * most + 1) - most
            moved.append(start if start in (0, last) else min(max(0, start + by), last))
        boxes.append((*moved, *sizes))
    return boxes


def demofusion(loop: Loop) -> torch.Tensor:
    """Phases k = 2 .. K, each with k / K of the canvas's sides, pulled to the phase below before every step."""
    canvas, below = loop.shape(loop.top)[2:], loop.shape(0)[2:]
    levels = loop.config.prior.levels
    K = max(2, *(a // b for a, b in zip(canvas, below))) if levels is None else levels + 1
    assert loop.top == K - 1
    z = first = loop.thumbnail()
    for level in range(1, K):
        share = [(level + 1) * side // K for side in canvas]
        snapped = tuple(side // loop.spec.patch * loop.spec.patch for side in share)
        assert loop.shape(level)[2:] == (canvas if level == loop.top else snapped)
        z = loop.denoise(
            level,
            lambda i, level=level: jittered(loop, level, i),
            z=loop.enlarged(z, level),
            pull=lambda scheduler, i, level=level: loop.pull(level, scheduler, i) if i else 1.0,
        )
        own, wanted = (torch.std_mean(latents.double(), correction=0) for latents in (z, first))
        z = ((z.double() - own[1]) / own[0] * wanted[0] + wanted[1]).float()
    return z


def dynamic_scaler(loop: Loop) -> torch.Tensor:
    """From the thumbnail, on a grid that goes on by a share of the stride; pulled to it by weights that are given."""
    first, weights = loop.first_step(), loop.fusion.motion_guidance

    def pull(scheduler, i: int) -> float | None:
        after = i - first - 1
        return 1.0 if i == first else (weights[after] if after < len(weights) else 0) or None

    z = loop.enlarged(loop.thumbnail(), 1)
    return loop.denoise(1, lambda i: loop.rolled(loop.stride, i), z=z, first=first, pull=pull)


def supergen(loop: Loop) -> torch.Tensor:
    """From the thumbnail, on a grid without overlap that goes on by a share of the window."""
    first = loop.first_step()
    return loop.denoise(
        1,
        lambda i: loop.rolled(loop.window, i),
        z=loop.enlarged(loop.thumbnail(), 1),
        first=first,
        pull=lambda scheduler, i: 1.0 if i == first else None,
    )


def cascade(loop: Loop) -> torch.Tensor:
    """Each level from the one below, or from noise; pulled to it if there is an exponent, and held by it."""
    first = 0 if loop.fusion.start is None else loop.first_step()

    def pull(level: int, scheduler, i: int) -> float | torch.Tensor | None:
        if loop.fusion.start is not None and i == first:
            return 1.0
        return None if loop.fusion.detail is None else loop.pull(level, scheduler, i)

    def hold(i: int) -> float:
        s = (i - first) / max(1, loop.num_steps - 1 - first)  # of the steps that are run
        return loop.fusion.prior_strength * (1 + cos(pi * s)) / 2 if s <= loop.fusion.cutoff else 0.0

    def boxes(level: int, i: int) -> list[Box]:
        windows = loop.job.plan.levels[level].at(i).grid.windows
        return [(window.top, window.left, window.height, window.width) for window in windows]

    z = loop.thumbnail()
    for level in range(1, loop.top + 1):
        z = loop.denoise(
            level,
            lambda i, level=level: boxes(level, i),
            z=loop.enlarged(z, level),
            first=first,
            pull=lambda scheduler, i, level=level: pull(level, scheduler, i),
            hold=hold,
        )
    return z


LOOPS = {loop.__name__: loop for loop in (demofusion, dynamic_scaler, supergen, cascade)}


def canvas_of(job: Job) -> torch.Tensor:
    """The latents of the video's level."""
    return torch.tensor(outputs(job, "collect", level=job.plan.top)[-1])


def assert_is_what_the_loop_gives(job: Job) -> None:
    """In both ways of meeting, with the same bits."""
    ours = canvas_of(job)
    with torch.inference_mode():
        theirs = LOOPS[job.config.fusion.method](Loop(job))
    unit = max(1.0, float(theirs.abs().max())) if job.config.model.backbone == "stable_diffusion" else 1.0
    torch.testing.assert_close(ours / unit, theirs / unit, rtol=0, atol=5e-5)
    assert job.config.dispatch.mode is DispatchMode.wavefront
    config = replace(job.config, dispatch=DispatchConfig(DispatchMode.allreduce))
    assert torch.equal(ours, canvas_of(replace(job, config=config)))


def job_of(request, recipe: str, name: str, *overrides: str) -> Job:
    """On a picture whose canvas has 12 x 16 cells."""
    path = request.getfixturevalue(MODELS[name])
    small, size = (SMALL, (64, 48)) if name in ("euler", "unipc") else (PICTURE, (128, 96))
    return make_job(path, *small, f"fusion={recipe}", *overrides, image=make_picture(*size))


def cases(**overrides_by_name: list[str]) -> pytest.MarkDecorator:
    """Models, and overrides to try with them."""
    pairs = [(name, overrides) for name, each in overrides_by_name.items() for overrides in each]
    return pytest.mark.parametrize("name, overrides", pairs, ids=[" ".join(pair) or "default" for pair in pairs])


@cases(
    euler=[
        "",
        "fusion.residual_time=timestep",
        "fusion.residual_time=unshifted",
        "fusion.residual_time=step fusion.detail=1",
        "prior.levels=2 prior.area=1024 tiles.window=[24,24] tiles.overlap=0.67",
        "prior.levels=3 tiles.window=[24,24] tiles.overlap=0.67 sampler.num_steps=3 seed=1",
        "prior.levels=1 tiles.overlap=0.75",
        "prior.levels=1 tiles.window=[40,48] tiles.overlap=0.9 seed=2",
        "sampler.guidance_scale=3",
        "prior.levels=1 fusion.through=pixels model.vae_tile=32 tiles.window=[64,32]",
    ],
    unipc=["", "fusion.residual_time=step sampler.guidance_scale=3"],
    epsilon=["", "fusion.residual_time=unshifted sampler.guidance_scale=3"],
    velocity=["fusion.residual_time=timestep", "fusion.residual_time=step fusion.through=pixels"],
)
def test_demofusion_is_what_the_loop_gives(request, name, overrides):
    assert_is_what_the_loop_gives(job_of(request, "demofusion", name, *overrides.split()))


@cases(
    euler=[
        "",
        "fusion.motion_guidance=[0.5,0.25] sampler.guidance_scale=3",
        "fusion.motion_guidance=[0,0.25] fusion.through=pixels",
        "fusion.loop_steps=3 sampler.num_steps=5",
        "fusion.loop_steps=2 fusion.start=0.7 sampler.num_steps=6",
        "fusion.start=0.95 tiles.overlap=0.75 seed=1",
        "fusion.start=0.05 tiles.overlap=0.25 tiles.window=[64,32]",
    ],
    unipc=["sampler.guidance_scale=3", "fusion.motion_guidance=[0,0.25] fusion.start=0.2 sampler.num_steps=5"],
    epsilon=["fusion.motion_guidance=[0.5]"],
)
def test_dynamic_scaler_is_what_the_loop_gives(request, name, overrides):
    assert_is_what_the_loop_gives(job_of(request, "dynamic_scaler", name, *overrides.split()))


@cases(
    euler=[
        "model.vae_tile=32",
        "fusion.through=latents",
        "fusion.loop_steps=3 sampler.num_steps=5 sampler.guidance_scale=3 seed=1",
    ],
    unipc=["fusion.start=0.6"],
    velocity=["fusion.loop_steps=2"],
)
def test_supergen_is_what_the_loop_gives(request, name, overrides):
    assert_is_what_the_loop_gives(job_of(request, "supergen", name, *overrides.split()))


GOES_ON = "fusion.start=0.3 fusion.through=pixels fusion.detail=2"


@cases(
    euler=[
        "prior.levels=2",
        f"{GOES_ON} prior.levels=2 fusion.cutoff=0.5",
        "fusion.start=0.6 fusion.cutoff=1 sampler.guidance_scale=3",
        "fusion.detail=1 fusion.residual_time=unshifted seed=1",
    ],
    unipc=[f"{GOES_ON} prior.levels=2 fusion.cutoff=0.5", "fusion.start=0.3 fusion.cutoff=1"],
    epsilon=[f"{GOES_ON} fusion.cutoff=1"],
    velocity=[f"{GOES_ON} model.vae_tile=64 fusion.cutoff=1 sampler.guidance_scale=3"],
)
def test_cascade_is_what_the_loop_gives(request, name, overrides):
    assert_is_what_the_loop_gives(job_of(request, "cascade", name, *overrides.split()))


@pytest.mark.parametrize("recipe, more", [("demofusion", ""), ("cascade", "fusion.start=0.3 fusion.detail=2")])
def test_detail_may_differ_by_a_map(request, detail_map, recipe, more):
    by_map = (f"fusion.detail_map={detail_map}", "fusion.detail_background=0.5")
    job = job_of(request, recipe, "euler", *by_map, *more.split())
    light = np.zeros((12, 16), bool)
    light[:, :10] = True
    assert np.array_equal(job.maps[job.plan.top], light)
    assert_is_what_the_loop_gives(job)
