"""Model directories in diffusers format: read their configuration and find what is missing or cut off, cheaply.

Reads JSON and safetensors headers only. Every complaint is an InputError that names the file.
"""

import ast
import inspect
import json
import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fresco_dist.config import InputError, ModelConfig


def read_json(path: Path, *required: str) -> dict:
    """The JSON object in `path`, which must have the keys `required`."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"model.path: {path} is missing. Give a complete directory in diffusers format.") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"model.path: {path} cannot be read as JSON ({error}). Copy the model again.") from None
    missing = [key for key in required if key not in value] if isinstance(value, dict) else ["a JSON object"]
    if missing:
        raise InputError(f"model.path: {path} lacks {', '.join(missing)}. Copy the model again.")
    return value


def safetensors_names(path: Path) -> list[str]:
    """Names of the tensors in a safetensors file that `check_safetensors` has accepted."""
    with path.open("rb") as file:
        (header_bytes,) = struct.unpack("<Q", file.read(8))
        return [name for name in json.loads(file.read(header_bytes)) if name != "__metadata__"]


def check_safetensors(path: Path, key: str = "model.path") -> int:
    """Number of parameters in a safetensors file; raises InputError if its header or its length is wrong.

    `key` is the configuration key to blame.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (header_bytes,) = struct.unpack("<Q", file.read(8))
            if header_bytes > size:
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(header_bytes))
        entries = [entry for name, entry in header.items() if name != "__metadata__"]
        end = max((entry["data_offsets"][1] for entry in entries), default=0)
        num_parameters = sum(math.prod(entry["shape"]) for entry in entries)
    except FileNotFoundError:
        raise InputError(f"{key}: {path} is missing. Copy the file again.") from None
    except (OSError, struct.error, ValueError, AttributeError, LookupError, TypeError) as error:
        raise InputError(f"{key}: {path} is not a safetensors file ({error}). Copy the file again.") from None
    if 8 + header_bytes + end != size:
        raise InputError(
            f"{key}: {path} is damaged: {size} bytes instead of {8 + header_bytes + end}. Copy the file again."
        )
    return num_parameters


def check_weights(folder: Path) -> int:
    """Number of parameters of one component, single file or sharded by an index."""
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if indices:
        names = set(read_json(indices[0]).get("weight_map", {}).values())
    else:
        names = {path.name for path in folder.glob("*.safetensors")}
    if not names:
        raise InputError(f"model.path: {folder} has no .safetensors file. Other weight formats are not loaded.")
    return sum(check_safetensors(folder / name) for name in sorted(names))


@contextmanager
def loading(folder: Path) -> Iterator[None]:
    """What goes wrong meanwhile is an InputError that names the folder."""
    try:
        yield
    except Exception as error:  # libraries raise whatever they stumble over
        reason = " ".join(str(error).split())
        raise InputError(f"model.path: {folder} cannot be loaded: {type(error).__name__}: {reason}") from error


def load_component(component: Any, folder: Path, **options: Any) -> Any:
    """`component.from_pretrained` of one folder; raises InputError unless every tensor is there in its shape."""
    with loading(folder):
        model, info = component.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True, **options
        )
    wrong = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if wrong:
        raise InputError(
            f"model.path: {folder} lacks {len(wrong)} of its tensors or has them in another shape, {wrong[0]} first."
            " Copy the model again."
        )
    return model.eval()


def defaults_of(module: str, name: str) -> dict[str, Any]:
    """The defaults of the constructor of a class of diffusers, which configuration files may leave out.

    They are read from the source of `diffusers.module`, since importing it takes seconds and planning needs no more of
    it. Where that does not tell, the class is imported.
    """
    diffusers = find_spec("diffusers")
    assert diffusers is not None and diffusers.origin is not None
    try:
        return _defaults_in(Path(diffusers.origin).parent.joinpath(*module.split(".")), name)
    except (OSError, SyntaxError, LookupError, ValueError):
        parameters = inspect.signature(getattr(import_module("diffusers"), name).__init__).parameters.values()
        return {p.name: p.default for p in parameters if p.default is not p.empty}


def _defaults_in(path: Path, name: str) -> dict[str, Any]:
    """Raises OSError, SyntaxError, LookupError or ValueError where the class or a literal is not as expected."""
    tree = ast.parse(path.with_suffix(".py").read_text())
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    init = {node.name: node.args for node in classes[name].body if isinstance(node, ast.FunctionDef)}["__init__"]
    pairs = [*zip(reversed(init.args), reversed(init.defaults)), *zip(init.kwonlyargs, init.kw_defaults)]
    return {argument.arg: ast.literal_eval(default) for argument, default in pairs if default is not None}


def model_path(model: ModelConfig) -> Path:
    """The model's directory; null is the embedded model."""
    if model.path is None:
        return Path(__file__).parent.parent / "assets" / "fresco_tiny"
    return Path(model.path).expanduser()
