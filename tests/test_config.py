"""Every file in conf/, composed as the command line composes it, and the checks of the dataclasses."""

import re
from fractions import Fraction
from pathlib import Path

import fresco_dist.conf
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from fresco_dist.config import Config, Expert, InputError
from fresco_dist.method.recipes import RECIPES
from fresco_dist.settings.schema import compose_config, register

CONF = Path(fresco_dist.conf.__file__).parent
GIVEN = ("model.path=/model", "model.loras=[]")  # what some files leave to the user
FILES = sorted(path.relative_to(CONF) for path in CONF.glob("*/*.yaml"))
GROUP_FILES = [path for path in FILES if path.parts[0] != "comparison"]  # those: evaluate/test_evaluate.py


@pytest.fixture
def config():
    """Compose overrides to the dataclasses of a run."""
    GlobalHydra.instance().clear()
    return compose_config


def _assert_holds(composed: dict, delta: dict, where: str) -> None:
    """Every value of `delta` stands in `composed`, but those that must be given."""
    for key, value in delta.items():
        if isinstance(value, dict):
            _assert_holds(composed[key], value, f"{where}.{key}")
        elif value != "???":
            assert composed[key] == value, f"{where}.{key}"


def test_config_default_is_the_embedded_model_with_fresco_fusion_on_ray(config):
    made = config()
    assert (made.model.backbone, made.model.path) == ("wan", None)
    assert type(made.fusion) is RECIPES["fresco"]
    assert made.cluster.executor.value == "ray"
    assert made.video.max_size == [3840, 2160]


@pytest.mark.parametrize("path", GROUP_FILES, ids=str)
def test_config_group_file_composes_and_its_values_hold(config, path):
    group, name = path.parts[0], path.stem
    override = f"{'+' if group == 'cluster' else ''}{group}={name}"
    config(override, *GIVEN)  # the dataclasses accept it
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = OmegaConf.to_container(compose("config", [override]), enum_to_str=True)
    text = (CONF / path).read_text()
    delta = OmegaConf.to_container(OmegaConf.create(text))
    delta.pop("defaults", None)
    assert delta, f"{path} changes nothing"
    at_root = text.startswith("# @package _global_\n")
    _assert_holds(composed if at_root else composed[group], delta, str(path))


def test_config_every_group_has_a_file():
    assert {path.parts[0] for path in FILES} == {"cluster", "comparison", "fusion", "model"}


SETTINGS_OF = {"freescale": "cascade"}  # files that are settings of another's recipe


@pytest.mark.parametrize("name", sorted(path.stem for path in GROUP_FILES if path.parts[0] == "fusion"))
def test_config_fusion_file_is_named_after_its_method(config, name):
    assert config(f"fusion={name}").fusion.method == SETTINGS_OF.get(name, name)


def test_config_prior_takes_the_samplers_noise_levels_for_as_many_steps(config):
    """Its own come first; for another number of steps the noise scheduler's are left."""
    sigmas = ["sampler.sigmas=[1,0.5]", "sampler.num_steps=2"]

    def of(*overrides: str) -> tuple:
        made = config(*overrides)
        sampler = made.prior.sampler(made.sampler)
        return sampler.num_steps, sampler.sigmas, sampler.shift

    assert of(*sigmas) == (2, [1.0, 0.5], None)
    assert of(*sigmas, "prior.num_steps=3") == (3, None, None)
    assert of("sampler.shift=3", "prior.sigmas=[1,0.7,0.3]") == (3, [1.0, 0.7, 0.3], None)
    assert of("sampler.shift=3", "prior.num_steps=3") == (3, None, 3.0)
    with pytest.raises(InputError, match="prior.num_steps must be null or the length of prior.sigmas; got 2"):
        config("prior.sigmas=[1,0.7,0.3]", "prior.num_steps=2")


def test_config_override_beats_the_model_file(config):
    assert config("video.num_frames=5", "tiles.window=[32,48]").tiles.window == [32, 48]
    assert config("video.num_frames=5").video.num_frames == 5


