"""Model directories in diffusers format: read their configuration and find what is missing or cut off, cheaply.

Reads JSON and safetensors headers only. Every complaint is an InputError that names the file.
"""

import json
import struct
from pathlib import Path

from fresco_dist.config import InputError


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


def check_safetensors(path: Path) -> int:
    """Bytes of tensor data in a safetensors file; raises InputError if its header or its length is wrong."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (header_bytes,) = struct.unpack("<Q", file.read(8))
            if header_bytes > size:
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(header_bytes))
        end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    except FileNotFoundError:
        raise InputError(f"model.path: {path} is missing. Copy the model again.") from None
    except (OSError, struct.error, ValueError, AttributeError, LookupError, TypeError) as error:
        raise InputError(f"model.path: {path} is not a safetensors file ({error}). Copy the model again.") from None
    if 8 + header_bytes + end != size:
        raise InputError(
            f"model.path: {path} is damaged: {size} bytes instead of {8 + header_bytes + end}. Copy the model again."
        )
    return end


def check_weights(folder: Path) -> int:
    """Bytes of tensor data of one component, single file or sharded by an index."""
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if indices:
        names = set(read_json(indices[0]).get("weight_map", {}).values())
    else:
        names = {path.name for path in folder.glob("*.safetensors")}
    if not names:
        raise InputError(f"model.path: {folder} has no .safetensors file. Other weight formats are not loaded.")
    return sum(check_safetensors(folder / name) for name in sorted(names))
