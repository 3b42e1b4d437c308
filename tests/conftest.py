"""Shared fixtures: a small random Wan model in diffusers format, pictures, and the command as a user types it."""

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # torch reads it once; threads that wait leave the cores to other processes

import numpy as np
import pytest
import torch
import transformers
from hydra.core.global_hydra import GlobalHydra
from hypothesis import HealthCheck, settings
from PIL import Image

import fresco_dist
from fresco_dist import launch as launch_module
from fresco_dist.jobs.folder import PRODUCTS
from fresco_dist.jobs.pool import Pool

if find_spec("ray"):  # a machine for the gpu tests may lack it
    with mock.patch.dict(os.environ, launch_module.ENVIRONMENT):  # Ray reads them once
        import ray

        from fresco_dist.runtime import ray_cluster

for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES", "TERM"):  # for rich
    os.environ.pop(name, None)

settings.register_profile("no_clock", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no_clock")

HERE = {"executor": "inprocess"}  # an Animator's cluster
WARM_TOKEN = "a" * 64  # of the Ray that many tests share
WORDS = ("the", "figures", "walk", "left", "right", "blurry", "still")
TINY_RUN = (  # overrides that make a whole command quick; three windows in a row on the picture of `picture_path`
    "sampler.num_steps=3",
    "video.num_frames=5",
    "tiles.window=[32,48]",
    "tiles.overlap=0.5",
    "prior.area=1536",
    "fusion.cutoff=0.5",
)


def make_model(path: Path, scheduler: str = "FlowMatchEulerDiscreteScheduler", seed: int = 0) -> Path:
    """Save a random WanImageToVideoPipeline: spatial factor 4, temporal factor 4, patch 2, unlike Wan's 8, 4, 2."""
    import diffusers
    import transformers
    from diffusers import AutoencoderKLWan, WanImageToVideoPipeline, WanTransformer3DModel
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(seed)
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    text = transformers.UMT5Config(
        vocab_size=len(vocabulary), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, pad_token_id=0
    )
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[0.5, 0.6, 0.7, 0.8],
        scale_factor_spatial=4,
        scale_factor_temporal=4,
    )
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=12,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
    )
    with torch.no_grad():  # the stock initialisation makes the prompt and the timestep matter little
        for parameter in transformer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    if scheduler == "UniPCMultistepScheduler":
        options = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    else:
        options = {"shift": 3.0}
    WanImageToVideoPipeline(
        tokenizer=transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
        ),
        text_encoder=transformers.UMT5EncoderModel(text),
        vae=vae,
        transformer=transformer,
        scheduler=getattr(diffusers, scheduler)(**options),
    ).save_pretrained(path, safe_serialization=True)
    return path


