"""Files of pictures: plug-ins, limits, and what of a file is not used."""

import os
import struct
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin, TiffImagePlugin, features

from fresco_dist.config import InputError
from fresco_dist.media.picture_files import opened, what_is_left
from fresco_dist.media.pictures import read_image

KINDS = {"heic": ("pillow_heif", "HEIF"), "avif": ("PIL", "AVIF"), "jxl": ("pillow_jxl", "JXL")}  # module, for Pillow


def _write(name: str, image: Image.Image, path: Path, **options) -> None:
    """By the plug-in, without the test's own reader having loaded it."""
    module, kind = KINDS[name]
    plugin = pytest.importorskip(module)
    if name == "heic":
        plugin.register_heif_opener()
    if name == "avif" and not features.check("avif"):
        pytest.skip("Pillow has no AVIF")
    image.save(path, kind, **options)


def _swapped_profile() -> bytes:
    """An sRGB profile in which red and green have changed places."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"swap", 1).replace(b"gXYZ", b"rXYZ", 1).replace(b"swap", b"gXYZ", 1)


def _png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _refusal(path: Path, key: str = "image") -> str:
    with pytest.raises(InputError) as refused:
        read_image(path, key=key)
    message = str(refused.value)
    assert message.startswith(key) and "\n" not in message and len(message) < 300
    return message


@pytest.mark.parametrize("name", KINDS)
def test_picture_of_a_newer_format_has_rotation_profile_and_transparency_applied(tmp_path, name):
    """Red in the file, top left; green by its profile, and top right once it is turned."""
    pixels = np.zeros((32, 64, 3), dtype=np.uint8)
    pixels[:16, :32, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    _write(name, Image.fromarray(pixels), tmp_path / "photo", exif=exif.tobytes(), icc_profile=_swapped_profile())
    turned = np.asarray(read_image(tmp_path / "photo"))
    assert turned.shape == (64, 32, 3)
    seen = 0 if name == "jxl" else 1  # its plug-in writes no profile
    assert turned[8, 24, seen] > 240 and turned[8, 24, 1 - seen] < 40
    assert turned[8, 8].max() < 40 and turned[48].max() < 40
    _write(name, Image.new("RGBA", (16, 16), (255, 0, 0, 0)), tmp_path / "clear")
    assert np.asarray(read_image(tmp_path / "clear")).min() == 255
    assert not list(what_is_left(tmp_path / "photo", "image"))


@pytest.mark.parametrize("name", KINDS)
def test_picture_that_needs_a_plug_in_which_is_missing_names_the_extra(tmp_path, name, monkeypatch):
    _write(name, Image.new("RGB", (16, 16)), tmp_path / "photo")
    monkeypatch.setitem(sys.modules, KINDS[name][0] if name != "avif" else "none", None)
    monkeypatch.setattr(features, "check", lambda feature: False)
    assert "pip install 'fresco_dist[pictures]'" in _refusal(tmp_path / "photo", "image_last")


@pytest.mark.parametrize("name", KINDS)
def test_picture_of_a_newer_format_that_is_cut_off_is_refused(tmp_path, name):
    _write(name, Image.effect_noise((200, 200), 50).convert("RGB"), tmp_path / "photo")
    data = (tmp_path / "photo").read_bytes()
    (tmp_path / "photo").write_bytes(data[: len(data) // 2])
    message = _refusal(tmp_path / "photo")
    assert "cannot be decoded" in message and message.endswith(" Is the file complete?")


def test_picture_in_jpeg_xl_of_more_pixels_than_are_decoded_is_refused_by_its_header(tmp_path):
    pytest.importorskip("pillow_jxl")
    side = 60000 - 1
    header = (0 | 3 << 1 | side << 3 | 1 << 33).to_bytes(5, "little")  # 30 bits for the height, as wide as high
    (tmp_path / "bomb.jxl").write_bytes(b"\xff\x0a" + header + bytes(100))
    assert "claims 60000 x 60000 px" in _refusal(tmp_path / "bomb.jxl")


@pytest.mark.parametrize("size", [(8, 8), (64, 32), (100, 75), (1920, 1080), (333, 17), (9000, 1)])
@pytest.mark.parametrize("contained", [False, True])
def test_picture_in_jpeg_xl_claims_the_size_that_it_has(tmp_path, size, contained, monkeypatch):
    _write("jxl", Image.new("L", size), tmp_path / "picture", effort=1, use_container=contained)
    monkeypatch.setattr("fresco_dist.media.picture_files.MAX_PIXELS", size[0] * size[1] - 1)
    assert f"claims {size[0]} x {size[1]} px" in _refusal(tmp_path / "picture")
    monkeypatch.undo()
    assert read_image(tmp_path / "picture").size == size


def _box(name: bytes, data: bytes, how: str = "") -> bytes:
    """Its length in 32 bits, in 64, or not told."""
    if how == "long":
        return struct.pack(">I4sQ", 1, name, len(data) + 16) + data
    return struct.pack(">I4s", 0 if how == "to the end" else len(data) + 8, name) + data


CODESTREAM_IN = {
    "jxlc": lambda data: _box(b"jxlc", data),
    "jxlc, long": lambda data: _box(b"jxlc", data, "long"),
    "jxlc to the end": lambda data: _box(b"jxlc", data, "to the end"),
    "jxlp": lambda data: (
        b"".join(
            _box(b"jxlp", struct.pack(">I", place) + part)
            for place, part in enumerate([data[:1], data[1:4], data[4:5], data[5:9]])
        )
        + _box(b"jxlp", struct.pack(">I", 1 << 31 | 4) + data[9:], "to the end")
    ),
}


@pytest.mark.parametrize("metadata", [_box(b"xml ", bytes(200_000)), _box(b"xml ", b"jxlc\xff\x0a\x07" * 9, "long")])
@pytest.mark.parametrize("form", CODESTREAM_IN)
def test_picture_in_jpeg_xl_claims_its_size_behind_any_metadata(tmp_path, form, metadata, monkeypatch):
    _write("jxl", Image.effect_noise((333, 217), 50), tmp_path / "bare", use_container=False)
    begin = _box(b"JXL ", b"\r\n\x87\n") + _box(b"ftyp", b"jxl \0\0\0\0jxl ")
    (tmp_path / "picture").write_bytes(begin + metadata + CODESTREAM_IN[form]((tmp_path / "bare").read_bytes()))
    assert read_image(tmp_path / "picture").size == (333, 217)
    monkeypatch.setattr("fresco_dist.media.picture_files.MAX_PIXELS", 333 * 217 - 1)
    assert "claims 333 x 217 px" in _refusal(tmp_path / "picture")
    (tmp_path / "picture").write_bytes(begin + metadata + metadata)
    assert "is JPEG XL that cannot be decoded" in _refusal(tmp_path / "picture")


@pytest.mark.parametrize("international", [False, True])
def test_picture_with_megabytes_of_text_is_read_up_to_a_limit(tmp_path, international):
    for megabytes in (3, 70):
        info = PngImagePlugin.PngInfo()
        add = info.add_itxt if international else info.add_text
        add("workflow", "x" * (megabytes * 1_000_000), zip=True)
        Image.new("RGB", (8, 8), "red").save(tmp_path / f"{megabytes}.png", pnginfo=info)
    assert np.asarray(read_image(tmp_path / "3.png"))[0, 0].tolist() == [255, 0, 0]
    assert "more than 64 MB of text or colour profile" in _refusal(tmp_path / "70.png")


def test_picture_with_a_profile_of_megabytes_is_read_with_it(tmp_path):
    profile = _swapped_profile()
    large = struct.pack(">I", len(profile) + 3_000_000) + profile[4:] + bytes(3_000_000)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "picture.png", icc_profile=large)
    assert np.asarray(read_image(tmp_path / "picture.png"))[0, 0, 1] > 250


@pytest.mark.parametrize("kind, parts", [("GIF", "frames"), ("PNG", "frames"), ("WEBP", "frames"), ("TIFF", "pages")])
def test_picture_of_several_is_the_first_and_it_is_said(tmp_path, kind, parts):
    red, *others = (Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue"))
    path = tmp_path / "moving"
    red.save(path, kind, save_all=True, append_images=others)
    assert np.abs(np.asarray(read_image(path))[0, 0].astype(int) - (255, 0, 0)).max() < 5
    assert list(what_is_left(path, "image")) == [f"image: of the 3 {parts} of moving the first is used"]
    red.save(path, kind)
    assert not list(what_is_left(path, "image"))


def test_photo_with_a_second_picture_behind_it_is_nothing_special(tmp_path):
    """Cameras and telephones append previews and maps of gains."""
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.jpg", "MPO", save_all=True, append_images=[Image.new("L", (4, 4))])
    assert not list(what_is_left(tmp_path / "photo.jpg", "image"))


def test_picture_of_high_dynamic_range_is_told(tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "plain.png")
    data = (tmp_path / "plain.png").read_bytes()
    for transfer, name in ((16, "PQ"), (18, "HLG"), (13, "")):
        chunk = _png_chunk(b"cICP", bytes([9, transfer, 0, 1]))
        (tmp_path / "picture.png").write_bytes(data[:33] + chunk + data[33:])
        notes = list(what_is_left(tmp_path / "picture.png", "image"))
        assert [f"({name})" in note for note in notes] == [True] * bool(name)
    heif = pytest.importorskip("pillow_heif").from_pillow(Image.new("RGB", (16, 16)))
    heif.save(tmp_path / "pq.heic", matrix_coefficients=9, color_primaries=9, transfer_characteristics=16)
    assert ["(PQ)" in note for note in what_is_left(tmp_path / "pq.heic", "image")] == [True]


@pytest.mark.parametrize("tag, value", [(50706, b"\1\4\0\0"), (254, 1)], ids=["dng", "reduced"])
def test_raw_file_of_a_camera_is_refused_rather_than_its_preview_animated(tmp_path, tag, value):
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[tag] = value
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.dng", "TIFF", tiffinfo=tags)
    assert "a camera's raw file" in _refusal(tmp_path / "photo.dng")


@pytest.mark.parametrize("scheme", ["https", "http", "s3", "data", "file"])
def test_address_instead_of_a_path_is_told_in_one_line(scheme):
    message = _refusal(Path(f"{scheme}://host/a.png" + "A" * 5000))
    assert f"got an address, {scheme}:..." in message and ("Download" in message) == (scheme != "file")


def test_what_can_be_read_only_once_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "no regular file" in _refusal(tmp_path / "pipe")


def test_limits_of_the_program_around_are_as_it_has_set_them(tmp_path, monkeypatch):
    """Also where one picture is begun before another one is done, and where one is refused."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_CHUNK", 1000)
    Image.new("RGB", (64, 64)).save(tmp_path / "large.png")
    (tmp_path / "broken.png").write_bytes(b"none")
    second = threading.Thread(target=read_image, args=(tmp_path / "large.png",))
    with opened(tmp_path / "large.png", "image") as image:
        second.start()
        image.load()
    second.join()
    _refusal(tmp_path / "broken.png")
    assert (Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK) == (50, 1000)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / "large.png")
