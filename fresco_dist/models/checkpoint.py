"""Model directories in diffusers format: where they are and what their configuration files say.

Reads JSON only. Every complaint is an InputError that names the file.
"""

import ast
import inspect
import json
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fresco_dist.config import InputError, ModelConfig, expanded


def read_json(path: Path, *required: str, key: str = "model.path", missing_ok: bool = False) -> dict[str, Any]:
    """The JSON object in `path`, which must have the keys `required`; {} if it is missing and may be.

    `key` is the configuration key to blame.
    """
    if missing_ok and not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{key}: {path} is missing. Give a complete directory in diffusers format.") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{key}: {path} cannot be read as JSON ({error}). Copy the model again.") from None
    missing = [name for name in required if name not in value] if isinstance(value, dict) else ["a JSON object"]
    if missing:
        raise InputError(f"{key}: {path} lacks {', '.join(missing)}. Copy the model again.")
    return value


def defaults_of(module: str, name: str) -> dict[str, Any]:
    """The defaults of the constructor of a class of diffusers, which configuration files may leave out.

    They are read from the source of `diffusers.module`, since importing it takes seconds and planning needs no more of
    it. Where that does not tell, the class is imported.
    """
    try:
        diffusers = find_spec("diffusers")
        assert diffusers is not None and diffusers.origin is not None
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
    return expanded(model.path)
