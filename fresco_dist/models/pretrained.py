"""Models of transformers in a directory of the user's: an encoder to measure by, a segmenter.

Local safetensors alone; nothing is downloaded, no code of theirs is run. Every complaint names the configuration key.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from fresco_dist.config import InputError
from fresco_dist.models.checkpoint import read_json
from fresco_dist.models.places import TRANSFORMERS
from fresco_dist.models.weights import SCALES, find_weights, held_in

if TYPE_CHECKING:
    import transformers


def has_weights_of(path: Path, key: str, *model_types: str) -> bool:
    """Whether a directory names itself a model of one of these types, and has weights."""
    kind = read_json(path / "config.json", key=key, missing_ok=True).get("model_type")
    return kind in model_types and any(path.glob("*.safetensors"))


def find_variant(path: Path, key: str) -> str | None:
    """The variant of the weights that is loaded, see `find_weights`; raises InputError if they are quantised."""
    variant, file = find_weights(path, TRANSFORMERS, key)
    scales = sorted(filter(SCALES.fullmatch, held_in(file, key)))
    if scales:
        raise InputError(f"{key}: {file} has {scales[0]}: quantised weights are not read here. Use plain ones.")
    return variant


def load_pretrained(name: str, path: Path, key: str) -> "transformers.PreTrainedModel":
    """The model in `path`, of the class of that name, float32 on the CPU; raises InputError if it cannot be had."""
    import transformers

    try:
        model, info = getattr(transformers, name).from_pretrained(
            path, variant=find_variant(path, key), use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{key}: {path} cannot be loaded: {' '.join(str(error).split())}") from error
    if info["missing_keys"] or info["mismatched_keys"]:
        raise InputError(f"{key}: {path} lacks tensors of the model. Copy it again.")
    return model.eval().float()
