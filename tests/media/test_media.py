"""Pictures as users have them, read to 8-bit RGB; videos as a browser needs them, read back by other code."""

import io
import json
import shutil
import struct
import subprocess
import zlib

import av
import numpy as np
import pytest
from PIL import Image, ImageCms

from fresco_dist.config import InputError
from fresco_dist.media.overlay import draw_overlay
from fresco_dist.media.pictures import read_image, read_light, read_mask, resize_image
from fresco_dist.media.video import contact_sheet, write_video

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
GREY, GREY_ALPHA, RGB, RGBA = 0, 4, 2, 6  # PNG colour types


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _png(width: int, height: int, colour_type: int, depth: int, rows: bytes) -> bytes:
    """A PNG file, also of kinds that Pillow cannot write; each row of `rows` starts with its filter, 0."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in chunks)


def _png_16(colour_type: int, *pixels: tuple[int, ...]) -> bytes:
    """One row of pixels with 16 bits per channel."""
    return _png(len(pixels), 1, colour_type, 16, b"\0" + np.array(pixels, dtype=">u2").tobytes())


def _tiff_rgb_16(*pixels: tuple[int, int, int]) -> bytes:
    """One row of RGB pixels with 16 bits per channel, uncompressed."""
    data = np.array(pixels, dtype="<u2").tobytes()
    depths_at = 8 + 2 + 9 * 12 + 4
    tags = [
        (256, 3, 1, len(pixels)), (257, 3, 1, 1), (258, 3, 3, depths_at), (259, 3, 1, 1), (262, 3, 1, 2),
        (273, 4, 1, depths_at + 6), (277, 3, 1, 3), (278, 3, 1, 1), (279, 4, 1, len(data)),
    ]  # fmt: skip
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<IHHH", 0, 16, 16, 16) + data


def _saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _row(mode: str, *pixels) -> Image.Image:
    image = Image.new(mode, (len(pixels), 1))
    for x, pixel in enumerate(pixels):
        image.putpixel((x, 0), pixel)
    return image


def _palette(*colours: tuple[int, int, int]) -> Image.Image:
    image = _row("P", *range(len(colours)))
    image.putpalette([value for colour in colours for value in colour])
    return image


GREYS = [(0, 0, 0), (100, 100, 100), (255, 255, 255)]
KINDS = {
    "png_rgb": (_saved(_row("RGB", RED, (1, 2, 3)), "PNG"), [RED, (1, 2, 3)]),
    "png_alpha": (_saved(_row("RGBA", (*RED, 255), (*RED, 0), (*RED, 128)), "PNG"), [RED, WHITE, (255, 127, 127)]),
    "png_grey": (_saved(_row("L", 0, 100, 255), "PNG"), GREYS),
    "png_grey_alpha": (_saved(_row("LA", (0, 255), (0, 0)), "PNG"), [(0, 0, 0), WHITE]),
    "png_bilevel": (_saved(_row("1", 0, 1), "PNG"), [(0, 0, 0), WHITE]),
    "png_palette": (_saved(_palette(RED, GREEN, BLUE), "PNG"), [RED, GREEN, BLUE]),
    "png_palette_transparent_index": (_saved(_palette(RED, GREEN), "PNG", transparency=0), [WHITE, GREEN]),
    "png_palette_alpha": (
        _saved(_palette(RED, GREEN), "PNG", transparency=bytes([0, 255])),
        [WHITE, GREEN],
    ),
    "png_rgb_transparent_colour": (_saved(_row("RGB", RED, GREEN), "PNG", transparency=RED), [WHITE, GREEN]),
    "png_grey_16": (_png_16(GREY, (0,), (100 * 257,), (65535,)), GREYS),
    "png_grey_alpha_16": (_png_16(GREY_ALPHA, (0, 65535), (0, 0)), [(0, 0, 0), WHITE]),
    "png_rgb_16": (_png_16(RGB, (65535, 0, 100 * 257), (0, 65535, 0)), [(255, 0, 100), GREEN]),
    "png_rgba_16": (_png_16(RGBA, (65535, 0, 0, 65535), (0, 0, 0, 0)), [RED, WHITE]),
    "tiff_rgb": (_saved(_row("RGB", RED, (1, 2, 3)), "TIFF"), [RED, (1, 2, 3)]),
    "tiff_lzw": (_saved(_row("RGB", RED, (1, 2, 3)), "TIFF", compression="tiff_lzw"), [RED, (1, 2, 3)]),
    "tiff_grey_16": (_saved(_row("I;16", 0, 100 * 257, 65535), "TIFF"), GREYS),
    "tiff_rgb_16": (_tiff_rgb_16((65535, 0, 100 * 257), (0, 65535, 0)), [(255, 0, 100), GREEN]),
    "tiff_cmyk": (_saved(_row("CMYK", (0, 255, 255, 0), (0, 0, 0, 0)), "TIFF"), [RED, WHITE]),
    "gif": (_saved(_palette(RED, GREEN), "GIF"), [RED, GREEN]),
    "bmp": (_saved(_row("RGB", RED, GREEN), "BMP"), [RED, GREEN]),
    "webp": (_saved(_row("RGB", RED, GREEN), "WEBP", lossless=True), [RED, GREEN]),
}
JPEG_KINDS = {
    "jpeg_rgb": ("RGB", (200, 60, 30), (200, 60, 30)),
    "jpeg_grey": ("L", 90, (90, 90, 90)),
    "jpeg_cmyk": ("CMYK", (0, 255, 255, 0), RED),
}


@pytest.mark.parametrize("kind", KINDS)
def test_image_of_any_kind_becomes_rgb_with_the_same_colours(tmp_path, kind):
    data, expected = KINDS[kind]
    path = tmp_path / "picture"
    path.write_bytes(data)
    image = read_image(path)
    assert image.mode == "RGB"
    assert [tuple(pixel) for pixel in np.asarray(image)[0].tolist()] == expected


@pytest.mark.parametrize("kind", JPEG_KINDS)
def test_image_jpeg_of_any_kind_becomes_rgb_with_near_colours(tmp_path, kind):
    mode, colour, expected = JPEG_KINDS[kind]
    path = tmp_path / "picture.jpg"
    Image.new(mode, (16, 16), colour).save(path, quality=95)
    pixels = np.asarray(read_image(path))
    assert pixels.shape == (16, 16, 3)
    assert np.abs(pixels.astype(int) - np.array(expected)).max() <= 3


def _profile(first: bytes = b"rXYZ", second: bytes = b"gXYZ") -> bytes:
    """An sRGB profile with the colorants of two channels exchanged."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(first, b"swap", 1).replace(second, first, 1).replace(b"swap", second, 1)


