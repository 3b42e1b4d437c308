"""What has no effect is said, what has is not, and nothing is said of what stands in conf/."""

import dataclasses
from pathlib import Path

import fresco_dist.conf
import numpy as np
import pytest
from conftest import make_picture
from make_jobs import make_config
from PIL import Image

from fresco_dist.jobs.inputs import Inputs
from fresco_dist.schedule.idle import idle_if_given
from fresco_dist.schedule.plan import make_plan
from fresco_dist.schedule.spec import ModelSpec

CONF = Path(fresco_dist.conf.__file__).parent
SPEC = ModelSpec(
    latent_channels=16,
    condition_channels=20,
    spatial_factor=8,
    temporal_factor=4,
    patch=2,
    weight_bytes=0,
    text_encoder_bytes=0,
    encode_tile_px=(256, 192),
    decode_tile_px=(256, 192),
)
HIGH_ALONE = dataclasses.replace(SPEC, stages=lambda sampler, risen=None: (0,) * sampler.num_steps)
BLIND = dataclasses.replace(SPEC, condition_channels=0)
SIZE = (3840, 2112)
PRESETS = [
    f"{'+' if path.parts[0] == 'cluster' else ''}{path.parts[0]}={path.stem}"
    for path in sorted(path.relative_to(CONF) for path in CONF.glob("*/*.yaml"))
    if path.parts[0] != "comparison"
]


def notes_of(*overrides: str, spec: ModelSpec = SPEC, size: tuple[int, int] = SIZE) -> list[str]:
    """What is said of a command line."""
    config = make_config("model=wan", "model.path=/model", *overrides)
    plan = make_plan(config, spec, size, 2, Inputs().shares(config, size))
    given = {override.partition("=")[0] for override in overrides}
    return [*plan.notes, *idle_if_given(config, plan, given)]


@pytest.mark.parametrize("preset", PRESETS)
def test_nothing_is_said_of_a_preset(preset):
    assert notes_of("cluster.executor=ray", preset, "model.path=/model", "model.loras=[]") == []


LORA = "model.loras=[{path: a.safetensors, expert: low_noise}]"
IDLE = {
    "negative_prompt": ["negative_prompt=blurry"],
    "prompt": ["prompt=walk", "regions=[{prompt: still, box: [0, 0, 1, 1]}]", "region_feather=0"],
    "region_feather": ["region_feather=0.1"],
    "prior.num_steps": ["fusion=multidiffusion", "prior.num_steps=3"],
    "prior.sigmas": ["fusion=spot", "prior.sigmas=[1,0.5]"],
    "prior.area": ["fusion.prior_strength=0", "prior.area=400000"],
    "prior.levels": ["fusion=spot", "prior.levels=2"],
    "model.forward_s": ["model.forward_s=1"],
    "tiles.overlap": ["fusion=fresco_spot", "tiles.overlap=0.25"],
    "tiles.fit": ["fusion=supergen", "tiles.fit=true"],
    "tiles.min_weight": ["fusion=demofusion", "tiles.min_weight=0.1"],
    "tiles.border": ["tiles.border=inside"],
    "fusion.schedule": ["fusion.schedule=constant"],
    "fusion.cutoff": ["fusion.prior_strength=0", "fusion.cutoff=0.5"],
    "fusion.activity_map": ["fusion=regional", "fusion.cutoff_active=0.2", "fusion.activity_map=map.png"],
    "fusion.detail_map": ["fusion=demofusion", "fusion.detail_map=map.png", "fusion.detail_background=3"],
    "sam3.threshold": ["sam3.threshold=0.2"],
    "cluster.num_nodes": ["cluster.num_nodes=1"],
    "cluster.address": ["cluster.address=host:6379"],
    "cluster.start_timeout_s": ["cluster.start_timeout_s=60"],
}
USED = {
    "negative_prompt": ["negative_prompt=blurry", "sampler.guidance_scale=2"],
    "prompt": ["prompt=walk", "regions=[{prompt: still, box: [0, 0, 0.5, 1]}]", "region_feather=0.1"],
    "prior.num_steps": ["prior.num_steps=3", "prior.area=400000"],
    "prior.area": ["fusion=progressive", "prior.area=400000", "prior.levels=1"],
    "prior.of_metrics": ["fusion=spot", "metrics=true", "prior.num_steps=3"],
    "tiles.overlap": ["fusion=spot", "tiles.overlap_steps=2", "tiles.overlap=0.25", "tiles.min_weight=0.1"],
    "tiles.overlap_none": ["tiles.overlap=0"],
    "tiles.overlap_rolled": ["fusion=dynamic_scaler", "tiles.overlap=0.25"],
    "tiles.min_weight": ["tiles.min_weight=0.1", "tiles.overlap=0.25", "tiles.fit=true"],
    "fusion.schedule": ["fusion.schedule=constant", "fusion.cutoff=0.5"],
    "fusion.activity_map": ["fusion=regional", "fusion.activity_map=map.png"],
    "fusion.measured": ["fusion.activity_map=map.png", "metrics=true"],
    "fusion.detail_map": ["fusion=demofusion", "fusion.detail_map=map.png", "fusion.detail_background=1"],
    "cluster": ["cluster.executor=ray", "cluster.num_nodes=1", "cluster.start_timeout_s=60", "cluster.timeout_s=60"],
}


