"""Components of a model from their folders: every tensor in its place and scaled, or an InputError that names it.

Local safetensors alone; no code of a model's is run.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import safe_open

from fresco_dist.config import InputError
from fresco_dist.models.places import Places
from fresco_dist.models.weights import Weights, block_of, is_companion, read_weights


@contextmanager
def loading(folder: Path) -> Iterator[None]:
    """What goes wrong meanwhile is an InputError that names the folder; one that is not there is looked for nowhere."""
    try:
        if not folder.is_dir():  # libraries take its path for a name on the hub
            raise FileNotFoundError("no such folder")
        yield
    except Exception as error:  # libraries raise whatever they stumble over
        reason = " ".join(str(error).split())
        raise InputError(f"model.path: {folder} cannot be loaded: {type(error).__name__}: {reason}") from error


def load_component(component: Any, folder: Path, places: Places, **options: Any) -> Any:
    """`component.from_pretrained` of one folder, on the CPU, its float8 weights multiplied by their scales.

    Raises InputError unless every tensor is there in its shape, and no other one.
    """
    weights = read_weights(folder, places)
    with loading(folder):
        if weights.are_renamed:
            model, info = _load_renamed(component, folder, weights, **options)
        else:
            model, info = component.from_pretrained(
                folder,
                variant=weights.variant,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                **options,
            )
    wrong = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if wrong:
        raise InputError(
            f"model.path: {folder} lacks {len(wrong)} of its tensors or has them in another shape, {wrong[0]} first."
            " Copy the model again."
        )
    extra = sorted(name for name in info["unexpected_keys"] if not is_companion(name))
    if extra:
        raise InputError(
            f"model.path: {folder} has {len(extra)} tensors that have no place in the model, {extra[0]} first."
            " Take it out, or copy the model again."
        )
    with loading(folder):
        scale_(model, weights)
    return model.eval()


def _load_renamed(
    component: Any, folder: Path, weights: Weights, *, torch_dtype: torch.dtype
) -> tuple[torch.nn.Module, dict[str, list[str]]]:
    """What `from_pretrained` of a class of diffusers makes of files with the model's names of their tensors."""
    with init_empty_weights():
        model = component.from_config(component.load_config(folder))
    expected, kept = model.state_dict(), component._keep_in_fp32_modules or ()
    found: dict[str, torch.Tensor] = {}
    mismatched = []
    for path in sorted(set(map(weights.file_of.__getitem__, weights.tensors))):
        with safe_open(path, framework="pt") as file:
            for name in (name for name in weights.tensors if weights.file_of[name] == path and name in expected):
                tensor = file.get_tensor(weights.held_as[name])
                if tensor.shape == expected[name].shape:
                    found[name] = tensor.to(torch.float32 if set(kept).intersection(name.split(".")) else torch_dtype)
                else:
                    mismatched.append(name)
    model.load_state_dict(found, strict=False, assign=True)
    missing, unexpected = expected.keys() - found.keys(), weights.tensors.keys() - expected.keys()
    return model, {"missing_keys": missing, "mismatched_keys": mismatched, "unexpected_keys": unexpected}


@torch.no_grad()
def scale_(model: torch.nn.Module, weights: Weights) -> None:
    """Multiply the weights that have scales by these, in place; in float32, so that they are rounded once."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    scaled: set[int] = set()  # tied ones, which files may hold twice
    for name, scale_name in weights.scales.items():
        parameter = parameters[next(place for place in _suffixes(name) if place in parameters)]
        if id(parameter) in scaled:
            continue
        scaled.add(id(parameter))
        with safe_open(weights.file_of[scale_name], framework="pt") as file:
            scale = file.get_tensor(scale_name).float()
        parameter.copy_(parameter.float() * spread(scale, tuple(parameter.shape)))


def spread(scale: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The scales of a weight's blocks, see `block_of`, in a form that multiplies a weight of this shape."""
    if scale.numel() == 1:
        return scale.reshape(())
    block = block_of(shape, scale.shape)
    assert block is not None, "refused before it was read"
    scale = scale.reshape(*scale.shape, *(1,) * (len(shape) - scale.dim()))
    for dim, side in enumerate(block):
        if scale.shape[dim] > 1:
            scale = scale.repeat_interleave(side, dim).narrow(dim, 0, shape[dim])
    return scale


def _suffixes(name: str) -> Iterator[str]:
    """A name and what is left of it without its first words: libraries drop some, as `vision_model`."""
    while name:
        yield name
        _, _, name = name.partition(".")