@pytest.mark.parametrize("mode, alpha", [("RGB", ()), ("RGBA", (255,))])
def test_image_colour_profile_is_applied(tmp_path, mode, alpha):
    path = tmp_path / "picture.png"
    _row(mode, (*RED, *alpha), (*WHITE, *alpha)).save(path, icc_profile=_profile())
    expected = [[GREEN, WHITE]]
    assert np.abs(np.asarray(read_image(path)).astype(int) - np.array(expected)).max() <= 3


def test_image_plain_srgb_profile_changes_nothing(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png", icc_profile=_profile(b"none", b"none"))
    assert np.abs(np.asarray(read_image(tmp_path / "picture.png")).astype(int) - pixels).max() <= 1


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_image_colour_profile_that_cannot_be_used_is_left_aside(tmp_path, mode):
    path = tmp_path / "picture.tif"
    Image.new(mode, (4, 4)).save(path, icc_profile=b"nonsense")
    assert np.asarray(read_image(path)).tolist() == [[[255 if mode == "CMYK" else 0] * 3] * 4] * 4


@pytest.mark.parametrize(
    "orientation, corner, turned",
    [
        (1, (0, 0), False), (2, (0, 1), False), (3, (1, 1), False), (4, (1, 0), False),
        (5, (0, 0), True), (6, (0, 1), True), (7, (1, 1), True), (8, (1, 0), True),
    ],
)  # fmt: skip
def test_image_exif_rotation_is_applied(tmp_path, orientation, corner, turned):
    """A white top left quarter in the file lands in the corner that the tag says; the sides change places."""
    path = tmp_path / "photo.jpg"
    pixels = np.zeros((32, 64, 3), dtype=np.uint8)
    pixels[:16, :32] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif, quality=95)
    image = read_image(path)
    assert image.size == ((32, 64) if turned else (64, 32))
    bright = np.asarray(image.convert("L").resize((2, 2), Image.Resampling.BOX)) > 127
    assert np.argwhere(bright).tolist() == [list(corner)]


