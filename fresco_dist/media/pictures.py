"""Pictures: what users have, as sRGB of 8 bits at the sizes that are needed.

Frames are uint8 (H, W, 3), sRGB. Every complaint about a picture is an InputError that names the key and the file.
"""

import io
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps

from fresco_dist.config import InputError
from fresco_dist.media.picture_files import opened

SIXTEEN_BIT_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I")
ASPECT_TOLERANCE = 0.02
_SRGB = ImageCms.createProfile("sRGB")


def read_image(path: Path, *, key: str = "image", background: str = "white") -> Image.Image:
    """The picture as sRGB: EXIF rotation and colour profile applied, 16 bits scaled to 8, transparency on a colour."""
    with opened(path, key) as image:
        image.load()
        if image.mode == "F":
            raise InputError(f"{key}: {path} holds floating-point values. Save it with 8 or 16 bits.")
        upright = ImageOps.exif_transpose(image)
        colours, opacity = _colours(upright), _opacity(upright)
    if opacity is None:
        return colours
    colours.putalpha(opacity)
    return Image.alpha_composite(Image.new("RGBA", colours.size, background), colours).convert("RGB")


def _opacity(image: Image.Image) -> Image.Image | None:
    """Grey, light where something is drawn; None: everywhere."""
    if not image.has_transparency_data:
        return None
    transparent: Any = image.info.get("transparency")
    if image.mode in SIXTEEN_BIT_MODES:
        return Image.fromarray(np.where(np.asarray(image) == transparent, 0, 255).astype(np.uint8))
    if image.mode == "RGB" and max(transparent) > 255:  # of 16 bits; Pillow keeps the upper eight of the colours
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in transparent)
    return image.convert("RGBA").getchannel("A")


def _colours(image: Image.Image) -> Image.Image:
    """RGB by the embedded profile, or as it is; without opacity."""
    profile = image.info.get("icc_profile")
    if image.mode in ("1", "L", "LA"):
        return _from_grey(image.convert("L"), 255, profile)
    if image.mode in SIXTEEN_BIT_MODES:
        return _from_grey(image, 65535, profile)
    if image.mode == "LAB":
        lab = ImageCms.createProfile("LAB")
        return ImageCms.profileToProfile(image, lab, _SRGB, outputMode="RGB")  # type: ignore[return-value]  # a new one
    return _apply_profile(image if image.mode == "CMYK" else image.convert("RGB"), profile).convert("RGB")


def _from_grey(image: Image.Image, white: int, profile: bytes | None) -> Image.Image:
    """RGB of grey values up to `white`, by what becomes of 256 of them, and in between linearly."""
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    exactly = ImageCms.Flags.NOOPTIMIZE  # else the dark end of linear greys is off by many levels
    by_grey = _apply_profile(ramp, profile, exactly)
    if by_grey is ramp:  # grey pictures may have a profile of colours
        by_grey = _apply_profile(ramp.convert("RGB"), profile, exactly)
    levels_3 = np.asarray(by_grey)[0].T
    values = np.arange(white + 1) * (255 / white)
    table = np.stack([np.interp(values, np.arange(256), levels) for levels in levels_3], axis=-1)
    return Image.fromarray(table.round().astype(np.uint8)[np.asarray(image).clip(0, white)])


def _apply_profile(
    image: Image.Image, profile: bytes | None, flags: ImageCms.Flags = ImageCms.Flags.NONE
) -> Image.Image:
    """RGB, if the profile is for the picture's mode; one that cannot be used is left aside, as viewers do."""
    if profile:
        with suppress(ImageCms.PyCMSError):
            source = io.BytesIO(profile)
            applied = ImageCms.profileToProfile(image, source, _SRGB, outputMode="RGB", flags=flags)
            return applied  # type: ignore[return-value]  # a new one
    return image


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
