"""Pictures: read what users have.

Frames are uint8 (H, W, 3), sRGB. Every complaint about a picture is an InputError that names the key and the file.
"""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from fresco_dist.config import InputError

MAX_PIXELS = 2**29  # half a gigapixel: 1.6 GB decoded; what claims more is refused before it is decoded
SIXTEEN_BIT_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I")
ASPECT_TOLERANCE = 0.02


def read_image(path: Path, *, key: str = "image", background: str = "white") -> Image.Image:
    """The picture as sRGB: EXIF rotation and colour profile applied, 16 bits scaled to 8, transparency on a colour."""
    Image.MAX_IMAGE_PIXELS = None  # our own limit, below, is checked on the header in the same way
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:  # warnings: of odd metadata
            if image.width * image.height > MAX_PIXELS:
                raise InputError(
                    f"{key}: {path} claims {image.width} x {image.height} px; at most {MAX_PIXELS} pixels are decoded."
                    " Reduce it first."
                )
            image.load()
            return _to_rgb(_apply_profile(ImageOps.exif_transpose(image)), background)
    except FileNotFoundError:
        raise InputError(f"{key}: no such file: {path}. Check the path.") from None
    except UnidentifiedImageError:
        raise InputError(f"{key}: {path} is not an image in a known format. Try PNG, JPEG or TIFF.") from None
    except InputError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever they stumble over
        if isinstance(error, OSError) and error.strerror:
            raise InputError(f"{key}: {path} cannot be read: {error.strerror}. Give a picture's file.") from None
        raise InputError(f"{key}: {path} cannot be decoded: {error}. Is the file complete?") from None


def _apply_profile(image: Image.Image) -> Image.Image:
    """Colours of an embedded ICC profile as sRGB; a profile that cannot be used is left aside, as viewers do."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "RGBA", "CMYK"):
        return image
    mode = "RGB" if image.mode == "CMYK" else image.mode
    try:
        srgb = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, io.BytesIO(profile), srgb, outputMode=mode) or image
    except ImageCms.PyCMSError:
        return image


def _to_rgb(image: Image.Image, background: str) -> Image.Image:
    if image.mode == "F":
        raise ValueError("it holds floating-point values; save it with 8 or 16 bits")
    if image.mode in SIXTEEN_BIT_MODES:
        values = np.asarray(image).clip(0, 65535)
        return Image.fromarray(to_depth(values.astype(np.uint16), 8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, background), rgba).convert("RGB")
    return image.convert("RGB")


def to_depth(pixels: np.ndarray, bits: int) -> np.ndarray:
    """The same as uint8 or, with 16 `bits`, uint16: all values of the one on all of the other; itself if it is that."""
    if pixels.dtype == np.uint8:
        return pixels if bits == 8 else pixels.astype(np.uint16) * np.uint16(257)
    return pixels if bits == 16 else ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def resize_image(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """The picture at `size` (width, height), Lanczos as in diffusers' VideoProcessor; itself if it has that size."""
    return np.array(image if image.size == size else image.resize(size, Image.Resampling.LANCZOS))


def _read_like(path: Path, key: str, image_px: tuple[int, int], background: str = "black") -> Image.Image:
    """A picture of any size in the aspect ratio of `image_px`; raises InputError that names `key`.

    A mask or a map says nothing where it is transparent, and counts as dark there.
    """
    image = read_image(path, key=key, background=background)
    if abs(image.width * image_px[1] / (image.height * image_px[0]) - 1.0) > ASPECT_TOLERANCE:
        raise InputError(
            f"{key} must have the image's aspect ratio ({image_px[0]} x {image_px[1]} px);"
            f" got {image.width} x {image.height} px. Crop or redraw it."
        )
    return image


def read_last_image(path: Path, image_px: tuple[int, int]) -> Image.Image:
    """The picture of the last frame; any size, but in the image's aspect ratio (`image_px`, width and height) to 2%."""
    return _read_like(path, "image_last", image_px, "white")


def read_mask(path: Path, image_px: tuple[int, int], *, key: str) -> Image.Image:
    """A mask, grey, of any size in the image's aspect ratio to 2%; raises InputError if it is dark everywhere."""
    grey = _read_like(path, key, image_px).convert("L")
    if grey.getextrema()[1] == 0:
        raise InputError(f"{key}: {path} is dark everywhere; a region is where its mask is light. Redraw it.")
    return grey


def resize_mask(mask: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """How light a mask is on average in each cell of `size` (height, width): float64 (H, W) in [0, 1]."""
    grey = mask.convert("F").resize((size[1], size[0]), Image.Resampling.BOX)
    return np.clip(np.asarray(grey, dtype=np.float64) / 255.0, 0.0, 1.0)


def read_light(path: Path, image_px: tuple[int, int], canvas: tuple[int, int], key: str) -> np.ndarray:
    """Where a map is light, as bool (H, W) latent cells: area-averaged to `canvas` and cut at one half.

    Any size will do, but its aspect ratio must be the image's (`image_px`, width and height) to 2%.
    """
    image = _read_like(path, key, image_px)
    grey = image.convert("L").resize((canvas[1], canvas[0]), Image.Resampling.BOX)
    return np.asarray(grey) > 127