def _grey_profile(gamma: float) -> bytes:
    """An ICC profile (version 2) of grey, whose curve is a power."""
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    white = b"XYZ " + bytes(4) + struct.pack(">iii", 63190, 65536, 54061)  # D50
    tags, body, at = [], b"", 128 + 4 + 2 * 12
    for name, data in ((b"kTRC", curve), (b"wtpt", white)):
        tags.append(name + struct.pack(">II", at + len(body), len(data)))
        body += data
    body = struct.pack(">I", len(tags)) + b"".join(tags) + body
    header = struct.pack(">I4sI4s4s4s", 128 + len(body), bytes(4), 0x02100000, b"mntr", b"GRAY", b"XYZ ")
    header += bytes(12) + b"acsp" + bytes(28) + struct.pack(">iii", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + body


def _srgb_of(linear: float) -> int:
    """The standard's own formula (IEC 61966-2-1)."""
    return round(255 * (12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055))


GREY_LEVELS = (0.0, 1 / 255, 5 / 255, 0.2, 1.0)


@pytest.mark.parametrize("gamma", [1.0, 1.8])
@pytest.mark.parametrize("mode, white", [("L", 255), ("LA", 255), ("I;16", 65535)])
def test_image_profile_of_grey_is_applied(tmp_path, mode, white, gamma):
    """Also where it is dark, which a linear profile brightens most."""
    levels = [round(level * white) for level in GREY_LEVELS]
    row = _row(mode, *(level if mode != "LA" else (level, 255) for level in levels))
    row.save(tmp_path / "grey.png", icc_profile=_grey_profile(gamma))
    expected = [_srgb_of((level / white) ** gamma) for level in levels]
    pixels = np.asarray(read_image(tmp_path / "grey.png"))[0].astype(int)
    assert np.ptp(pixels, axis=1).max() <= 1 and np.abs(pixels[:, 0] - expected).max() <= 1


def test_image_grey_of_16_bits_keeps_levels_between_those_of_8(tmp_path):
    """Of a linear profile: 0.4 of the first level of 8 bits is not black."""
    _row("I;16", 103).save(tmp_path / "grey.png", icc_profile=_grey_profile(1.0))
    assert abs(int(np.asarray(read_image(tmp_path / "grey.png"))[0, 0, 0]) - _srgb_of(103 / 65535)) <= 1


def test_image_profile_of_colours_is_applied_to_palettes_and_greys(tmp_path):
    _palette(RED, WHITE).save(tmp_path / "palette.png", icc_profile=_profile())
    expected = np.array([GREEN, WHITE])
    assert np.abs(np.asarray(read_image(tmp_path / "palette.png"))[0].astype(int) - expected).max() <= 3
    _row("L", 0, 100, 255).save(tmp_path / "grey.png", icc_profile=_profile(b"none", b"none"))
    assert np.abs(np.asarray(read_image(tmp_path / "grey.png"))[0].astype(int) - np.array(GREYS)).max() <= 1


TRANSPARENT = {
    "rgb": (_row("RGB", RED, BLUE), {"transparency": RED}),
    "palette": (_palette(RED, BLUE), {"transparency": 0}),
    "grey": (_row("L", 7, 0), {"transparency": 7}),
    "grey_16": (_row("I;16", 30000, 0), {"transparency": 30000}),
}


@pytest.mark.parametrize("profiled", [False, True], ids=["plain", "profile"])
@pytest.mark.parametrize("kind", TRANSPARENT)
def test_image_transparent_colour_is_transparent_with_and_without_a_profile(tmp_path, kind, profiled):
    image, options = TRANSPARENT[kind]
    image.save(tmp_path / "picture.png", **options, **({"icc_profile": _profile()} if profiled else {}))
    first, second = np.asarray(read_image(tmp_path / "picture.png"))[0].tolist()
    assert first == [255, 255, 255] and max(second) == (255 if image.mode in ("RGB", "P") else 0) and second != first


def test_image_transparent_colour_of_16_bits_is_transparent(tmp_path):
    data = _png_16(RGB, (30000, 30000, 30000), (65535, 0, 0))
    at = data.index(b"IDAT") - 4
    (tmp_path / "picture.png").write_bytes(data[:at] + _chunk(b"tRNS", struct.pack(">HHH", *[30000] * 3)) + data[at:])
    assert np.asarray(read_image(tmp_path / "picture.png"))[0].tolist() == [list(WHITE), list(RED)]


def test_image_partly_transparent_is_mixed_after_its_profile(tmp_path):
    _row("RGBA", (*RED, 128)).save(tmp_path / "picture.png", icc_profile=_profile())
    (pixel,) = np.asarray(read_image(tmp_path / "picture.png"))[0].astype(int)
    assert np.abs(pixel - (127, 255, 127)).max() <= 3


def test_image_of_lab_becomes_rgb_with_the_same_colours(tmp_path):
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    ImageCms.profileToProfile(_row("RGB", (200, 60, 30)), srgb, lab, outputMode="LAB").save(tmp_path / "lab.tif")
    assert np.abs(np.asarray(read_image(tmp_path / "lab.tif"))[0, 0].astype(int) - (200, 60, 30)).max() <= 2


def _bomb() -> bytes:
    return _png(60000, 60000, RGB, 8, b"\0" * 100)


DAMAGED = {
    "text": (b"not a picture", "not an image"),
    "empty": (b"", "is empty"),
    "bomb": (_bomb(), "claims 60000 x 60000 px"),
    "truncated_png": (_saved(Image.effect_noise((64, 64), 50), "PNG")[:2000], "cannot be decoded"),
    "truncated_jpeg": (_saved(Image.effect_noise((64, 64), 50), "JPEG")[:1500], "cannot be decoded"),
    "truncated_tiff": (_saved(Image.effect_noise((64, 64), 50), "TIFF")[:2000], "cannot be decoded"),
    "truncated_tiff_directory": (_saved(Image.new("L", (64, 64)), "TIFF")[:100], "cannot be decoded"),
    "floating_point": (_saved(Image.new("F", (4, 4), 0.5), "TIFF"), "floating-point"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_image_that_cannot_be_read_is_refused_with_key_file_and_reason(tmp_path, kind, recwarn):
    data, reason = DAMAGED[kind]
    path = tmp_path / "damaged"
    path.write_bytes(data)
    with pytest.raises(InputError) as refused:
        read_image(path)
    message = str(refused.value)
    assert message.startswith("image: ") and str(path) in message and reason in message
    assert not recwarn.list  # Pillow's warnings would be further lines on the terminal


def test_image_path_that_is_no_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_image(tmp_path / "missing.png")
    with pytest.raises(InputError, match="Is a directory"):
        read_image(tmp_path)


def test_image_of_the_asked_size_is_not_resampled():
    pixels = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    assert np.array_equal(resize_image(Image.fromarray(pixels), (9, 7)), pixels)
    assert resize_image(Image.fromarray(pixels), (4, 3)).shape == (3, 4, 3)


def _activity(path, size: tuple[int, int], light_columns: int) -> None:
    pixels = np.zeros((size[1], size[0]), dtype=np.uint8)
    pixels[:, :light_columns] = 255
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize("size", [(96, 48), (192, 96), (24, 12), (97, 48)])
def test_activity_map_of_any_size_covers_the_same_cells(tmp_path, size):
    path = tmp_path / "activity.png"
    _activity(path, size, light_columns=size[0] // 2)
    active = read_light(path, (96, 48), (12, 24), "map")
    assert active.shape == (12, 24) and active.dtype == bool
    assert active[:, :12].all() and not active[:, 12:].any()  # light is active, dark is not


def test_activity_map_is_cut_at_one_half_of_the_area(tmp_path):
    path = tmp_path / "activity.png"
    _activity(path, (16, 4), light_columns=6)  # cells of 4 px: full, half, none, none
    _activity(tmp_path / "less.png", (16, 4), light_columns=5)  # full, a quarter, none, none
    assert read_light(path, (16, 4), (1, 4), "map").tolist() == [[True, True, False, False]]
    assert read_light(tmp_path / "less.png", (16, 4), (1, 4), "map").tolist() == [[True, False, False, False]]


def test_map_is_dark_where_it_is_transparent(tmp_path):
    pixels = np.full((4, 8, 4), 255, dtype=np.uint8)
    pixels[:, 4:, 3] = 0  # light, but nothing is drawn there
    Image.fromarray(pixels).save(tmp_path / "map.png")
    assert read_light(tmp_path / "map.png", (8, 4), (1, 2), "map").tolist() == [[True, False]]
    mask = read_mask(tmp_path / "map.png", (8, 4), key="mask")
    assert np.asarray(mask)[0].tolist() == [255] * 4 + [0] * 4
    assert np.asarray(read_image(tmp_path / "map.png")).min() == 255  # a picture lies on white
    _palette(WHITE, WHITE).save(tmp_path / "palette.png", transparency=1, icc_profile=_profile())
    assert read_light(tmp_path / "palette.png", (2, 1), (1, 2), "map").tolist() == [[True, False]]


def test_overlay_is_warm_where_the_map_is_true_and_dimmed_elsewhere():
    picture = np.full((4, 8, 3), 100, dtype=np.uint8)
    shown = np.asarray(draw_overlay(picture, np.array([[True, False]])))
    assert shown.shape == picture.shape
    assert shown[0, 0].tolist() == [185, 111, 45] and (shown[:, :4] == shown[0, 0]).all()
    assert (shown[:, 4:] == 60).all()


def test_activity_map_of_another_aspect_ratio_is_refused(tmp_path):
    path = tmp_path / "activity.png"
    _activity(path, (96, 51), light_columns=10)
    with pytest.raises(InputError, match=r"map .*96 x 48 px.* got 96 x 51 px"):
        read_light(path, (96, 48), (12, 24), "map")
    with pytest.raises(InputError, match=r"fusion.detail_map: .*no such file"):
        read_light(tmp_path / "missing.png", (96, 48), (12, 24), "fusion.detail_map")


def _bt709_to_rgb(frame: av.VideoFrame) -> np.ndarray:
    """Mean colour of a limited-range BT.709 frame, by the standard's own formula."""
    assert frame.format.name == "yuv420p"
    Y, Cb, Cr = (
        np.frombuffer(plane, dtype=np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width].mean()
        for plane in frame.planes
    )
    y, cb, cr = (Y - 16) / 219, (Cb - 128) / 224, (Cr - 128) / 224
    rgb = np.array([y + 1.5748 * cr, y - 0.1873 * cb - 0.4681 * cr, y + 1.8556 * cb])
    return rgb.clip(0, 1) * 255


@pytest.mark.parametrize("colour", [(200, 30, 30), (30, 200, 30), (30, 30, 200), (128, 128, 128), WHITE, (0, 0, 0)])
def test_video_keeps_colours(tmp_path, colour):
    path = tmp_path / "video.mp4"
    frames = np.broadcast_to(np.array(colour, dtype=np.uint8), (3, 48, 64, 3))
    write_video(path, frames, (64, 48), 8)
    with av.open(str(path)) as container:
        decoded = [_bt709_to_rgb(frame) for frame in container.decode(video=0)]
    assert len(decoded) == 3
    assert np.abs(np.array(decoded) - np.array(colour)).max() <= 3


def _atoms(data: bytes) -> list[str]:
    """Names of the top-level atoms of an MP4 file, in order."""
    names, at = [], 0
    while at < len(data):
        size, name = struct.unpack(">I4s", data[at : at + 8])
        names.append(name.decode())
        at += size
    return names


def test_video_plays_in_a_browser(tmp_path):
    """H.264, 4:2:0, tagged BT.709, index in front; frames have the size asked for, and are all there, in order."""
    path = tmp_path / "video.mp4"
    frames = np.zeros((13, 48, 96, 3), dtype=np.uint8)
    frames[:, 24:, 48:] = np.arange(0, 256, 20)[:, None, None, None]  # bottom right, brighter with every frame
    write_video(path, frames, (90, 50), 24)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.name, context.pix_fmt, context.width, context.height) == ("h264", "yuv420p", 90, 50)
        assert (context.colorspace, context.color_primaries, context.color_trc) == (1, 1, 1)
        assert stream.average_rate == 24
        decoded = list(container.decode(stream))
    assert [float(frame.time) for frame in decoded] == pytest.approx(np.arange(13) / 24, abs=1e-3)
    luma = np.array([frame.to_ndarray(format="gray")[[10, 40, 40], [80, 10, 80]] for frame in decoded]).astype(int)
    assert (np.diff(luma[:, 2]) > 10).all() and np.ptp(luma[:, :2]) < 10
    atoms = _atoms(path.read_bytes())
    assert atoms.index("moov") < atoms.index("mdat")


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="needs ffprobe")
def test_video_is_described_alike_by_ffprobe(tmp_path):
    path = tmp_path / "video.mp4"
    write_video(path, np.zeros((5, 48, 64, 3), dtype=np.uint8), (64, 48), 8)
    command = ["ffprobe", "-v", "error", "-count_frames", "-show_streams", "-of", "json", path]
    stream = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["streams"][0]
    assert (stream["codec_name"], stream["pix_fmt"], stream["width"], stream["height"]) == ("h264", "yuv420p", 64, 48)
    assert (stream["r_frame_rate"], stream["nb_read_frames"], stream["color_space"]) == ("8/1", "5", "bt709")


@pytest.mark.parametrize("count, shown", [(5, (0, 2, 4)), (1, (0, 0, 0))])
def test_contact_sheet_shows_input_first_middle_and_last_frame(count, shown):
    image = np.full((48, 96, 3), 255, dtype=np.uint8)
    frames = np.stack([np.full((48, 96, 3), 40 * i, dtype=np.uint8) for i in range(count)])
    sheet = np.asarray(contact_sheet(image, frames))
    rows, columns = (sheet.shape[0] // 2, sheet.shape[1] // 2)
    cells = [sheet[row + 40, column + 48, 0] for row in (0, rows) for column in (0, columns)]
    assert cells == [255, *(40 * i for i in shown)]


def test_contact_sheet_of_a_large_clip_is_reduced():
    frames = np.zeros((1, 2160, 3840, 3), dtype=np.uint8)
    assert max(contact_sheet(frames[0], frames).size) < 2000
