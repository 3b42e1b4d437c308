"""What decides the bits of a model's predictions, in one digest that takes no second, however large the model is.

Of a large file it has the size, a safetensors header, the beginning of every tensor, and blocks spread evenly from the
first to the last. So it sees a tensor that has changed as a whole, however small, and a change as long as the distance
between two blocks. It does not see a shorter one inside a tensor of a file whose size and header are as before, as of
weights edited by hand: then add a key to the `__metadata__` of that file, or drop what was stored for the model. Where
a model lies, what the files of its adapters are called, and when a file was written do not count: a copy is the same
model.
"""

import hashlib
import json
import os
import struct
from glob import iglob
from pathlib import Path
from typing import Any, BinaryIO

from fresco_dist.config import InputError, ModelConfig, expanded
from fresco_dist.models.checkpoint import model_path
from fresco_dist.models.wan.lora_file import config_beside
from fresco_dist.models.weights import split_header, unread_files

BLOCK, NUM_BLOCKS, WHOLE = 4096, 64, 2**20  # bytes of a block; blocks of a file; bytes up to which all of it is read
# No loader reads these. In doubt a file counts: at worst something is computed once more.
UNREAD_NAMES = {"readme", "license", "notice"}
UNREAD_PICTURES = {".png", ".jpg", ".jpeg", ".gif", ".webp", ".svg", ".mp4", ".pdf"}
UNREAD_WEIGHTS = {".bin", ".ckpt", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".onnx_data"}  # safetensors alone are
UNREAD = {".md", ".lock", ".py", *UNREAD_PICTURES, *UNREAD_WEIGHTS}


def fingerprint(model: ModelConfig) -> str:
    """SHA-256 (hex) of a model's files, its low-rank weights in order, and the keys that change what they compute.

    Raises InputError for a file that cannot be read. What attention, device and versions do to bits is not in it.
    """
    decides: dict[str, Any] = {
        "backbone": model.backbone,
        "dtype": model.dtype.value,
        "vae_dtype": model.vae_dtype.value,
        "quantization": model.quantization and model.quantization.value,
        "compile": model.compile,
        "fuse_loras": bool(model.loras) and model.fuse_loras,
    }
    if model.backbone != "synthetic":  # which has no files
        decides["files"] = _digest_files(model_path(model), "model.path")
    decides["loras"] = [
        [*_digest_lora(expanded(lora.path)), float(lora.weight), lora.expert and lora.expert.value]
        for lora in model.loras
    ]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def _digest_lora(path: Path) -> list[str]:
    """Of the file, and of the settings that PEFT has saved beside it."""
    return [_digest(each, "model.loras") for each in (path, config_beside(path)) if each is not None]


def digest_folder(folder: Path, key: str) -> str:
    """SHA-256 (hex) of the files of a model, which `key` is the configuration key of."""
    return hashlib.sha256(json.dumps(_digest_files(folder, key), sort_keys=True).encode()).hexdigest()


def _digest_files(folder: Path, key: str) -> dict[str, str]:
    return {name: _digest(folder / name, key) for name in _names(folder, key)}


def _names(folder: Path, key: str) -> list[str]:
    """The files of a model that may be read, by relative name; links are followed, hidden files left out.

    Of variants of weights, and of shards and a single file, those that are loaded.
    """
    names = [name for name in iglob("**", root_dir=folder, recursive=True) if (folder / name).is_file()]
    if not names:
        raise InputError(f"{key} must be a directory with a model; got {folder}, which has no files.")
    unread = set().union(*(unread_files(parent) for parent in {(folder / name).parent for name in names}))
    return sorted(
        Path(name).as_posix()
        for name in names
        if folder / name not in unread
        and Path(name).suffix.lower() not in UNREAD
        and Path(name).stem.lower() not in UNREAD_NAMES
    )


def _digest(path: Path, key: str) -> str:
    """Of a file's size, and of all of it or of what is looked at; `key` is the configuration key to blame."""
    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            if hasattr(os, "posix_fadvise"):  # or the system reads far ahead of each block
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            size = os.fstat(file.fileno()).st_size
            digest.update(struct.pack("<Q", size))
            if size <= WHOLE:
                digest.update(file.read())
                return digest.hexdigest()
            header, starts = _read_header(file) if path.suffix == ".safetensors" else (b"", set())
            digest.update(header)
            span = size - BLOCK - len(header)
            starts |= {len(header) + span * i // (NUM_BLOCKS - 1) for i in range(NUM_BLOCKS)}
            for start in sorted(starts):
                file.seek(start)
                digest.update(file.read(BLOCK))
                _forget(file, start)
    except OSError as error:
        raise InputError(f"{key}: {path} cannot be read ({error}). Copy the file again.") from None
    return digest.hexdigest()


def _forget(file: BinaryIO, start: int) -> None:
    """Have the system forget a block.

    Else whoever maps the file finds each tensor's beginning in memory, and the rest is read by the first forward alone.
    """
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), start // BLOCK * BLOCK, 2 * BLOCK, os.POSIX_FADV_DONTNEED)


def _read_header(file: BinaryIO) -> tuple[bytes, set[int]]:
    """The header of a safetensors file and where its tensors begin; nothing of a file that only has such a name."""
    try:
        begin, header = split_header(file)
        entries = [entry for name, entry in header.items() if name != "__metadata__"]
        return begin, {len(begin) + entry["data_offsets"][0] for entry in entries}
    except (ValueError, LookupError, TypeError, AttributeError):
        return b"", set()
