"""What reading a model's configuration imports, and what one of its workers does: both wait for it at every start."""

import inspect
import subprocess
import sys

import diffusers
import pytest

from fresco_dist.models.checkpoint import defaults_of

CLASSES = [
    ("models.autoencoders.autoencoder_kl", "AutoencoderKL"),
    ("models.autoencoders.autoencoder_kl_wan", "AutoencoderKLWan"),
    ("models.transformers.transformer_wan", "WanTransformer3DModel"),
    ("models.unets.unet_2d_condition", "UNet2DConditionModel"),
    ("schedulers.scheduling_ddim", "DDIMScheduler"),
]
SLOW = {"torch", "diffusers", "transformers", "peft", "av", "matplotlib"}
READ_SPEC = """
from types import SimpleNamespace
from fresco_dist import models
from fresco_dist.config import Dtype
from fresco_dist.media import metrics, pictures
from fresco_dist.models import dino
options = dict(path=None, dtype=Dtype.float32, vae_dtype=Dtype.bfloat16, loras=[], fuse_loras=True, vae_tile=None)
for name in ("wan", "synthetic"):
    assert models.read_spec(SimpleNamespace(backbone=name, **options)).latent_channels
from fresco_dist.models.stable_diffusion import spec
"""


def modules_after(code: str) -> set[str]:
    """What a new interpreter has imported after `code`."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_reading_a_specification_imports_no_package_that_takes_seconds():
    assert not SLOW & modules_after(READ_SPEC)


def test_worker_does_not_import_pipelines():
    modules = modules_after("import fresco_dist.runtime.worker, fresco_dist.models.wan.model")
    assert "diffusers.models.transformers.transformer_wan" in modules
    assert not {"diffusers.pipelines.pipeline_utils", "transformers.models.umt5.modeling_umt5"} & modules


@pytest.mark.parametrize("module, name", CLASSES, ids=[name for _, name in CLASSES])
def test_defaults_read_from_the_source_are_those_of_the_class(monkeypatch, module, name):
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters.values()
    expected = {p.name: p.default for p in parameters if p.default is not p.empty}
    assert len(expected) > 5
    with monkeypatch.context() as patch:
        patch.setattr("fresco_dist.models.checkpoint.import_module", None)  # the source alone
        assert defaults_of(module, name) == expected
    assert defaults_of("moved", name) == expected  # the class itself
