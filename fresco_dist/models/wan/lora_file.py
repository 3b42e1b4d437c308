"""What a LoRA file changes in a Wan transformer, whatever tool has written it; from headers.

Names are those of diffusers and PEFT (`transformer.`, `base_model.model.` or no prefix), of Wan's own code (ComfyUI,
LightX2V: `diffusion_model.`) or kohya's, who writes underscores for dots (`lora_unet_`). A layer has a low-rank pair,
with an alpha or without, or the differences of its weight (`.diff`), its bias (`.diff_b`) and its modulation
(`.diff_m`). What would be left out in silence is refused, but for the layers of an image encoder that the model has
not: published weights for a sibling model are used without them.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fresco_dist.config import InputError
from fresco_dist.models.wan.names import PREFIX, wan_name
from fresco_dist.models.weights import FLOATS, Tensor, read_header

_ADAPTER = r"(?:\.\w+)?"  # its name, which PEFT may add
PARTS = {
    "down": re.compile(rf"(.+)\.(?:lora_A|lora_down|lora\.down){_ADAPTER}\.weight"),
    "up": re.compile(rf"(.+)\.(?:lora_B|lora_up|lora\.up){_ADAPTER}\.weight"),
    "up_bias": re.compile(rf"(.+)\.(?:lora_B|lora_up|lora\.up){_ADAPTER}\.bias"),
    "alpha": re.compile(r"(.+)\.alpha"),
    "diff": re.compile(r"(.+)\.diff"),
    "diff_b": re.compile(r"(.+)\.diff_b"),
    "diff_m": re.compile(r"(.+)\.diff_m"),
}
DORA = re.compile(r"dora_scale|lora_magnitude_vector")
SLOW, REPEATED = re.compile(r"\)[*+?{]|\(\?(?!:)"), re.compile(r"[*+?{]")  # in a pattern of PEFT's
MAX_REPEATED, MAX_CHOICES = 3, 12  # parts of a choice that are repeated, and choices: each multiplies what is tried
OF_IMAGES = re.compile(r"k_img|v_img|img_emb|add_k_proj|add_v_proj|norm_added_k|image_embedder")


@dataclass(frozen=True)
class Pair:
    """A low-rank change of a weight: the names of its tensors, and the factor if no alpha tells it."""

    down: str
    up: str
    alpha: str | None
    factor: float
    rank: int

    def scale(self, alpha: float | None) -> float:
        """What up @ down is multiplied by, with the alpha that the file holds."""
        return self.factor if alpha is None else alpha / self.rank


@dataclass(frozen=True)
class Settings:
    """PEFT's of an adapter: its alpha, that of layers whose names fit a pattern, and how it counts."""

    alpha: float | None
    alpha_of: Mapping[re.Pattern[str], float]
    is_stabilised: bool

    def factor(self, layer: str, rank: int) -> float:
        """alpha / rank, or stabilised alpha / sqrt(rank); 1 where no alpha is told, as diffusers and ComfyUI do."""
        alpha = next((alpha for pattern, alpha in self.alpha_of.items() if pattern.match(layer)), self.alpha)
        if alpha is None:
            return 1.0
        return alpha / math.sqrt(rank) if self.is_stabilised else alpha / rank


@dataclass
class LoraFile:
    """What a file changes: pairs by the tensor of the transformer that they change, differences likewise.

    Of a bias of a pair (PEFT's), the pair; it has the same factor.
    """

    path: Path
    pairs: dict[str, Pair] = field(default_factory=dict)
    differences: dict[str, list[tuple[str, Pair | None]]] = field(default_factory=dict)
    num_tensors: int = 0
    left_out: list[str] = field(default_factory=list)

    @property
    def note(self) -> str:
        """What there is to say of it; "" if all is used."""
        if not self.left_out:
            return ""
        kinds = ", ".join(sorted({kind for name in self.left_out for kind in OF_IMAGES.findall(name)[:1]}))
        return (
            f"model.loras: {self.path}: {len(self.left_out)} of {self.num_tensors} tensors have no place in this model"
            f" and are left out ({kinds})"
        )


