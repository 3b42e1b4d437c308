"""Every published Wan layout against the stock pipeline on the same small random weights, in float32."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import make_picture
from diffusers import AutoencoderKLWan
from make_jobs import (
    FRAMES,
    PROMPTS,
    STEPS,
    decode_clip,
    denoise,
    denoise_prior,
    make_job,
    stock_latents,
    stock_pipeline,
)
from PIL import Image
from published_models import make_published

from fresco_dist import models
from fresco_dist.method import builder
from fresco_dist.method.grid import Window
from fresco_dist.method.level import PRIOR_STREAM, Branch
from fresco_dist.method.noise import gaussian_noise
from fresco_dist.models.conditioning import Conditioning
from fresco_dist.models.tiling import blend_tiles, join_tiles
from fresco_dist.models.wan.model import WanBackbone

ONE_WINDOW = ("fusion=multidiffusion", "tiles.window=[480,640]")
NAMES = ("wan2_2_i2v_a14b", "wan2_1_i2v_14b", "wan2_1_flf2v_14b", "wan2_2_ti2v_5b")


@pytest.fixture(scope="session")
def published_path(tmp_path_factory):
    """The small model of a published checkpoint, made once."""
    made: dict[str, Path] = {}

    def path(name: str) -> Path:
        if name not in made:
            made[name] = make_published(name, tmp_path_factory.mktemp("published") / name)
        return made[name]

    return path


def _last(name: str) -> Image.Image | None:
    return make_picture(64, 64, seed=1) if "flf2v" in name else None


def _overrides(last: Image.Image | None) -> list[str]:
    return [] if last is None else ["image_last=last.png"]


@pytest.mark.parametrize("mode", ["allreduce", "wavefront"])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("name", NAMES)
def test_one_window_without_prior_is_the_stock_pipeline(published_path, name, guidance_scale, mode):
    image, last = make_picture(64, 64), _last(name)
    overrides = [*ONE_WINDOW, f"sampler.guidance_scale={guidance_scale}", f"dispatch.mode={mode}", *_overrides(last)]
    job = make_job(published_path(name), *overrides, image=image, last=last)
    ours = denoise(job)
    noise = gaussian_noise(tuple(ours.shape), seed=0)
    theirs = stock_latents(published_path(name), noise, image, last_image=last, guidance_scale=guidance_scale)
    assert float(theirs.std()) > 0.3
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["wan2_1_i2v_14b", "wan2_2_ti2v_5b"])
def test_the_prior_is_the_stock_pipeline_at_native_size(published_path, name):
    """The thumbnail has its own image embedding, and its own first latent frame."""
    job = make_job(published_path(name), "prior.area=4096", image=make_picture(128, 128))
    prior = denoise_prior(job)
    noise = gaussian_noise(tuple(prior.shape), seed=0, stream=PRIOR_STREAM)
    theirs = stock_latents(published_path(name), noise, Image.fromarray(job.pictures[0]), guidance_scale=1.0)
    torch.testing.assert_close(prior, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("guidance_scale_2", [1.0, 4.0])
def test_two_experts_have_a_guidance_scale_each(published_path, guidance_scale_2):
    path, image = published_path("wan2_2_i2v_a14b"), make_picture(64, 64)
    scales = ["sampler.guidance_scale=2", f"sampler.guidance_scale_2={guidance_scale_2}"]
    job = make_job(path, *ONE_WINDOW, *scales, image=image)
    assert [step.stage for step in job.plan.canvas.steps] == [0, 0, 1, 1]
    ours = denoise(job)
    noise = gaussian_noise(tuple(ours.shape), seed=0)
    theirs = stock_latents(path, noise, image, guidance_scale=2.0, guidance_scale_2=guidance_scale_2)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["allreduce", "wavefront"])
def test_branch_that_does_not_count_is_not_predicted(published_path, monkeypatch, mode):
    """Guidance 1 for the high-noise expert alone: the same bits as with forwards whose weight is 0."""
    overrides = ["tiles.window=[64,64]", "prior.area=4096", "fusion.cutoff=0.5", f"dispatch.mode={mode}"]
    overrides += ["sampler.guidance_scale=1", "sampler.guidance_scale_2=3", "prior.num_steps=3", "tiles.batch=2"]
    image, calls, latents = make_picture(128, 64), [], []
    both = tuple((Branch(0, scale), Branch(1, 1.0 - scale)) for scale in (1.0, 3.0))
    predict = WanBackbone.predict

    def count(self, x_BCTHW, *rest):
        calls[-1] += len(x_BCTHW)
        return predict(self, x_BCTHW, *rest)

    monkeypatch.setattr(WanBackbone, "predict", count)
    for count_all in (False, True):
        if count_all:
            monkeypatch.setattr(builder, "make_branches", lambda *scales: both)
        calls.append(0)
        job = make_job(published_path("wan2_2_i2v_a14b"), *overrides, image=image)
        latents.append(denoise(job))
        assert calls[-1] == job.plan.num_forwards
    prior_stages, stages = ([step.stage for step in level.steps] for level in job.plan.levels)
    assert stages == [0, 0, 1, 1] and len(set(prior_stages)) == 2
    num_windows, num_prior = len(job.plan.canvas.steps[0].grid.windows), sum(1 + stage for stage in prior_stages)
    assert calls == [6 * num_windows + num_prior, 8 * num_windows + 6]
    assert torch.equal(*latents)


def test_two_experts_take_a_last_frame(published_path):
    path, image, last = published_path("wan2_2_i2v_a14b"), make_picture(64, 64), make_picture(64, 64, seed=1)
    job = make_job(path, *ONE_WINDOW, "image_last=last.png", image=image, last=last)
    ours = denoise(job)
    noise = gaussian_noise(tuple(ours.shape), seed=0)
    theirs = stock_latents(path, noise, image, last_image=last, guidance_scale=1.0)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "name, embedding", [*((name, None) for name in NAMES), ("wan2_1_i2v_14b", "window"), ("wan2_1_flf2v_14b", "window")]
)
def test_windows_predicted_in_one_forward_are_those_predicted_one_by_one(published_path, name, embedding):
    """Three windows by two: the last forward has one. Both modes give the same bits for the same batch."""
    image, last = make_picture(160, 64), make_picture(160, 64, seed=1) if "flf2v" in name else None
    overrides = ["tiles.window=[64,64]", "tiles.overlap=0.25", "sampler.guidance_scale=3", "prior.area=4096"]
    overrides += [] if last is None else ["image_last=last.png"]
    overrides += [] if embedding is None else [f"model.image_embedding={embedding}"]
    batched = [*overrides, "tiles.batch=2"]
    settings = overrides, [*batched, "dispatch.mode=allreduce"], [*batched, "dispatch.mode=wavefront"]
    single, *pairs = (denoise(make_job(published_path(name), *each, image=image, last=last)) for each in settings)
    assert torch.equal(*pairs)
    torch.testing.assert_close(pairs[0], single, rtol=0, atol=1e-5)


@pytest.mark.parametrize("choice", ["picture", "window"])
def test_image_embedding_is_the_pictures_or_the_windows(published_path, choice):
    """Several windows; the reference loop embeds with the stock pipeline and is written out."""
    path, image = published_path("wan2_1_i2v_14b"), make_picture(128, 64)
    overrides = ["fusion=multidiffusion", "tiles.window=[64,64]", "tiles.overlap=0", f"model.image_embedding={choice}"]
    job = make_job(path, *overrides, image=image)
    assert len(job.plan.canvas.steps[0].grid.windows) == 2
    backbone = models.load(job.config.model, torch.device("cpu"))
    scheduler = backbone.make_scheduler(STEPS, None)
    pipeline = stock_pipeline(path)
    with torch.inference_mode():
        prompt = backbone.encode_text(PROMPTS[0])
        condition = backbone.make_condition(backbone.encode_image(torch.tensor(job.pictures[-1]), FRAMES)).canvas_CTHW
        x = gaussian_noise(job.plan.canvas.latent_shape, seed=0)
        for t in scheduler.timesteps:
            m = torch.zeros_like(x)
            for window in job.plan.canvas.steps[0].grid.windows:
                left = 8 * window.left
                crop, seen = (
                    (..., *window.slices),
                    image if choice == "picture" else image.crop((left, 0, left + 64, 64)),
                )
                m[crop] = pipeline.transformer(
                    torch.cat([x[crop], condition[crop]])[None],
                    t.expand(1),
                    prompt[None],
                    encoder_hidden_states_image=pipeline.encode_image(seen),
                    return_dict=False,
                )[0][0]
            x = scheduler.step(m[None], t, x[None], return_dict=False)[0][0]
    torch.testing.assert_close(denoise(job), x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["wan2_2_i2v_a14b", "wan2_2_ti2v_5b"])
def test_clip_in_tiles_goes_to_latents_and_back_as_in_the_stock_vae(published_path, name):
    """Also through the VAE that patches its pixels, and so encodes tiles that are larger by its patch."""
    patch = 2 if "ti2v" in name else 1
    height, width = 80 * patch, 96 * patch
    job = make_job(published_path(name), "model.vae_tile=64", "video.num_frames=5", image=make_picture(width, height))
    tiles, factor = job.plan.canvas.encode_tiles, job.plan.spec.spatial_factor
    assert (len(tiles), len(tiles[0])) == (2, 2)
    clip = torch.randint(256, (5, height, width, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    backbone = models.load(job.config.model, torch.device("cpu"))
    vae = AutoencoderKLWan.from_pretrained(published_path(name) / "vae").eval()
    vae.enable_tiling(64, 64, 48, 48)
    shift, scale = (torch.tensor(of_channel)[:, None, None, None] for of_channel in
                    (vae.config.latents_mean, vae.config.latents_std))  # fmt: skip
    with torch.inference_mode():
        crops = (tile.scaled(factor).slices for row in tiles for tile in row)
        raw = [backbone.encode_clip(clip[:, rows, columns]) for rows, columns in crops]
        ours = backbone.normalise(join_tiles(tiles, blend_tiles(tiles, raw)))
        mode = vae.encode(clip.permute(3, 0, 1, 2)[None] / 127.5 - 1).latent_dist.mode()
        theirs = (mode[0] - shift) / scale
        decoded = decode_clip(backbone.vae, job.plan.canvas.decode_tiles, ours)
        stock = vae.decode(mode).sample[0].permute(1, 2, 3, 0)
    assert ours.dtype == torch.float32 and ours.shape == job.plan.canvas.latent_shape
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert decoded.shape == clip.shape
    torch.testing.assert_close(decoded.float(), (stock.clamp(-1, 1) + 1) * 127.5, rtol=0, atol=0.51)  # half to round


def test_a_clean_first_frame_is_kept_cell_by_cell(published_path):
    """Finishing crops is cropping what is finished."""
    backbone = models.load(make_job(published_path("wan2_2_ti2v_5b"), image=make_picture(64, 64)).config.model,
                              torch.device("cpu"))  # fmt: skip
    raw = torch.randn(48, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    condition, x = backbone.make_condition(raw), torch.ones(48, 3, 8, 8)
    cell = Window(2, 3, 4, 5)
    whole = backbone.finish(x, lambda: condition)
    torch.testing.assert_close(whole[:, :1], condition.canvas_CTHW, rtol=0, atol=0)
    assert bool((whole[:, 1:] == 1).all())
    cut = Conditioning(condition.canvas_CTHW[(..., *cell.slices)])
    part = backbone.finish(x[(..., *cell.slices)], lambda: cut)
    assert torch.equal(part, whole[(..., *cell.slices)])


@pytest.mark.parametrize("mode", ["allreduce", "wavefront"])
def test_a_clean_first_frame_is_kept_by_a_canvas_that_is_standardised(published_path, mode):
    overrides = ["tiles.window=[64,64]", "prior.area=4096", f"dispatch.mode={mode}"]
    latents = [
        denoise(make_job(published_path("wan2_2_ti2v_5b"), f"fusion={name}", *overrides, image=make_picture(128, 128)))
        for name in ("multidiffusion", "demofusion")
    ]
    assert torch.equal(latents[0][:, :1], latents[1][:, :1]) and not torch.equal(*latents)


def test_a_level_that_rises_is_predicted_by_the_experts_of_its_noise_levels(published_path):
    """At its first step alone the noise is 2 s / (1 + s); the boundary is at 0.9."""
    path = published_path("wan2_2_i2v_a14b")
    overrides = ["fusion=progressive", "sampler.num_steps=8", "sampler.shift=5", "prior.levels=1"]
    job = make_job(path, *overrides, image=make_picture(128, 128))
    sigmas = models.load(job.config.model, torch.device("cpu")).make_scheduler(8, 5.0).sigmas[:8].tolist()
    below, top = job.plan.levels
    assert [step.stage for step in below.steps] == [int(sigma < 0.9) for sigma in sigmas]
    risen = [2 * sigmas[4] / (1 + sigmas[4]), *sigmas[5:]]
    assert [step.stage for step in top.steps] == [int(sigma < 0.9) for sigma in risen]
    assert below.steps[4].stage != top.steps[0].stage


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_stays_near_float32(published_path, name):
    """Three significant digits at each of four steps: within 5% of the latents' spread on average."""
    image, last = make_picture(64, 64), _last(name)
    overrides = [*ONE_WINDOW, *_overrides(last)]
    latents = [
        denoise(make_job(published_path(name), *overrides, f"model.dtype={dtype}", image=image, last=last))
        for dtype in ("float32", "bfloat16")
    ]
    difference = (latents[0] - latents[1]).abs().mean() / latents[0].std()
    assert 0.0 < float(difference) < 0.05


