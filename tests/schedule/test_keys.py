"""Keys: whatever changes a bit changes them, and nothing else does."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_model, make_picture
from hypothesis import given
from make_jobs import keys_of, make_config
from PIL import Image
from safetensors.torch import save_file
from sam3_model import make_sam3
from toy_levels import plans

from fresco_dist import models
from fresco_dist.config import DispatchMode
from fresco_dist.jobs.inputs import Inputs
from fresco_dist.runtime.job import Job
from fresco_dist.schedule.keys import ENTERS, Content, make_keys, numerics_key
from fresco_dist.schedule.outlook import choose_grid
from fresco_dist.schedule.plan import make_plan
from fresco_dist.schedule.tasks import run_graph
from fresco_dist.settings.keys import keys as all_keys

KINDS = ("model", "text", "inputs", "base", "canvas", "clip")
CHANGES = {  # of a run on three workers, what to set it to
    "prompt": "still",
    "negative_prompt": "blurry",
    "region_mode": "dominant",
    "region_feather": "0.4",
    "seed": "7",
    "video.num_frames": "9",
    "video.fps": "8",
    "video.format": "prores",
    "video.quality": "5",
    "video.max_size": "[64,64]",
    "tiles.window": "[32,32]",
    "tiles.overlap": "0.25",
    "tiles.min_weight": "0.1",
    "tiles.fit": "true",
    "tiles.batch": "2",
    "tiles.overlap_steps": "1",
    "tiles.border": "inside",
    "fusion.prior_strength": "2",
    "fusion.schedule": "constant",
    "fusion.cutoff": "1",
    "fusion.cutoff_active": "0.5",
    "fusion.cutoff_background": "0.2",
    "sampler.num_steps": "4",
    "sampler.guidance_scale": "2",
    "sampler.guidance_scale_2": "5",
    "sampler.shift": "2",
    "sampler.sigmas": "[1,0.5,0.2]",
    "sampler.stop_after": "1",
    "prior.area": "1024",
    "prior.num_steps": "2",
    "prior.sigmas": "[1,0.5]",
    "prior.levels": "2",
    "fusion.local_priors": "true",
    "fusion.through": "pixels",
    "fusion.start": "0.6",
    "fusion.detail": "1",
    "fusion.residual_time": "step",
    "fusion.motion_guidance": "[0.5]",
    "fusion.loop_steps": "3",
    "fusion.rise": "0.34",
    "fusion.rise_latest": "0.9",
    "fusion.max_variance": "0.1",
    "model.backbone": "synthetic",
    "model.dtype": "float32",
    "model.vae_dtype": "bfloat16",
    "model.attention": "native",
    "model.image_embedding": "window",
    "model.fuse_loras": "false",
    "model.compile": "true",
    "model.expert_offload": "swap",
    "model.quantization": "fp8",
    "model.offload": "group",
    "model.vae_tile": "32",
    "model.forward_s": "1",
    "cluster.executor": "ray",
    "cluster.num_nodes": "1",
    "cluster.num_workers": "1",
    "cluster.cpus_per_worker": "2",
    "cluster.gpus_per_worker": "0",
    "cluster.address": "host:6379",
    "cluster.timeout_s": "60",
    "cluster.start_timeout_s": "60",
    "cluster.gpu_memory_gb": "80",
    "dispatch.mode": "allreduce",
    "store.enabled": "false",
    "store.path": "elsewhere",
    "store.max_gb": "1",
    "plan_only": "true",
    "metrics": "false",
    "preview": "false",
}
SAM3 = {  # of a run with an activity map that is made
    "sam3.path": "{tmp}/1",
    "sam3.prompts": "[person]",
    "sam3.score_threshold": "0.3",
    "sam3.mask_threshold": "0.4",
    "sam3.max_area": "0.3",
    "sam3.border": "0.1",
    "sam3.max_border": "0.3",
    "sam3.dilation": "0.1",
    "sam3.threshold": "0.4",
}
RECIPE = {  # that has it
    "fusion.cutoff": "fresco",
    "tiles.overlap_steps": "fresco_spot",
    "tiles.border": "fresco_spot",
    "prior.levels": "cascade",
    "fusion.local_priors": "cascade",
    "fusion.through": "cascade",
    "fusion.start": "cascade",
    "fusion.detail": "demofusion",
    "fusion.residual_time": "demofusion",
    "fusion.motion_guidance": "dynamic_scaler",
    "fusion.loop_steps": "supergen",
    "fusion.rise": "progressive",
    "fusion.rise_latest": "progressive",
    "fusion.max_variance": "progressive",
}
OF_RECIPE = {"regional": ["fusion.cutoff_background=0.5"], "cascade": ["prior.levels=3"]}
NEEDED = {
    "tiles.fit": ["regions=[]"],
    "fusion.rise": ["sampler.num_steps=6"],
    "fusion.rise_latest": ["sampler.num_steps=6", "fusion.max_variance=0.2"],
    "fusion.max_variance": ["sampler.num_steps=6"],
}  # without which a key has no effect; in both runs


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Pictures, maps, a model and low-rank weights, and another one of each."""
    folder = tmp_path_factory.mktemp("files")
    for seed, name in enumerate(("one", "other")):
        make_picture(96, 48, seed).save(folder / f"{name}.png")
        make_model(folder / f"model_{name}", seed=seed)
        save_file({"lora": torch.full((3,), float(seed))}, folder / f"{name}.safetensors")
        activity = np.zeros((48, 96), np.uint8)
        activity[:, : 32 + 32 * seed] = 255
        Image.fromarray(activity).save(folder / f"activity_{name}.png")
        Image.fromarray(255 - activity).save(folder / f"mask_{name}.png")
    return folder


