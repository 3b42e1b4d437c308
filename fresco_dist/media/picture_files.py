"""Files of pictures: opened by Pillow, or by a plug-in that is loaded when a file needs it, within limits.

Owns what a file is and what of it is not used; of its colours it knows nothing. Every complaint is an InputError that
names the key and the file.
"""

import os
import re
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, PngImagePlugin, UnidentifiedImageError, features

from fresco_dist.config import InputError

MAX_PIXELS = 2**29  # half a gigapixel: 1.6 GB decoded; what claims more is refused before it is decoded
MAX_TEXT_BYTES = 2**26  # of a PNG's text or profile, decompressed; scans and workflows have more than Pillow's 1 MB
HEAD_BYTES = 2**16  # in which a file says what it is
ADDRESS = re.compile(r"(?:^|/)(https?|ftp|s3|gs|hf|data|file):")  # of two slashes, a path keeps one
JPEG_XL = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
PLUGINS = {"HEIC": "pillow_heif", "JPEG XL": "pillow_jxl"}  # modules; AVIF is Pillow's own since 11.3
PARTS = {"GIF": "frames", "PNG": "frames", "WEBP": "frames", "AVIF": "frames", "TIFF": "pages", "HEIF": "pictures"}
TRANSFERS = {16: "PQ", 18: "HLG"}  # ITU-T H.273
DNG_VERSION, NEW_SUBFILE_TYPE = 50706, 254  # TIFF tags
_LIMITS = threading.RLock()  # whoever has it may change Pillow's


@contextmanager
def _own_limits() -> Iterator[None]:
    """Ours instead of Pillow's, which are those of the whole program, until one picture is read."""
    with _LIMITS:
        before = Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK
        Image.MAX_IMAGE_PIXELS = None  # our own limit is checked on the header in the same way
        PngImagePlugin.MAX_TEXT_CHUNK = MAX_TEXT_BYTES
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK = before


@contextmanager
def opened(path: Path, key: str) -> Iterator[Image.Image]:
    """A picture of which little is decoded yet; what goes wrong meanwhile is an InputError."""
    kind = ""
    try:
        head = _read_head(path, key)
        if kind := _kind(head):
            _load_plugin(kind, path, key)
        if kind == "JPEG XL":  # its plug-in decodes all at once
            _check_size(*_jpeg_xl_size(path), path, key)
        quiet = warnings.catch_warnings(action="ignore")  # of odd metadata
        with _own_limits(), quiet, Image.open(path) as image:
            _check(image, path, key)
            yield image
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{key}: no such file: {path}. Check the path.") from None
    except UnidentifiedImageError:
        problem = "is not an image in a known format. Try PNG, JPEG or TIFF."
        if kind:
            problem = f"is {kind} that cannot be decoded. Is the file complete?"
        raise InputError(f"{key}: {path} {problem}") from None
    except Exception as error:  # decoders raise whatever they stumble over
        if isinstance(error, OSError) and error.strerror:
            raise InputError(f"{key}: {path} cannot be read: {error.strerror}. Give a picture's file.") from None
        if "MAX_TEXT" in str(error):
            limit = f"more than {MAX_TEXT_BYTES // 2**20} MB of text or colour profile"
            raise InputError(f"{key}: {path} has {limit}. Save it without metadata.") from None
        reason = "" if kind == "JPEG XL" else ": " + " ".join(str(error).split())  # that speaks of building it
        raise InputError(f"{key}: {path} cannot be decoded{reason}. Is the file complete?") from None


def what_is_left(path: Path, key: str) -> Iterator[str]:
    """What of a picture that can be read is not used."""
    with opened(path, key) as image:
        head, name = _read_head(path, key), PARTS.get(image.format or "")
        number = getattr(image, "n_frames", 1) if name else 1
    if number > 1:
        which = "main one" if name == "pictures" else "first"
        yield f"{key}: of the {number} {name} of {path.name} the {which} is used"
    if transfer := _transfer(head):
        yield (
            f"{key}: {path.name} is a picture of high dynamic range ({transfer}), whose brightness is taken as it is"
            " stored: it will look pale. Convert it to sRGB first"
        )


def _read_head(path: Path, key: str) -> bytes:
    """Raises InputError for what is no file, or an empty one."""
    try:
        status = path.stat()
    except OSError:
        if found := ADDRESS.search(str(path)):
            remedy = "Give the path after it." if found[1] == "file" else "Download the picture, and give its path."
            raise InputError(f"{key} must be a file; got an address, {found[1]}:... {remedy}") from None
        raise
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise InputError(f"{key}: {path} is no regular file, and a picture is read more than once. Save it to a file.")
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if not head:
        raise InputError(f"{key}: {path} is empty. Copy the file again.")
    return head