def test_bfloat16_vae_stays_near_float32(published_path):
    path, decoded = published_path("wan2_2_i2v_a14b"), []
    for dtype in ("float32", "bfloat16"):
        backbone = models.load(make_job(path, f"model.vae_dtype={dtype}").config.model, torch.device("cpu"))
        with torch.inference_mode():
            image = torch.tensor(make_job(path).pictures[-1])
            raw = backbone.encode_image(image, FRAMES)
            decoded.append((raw, backbone.vae.decode_tile(backbone.vae.normalise(raw))))
    assert decoded[1][0].dtype == decoded[1][1].dtype == torch.float32
    for exact, rounded in zip(*decoded):
        assert 0.0 < float((exact - rounded).abs().mean() / exact.std()) < 0.05


REFUSED = [  # model, overrides, what the line must say
    ("wan2_2_ti2v_5b", ["image_last={last}"], ["image_last must stay unset", "first frame alone"]),
    ("wan2_1_i2v_14b", ["image_last={last}"], ["image_last must stay unset", "image encoder"]),
    ("wan2_1_flf2v_14b", [], ["image_last must be given", "between two frames"]),
    ("wan2_1_i2v_14b", ["sampler.guidance_scale_2=3"], ["sampler.guidance_scale_2 must stay unset", "one transformer"]),
    ("wan2_1_i2v_14b", ["model.expert_offload=swap"], ["model.expert_offload must stay unset", "got swap"]),
    ("wan2_2_i2v_a14b", ["model.image_embedding=window"], ["model.image_embedding must stay unset", "got window"]),
    ("wan2_2_i2v_a14b", ["image_last={last}", "video.num_frames=1"], ["video.num_frames", "greater than 4", "got 1"]),
    ("wan2_2_i2v_a14b", ["image_last=/nope.png"], ["image_last", "/nope.png", "no such file"]),
    ("wan2_2_i2v_a14b", ["image_last={tall}"], ["image_last must have the image's aspect ratio", "got 20 x 90 px"]),
]


