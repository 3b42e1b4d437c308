"""Which model, and how it is loaded."""

import json
import math
from dataclasses import dataclass
from enum import Enum

from fresco_dist.config.checks import require
from fresco_dist.config.choices import Attention, Dtype, Expert, ExpertOffload, ImageEmbedding, Offload, Quantization


@dataclass
class LoraConfig:
    """Low-rank weights to add to a transformer: a safetensors file, its weight, and one expert (null = every one)."""

    path: str
    weight: float = 1.0
    expert: Expert | None = None

    def __post_init__(self) -> None:
        require(self.path != "", "model.loras: path", '""', "a safetensors file", "Give the file's path.")
        allowed = "a finite number other than 0"
        finite = math.isfinite(self.weight) and self.weight != 0
        require(finite, "model.loras: weight", self.weight, allowed, "1 is the trained strength.")


@dataclass
class ModelConfig:
    """Which model: a registered backbone and a directory in diffusers format (null = the embedded model).

    `vae_tile` is the side of the VAE's tiles in pixels (null = diffusers' own), which start every three quarters of it.
    """

    backbone: str
    path: str | None
    dtype: Dtype
    vae_dtype: Dtype
    attention: Attention
    image_embedding: ImageEmbedding
    loras: list[LoraConfig]
    fuse_loras: bool
    compile: bool
    expert_offload: ExpertOffload
    quantization: Quantization | None = None
    offload: Offload | None = None
    vae_tile: int | None = None
    forward_s: float = 0.0  # synthetic backbone only: seconds that a forward waits

    def __post_init__(self) -> None:
        require(0 <= self.forward_s <= 3600, "model.forward_s", self.forward_s, "in [0, 3600] seconds", "Try 0.2.")
        tile = self.vae_tile
        require(tile is None or tile >= 1, "model.vae_tile", tile, "at least 1 pixel, or null", "Try 256.")
        if not self.loras:
            self._exclude("no model.loras", "model.fuse_loras", self.fuse_loras, True)
        if self.quantization is not None:
            self._exclude("model.quantization=fp8", "model.dtype", self.dtype, Dtype.bfloat16)
            self._exclude("model.quantization=fp8", "model.expert_offload", self.expert_offload, ExpertOffload.hold)
        if self.offload is not None:
            self._exclude("model.offload=group", "model.quantization", self.quantization, None)
            self._exclude("model.offload=group", "model.compile", self.compile, False)
            self._exclude("model.offload=group", "model.expert_offload", self.expert_offload, ExpertOffload.hold)

    @staticmethod
    def _exclude(other: str, key: str, value: object, needed: object) -> None:
        """Raise InputError unless `value` is the one that `other` needs."""
        got, allowed = (v.value if isinstance(v, Enum) else json.dumps(v) for v in (value, needed))
        require(value is needed, key, got, f"{allowed} with {other}", f"Set {key}={allowed}.")
