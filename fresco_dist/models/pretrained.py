"""Models of transformers in a directory of the user's: an encoder to measure by, a segmenter.

Local safetensors alone; nothing is downloaded, no code of theirs is run. Every complaint names the configuration key.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from fresco_dist.config import InputError

if TYPE_CHECKING:
    import transformers


def read_json(path: Path, key: str) -> dict[str, Any]:
    """The JSON object in a file, {} if it is none or there is no file; raises InputError if it cannot be read."""
    try:
        value = json.loads(path.read_text()) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise InputError(f"{key}: {path} cannot be read as JSON ({error}). Copy the model again.") from None
    return value if isinstance(value, dict) else {}


def has_weights_of(path: Path, key: str, *model_types: str) -> bool:
    """Whether a directory names itself a model of one of these types, and has weights."""
    kind = read_json(path / "config.json", key).get("model_type")
    return kind in model_types and any(path.glob("*.safetensors"))


def load_pretrained(name: str, path: Path, key: str) -> "transformers.PreTrainedModel":
    """The model in `path`, of the class of that name, float32 on the CPU; raises InputError if it cannot be had."""
    import transformers

    try:
        model, info = getattr(transformers, name).from_pretrained(
            path, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{key}: {path} cannot be loaded: {' '.join(str(error).split())}") from error
    if info["missing_keys"] or info["mismatched_keys"]:
        raise InputError(f"{key}: {path} lacks tensors of the model. Copy it again.")
    return model.eval().float()