@pytest.mark.parametrize(
    "given, rate",
    [("24", 24), ("12.5", Fraction(25, 2)), ("24000/1001", Fraction(24000, 1001)), ("25/2", Fraction(25, 2))]
    + [(text, Fraction(1000 * number, 1001)) for text, number in
       {"23.976": 24, "23.98": 24, "29.97": 30, "47.952": 48, "59.94": 60, "119.88": 120, "239.76": 240}.items()]
    + [("23.97", Fraction("23.97").limit_denominator(1001)), ("16.6667", Fraction(50, 3))],
)  # fmt: skip
def test_config_rate_is_exact(config, given, rate):
    assert config(f"video.fps={given}").video.rate == rate
    assert config(f"video.fps='{given}'").video.rate == rate  # as a text, too


REFUSED = [
    ("seed=-1", "seed must be in [0, 2^64); got -1"),
    ("seed=18446744073709551616", "seed must be"),
    ("image=", "image must be a path or null"),
    ("video.num_frames=0", "video.num_frames must be at least 1; got 0"),
    ("video.fps=0", "video.fps must be in [1, 240]; got 0"),
    ("video.fps=241", "video.fps must be"),
    ("video.fps=fast", "video.fps must be a number or a fraction such as 24000/1001; got fast. Try 16."),
    ("video.fps=1/0", "video.fps must be a number"),
    ("video.fps=true", "video.fps must be a number"),
    ("video.fps=null", "video.fps must be a number"),
    ("video.fps=[24]", "video.fps must be a number"),
    ("video.fps=nan", "video.fps must be a number"),
    ("video.fps=24100/100", "video.fps must be in [1, 240]; got 24100/100"),
    ("video.fps=30000/1003", "video.fps must be a fraction whose denominator is at most 1001; got 30000/1003"),
    ("video.quality=11", "video.quality must be in [0, 10], or null; got 11.0"),
    ("video.quality=-1", "video.quality must be in [0, 10]"),
    ("video.quality=nan", "video.quality must be in [0, 10]"),
    (
        "video.format=prores video.quality=5",
        "video.quality must be null with video.format=prores; h264, h265, av1 have one; got 5.0",
    ),
    ("video.max_size=[15,2160]", "video.max_size must be [width, height]"),
    ("video.max_size=[3840]", "video.max_size must be"),
    ("tiles.window=[32]", "tiles.window must be [height, width]"),
    ("tiles.window=[]", "tiles.window must be"),
    ("tiles.window=[0,32]", "tiles.window must be"),
    ("tiles.overlap=1.0", "tiles.overlap must be in [0, 1); got 1.0"),
    ("tiles.overlap=-0.1", "tiles.overlap must be"),
    ("tiles.overlap=nan", "tiles.overlap must be"),
    ("tiles.min_weight=0", "tiles.min_weight must be in (0, 1]; got 0.0"),
    ("tiles.min_weight=1.1", "tiles.min_weight must be"),
    ("fusion.prior_strength=-1", "fusion.prior_strength must be in [0, 1e9]; got -1.0"),
    ("fusion.prior_strength=inf", "fusion.prior_strength must be"),
    ("fusion.prior_strength=nan", "fusion.prior_strength must be"),
    ("fusion.cutoff=1.1", "fusion.cutoff must be in [0, 1]"),
    ("fusion.cutoff=-0.1", "fusion.cutoff must be"),
    (
        "fusion=regional fusion.cutoff_active=0.3",
        "fusion.cutoff_active must be at most fusion.cutoff_background (0.2); got 0.3",
    ),
    ("fusion=regional fusion.cutoff_background=2", "fusion.cutoff_background must be in [0, 1]"),
    ("fusion.activity_map=map.png", "fusion.activity_map must be given only with fusion=regional"),
    ("fusion=regional fusion.activity_map=sam3", "sam3.path must be a directory with SAM 3's weights; got None"),
    ("sam3.path=x", "sam3.path must be null without fusion.activity_map=sam3; got x"),
    ("sam3.prompts=[]", "sam3.prompts must be at least one text"),
    ("sam3.prompts=[a,' ']", "sam3.prompts must be at least one text"),
    ("sam3.max_area=1.5", "sam3.max_area must be in [0, 1]; got 1.5"),
    ("sam3.threshold=nan", "sam3.threshold must be in [0, 1]"),
    ("regions=[{prompt: '', box: [0, 0, 1, 1]}]", 'regions[0].prompt must be a text; got ""'),
    ("regions=[{box: [0, 0, 1, 1]}]", "regions[0].prompt must be a text"),
    ("regions=[{prompt: a, box: [0, 0, 1, 1]}, {prompt: a}]", "regions[1] must be given a mask or a box; got neither"),
    ("regions=[{prompt: a, mask: b, box: [0, 0, 1, 1]}]", "regions[0] must be given a mask or a box; got mask and box"),
    ("regions=[{prompt: a, mask: ''}]", "regions[0].mask must be a picture's file"),
    ("regions=[{prompt: a, box: [0, 0, 1]}]", "regions[0].box must be [left, top, right, bottom] in shares"),
    ("regions=[{prompt: a, box: [0.5, 0, 0.5, 1]}]", "regions[0].box must be"),
    ("regions=[{prompt: a, box: [0, 0.6, 1, 0.5]}]", "regions[0].box must be"),
    ("regions=[{prompt: a, box: [-0.1, 0, 1, 1]}]", "regions[0].box must be"),
    ("regions=[{prompt: a, box: [0, 0, 1, 1.1]}]", "regions[0].box must be"),
    ("regions=[{prompt: a, box: [0, nan, 1, 1]}]", "regions[0].box must be"),
    ("region_feather=-0.1", "region_feather must be in [0, 1], a share of the picture's shorter side; got -0.1"),
    ("region_feather=nan", "region_feather must be"),
    ("sampler.num_steps=0", "sampler.num_steps must be in [1, 1000]; got 0"),
    ("sampler.guidance_scale=0.9", "sampler.guidance_scale must be in [1, 100]; got 0.9"),
    ("sampler.guidance_scale=101", "sampler.guidance_scale must be"),
    ("sampler.guidance_scale_2=0.5", "sampler.guidance_scale_2 must be in [1, 100]; got 0.5"),
    ("sampler.shift=0", "sampler.shift must be greater than 0"),
    ("sampler.sigmas=[]", "sampler.sigmas must be falling noise levels in (0, 1], one per step; got []"),
    ("sampler.sigmas=[0.5,0.5]", "sampler.sigmas must be falling"),
    ("sampler.sigmas=[1.1,0.5]", "sampler.sigmas must be falling"),
    ("sampler.sigmas=[0.5,0]", "sampler.sigmas must be falling"),
    ("sampler.sigmas=[nan,0.5]", "sampler.sigmas must be falling"),
    (
        "sampler.sigmas=[1.0,0.5]",
        "sampler.num_steps must be the length of sampler.sigmas; got 6. Set sampler.num_steps=2",
    ),
    ("model.loras=[{path:a,weight:0}]", "model.loras: weight must be a finite number other than 0; got 0.0"),
    ("model.loras=[{path:a,weight:nan}]", "model.loras: weight must be"),
    ("model.loras=[{path:''}]", "model.loras: path must be a safetensors file"),
    ("model.quantization=fp8", "model.dtype must be bfloat16 with model.quantization=fp8; got float32"),
    ("cluster.gpu_memory_gb=0", "cluster.gpu_memory_gb must be greater than 0"),
    ("cluster.gpu_memory_gb=inf", "cluster.gpu_memory_gb must be"),
    ("image_last=", "image_last must be a path or null"),
    ("sampler.shift=inf", "sampler.shift must be"),
    ("prior.area=255", "prior.area must be at least 256 pixels; got 255"),
    ("prior.num_steps=0", "prior.num_steps must be in [1, 1000]; got 0"),
    ("prior.sigmas=[0.5,0.5]", "prior.sigmas must be falling noise levels in (0, 1], one per step; got [0.5, 0.5]"),
    ("prior.sigmas=[]", "prior.sigmas must be falling"),
    ("tiles.overlap_steps=-1", "tiles.overlap_steps must be at least 0; got -1"),
    ("model.vae_tile=0", "model.vae_tile must be at least 1 pixel, or null; got 0"),
    ("model.forward_s=-1", "model.forward_s must be in [0, 3600] seconds; got -1.0"),
    ("cluster.num_nodes=0", "cluster.num_nodes must be at least 1; got 0"),
    (
        "++cluster={num_nodes: 2, num_workers: 3}",
        "cluster.num_workers must be a multiple of cluster.num_nodes (2); got 3",
    ),
    ("cluster.num_workers=0", "cluster.num_workers must be at least 1; got 0"),
    ("cluster.cpus_per_worker=0", "cluster.cpus_per_worker must be greater than 0; got 0.0"),
    ("cluster.gpus_per_worker=2", "cluster.gpus_per_worker must be 0 or 1; got 2"),
    ("cluster.timeout_s=0", "cluster.timeout_s must be greater than 0"),
    ("cluster.timeout_s=inf", "cluster.timeout_s must be"),
    ("cluster.start_timeout_s=0", "cluster.start_timeout_s must be greater than 0 and at most 1e6 seconds; got 0.0."),
    ("cluster.start_timeout_s=nan", "cluster.start_timeout_s must be"),
]