@pytest.fixture(scope="module")
def job_of(files) -> Callable[..., Job]:
    """The job that the overrides make of one run, all of whose keys have an effect."""

    def make(*overrides: str, recipe: str = "regional") -> Job:
        given_overrides = [
            f"image={files / 'one.png'}", f"image_last={files / 'one.png'}", "prompt=walk", "metrics=true",
            f"model.path={files / 'model_one'}", "model.attention=auto", "model.dtype=bfloat16", "video.num_frames=5",
            "sampler.num_steps=3", "sampler.guidance_scale=3", "tiles.window=[32,48]", "prior.area=1536",
            f"fusion={recipe}", *OF_RECIPE.get(recipe, []), f"fusion.activity_map={files / 'activity_one.png'}",
            f"model.loras=[{{path: {files / 'one.safetensors'}}}]",
            f"regions=[{{prompt: still, mask: {files / 'mask_one.png'}}}]",
        ]  # fmt: skip
        config = make_config(*given_overrides, *overrides)
        tile = [override for override in overrides if override.startswith("model.vae_tile")]
        spec = models.read_spec(make_config(f"model.path={files / 'model_one'}", *tile).model)
        spec = dataclasses.replace(spec, embeds_pictures=True, refuses={})
        inputs = Inputs()
        image_px = inputs.image_px(config)
        config, plan = choose_grid(config, spec, image_px, 3, None, shares=inputs.shares(config, image_px))
        return inputs.job(config, plan)

    return make


def first_difference(one: Job, other: Job) -> str:
    """Where their keys differ first; "" if nowhere."""

    def parts(job: Job) -> list:
        levels = job.keys.levels
        by_level = [[getattr(level, name) for level in levels] for name in ("inputs", "base", "canvas")]
        return [job.model, job.keys.texts, *by_level, levels[-1].clip]

    differing = [kind for kind, a, b in zip(KINDS, parts(one), parts(other), strict=True) if a != b]
    assert not differing or differing == list(KINDS[KINDS.index(differing[0]) :]) or differing[0] == "text", differing
    return differing[0] if differing else ""


def test_table_has_every_key_of_the_configuration():
    leaves = {key for key in all_keys() if not any(other.startswith(f"{key}.") for other in all_keys())}
    assert set(ENTERS) == leaves


@pytest.mark.parametrize("key", [key for key in ENTERS if key in CHANGES])
def test_key_of_the_configuration_enters_where_the_table_says(job_of, key):
    recipe, needed = RECIPE.get(key, "regional"), NEEDED.get(key, [])
    one, other = job_of(*needed, recipe=recipe), job_of(*needed, f"{key}={CHANGES[key]}", recipe=recipe)
    assert first_difference(one, other) == ENTERS[key]


def test_recipe_enters_where_the_table_says(job_of):
    assert first_difference(job_of(), job_of(recipe="fresco")) == ENTERS["fusion.method"]
    assert first_difference(job_of(recipe="fresco"), job_of(recipe="fresco_spot")) == "base"  # by its windows


def test_files_enter_by_their_contents(job_of, files, tmp_path):
    one = job_of()
    changed = {
        "image": files / "other.png",
        "image_last": files / "other.png",
        "fusion.activity_map": files / "activity_other.png",
        "model.path": files / "model_other",
        "model.loras": f"[{{path: {files / 'other.safetensors'}}}]",
        "regions": f"[{{prompt: left, mask: {files / 'mask_one.png'}}}]",
    }
    for key, value in changed.items():
        assert first_difference(one, job_of(f"{key}={value}")) == ENTERS[key], key
    split = ["fusion.detail_background=1", f"fusion.detail_map={files / 'activity_one.png'}"]
    by_map = {"fusion.detail_background": 2, "fusion.detail_map": files / "activity_other.png"}
    for key, value in by_map.items():
        by_one, by_other = (job_of(*split, *others, recipe="demofusion") for others in ([], [f"{key}={value}"]))
        assert first_difference(by_one, by_other) == ENTERS[key], key
    (tmp_path / "copy.png").write_bytes((files / "one.png").read_bytes())
    assert first_difference(one, job_of(f"image={tmp_path / 'copy.png'}")) == ""
    region = f"regions=[{{prompt: still, mask: {files / 'mask_other.png'}}}]"
    assert first_difference(one, job_of(region)) == "base"
    untried = {"dino_path", "fusion.method"}  # the one has no effect on anything but metrics, the other: see above
    assert {*changed, *by_map, *CHANGES, *SAM3, *untried} == set(ENTERS)


