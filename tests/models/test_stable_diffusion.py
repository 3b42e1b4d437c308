"""A model that is not Wan: epsilon-prediction, one frame, against diffusers' own panorama pipeline (MultiDiffusion)."""

import json
import shutil
import weakref
from pathlib import Path

import diffusers
import pytest
import torch
from conftest import make_picture
from diffusers import AutoencoderKL, StableDiffusionPipeline
from diffusers.models.autoencoders.vae import DecoderOutput
from make_jobs import PROMPTS, STEPS, decode_clip, denoise, denoise_prior, make_job

from fresco_dist import models
from fresco_dist.method.fusion import resize_part
from fresco_dist.method.grid import vae_tiles
from fresco_dist.method.noise import gaussian_noise
from fresco_dist.models.loading import load_component
from fresco_dist.models.tiling import blend_tiles, join_tiles

VIEWS = ("tiles.window=[512,512]", "tiles.overlap=0.875", "tiles.min_weight=1")  # the panorama's: 64 cells, stride 8
MODEL = ("model=stable_diffusion", "model.dtype=float32", "video.num_frames=1")


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_without_prior_it_is_the_panorama_pipeline(sd_path, guidance_scale):
    """The same weights, views, initial latents and equal window weights; the panorama steps each view, we step once."""
    width, height = 640, 576
    job = make_job(
        sd_path, *MODEL, *VIEWS, "fusion=multidiffusion", f"sampler.guidance_scale={guidance_scale}",
        image=make_picture(width, height),
    )  # fmt: skip
    ours = denoise(job)
    panorama = diffusers.StableDiffusionPanoramaPipeline.from_pretrained(sd_path)
    panorama.set_progress_bar_config(disable=True)
    views = [(w.top, w.top + w.height, w.left, w.left + w.width) for w in job.plan.canvas.steps[0].grid.windows]
    assert panorama.get_views(height, width) == views and len(views) == 6
    theirs = panorama(
        PROMPTS[0],
        negative_prompt=PROMPTS[1],
        height=height,
        width=width,
        num_inference_steps=STEPS,
        guidance_scale=guidance_scale,
        latents=gaussian_noise(tuple(ours.shape), seed=0)[None, :, 0],
        output_type="latent",
    ).images[0]
    largest = float(theirs.abs().max())  # random weights send the latents to about 70: compare in that unit
    torch.testing.assert_close(ours[:, 0] / largest, theirs / largest, rtol=0, atol=2e-6)


def test_views_predicted_in_one_forward_are_those_predicted_one_by_one(sd_path):
    views = (*MODEL, *VIEWS, "sampler.guidance_scale=3", "sampler.num_steps=2", "fusion=multidiffusion")
    jobs = [
        make_job(sd_path, *views, batch, image=make_picture(640, 576)) for batch in ("tiles.batch=1", "tiles.batch=4")
    ]
    assert [len(job.plan.canvas.steps[0].batches) for job in jobs] == [6, 2]
    single, batched = map(denoise, jobs)
    torch.testing.assert_close(batched / single.abs().max(), single / single.abs().max(), rtol=0, atol=2e-6)


def test_a_strong_prior_is_the_result(sd_path, tmp_path):
    """The epsilon row of the fusion's table: x0_hat = z, also through a scheduler that knows only epsilon.

    The last step is still a noisy one, at which a and b are far from 1 and 0.
    """
    path = Path(shutil.copytree(sd_path, tmp_path / "model"))
    scheduler = path / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"timestep_spacing": "trailing"}))
    strong = ("fusion.prior_strength=1e8", "fusion.cutoff=1", "fusion.schedule=constant", "prior.area=65536")
    job = make_job(path, *MODEL, *strong, "tiles.window=[256,256]", image=make_picture(512, 256))
    prior, latents = denoise_prior(job), denoise(job)
    assert tuple(prior.shape) == (4, 1, 22, 44)
    below, canvas = job.plan.levels
    resized = resize_part(prior, below.whole, below.canvas, canvas.canvas, canvas.whole)
    torch.testing.assert_close(latents, resized, rtol=0, atol=1e-3)


def test_spread_decode_is_the_stock_tiled_decode(sd_path):
    backbone = models.load(make_job(sd_path, *MODEL).config.model, torch.device("cpu"))
    latents = torch.randn(4, 1, 30, 40, generator=torch.Generator().manual_seed(0))
    tiles = vae_tiles((30, 40), 16, 12)
    vae = AutoencoderKL.from_pretrained(sd_path / "vae").eval()
    with torch.inference_mode():
        pixels = decode_clip(backbone.vae, tiles, latents)
        stock: DecoderOutput = vae.tiled_decode(latents[None, :, 0] / vae.config.scaling_factor)
    theirs = (stock.sample[0] * 0.5 + 0.5).clamp(0, 1).mul(255).round().byte().permute(1, 2, 0)
    assert torch.equal(pixels[0], theirs)


