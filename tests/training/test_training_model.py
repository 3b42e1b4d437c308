"""The packaged model: stock pipeline, size, formats, and that it really animates."""

import json

import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline
from PIL import Image

from fresco_dist.training import build, demo
from fresco_dist.training.evaluate import animate, away_from, frame_psnr_db, mean_step
from fresco_dist.training.evaluate_canvas import measure_light
from fresco_dist.training.pictures import night_or_day, open_scene

TRAINED = json.loads((build.ASSET_PATH / "status.json").read_text())["trained"]


@pytest.fixture(scope="module")
def pipe():
    pipe = WanImageToVideoPipeline.from_pretrained(build.ASSET_PATH)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_package_is_small_and_free_of_pickles():
    files = [path for path in build.ASSET_PATH.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 40e6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".md"}


def test_package_matches_the_architecture_in_the_code(pipe):
    for name, fresh in (("vae", build.build_vae()), ("transformer", build.build_transformer())):
        weights = getattr(pipe, name).state_dict()
        assert {key: value.shape for key, value in weights.items()} == {
            key: value.shape for key, value in fresh.state_dict().items()
        }
    assert pipe.vae.config.scale_factor_spatial == build.SPATIAL_FACTOR
    assert pipe.scheduler.config.shift == build.NATIVE_SHIFT
    assert pipe.tokenizer.get_vocab() == build.build_tokenizer().get_vocab()


def test_stock_pipeline_gives_finite_latents_at_another_size(pipe):
    scene = demo.demo_scene()
    image = scene.frames(1, box=(300, 20, 64, 48), size=(64, 48))[0]
    latents = pipe(
        image=Image.fromarray(image),
        prompt="an unheard-of Zeppelin, 42 % purple!",
        height=48,
        width=64,
        num_frames=9,
        num_inference_steps=2,
        guidance_scale=2.0,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).frames
    assert latents.shape == (1, build.Z_DIM, 5, 12, 16)
    assert latents.isfinite().all()


@pytest.mark.skipif(not TRAINED, reason="the packaged weights are untrained")
def test_packaged_model_keeps_the_picture_and_moves_what_moves(pipe):
    scene = demo.demo_scene()
    box = (325, 50, build.NATIVE_WIDTH_PX, build.NATIVE_HEIGHT_PX)
    size = (build.NATIVE_WIDTH_PX, build.NATIVE_HEIGHT_PX)
    truth = scene.frames(build.NATIVE_FRAMES, box=box, size=size)
    moving = scene.activity_of(build.NATIVE_FRAMES, box=box, size=size)
    frames = animate(pipe, truth[0], scene.prompt, seed=0, steps=build.NATIVE_STEPS)
    assert frame_psnr_db(frames[0], truth[0]) > 20
    assert mean_step(frames, moving) > 2 * mean_step(frames, away_from(moving))
    assert np.std(frames[-1]) > 0.7 * np.std(truth[0])


@pytest.mark.skipif(not TRAINED, reason="the packaged weights are untrained")
@pytest.mark.parametrize("seed", [0, 1])
def test_packaged_model_changes_the_light_as_the_moon_or_the_sun_says_and_more_if_asked(pipe, seed):
    sign = night_or_day(seed)
    scene = open_scene(seed, 384, 256, light_sign=sign)
    thumbnail = scene.frames(1, size=(build.NATIVE_WIDTH_PX, build.NATIVE_HEIGHT_PX))[0]
    frames = animate(pipe, thumbnail, scene.prompt, seed=seed, steps=build.NATIVE_STEPS)
    assert measure_light(frames, sign)["light_right"] == 1.0
    unasked = scene.prompt.removesuffix(" the light changes.")
    still = animate(pipe, thumbnail, unasked, seed=seed, steps=build.NATIVE_STEPS)
    assert abs(measure_light(still, sign)["light_change"]) < 0.5 * measure_light(frames, sign)["light_change"]


def test_demo_files_are_what_the_code_draws(tmp_path):
    demo.main(["--out", str(tmp_path)])
    for name in ("fresco.txt", "fresco_activity.png", "fresco.png"):
        assert (tmp_path / name).read_bytes() == (build.ASSET_PATH.parent / name).read_bytes(), name