@pytest.mark.parametrize("override, message", REFUSED, ids=[override for override, _ in REFUSED])
def test_config_value_out_of_range_is_refused_with_key_and_value(config, override, message):
    with pytest.raises(InputError) as refused:
        config(*re.split(" (?=fusion|video)", override))
    assert message in str(refused.value)
    assert str(refused.value).endswith(".") and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "override",
    [
        "seed=18446744073709551615",
        "tiles.overlap=0",
        "tiles.overlap=0.99",
        "tiles.min_weight=1",
        "fusion.prior_strength=0",
        "fusion.cutoff=1",
        "sampler.guidance_scale=1",
        "sampler.shift=null",
        "prior.num_steps=null",
        "cluster.gpus_per_worker=0",
        "cluster.cpus_per_worker=0.5",
        "video.max_size=[16,16]",
        "regions=[{prompt: a, box: [0, 0, 1, 1]}]",
        "region_feather=0",
    ],
)
def test_config_value_at_the_limit_is_taken(config, override):
    assert isinstance(config(override), Config)


PAIRS_REFUSED = [
    (
        ["sampler.sigmas=[1.0,0.5]", "sampler.num_steps=2", "sampler.shift=3"],
        "sampler.shift must be null with sampler.sigmas",
    ),
    (["model.dtype=bfloat16", "model.quantization=fp8", "model.offload=group"], "model.quantization must be null with"),
    (["model.fuse_loras=false"], "model.fuse_loras must be true with no model.loras; got false"),
    (["model.compile=true", "model.offload=group"], "model.compile must be false with model.offload=group; got true"),
    (
        ["model.expert_offload=swap", "model.offload=group"],
        "model.expert_offload must be hold with model.offload=group",
    ),
    (
        ["model.dtype=bfloat16", "model.quantization=fp8", "model.expert_offload=swap"],
        "model.expert_offload must be hold with model.quantization=fp8; got swap",
    ),
]


