"""The weights of one component of a model, by their safetensors headers: which files are loaded and what is in them.

Reads no tensor and imports no library that could. What a file holds beside the model's tensors is either for them, as
the scales of float8 weights are, or an error. Every complaint is an InputError that names key, file and tensor.
"""

import json
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from fresco_dist.config import InputError, require
from fresco_dist.models.checkpoint import read_json
from fresco_dist.models.places import Places

MAX_HEADER_BYTES = 100_000_000  # as in safetensors; that of a damaged file may be said to be of any length
FLOAT8 = ("F8_E4M3", "F8_E5M2")
FLOATS = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8} | dict.fromkeys(FLOAT8, 1)  # with bytes of an element
# Beside LAYER.weight in float8, each multiplies it: ComfyUI's, compressed-tensors', DeepSeek's (in spite of its name)
SCALES = re.compile(r"(.+)\.(scale_weight|weight_scale|weight_scale_inv)")
# They concern products of float8 matrices alone, for which activations are rounded too, or say what is in the file
FLOAT8_ALONE = re.compile(r"(.+\.)?(scale_input|input_scale|activation_scale|comfy_quant|scaled_fp8)")
UNUSED = re.compile(r".+\.(position_ids|norm_added_q\.weight)")  # saved by older libraries, used by no model
SCALED_BLOCK = 128  # side of the blocks that have a scale each where they do not divide the weight evenly


@dataclass(frozen=True)
class Tensor:
    """An entry of a safetensors header; the dtype as it is spelt there."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)


@dataclass(frozen=True)
class Weights:
    """What is loaded of a folder: the tensors of the model by name, and the names of the scales of those that have one.

    `variant` is what stands in the files' names before the suffix, as `fp16`; None for those without. Where `held_as`
    has another name than the model for a tensor, that is the file's.
    """

    variant: str | None
    tensors: Mapping[str, Tensor]
    scales: Mapping[str, str] = field(default_factory=dict)
    file_of: Mapping[str, Path] = field(default_factory=dict)  # of a tensor or a scale
    held_as: Mapping[str, str] = field(default_factory=dict)

    @property
    def are_renamed(self) -> bool:
        """Whether the library that has the model's class would not find its tensors by their names."""
        return any(name != held for name, held in self.held_as.items())

    @property
    def num_parameters(self) -> int:
        return sum(tensor.size for tensor in self.tensors.values())