@pytest.fixture(scope="session")
def sd_path(tmp_path_factory) -> Path:
    """A small random Stable Diffusion: UNet of two levels, VAE of four, as the panorama counts on 8 px per cell."""
    import tokenizers
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from tokenizers import Tokenizer, pre_tokenizers, processors

    torch.manual_seed(0)
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=16
    )
    text = transformers.CLIPTextConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, eos_token_id=1, pad_token_id=0, bos_token_id=1,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    with torch.no_grad():  # so that the prompt matters
        for parameter in unet.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    vae = AutoencoderKL(
        block_out_channels=(4, 4, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        sample_size=128,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )
    path = tmp_path_factory.mktemp("models") / "sd"
    StableDiffusionPipeline(
        vae=vae, text_encoder=transformers.CLIPTextModel(text), tokenizer=fast, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(path, safe_serialization=True)  # fmt: skip
    return path


@pytest.fixture(scope="session")
def model_path(tmp_path_factory) -> Path:
    """A small random model with the flow-matching Euler scheduler."""
    return make_model(tmp_path_factory.mktemp("models") / "euler")


@pytest.fixture(scope="session")
def unipc_model_path(tmp_path_factory) -> Path:
    """The same weights with the UniPC flow scheduler."""
    return make_model(tmp_path_factory.mktemp("models") / "unipc", "UniPCMultistepScheduler")


def make_picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth random colours, so that resizing keeps something."""
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def picture_path(tmp_path) -> Path:
    """A picture of 96 x 48 px."""
    path = tmp_path / "picture.png"
    make_picture(96, 48).save(path)
    return path


@pytest.fixture
def launch(tmp_path, model_path):
    """Run `python -m fresco_dist.launch OVERRIDES` in a new folder; returns the finished process.

    Defaults to the small random model; the run folder is `tmp_path/out` unless an override says otherwise.
    """

    def run(*overrides: object, timeout_s: float = 240, tiny: bool = True) -> subprocess.CompletedProcess:
        arguments = [str(override) for override in overrides]
        if tiny:
            keys = {argument.split("=")[0] for argument in arguments}
            defaults = [f"hydra.run.dir={tmp_path / 'out'}", f"model.path={model_path}", *TINY_RUN]
            arguments = [default for default in defaults if default.split("=")[0] not in keys] + arguments
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return subprocess.run(
            [sys.executable, "-m", "fresco_dist.launch", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    return run


def merged(overrides: tuple, defaults: list[str]) -> list[str]:
    """`overrides` after those `defaults` whose keys they do not set."""
    given = [str(override) for override in overrides]
    keys = {override.split("=")[0] for override in given}
    return [default for default in defaults if default.split("=")[0] not in keys] + given


@pytest.fixture
def folder(tmp_path) -> Path:
    """The run folder of `command`."""
    return tmp_path / "out"


def run_here(arguments: list[str]) -> int:
    """The command line inside this process, which is left as it was; the exit code."""
    transformers.utils.logging.disable_progress_bar()  # as the environment of a process of its own does
    handlers, level, threads = logging.root.handlers[:], logging.root.level, torch.get_num_threads()
    signal_handlers = {number: signal.getsignal(number) for number in launch_module.SIGNALS}
    try:
        with mock.patch.dict(os.environ), mock.patch.object(sys, "argv", ["launch", *arguments]):
            return launch_module.main()
    finally:
        for number, handler in signal_handlers.items():
            signal.signal(number, handler)
        GlobalHydra.instance().clear()
        torch.set_num_threads(threads)
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)


@pytest.fixture
def command(folder, model_path, picture_path, capfd):
    """Run the command line inside this process with the in-process executor; exit code, stdout and stderr."""
    defaults = ["cluster.executor=inprocess", f"hydra.run.dir={folder}", f"image={picture_path}"]
    defaults += [f"model.path={model_path}", *TINY_RUN]

    def run(*overrides: object, flags: tuple[str, ...] = (), tiny: bool = True) -> SimpleNamespace:
        capfd.readouterr()
        returncode = run_here([*flags, *merged(overrides, defaults if tiny else defaults[1:3])])
        out, err = capfd.readouterr()
        return SimpleNamespace(returncode=returncode, stdout=out, stderr=err)

    return run


def settings_of(overrides: Sequence[str]) -> dict[str, object]:
    """Overrides of a command line as keywords."""
    pairs = (override.partition("=")[::2] for override in overrides)
    return {key: json.loads(value) for key, value in pairs}


@pytest.fixture
def animate(model_path) -> Iterator[fresco_dist.Animator]:
    """On one worker in this process, with the small random model."""
    with fresco_dist.Animator(path=model_path, cluster=HERE, progress=False, **settings_of(TINY_RUN)) as animate:
        yield animate


class WarmPool(Pool):
    """Outlives the commands that it is lent to."""

    def close(self) -> None:
        pass


@pytest.fixture(scope="session")
def warm_pool() -> Iterator[WarmPool]:
    """One Ray for the tests that are not about its start; its workers stay while the tests ask for the same ones."""
    with mock.patch.dict(os.environ, launch_module.ENVIRONMENT | {"RAY_AUTH_TOKEN": WARM_TOKEN}):
        ray_cluster.start_ray(mock.Mock(address=None))
    ray_cluster._ours = None  # or the first command would end it
    pool = WarmPool()
    yield pool
    pool.stop_workers()
    ray.shutdown()


@pytest.fixture
def ray_command(command, warm_pool, monkeypatch):
    """As `command`, on Ray workers that may be warm."""
    monkeypatch.setattr("fresco_dist.jobs.pool.Pool", lambda: warm_pool)
    return partial(command, "cluster.executor=ray", "cluster.cpus_per_worker=0.2")


def run_json(folder: Path) -> dict:
    """What the last run in a folder has written down."""
    return json.loads((folder / "run.json").read_text())


def forwards_of(folder: Path) -> int:
    """Predictions that the last run in a folder has made."""
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    return sum(event.get("cat") == "predict" for event in events)


def products_of(folder: Path) -> set[str]:
    """Products and half-written files in `folder`."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return {name for name in names if name in PRODUCTS or "partial" in name}