def test_clip_of_one_frame_in_tiles_goes_to_latents_as_in_the_stock_vae(sd_path):
    backbone = models.load(make_job(sd_path, *MODEL).config.model, torch.device("cpu"))
    clip = torch.randint(256, (1, 160, 176, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    tiles = vae_tiles((20, 22), 16, 12)
    assert (len(tiles), len(tiles[0])) == (2, 2)
    vae = AutoencoderKL.from_pretrained(sd_path / "vae").eval()
    vae.enable_tiling()
    with torch.inference_mode():
        crops = (tile.scaled(8).slices for row in tiles for tile in row)
        raw = [backbone.encode_clip(clip[:, rows, columns]) for rows, columns in crops]
        ours = backbone.normalise(join_tiles(tiles, blend_tiles(tiles, raw)))
        mode = vae.encode(clip.permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mode()
    assert ours.dtype == torch.float32 and ours.shape == (4, 1, 20, 22)
    torch.testing.assert_close(ours[:, 0], mode[0] * vae.config.scaling_factor, rtol=0, atol=1e-5)


def test_text_is_encoded_alone_by_an_encoder_that_stays_until_it_is_dropped(sd_path, monkeypatch):
    backbone = models.load(make_job(sd_path, *MODEL).config.model, torch.device("cpu"))
    pipeline, loaded = StableDiffusionPipeline.from_pretrained(sd_path), []

    def load(*args, **options):
        component = load_component(*args, **options)
        loaded.append(weakref.ref(component))
        return component

    monkeypatch.setattr("fresco_dist.models.stable_diffusion.model.load_component", load)
    with torch.inference_mode():
        for prompt in (*PROMPTS, ""):
            ((theirs,), _) = pipeline.encode_prompt(prompt, torch.device("cpu"), 1, do_classifier_free_guidance=False)
            assert torch.equal(backbone.encode_text(prompt), theirs), prompt
        assert len(loaded) == 1 and loaded[0]() is not None
        backbone.drop_encoders()
        assert loaded[0]() is None
        backbone.encode_text("")
    assert len(loaded) == 2


def test_vae_tile_replaces_the_sample_size(sd_path):
    own, smaller = (make_job(sd_path, *MODEL, f"model.vae_tile={tile}").plan.spec for tile in ("null", "64"))
    assert (own.encode_tile_px, own.decode_tile_px) == ((128, 96), (128, 96))
    assert (smaller.encode_tile_px, smaller.decode_tile_px) == ((64, 48), (64, 48))


def test_command_makes_a_picture(command, folder, sd_path):
    overrides = [*MODEL, "tiles.window=[32,48]", "prior.area=1024", "sampler.guidance_scale=2"]
    done = command(f"model.path={sd_path}", *overrides)
    assert done.returncode == 0, done.stderr
    run = json.loads((folder / "run.json").read_text())
    assert run["canvas"]["latent_shape"] == [1, 4, 1, 6, 12]


REFUSED = [
    (["video.num_frames=5"], ["video.num_frames must be at most 1", "got 5"]),
    (["sampler.shift=3"], ["sampler.shift must stay unset", "got 3.0"]),
    (["model.vae_tile=100"], ["model.vae_tile must be a multiple of 32 pixels", "got 100", "Try 96"]),
    (["model.compile=true"], ["model.compile must stay unset"]),
    (["model.attention=xformers"], ["model.attention must be native or auto", "got xformers"]),
]


@pytest.mark.parametrize("overrides, words", REFUSED, ids=[case[0][0] for case in REFUSED])
def test_what_the_model_cannot_use_is_refused(command, sd_path, overrides, words):
    done = command(f"model.path={sd_path}", *MODEL, *overrides)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert [word for word in words if word not in line] == [], line


@pytest.mark.parametrize(
    "file, change, reason",
    [
        ("scheduler/scheduler_config.json", {"clip_sample": True}, "clipping of x0"),
        ("scheduler/scheduler_config.json", {"_class_name": "PNDMScheduler"}, "noise scheduler PNDMScheduler"),
        ("unet/config.json", {"in_channels": 9}, "an input other than latents"),
        ("model_index.json", {"unet": ["diffusers", "UNet3D"]}, "UNet3D"),
    ],
)
def test_a_model_of_another_kind_is_refused(command, sd_path, tmp_path, file, change, reason):
    path = Path(shutil.copytree(sd_path, tmp_path / "model"))
    (path / file).write_text(json.dumps(json.loads((path / file).read_text()) | change))
    done = command(f"model.path={path}", *MODEL)
    assert done.returncode == 2 and reason in done.stderr, done.stderr