def read_header(path: Path, key: str = "model.path") -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file and its metadata; raises InputError if its header or its length is wrong.

    `key` is the configuration key to blame.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            prefix, header = split_header(file)
        metadata = header.pop("__metadata__", None) or {}
        tensors = {name: Tensor(entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()}
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        for name, tensor in tensors.items():
            begin, until = header[name]["data_offsets"]
            if until - begin != tensor.size * FLOATS.get(tensor.dtype, (until - begin) / max(tensor.size, 1)):
                raise ValueError(f"{name} has {until - begin} bytes for {tensor.size} of {tensor.dtype}")
    except FileNotFoundError:
        raise InputError(f"{key}: {path} is missing. Copy the file again.") from None
    except (OSError, ValueError, AttributeError, LookupError, TypeError) as error:
        raise InputError(f"{key}: {path} is not a safetensors file ({error}). Copy the file again.") from None
    if len(prefix) + end != size:
        raise InputError(f"{key}: {path} is damaged: {size} bytes instead of {len(prefix) + end}. Copy the file again.")
    return tensors, metadata


def split_header(file: BinaryIO) -> tuple[bytes, Any]:
    """What a safetensors file has before its tensors, and the JSON in it; raises ValueError for another file."""
    size = file.read(8)
    num_bytes = int.from_bytes(size, "little")
    if num_bytes > MAX_HEADER_BYTES:
        raise ValueError(f"its header is longer than {MAX_HEADER_BYTES} bytes")
    header = file.read(num_bytes)
    return size + header, json.loads(header)


def find_weights(folder: Path, stem: str, key: str = "model.path") -> tuple[str | None, Path]:
    """The variant of a folder that is loaded, and its file or the index of its shards.

    That without a variant, else the only one. Raises InputError if there is none, or if there are several.
    """
    index = re.compile(rf"{stem}\.safetensors(?:\.([^.]+))?\.index(?:\.(.+))?\.json")
    single = re.compile(rf"{stem}(?:\.(.+))?\.safetensors")
    found: dict[str | None, Path] = {}
    for path in sorted(folder.glob(f"{stem}*")):
        if match := index.fullmatch(path.name):
            found[match[1] or match[2]] = path
    for path in sorted(folder.glob("*.safetensors")):
        match = single.fullmatch(path.name)
        if match and not re.search(r"-\d+-of-\d+(\.|$)", path.stem):
            # Where there are shards too, transformers takes the single file, diffusers the shards
            found = found | {match[1]: path} if stem == "model" else {match[1]: path} | found
    if None in found or len(found) == 1:
        variant = None if None in found else next(iter(found))
        return variant, found[variant]
    if found:
        names = ", ".join(sorted(str(variant) for variant in found))
        raise InputError(
            f"{key}: {folder} has several variants and none without: {names}. Rename one to {stem}.safetensors."
        )
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if not others:
        raise InputError(f"{key}: {folder} has no .safetensors file. Other weight formats are not loaded.")
    raise InputError(
        f"{key}: {folder} must have {stem}.safetensors, or shards and {stem}.safetensors.index.json; got {others[0]}."
        " Rename or copy the files."
    )


def unread_files(folder: Path) -> set[Path]:
    """Weights of a folder that are not loaded, as other variants than the one that is; none in doubt."""
    unread: set[Path] = set()
    for stem in ("diffusion_pytorch_model", "model"):
        try:
            _, path = find_weights(folder, stem)
            files = {path, *_shards(path)}
        except InputError:
            continue
        unread |= {file for file in folder.glob(f"{stem}*") if "safetensors" in file.name} - files
    return unread


def read_weights(folder: Path, places: Places, num_blocks: int | None = None, key: str = "model.path") -> Weights:
    """What is loaded of a component's folder; raises InputError for what has no place in it.

    `places` are what its class has, with so many blocks.
    """
    variant, path = find_weights(folder, places.stem, key)
    config = read_json(folder / "config.json", key=key, missing_ok=True)
    if method := config.get("quantization_config"):
        name = method.get("quant_method", "unnamed") if isinstance(method, dict) else method
        raise InputError(
            f"{key}: {folder / 'config.json'} has a quantization_config ({name}), which is not supported. Take it out"
            " if the weights are plain, or float8 with scales beside them."
        )
    entries = held_in(path, key)
    tensors = {name: tensor for name, (tensor, _) in entries.items()}
    weights = _renamed(
        _sort_out(variant, tensors, {name: file for name, (_, file) in entries.items()}, key), places, key
    )
    _check_places(folder, weights, places, num_blocks, key)
    return weights


def held_in(path: Path, key: str) -> dict[str, tuple[Tensor, Path]]:
    """All tensors of a file, or of the shards an index lists, and where each is; raises InputError for a bad one."""
    found: dict[str, tuple[Tensor, Path]] = {}
    for file in _shards(path, key) or [path]:
        held, _ = read_header(file, key)
        if twice := sorted(held.keys() & found.keys()):
            raise InputError(f"{key}: {file} and {found[twice[0]][1].name} both have {twice[0]}. Copy the model again.")
        found |= {name: (tensor, file) for name, tensor in held.items()}
    for name, file in (read_json(path, key=key)["weight_map"] if path.suffix == ".json" else {}).items():
        if name not in found or found[name][1].name != file:
            raise InputError(
                f"{key}: {path.parent / file} lacks {name}, which {path.name} lists. Copy the model again."
            )
    return found


def _shards(path: Path, key: str = "model.path") -> list[Path]:
    """The files that an index lists; none of what is no index."""
    if path.suffix != ".json":
        return []
    listed = read_json(path, "weight_map", key=key)["weight_map"]
    names = set(listed.values()) if isinstance(listed, dict) else set()
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise InputError(f"{key}: {path} lists no files of this folder in weight_map. Copy the model again.")
    return [path.parent / name for name in sorted(names)]


def _sort_out(variant: str | None, tensors: Mapping[str, Tensor], file_of: Mapping[str, Path], key: str) -> Weights:
    """Weights and their scales, of all that files hold."""
    scale_of: dict[str, str] = {}
    own = {name: tensor for name, tensor in tensors.items() if not is_companion(name)}
    for name in tensors.keys() - own.keys():
        if match := SCALES.fullmatch(name):
            weight = f"{match[1]}.weight"
            _check_scale(file_of[name], name, weight, tensors, key)
            if weight in scale_of:
                raise InputError(f"{key}: {file_of[name]}: {weight} has two scales, {name} and {scale_of[weight]}.")
            scale_of[weight] = name
    for name, tensor in sorted(own.items()):
        if tensor.dtype not in FLOATS:
            raise InputError(
                f"{key}: {file_of[name]} has {name} as {tensor.dtype}: of quantised weights only float8 ones are read."
                f" Use weights in F32, F16 or BF16."
            )
        if scale_of and tensor.dtype in FLOAT8 and name not in scale_of:
            raise InputError(
                f"{key}: {file_of[name]} has scales for {len(scale_of)} float8 weights and none for {name}."
                " Copy the model again."
            )
    return Weights(variant, own, scale_of, file_of)


def _renamed(weights: Weights, places: Places, key: str) -> Weights:
    """With the model's names of what a tool has saved under its own."""
    held_as: dict[str, str] = {}
    for held in weights.tensors:
        name = places.name_of(held)
        if name in held_as:
            raise InputError(
                f"{key}: {weights.file_of[held]}: {held_as[name]} and {held} are both {name} of the model."
            )
        held_as[name] = held
    return replace(
        weights,
        tensors={name: weights.tensors[held] for name, held in held_as.items()},
        scales={name: weights.scales[held] for name, held in held_as.items() if held in weights.scales},
        file_of={**weights.file_of, **{name: weights.file_of[held] for name, held in held_as.items()}},
        held_as=held_as,
    )


def is_companion(name: str) -> bool:
    """Whether a tensor is no weight of the model but a scale, a marker or a left-over."""
    return any(pattern.fullmatch(name) for pattern in (SCALES, FLOAT8_ALONE, UNUSED))


def _check_scale(file: Path, name: str, weight: str, tensors: Mapping[str, Tensor], key: str) -> None:
    if weight not in tensors:
        raise InputError(f"{key}: {file} has {name}, but no {weight} that it could scale. Copy the model again.")
    scaled, scale = tensors[weight], tensors[name]
    if scaled.dtype not in FLOAT8:
        raise InputError(
            f"{key}: {file} has {name} beside {weight} in {scaled.dtype}, which needs no scale: only float8 weights are"
            " read with one. Take the scales out if the weights have been multiplied."
        )
    if scale.dtype not in FLOATS or block_of(scaled.shape, scale.shape) is None:
        raise InputError(
            f"{key}: {file} has {name} of shape {scale.shape} ({scale.dtype}) for {weight} of shape {scaled.shape};"
            " it must be one number, one per row, or one per block."
        )


def block_of(weight: Collection[int], scale: Collection[int]) -> tuple[int, ...] | None:
    """The sides of the blocks of a weight's shape that have a scale each; None if these cannot be told.

    One number scales all, a vector the rows; else the blocks are of 128, or divide every side evenly.
    """
    weight, scale = tuple(weight), tuple(scale)
    if prod(scale) == 1:
        return weight
    if len(scale) == 1:
        scale += (1,) * (len(weight) - 1)
    if len(scale) != len(weight):
        return None
    if all(-(-side // SCALED_BLOCK) == count for side, count in zip(weight, scale)):
        return tuple(min(side, SCALED_BLOCK) for side in weight)
    if any(count == 0 or side % count for side, count in zip(weight, scale)):
        return None
    return tuple(side // count for side, count in zip(weight, scale))


def _check_places(folder: Path, weights: Weights, places: Places, num_blocks: int | None, key: str) -> None:
    """Raise InputError for a tensor whose name the component's class does not make, and for blocks too few or many."""
    for name in sorted(weights.tensors):
        strange = [word for word in name.split(".") if not word.isdigit() and word not in places.words]
        if strange:
            raise InputError(
                f"{key}: {weights.file_of[name]} has {weights.held_as[name]}, which has no place in the model"
                f" ({strange[0]}). Take it out, or copy the model again."
            )
    if num_blocks is not None:
        matches = (re.search(rf"(?:^|\.){places.blocks}\.(\d+)\.", name) for name in weights.tensors)
        held = {int(match[1]) for match in matches if match}
        wanted = f"{num_blocks} of {folder.name}/config.json"
        require(held == set(range(num_blocks)), f"{key}: {folder}: blocks", len(held), wanted, "Copy the model again.")
