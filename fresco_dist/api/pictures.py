"""Pictures in memory, as PIL and numpy have them, where a run's settings name files."""

import hashlib
from collections.abc import Mapping, Sequence
from enum import Enum
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fresco_dist.config import InputError
from fresco_dist.jobs.folder import WriteError
from fresco_dist.report.aside import write_aside

ALLOWED = "uint8 (H, W), (H, W, 3) or (H, W, 4), bool (H, W), or floats in [0, 1]"
PLAIN = (str, Path, int, float, Fraction, Enum, np.generic)
LIKE = {"HSV": "RGB", "YCbCr": "RGB", "RGBX": "RGB", "RGBa": "RGBA", "PA": "RGBA", "La": "LA"}  # in PNG


def with_files(value: Any, folder: Path, key: str = "") -> Any:
    """The same settings, each picture in them as a file of `folder`, named by its contents; raises InputError."""
    if isinstance(value, Mapping):
        return {name: with_files(entry, folder, f"{key}.{name}".lstrip(".")) for name, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [with_files(entry, folder, f"{key}[{i}]") for i, entry in enumerate(value)]
    if isinstance(value, str) and ("\0" in value or value != value.encode(errors="ignore").decode()):
        raise InputError(f"{key} must be Unicode text without null characters; got {value!r}.")
    if isinstance(value, np.ndarray) and value.ndim < 2:
        return value.tolist()
    if isinstance(value, np.ndarray):
        value = picture_of(value, key)
    if isinstance(value, Image.Image):
        return str(_saved(value, folder, key))
    if value is not None and not isinstance(value, PLAIN):
        raise InputError(
            f"{key} must be a text, a path, a number, a list, or a picture as PIL or numpy has one; got"
            f" {type(value).__module__}.{type(value).__name__}."
        )
    return value


def picture_of(array: np.ndarray, key: str) -> Image.Image:
    """The picture that an array is; raises InputError."""
    is_picture = bool(array.size) and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4)))
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    elif is_picture and np.issubdtype(array.dtype, np.floating) and 0.0 <= array.min() <= array.max() <= 1.0:
        array = (array * 255.0).round().astype(np.uint8)
    if array.dtype != np.uint8 or not is_picture:
        shape = " x ".join(map(str, array.shape))
        raise InputError(
            f"{key} must be a picture's file, a PIL image or an array, {ALLOWED}; got {array.dtype} {shape}."
        )
    return Image.fromarray(array)


def _saved(image: Image.Image, folder: Path, key: str) -> Path:
    """As PNG, which keeps every pixel, colour profile and orientation; as TIFF, where PNG has no such mode.

    Raises InputError, and WriteError where the folder cannot be written.
    """
    try:
        image.load()
    except Exception as error:  # cut off, or closed: Pillow raises whatever it stumbles over
        reason = str(error) or type(error).__name__
        raise InputError(f"{key}: the picture cannot be read ({reason}). Open its file again.") from None
    if image.mode == "F":
        raise InputError(f"{key}: a picture in mode F has no white. Convert it to L or RGB.")
    image = image.convert(LIKE[image.mode]) if image.mode in LIKE else image
    suffix = ".tiff" if image.mode in ("CMYK", "LAB") else ".png"
    facts = (image.mode, image.size, image.info.get("icc_profile"), image.getexif().tobytes(), image.getpalette())
    name = hashlib.sha256(image.tobytes() + repr((facts, image.info.get("transparency"))).encode()).hexdigest()[:16]
    path = folder / f"picture-{name}{suffix}"
    if not path.is_file():
        options: dict[str, Any] = {"compress_level": 1} if suffix == ".png" else {}
        kept = {"icc_profile": image.info.get("icc_profile"), "exif": image.getexif()}
        options |= {name: value for name, value in kept.items() if value}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_aside(path, partial(image.save, **options))
        except OSError as error:
            raise WriteError(path.name, folder, error) from error
    return path