@pytest.mark.parametrize("name, overrides, words", REFUSED, ids=[f"{case[0]} {case[1]}" for case in REFUSED])
def test_what_a_model_cannot_use_is_refused(command, published_path, tmp_path, name, overrides, words):
    make_picture(96, 48).save(tmp_path / "last.png")
    make_picture(20, 90).save(tmp_path / "tall.png")
    files = {"last": tmp_path / "last.png", "tall": tmp_path / "tall.png"}
    given = [override.format(**files) for override in overrides]
    done = command(f"model.path={published_path(name)}", *given)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert [word for word in words if word not in line] == [], line


@pytest.mark.parametrize(
    "name, component", [("wan2_2_i2v_a14b", "transformer_2"), ("wan2_1_i2v_14b", "image_encoder"),
                        ("wan2_1_i2v_14b", "image_processor")]
)  # fmt: skip
def test_a_model_without_one_of_its_parts_is_refused(command, published_path, tmp_path, name, component):
    path = shutil.copytree(published_path(name), tmp_path / "model")
    shutil.rmtree(path / component)
    done = command(f"model.path={path}")
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert str(path / component) in line


@pytest.mark.parametrize("name", NAMES)
def test_both_modes_give_the_same_bits(published_path, name):
    """Several windows and cells, the prior, two guidance scales where there are two experts."""
    image, last = make_picture(128, 96), make_picture(128, 96, seed=1) if "flf2v" in name else None
    overrides = ["tiles.window=[64,64]", "prior.area=4096", "fusion.cutoff=0.5", "sampler.guidance_scale=2"]
    overrides += ["sampler.guidance_scale_2=3"] if "a14b" in name else []
    overrides += _overrides(last)
    overrides += ["model.image_embedding=window"] if "2_1" in name else []
    latents = [
        denoise(make_job(published_path(name), *overrides, f"dispatch.mode={mode}", image=image, last=last))
        for mode in ("allreduce", "wavefront")
    ]
    assert torch.equal(*latents)