@pytest.mark.parametrize("overrides, message", PAIRS_REFUSED, ids=[" ".join(case[0]) for case in PAIRS_REFUSED])
def test_config_values_that_exclude_each_other_are_refused(config, overrides, message):
    with pytest.raises(InputError) as refused:
        config(*overrides)
    assert message in str(refused.value)


def test_config_lora_has_path_weight_and_expert(config):
    (lora,) = config("model.loras=[{path:/a.safetensors,weight:0.5,expert:low_noise}]").model.loras
    assert (lora.path, lora.weight, lora.expert) == ("/a.safetensors", 0.5, Expert.low_noise)
    (lora,) = config("model.loras=[{path:/a.safetensors}]").model.loras
    assert (lora.weight, lora.expert) == (1.0, None)


def test_config_many_workers_need_ray(config):
    assert config("cluster.num_workers=2").cluster.num_workers == 2
    with pytest.raises(InputError, match="cluster.num_workers must be 1 with cluster.executor=inprocess; got 2"):
        config("cluster.executor=inprocess", "cluster.num_workers=2")


@pytest.mark.parametrize("cpus, threads", [(0.5, 1), (1, 1), (1.9, 1), (4, 4)])
def test_config_threads_are_the_whole_part_of_the_cpus(config, cpus, threads):
    assert config(f"cluster.cpus_per_worker={cpus}").cluster.num_threads == threads