def _kind(head: bytes) -> str:
    """The name of a format that may need a plug-in, or ""."""
    if head.startswith(JPEG_XL):
        return "JPEG XL"
    if head[4:8] != b"ftyp":
        return ""
    brands = _brands(head)
    return "AVIF" if brands & {b"avif", b"avis"} else "HEIC" if brands & HEIC_BRANDS else ""


def _brands(head: bytes) -> set[bytes]:
    """Of an ISO media file (ISO/IEC 14496-12, 4.3)."""
    size = int.from_bytes(head[:4], "big")
    return {head[8:12]} | {head[at : at + 4] for at in range(16, min(size, len(head)), 4)}


def _load_plugin(kind: str, path: Path, key: str) -> None:
    """Have Pillow know a format; raises InputError if what reads it is not installed."""
    try:
        plugin: Any = import_module(PLUGINS[kind]) if kind in PLUGINS else None
        if plugin is None and not features.check("avif"):
            raise ImportError
    except ImportError:
        remedy = "Run pip install 'fresco_dist[pictures]', or convert it to PNG."
        raise InputError(f"{key}: {path} is {kind}, for which a plug-in is missing. {remedy}") from None
    if kind == "HEIC":
        plugin.register_heif_opener()


def _check(image: Image.Image, path: Path, key: str) -> None:
    """Raise InputError for more than is decoded, or less than a picture."""
    _check_size(*image.size, path, key)
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    if DNG_VERSION in tags or tags.get(NEW_SUBFILE_TYPE, 0) & 1:
        raise InputError(
            f"{key}: {path} is a camera's raw file, with a small preview. Develop it to PNG, JPEG or TIFF."
        )


def _check_size(width: int, height: int, path: Path, key: str) -> None:
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{key}: {path} claims {width} x {height} px; at most {MAX_PIXELS} pixels are decoded. Reduce it first."
        )


def _jpeg_xl_size(path: Path) -> tuple[int, int]:
    """Width and height that a codestream claims (ISO/IEC 18181-1, SizeHeader)."""
    codestream = _jpeg_xl_codestream(path)
    if not codestream.startswith(JPEG_XL[0]):
        raise UnidentifiedImageError
    bits = int.from_bytes(codestream[2:], "little")

    def take(number: int) -> int:
        nonlocal bits
        value, bits = bits & ((1 << number) - 1), bits >> number
        return value

    small = take(1)

    def side() -> int:
        return 8 * (take(5) + 1) if small else take((9, 13, 18, 30)[take(2)]) + 1

    height, ratio = side(), take(3)
    if not ratio:
        return side(), height
    across, down = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio - 1]
    return height * across // down, height


def _jpeg_xl_codestream(path: Path) -> bytes:
    """The first 12 bytes of it, which may lie in several boxes (ISO/IEC 18181-2, 9), behind any amount of metadata."""
    with path.open("rb") as file:
        found = file.read(12)
        if found.startswith(JPEG_XL[0]):
            return found
        found = b""
        for name, length in _boxes(file):
            if name == b"jxlp":
                length -= len(file.read(4))  # its place among them
            if name in (b"jxlc", b"jxlp"):
                found += file.read(max(0, min(length, 12 - len(found))))
            if len(found) == 12:
                break
    return found


def _boxes(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Names and lengths of what is in the boxes of an ISO media file (ISO/IEC 14496-12, 4.2), where it then stands."""
    at, end = 0, file.seek(0, os.SEEK_END)
    while at < end:
        file.seek(at)
        size, name = int.from_bytes(file.read(4), "big"), file.read(4)
        if size == 1:
            size = int.from_bytes(file.read(8), "big")
        elif size == 0:
            size = end - at
        length = at + size - file.tell()
        if length < 0:
            return
        yield name, length
        at += size


def _transfer(head: bytes) -> str:
    """How a picture of high dynamic range stores its brightness, "" of others, also those with a map of gains."""
    found = None
    if head.startswith(b"\x89PNG"):
        found = re.search(rb"\0\0\0\x04cICP.(.)", head.partition(b"IDAT")[0], re.DOTALL)
    elif head[4:8] == b"ftyp" and b"tmap" not in _brands(head):
        found = re.search(rb"colrnclx...(.)", head, re.DOTALL)
    return TRANSFERS.get(found[1][0], "") if found else ""
