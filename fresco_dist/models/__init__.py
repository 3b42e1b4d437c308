"""Models, a folder a family, found by name: no class path from a configuration is ever imported.

Its `spec` has `read_spec(model)`, which reads no weight and imports neither torch nor diffusers; its `model` has
`load(model, device, tiles)`, which gives a replica.
"""

from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from fresco_dist.config import InputError, ModelConfig
from fresco_dist.schedule.spec import ModelSpec

if TYPE_CHECKING:
    import torch

    from fresco_dist.models.backbone import Backbone

BACKBONES = ("stable_diffusion", "synthetic", "wan")  # folders beside this file


def read_spec(model: ModelConfig) -> ModelSpec:
    """What planning needs to know, from the model's configuration files; no weights are loaded."""
    return _module(model.backbone, "spec").read_spec(model)


def load(model: ModelConfig, device: "torch.device", tiles: Sequence[tuple[int, int, int, int]] = ()) -> "Backbone":
    """One replica on `device`.

    `tiles` are the shapes (B, T, H, W) in latent cells that it will predict, the most frequent first: attention is
    tried and code compiled for them. Raises InputError for what this device cannot do.
    """
    return _module(model.backbone, "model").load(model, device, tiles)


def import_family(backbone: str) -> None:
    """Import what `load` needs, which takes seconds."""
    _module(backbone, "model")


def _module(backbone: str, name: str) -> ModuleType:
    if backbone not in BACKBONES:
        raise InputError(f"model.backbone must be one of {', '.join(BACKBONES)}; got {backbone}.")
    return import_module(f"fresco_dist.models.{backbone}.{name}")