def test_what_makes_the_activity_map_enters_where_the_table_says(job_of, tmp_path):
    for seed in (0, 1):
        make_sam3(tmp_path / str(seed), seed=seed)
    (tmp_path / "copy").symlink_to(tmp_path / "0")
    one = job_of("fusion.activity_map=sam3", f"sam3.path={tmp_path / '0'}")
    assert one.keys.activity and one.maps == () and job_of().keys.activity == ""
    for key, value in SAM3.items():
        path = "" if key == "sam3.path" else f"sam3.path={tmp_path / 'copy'}"  # where it lies does not count
        other = job_of("fusion.activity_map=sam3", *filter(None, [path]), f"{key}={value.format(tmp=tmp_path)}")
        assert first_difference(one, other) == ENTERS[key], key
        assert one.keys.activity != other.keys.activity
    same = job_of("fusion.activity_map=sam3", f"sam3.path={tmp_path / 'copy'}")
    assert first_difference(one, same) == "" and one.keys == same.keys
    measured = [job_of("fusion.activity_map=sam3", f"sam3.path={tmp_path / seed}", recipe="fresco") for seed in "01"]
    assert first_difference(*measured) == "" and measured[0].keys.activity != measured[1].keys.activity


def test_picture_that_was_edited_in_place_is_another_one(job_of, tmp_path):
    path = tmp_path / "picture.png"
    make_picture(96, 48).save(path)
    before = job_of(f"image={path}")
    make_picture(96, 48, seed=1).save(path)
    assert first_difference(before, job_of(f"image={path}")) == "inputs"


@given(plan=plans())
def test_canvases_of_different_levels_and_steps_have_different_keys(plan):
    keys = make_keys(plan)
    canvases = [key for level in keys.levels for key in level.canvas]
    assert len(set(canvases)) == len(canvases)
    assert set(canvases).isdisjoint(key for level in make_keys(plan, Content(seed=1)).levels for key in level.canvas)


def test_numerics_that_differ_anywhere_have_other_names():
    facts = {"torch": "2.13.0", "device": "x86_64 AVX512", "threads": "1"}
    others = [facts | {name: "other"} for name in facts]
    assert len({numerics_key([tuple(of.items())]) for of in (facts, *others)}) == 4
    assert numerics_key([tuple(facts.items())]) != numerics_key([tuple(of.items()) for of in (facts, others[0])])


SHARED = {  # runs that go together as points of a sweep
    "recipes": ["fusion=fresco", "fusion=fresco_spot", "fusion=cascade prior.levels=3", "fusion=spot"],
    "levels": ["fusion=cascade prior.levels=3", "fusion=cascade prior.levels=2"],
    "local priors": ["fusion=cascade prior.levels=3", "fusion=cascade prior.levels=3 fusion.local_priors=true"],
    "overlaps": ["fusion=fresco_spot tiles.overlap=0.5", "fusion=fresco_spot tiles.overlap=0.25"],
    "borders": ["fusion=spot tiles.border=cut", "fusion=spot tiles.border=inside"],
}


@pytest.mark.parametrize("mode", DispatchMode)
@pytest.mark.parametrize("points", SHARED.values(), ids=SHARED)
def test_runs_that_go_together_share_tasks_of_equal_levels_alone(points, mode):
    """What a task reads of its level is that of every job that has it."""
    plans = []
    for order in (points, points[::-1]):
        configs = [make_config("model=synthetic", "tiles.window=[64,64]", *point.split()) for point in order]
        plans = [make_plan(config, models.read_spec(config.model), (512, 320), 2) for config in configs]
        keys = [keys_of(config, plan) for config, plan in zip(configs, plans)]
        graph = run_graph(plans, keys, mode)  # asserts that equal tasks need the same
        for plan, of_job in zip(plans, keys):
            own = set(of_job)
            for task in graph.nodes:
                if task.of in own and task.level >= 0:
                    first = plans[graph.job_of(task)]
                    level, read = plan.levels[task.level], first.levels[task.level]
                    assert (level.latent_shape, level.encode_tiles) == (read.latent_shape, read.encode_tiles), task
                    assert task.kind in ("encode", "decode", "blend") or level.stream == read.stream, task