@pytest.mark.parametrize("key", IDLE)
def test_key_without_effect_is_told_once(key):
    (note,) = notes_of(*IDLE[key])
    assert note.startswith(key) and "no effect" in note


@pytest.mark.parametrize("case", USED)
def test_key_with_an_effect_is_not_told(case):
    assert notes_of(*USED[case]) == []


def test_key_without_effect_that_nobody_gave_is_not_told():
    config = make_config("fusion=spot", "model.path=/model", "region_feather=0.1")
    plan = make_plan(config, SPEC, SIZE, 2)
    assert not list(idle_if_given(config, plan, ()))


def test_key_that_its_recipe_lacks_is_left_to_the_schema():
    """Which has told of it by then: see `settings.schema.checked_config`."""
    assert notes_of("fusion=demofusion", "fusion.cutoff=0.5") == []


def test_expert_that_predicts_at_no_step_is_told():
    told = notes_of("sampler.guidance_scale_2=3", LORA, spec=HIGH_ALONE)
    assert [note.split(" ")[0] for note in told] == ["sampler.guidance_scale_2", "model.loras"]
    both = dataclasses.replace(SPEC, stages=lambda sampler, risen=None: (0,) + (1,) * (sampler.num_steps - 1))
    assert notes_of("sampler.guidance_scale_2=3", LORA, spec=both) == []


def test_picture_that_the_model_does_not_see_is_told():
    assert notes_of("image=a.png", spec=BLIND) == ["image gives the video its size alone: this model does not see it"]
    assert notes_of("image=a.png") == [] == notes_of(spec=BLIND)


@pytest.mark.parametrize("size, told", [((640, 352), True), ((1280, 720), False), ((720, 1280), False)])
def test_picture_smaller_than_a_window_is_told_with_the_videos_size(size, told):
    notes = [note for note in notes_of(size=size) if "no effect" not in note]
    assert [f"its size, {size[0]} x {size[1]} px: less than a window of 1280 x 720 px" in note for note in notes] == [
        True
    ] * told


def test_window_that_holds_the_picture_makes_overlap_idle():
    (note,) = notes_of("tiles.overlap=0.25", size=(1280, 720))
    assert note == "tiles.overlap has no effect: one window holds the whole picture"


def test_command_tells_of_files_texts_and_keys_and_a_sweep_once(command, folder, tmp_path):
    red, blue = Image.new("RGB", (96, 48), "red"), make_picture(96, 48)
    red.save(tmp_path / "moving.gif", save_all=True, append_images=[blue])
    Image.fromarray(np.full((48, 96), 255, np.uint8)).save(tmp_path / "light.png")
    done = command(
        "plan_only=true", f"image={tmp_path / 'moving.gif'}", f"prompt={'walk ' * 600}", "negative_prompt=blurry,still",
        "tiles.min_weight=0.1,0.2", "fusion=multidiffusion", f"fusion.activity_map={tmp_path / 'light.png'}",
        "metrics=true", f"hydra.sweep.dir={folder}", flags=("-m",),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    notes = [line.removeprefix("note      ") for line in done.stdout.splitlines() if line.startswith("note")]
    for text in (
        "image: of the 2 frames of moving.gif the first is used",
        'prompt has 600 tokens, of which the model reads 512: up to "...',
        "is light everywhere",
        "negative_prompt has no effect with sampler.guidance_scale=1",
    ):
        assert sum(text in note for note in notes) == 1, (text, notes)
    assert "sweep     4 points, 2 of them different" in done.stdout  # by the weights, not by negative prompts


def test_command_tells_of_masks_that_are_light_everywhere(command, tmp_path):
    Image.fromarray(np.full((48, 96), 255, np.uint8)).save(tmp_path / "light.png")
    regions = f"regions=[{{prompt: still, mask: {tmp_path / 'light.png'}}}]"
    done = command("plan_only=true", regions, "prompt=walk", "tiles.overlap=0.25", "fusion=spot")
    assert done.returncode == 0, done.stderr
    assert f"note      regions[0].mask={tmp_path / 'light.png'} is light everywhere" in done.stdout
    assert "note      tiles.overlap has no effect: with fusion=spot windows lie side by side" in done.stdout