class _Targets:
    """The transformer's tensors by the names that tools have for their layers."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensor_of: dict[tuple[str, str], str] = {}  # by layer, and what of it
        for name in tensors:
            for form in (name, wan_name(name)):
                layer, _, kind = form.rpartition(".")
                if kind in ("weight", "bias"):
                    self._add(layer, kind, name)
                    continue
                self._add(form, "weight", name)  # a parameter that is no layer's
                if kind in ("modulation", "scale_shift_table"):
                    self._add(layer, "modulation", name)

    def _add(self, layer: str, kind: str, name: str) -> None:
        for alias in (layer, layer.replace(".", "_")):
            self._tensor_of[alias, kind] = name

    def find(self, layer: str, part: str) -> str | None:
        """The tensor that a part of a LoRA is for."""
        kind = {"diff_b": "bias", "up_bias": "bias", "diff_m": "modulation"}.get(part, "weight")
        return self._tensor_of.get((layer, kind))


def read_lora(path: Path, tensors: Mapping[str, Tensor]) -> LoraFile:
    """What a file changes in a transformer with these tensors.

    Raises InputError, naming the file, if it cannot be read, is of another model, or holds what cannot be applied.
    """
    held, metadata = read_header(path, key="model.loras")
    lora = LoraFile(path, num_tensors=len(held))
    targets, layers = _Targets(tensors), {}
    parts: dict[str, dict[str, str]] = {}  # of each target, the names of its tensors
    sees_images = any(map(OF_IMAGES.search, tensors))
    for name in sorted(held):
        part, layer = _part_of(path, name)
        target = targets.find(layer, part)
        if target is None:
            if sees_images or not OF_IMAGES.search(layer):
                raise _refusal(path, f"it has no layer {layer}, which {name} is for")
            lora.left_out.append(name)
            continue
        of_target = parts.setdefault(target, {})
        if part in of_target:
            raise _refusal(path, f"{of_target[part]} and {name} are both for {target}")
        if part != "alpha" and held[name].dtype not in FLOATS:
            raise _refusal(path, f"{name} is in {held[name].dtype}; it must be in F32, F16 or BF16")
        of_target[part], layers[target] = name, layer
    if not parts:
        raise _refusal(path, f"none of its {len(held)} tensors is for a layer that the model has")
    settings = _read_settings(path, metadata)
    for target, names in parts.items():
        pair = _pair(path, held, names, tensors[target], settings, layers[target])
        if pair is not None:
            lora.pairs[target] = pair
        _add_differences(lora, held, names, target, tensors[target])
    for target, names in parts.items():
        if "up_bias" in names:
            weight = targets.find(layers[target], "up")
            if weight not in lora.pairs:
                raise _refusal(path, f"{names['up_bias']} has no pair of low-rank weights")
            lora.differences.setdefault(target, []).append((names["up_bias"], lora.pairs[weight]))
    return lora


def _part_of(path: Path, name: str) -> tuple[str, str]:
    """What a tensor of a LoRA is, and the name of its layer without what tools put before it."""
    if DORA.search(name):
        raise _refusal(
            path, f"{name} makes it a DoRA, which scales whole weights anew; merge it into the model's weights"
        )
    for part, pattern in PARTS.items():
        if match := pattern.fullmatch(name):
            return part, PREFIX.sub("", match[1], count=1)
    known = "low-rank pairs (lora_A and lora_B, lora_down and lora_up, alpha) and differences (diff, diff_b, diff_m)"
    raise _refusal(path, f"{name} is of a kind that is not supported; {known} are")


def _pair(
    path: Path, held: Mapping[str, Tensor], names: Mapping[str, str], weight: Tensor, settings: Settings, layer: str
) -> Pair | None:
    """The low-rank change of a weight; None if there is none."""
    given = names.keys() & {"down", "up", "alpha"}
    if not given:
        return None
    if not given >= {"down", "up"}:
        raise _refusal(path, f"{names[min(given)]} has no counterpart: a pair of low-rank weights is not complete")
    down, up = (held[names[part]].shape for part in ("down", "up"))
    fits = len(down) >= 2 and len(up) >= 2 and math.prod(up[2:]) == 1 and up[1] == down[0] > 0
    if not fits or (up[0], math.prod(down[1:])) != (weight.shape[0], math.prod(weight.shape[1:])):
        raise _refusal(path, f"{names['down']} and {names['up']} of {down} and {up} do not make up {weight.shape}")
    if "alpha" in names and held[names["alpha"]].size != 1:
        raise _refusal(path, f"{names['alpha']} must be one number; it has the shape {held[names['alpha']].shape}")
    return Pair(names["down"], names["up"], names.get("alpha"), settings.factor(layer, down[0]), down[0])


def _add_differences(
    lora: LoraFile, held: Mapping[str, Tensor], names: Mapping[str, str], target: str, tensor: Tensor
) -> None:
    for part in ("diff", "diff_b", "diff_m", "up_bias"):
        if part not in names:
            continue
        if held[names[part]].shape != tensor.shape:
            raise _refusal(lora.path, f"{names[part]} is of {held[names[part]].shape}, {target} of {tensor.shape}")
        if part != "up_bias":
            lora.differences.setdefault(target, []).append((names[part], None))


def _read_settings(path: Path, metadata: Mapping[str, str]) -> Settings:
    """What diffusers writes into the file and PEFT beside it."""
    try:
        found = json.loads(metadata.get("lora_adapter_metadata", "{}"))
        found = {name.removeprefix("transformer."): value for name, value in found.items()}
        beside = config_beside(path)
        if not found and beside is not None:
            found = json.loads(beside.read_text())
        alpha, patterns = found.get("lora_alpha"), found.get("alpha_pattern") or {}
        settings = Settings(
            None if alpha is None else float(alpha),
            {_compiled(pattern): float(alpha) for pattern, alpha in patterns.items()},
            bool(found.get("use_rslora")),
        )
        if not all(map(math.isfinite, (settings.alpha or 0.0, *settings.alpha_of.values()))):
            raise ValueError("an alpha is not finite")
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError, re.error) as error:
        raise _refusal(path, f"the settings of its adapter cannot be read ({error})") from None
    if found.get("use_dora"):
        raise _refusal(path, "its settings make it a DoRA (use_dora); merge it into the model's weights")
    return settings


def _compiled(pattern: str) -> re.Pattern[str]:
    """As PEFT matches names of layers with it; raises ValueError for what might take for ever, as `(a+)+` does."""
    choices = pattern.split("|")
    repeated = max(len(REPEATED.findall(choice)) for choice in choices)
    if SLOW.search(pattern) or repeated > MAX_REPEATED or len(choices) > MAX_CHOICES:
        raise ValueError(f"alpha_pattern {pattern[:60]!r} may take too long to match")
    return re.compile(rf"(.*\.)?({pattern})$")


def config_beside(path: Path) -> Path | None:
    """PEFT's settings of the adapter that a file holds, if it is one that PEFT has saved."""
    beside = path.with_name("adapter_config.json")
    return beside if path.name == "adapter_model.safetensors" and beside.is_file() else None


def _refusal(path: Path, reason: str) -> InputError:
    return InputError(f"model.loras: {path} does not fit this model: {reason}.")
