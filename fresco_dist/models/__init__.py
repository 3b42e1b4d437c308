"""Models, one file or folder a family, found by name: no class path from a configuration is ever imported.

Each family has `read_spec(model)`, which loads no weights, and `load(model, device, tiles)`, which gives a replica.
"""

from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from fresco_dist.config import InputError, ModelConfig
from fresco_dist.schedule.spec import ModelSpec

if TYPE_CHECKING:
    import torch

    from fresco_dist.models.protocol import Backbone

BACKBONES = {  # where `read_spec` and `load` are; importing all of them would take seconds
    "stable_diffusion": ("stable_diffusion", "stable_diffusion"),
    "synthetic": ("synthetic", "synthetic"),
    "wan": ("wan.spec", "wan.model"),
}


def read_spec(model: ModelConfig) -> ModelSpec:
    """What planning needs to know, from the model's configuration files; no weights are loaded."""
    return _module(model.backbone, 0).read_spec(model)


def load(model: ModelConfig, device: "torch.device", tiles: Sequence[tuple[int, int, int, int]] = ()) -> "Backbone":
    """One replica on `device`.

    `tiles` are the shapes (B, T, H, W) in latent cells that it will predict, the most frequent first: attention is
    tried and code compiled for them. Raises InputError for what this device cannot do.
    """
    return _module(model.backbone, 1).load(model, device, tiles)


def import_family(backbone: str) -> None:
    """Import what `load` needs, which takes seconds."""
    _module(backbone, 1)


def _module(backbone: str, which: int) -> ModuleType:
    names = BACKBONES.get(backbone)
    if names is None:
        raise InputError(f"model.backbone must be one of {', '.join(BACKBONES)}; got {backbone}.")
    return import_module(f"fresco_dist.models.{names[which]}")