@pytest.mark.parametrize(
    "name, value, encode_px, decode_px",
    [
        ("wan2_2_ti2v_5b", "null", (512, 384), (256, 192)),
        ("wan2_2_ti2v_5b", "128", (256, 192), (128, 96)),
        ("wan2_1_i2v_14b", "128", (128, 96), (128, 96)),
    ],
)
def test_vae_tile_is_counted_as_diffusers_counts_it(published_path, name, value, encode_px, decode_px):
    """A VAE that patches its pixels encodes tiles that are larger by its patch."""
    spec = make_job(published_path(name), f"model.vae_tile={value}").plan.spec
    assert (spec.encode_tile_px, spec.decode_tile_px) == (encode_px, decode_px)


def test_command_animates_between_two_frames(command, folder, published_path, tmp_path):
    """The whole command with an image encoder, a last frame and a window's own embedding."""
    make_picture(96, 48, seed=1).save(tmp_path / "last.png")
    path = published_path("wan2_1_flf2v_14b")
    done = command(f"model.path={path}", f"image_last={tmp_path / 'last.png'}", "model.image_embedding=window")
    assert done.returncode == 0, done.stderr
    assert (folder / "video.mp4").stat().st_size > 0


def test_command_of_an_expert_without_a_step_predicts_nothing(command, published_path):
    """One step is the high-noise expert's, whose guidance is off, whatever that of the other would be."""
    guided = ("sampler.guidance_scale=1", "sampler.guidance_scale_2=3", "negative_prompt=still")
    done = command(f"model.path={published_path('wan2_2_i2v_a14b')}", *guided, "sampler.num_steps=1")
    assert done.returncode == 0, done.stderr
    assert "1 steps x 6 windows x 1 branch + prior 1" in done.stdout


def test_command_animates_with_a_clean_first_frame(command, folder, published_path):
    """The whole command on cells of 16 px, through the VAE that patches its pixels."""
    path = published_path("wan2_2_ti2v_5b")
    done = command(f"model.path={path}", "tiles.window=[32,64]", "sampler.guidance_scale=2", "model.vae_dtype=bfloat16")
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "run.json").read_text())["canvas"]["latent_shape"] == [1, 48, 2, 2, 6]
