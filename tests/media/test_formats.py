"""Every format as others read it: MediaInfo of the container and its tags, FFmpeg's decoders of the pictures."""

import hashlib
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image
from pymediainfo import MediaInfo
from safetensors import safe_open

from fresco_dist.api.animation import Animation
from fresco_dist.config import FORMATS, VideoFormat
from fresco_dist.media import video
from fresco_dist.media.pictures import to_depth
from fresco_dist.media.video import read_video, write_video

WIDTH, HEIGHT, FRAMES = 1024, 96, 5
NTSC = Fraction(24000, 1001)
READ = {  # format, profile, codec's tag, bits and chroma as MediaInfo names them; it knows no depth of ProRes
    VideoFormat.h264: ("AVC", "High", "avc1", 8, "4:2:0"),
    VideoFormat.h265: ("HEVC", "Main 10", "hvc1", 10, "4:2:0"),
    VideoFormat.av1: ("AV1", "Main", "av01", 10, "4:2:0"),
    VideoFormat.prores: ("ProRes", "422 HQ", "apch", None, "4:2:2"),
    VideoFormat.prores_4444: ("ProRes", "4444", "ap4h", None, "4:4:4"),
    VideoFormat.ffv1: ("FFV1", "", "V_FFV1", 16, None),
}
LOSSLESS = (VideoFormat.ffv1, VideoFormat.png, VideoFormat.frames)
LOSSY = tuple(format for format in VideoFormat if format not in LOSSLESS)


def clip() -> np.ndarray:
    """uint16 (F, H, W, 3): above, all 10-bit greys from left to right; below, blocks of colours, others in each."""
    frames = np.empty((FRAMES, HEIGHT, WIDTH, 3), np.uint16)
    frames[:, : HEIGHT // 2] = (np.arange(WIDTH) * 65535 // 1023)[:, None]
    colours = np.random.default_rng(0).integers(0, 65536, (FRAMES, 3, 32, 3), dtype=np.uint16)
    frames[:, HEIGHT // 2 :] = colours.repeat(16, 1).repeat(32, 2)
    return frames


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> dict[VideoFormat, Path]:
    """The clip in each format, in a folder whose name means something to FFmpeg."""
    folder = tmp_path_factory.mktemp("50%d")
    for format, encoding in FORMATS.items():
        (folder / format.value).mkdir()
        write_video(folder / format.value / encoding.file_name, clip(), (WIDTH, HEIGHT), NTSC, format)
    return {format: folder / format.value / encoding.file_name for format, encoding in FORMATS.items()}


def track(path: Path) -> SimpleNamespace:
    """What MediaInfo says of the picture."""
    (found,) = (track for track in MediaInfo.parse(path).tracks if track.track_type in ("Video", "Image"))
    return found


def decoded(path: Path) -> list[av.VideoFrame]:
    """Of a video, or of a folder of pictures."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    frames = []
    for file in files:
        with av.open(str(file)) as container:
            frames += container.decode(video=0)
    return frames


def planes(frame: av.VideoFrame) -> Iterator[np.ndarray]:
    """Samples in [0, 1] of the format's range of codes."""
    depth = 2.0 ** frame.format.components[0].bits
    for plane in frame.planes:
        samples = np.frombuffer(plane, np.uint8 if depth == 256 else np.uint16)
        yield samples.reshape(plane.height, -1)[:, : plane.width] / depth


def to_rgb(frame: av.VideoFrame) -> np.ndarray:
    """(H, W, 3) in [0, 1] of a limited-range BT.709 frame, by the standard's formula; chroma repeated."""
    y, cb, cr = planes(frame)
    cb, cr = (c.repeat(len(y) // len(c), 0).repeat(y.shape[1] // c.shape[1], 1) for c in (cb, cr))
    y, cb, cr = (y * 256 - 16) / 219, (cb * 256 - 128) / 224, (cr * 256 - 128) / 224
    return np.stack([y + 1.5748 * cr, y - 0.187324 * cb - 0.468124 * cr, y + 1.8556 * cb], axis=-1)


@pytest.mark.parametrize("format", READ)
def test_video_is_what_another_reader_takes_it_for(written, format):
    """Size, frames, rate, depth, and the tags of BT.709, in the container and in the stream."""
    name, profile, codec, bits, chroma = READ[format]
    read = track(written[format])
    assert (read.format, read.codec_id, read.bit_depth, read.chroma_subsampling) == (name, codec, bits, chroma)
    assert (read.format_profile or "").partition("@")[0] == profile
    assert (read.width, read.height, int(read.frame_count), read.frame_rate) == (WIDTH, HEIGHT, FRAMES, "23.976")
    assert read.color_primaries == "BT.709"
    is_rgb = FORMATS[format].is_rgb
    expected = ("sRGB/sYCC", "Identity", "Full") if is_rgb else ("BT.709", "BT.709", "Limited")
    has_range = name != "ProRes"  # which has none but the limited one
    assert (read.transfer_characteristics, read.matrix_coefficients) == expected[:2]
    assert read.color_range == (expected[2] if has_range else None)
    stream_says = "Container" if is_rgb else "Container / Stream"  # a stream of FFV1 has no such tags
    assert read.colour_description_present_source == stream_says


@pytest.mark.parametrize("format", READ)
def test_rate_is_exact(written, format):
    with av.open(str(written[format])) as container:
        assert container.streams.video[0].average_rate == NTSC


def _chunks(data: bytes) -> dict[str, bytes]:
    """Of a PNG, by their names."""
    found, at = {}, 8
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        found[data[at + 4 : at + 8].decode()] = data[at + 8 : at + 8 + length]
        at += 12 + length
    return found


def test_png_is_a_sequence_of_16_bit_pictures_in_srgb(written):
    files = sorted(written[VideoFormat.png].iterdir())
    assert [file.name for file in files] == [f"{i:05d}.png" for i in range(FRAMES)]
    for file in files:
        read = track(file)
        assert (read.format, read.width, read.height, read.bit_depth) == ("PNG", WIDTH, HEIGHT, 16)
        with Image.open(file) as image:
            image.load()
            assert image.size == (WIDTH, HEIGHT)
        chunks = _chunks(file.read_bytes())
        assert chunks["IHDR"][8:10] == b"\x10\x02" and ("sRGB" in chunks or chunks["cICP"] == b"\x01\x0d\x00\x01")


def test_lossless_formats_have_the_bits_of_the_frames(written):
    for format in (VideoFormat.ffv1, VideoFormat.png):
        frames = [frame.to_ndarray(format="rgb48le") for frame in decoded(written[format])]
        np.testing.assert_array_equal(frames, clip())
    with safe_open(written[VideoFormat.frames], "numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("frames"), clip())
        assert file.metadata() == {"range": "0..65535", "color": "sRGB", "fps": "24000/1001"}


@pytest.mark.parametrize("format", [format for format in LOSSY if FORMATS[format].bits > 8])
def test_greys_that_8_bits_cannot_tell_apart_survive(written, format):
    greys = clip()[0, : HEIGHT // 2, :, 0] / 65535.0
    for frame in decoded(written[format]):
        y, *_ = planes(frame)
        found = (y[: HEIGHT // 2] * 256 - 16) / 219
        away = 1023 * (found - greys)[: HEIGHT // 2 - 8]  # from the colours
        assert np.quantile(np.abs(away), 0.99) < 4 and np.abs(away).mean() < 0.6  # of 8 bits, rounded well, it is 1.2
        assert abs(away.mean()) < 0.2  # rounded, not cut
        assert len(np.unique(y[: HEIGHT // 2].round(4))) > 800


@pytest.mark.parametrize("format", LOSSY)
def test_colours_survive(written, format):
    """In the midst of blocks, where chroma of any siting is theirs."""
    for frame, expected in zip(decoded(written[format]), clip(), strict=True):
        found = to_rgb(frame)[HEIGHT // 2 + 8 :: 16, 16::32]
        away = np.abs(found - expected[HEIGHT // 2 + 8 :: 16, 16::32] / 65535.0)
        assert away.max() < 0.05 and away.mean() < 0.015


def test_chroma_lies_where_decoders_look_for_it():
    """Columns: with the even ones; rows: between two. A blue edge a quarter of a sample off would show."""
    pixels = np.zeros((4, 12, 3), np.uint16)
    pixels[:, 6:, 2] = 65535
    for name, rows in (("h265", 2), ("prores", 4)):
        _, cb, _ = (plane.astype(int) for plane in map(video._samples, _frame(pixels, name).planes))
        assert cb.shape == (rows, 6) and (cb == cb[0]).all()
        np.testing.assert_array_equal(cb[0], [512, 512, 512, 512 + 336, 960, 960])


def test_chroma_of_full_resolution_and_luma_are_those_of_the_standard():
    pixels = np.random.default_rng(0).integers(0, 65536, (300, 6, 3), dtype=np.uint16)  # more rows than a band
    r, g, b = np.moveaxis(pixels / 65535.0, -1, 0)
    y = 0.2126 * r + 0.7152 * g + 0.0722 * b
    expected = [876 * y + 64, 896 * (b - y) / 1.8556 + 512, 896 * (r - y) / 1.5748 + 512]
    for plane, exact in zip(_frame(pixels, "prores_4444").planes, expected, strict=True):
        assert np.abs(video._samples(plane) - exact).max() < 0.51


def _frame(pixels: np.ndarray, name: str) -> av.VideoFrame:
    return video._to_frame(pixels, FORMATS[VideoFormat(name)])


@pytest.mark.parametrize("format", [format for format in VideoFormat if FORMATS[format].crf])
def test_better_quality_is_a_larger_file(tmp_path, format):
    noisy = clip() // 2 + np.random.default_rng(1).integers(0, 20000, clip().shape, dtype=np.uint16)
    sizes = []
    for quality in (0, 2.5, 5, 7.5, 10):
        write_video(tmp_path / f"{quality}.mp4", noisy, (WIDTH, HEIGHT), 8, format, quality)
        sizes.append((tmp_path / f"{quality}.mp4").stat().st_size)
    assert sizes == sorted(set(sizes))
    profiles = {VideoFormat.h264: "High@", VideoFormat.h265: "Main 10@", VideoFormat.av1: "Main@"}
    assert track(tmp_path / "10.mp4").format_profile.startswith(profiles[format])  # lossless ones play nowhere


def test_h264_is_what_it_was(tmp_path, request):
    """The same call of the encoder as before there were other formats, byte for byte; it has a thread per CPU."""
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})  # since its threads may decide a bit under load
    request.addfinalizer(lambda: os.sched_setaffinity(0, cpus))
    frames = to_depth(clip(), 8)
    with av.open(str(tmp_path / "before.mp4"), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(8), options={"crf": "14", "preset": "medium"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.colorspace = stream.codec_context.color_primaries = stream.codec_context.color_trc = 1
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace="ITU709")))
        container.mux(stream.encode(None))
    write_video(tmp_path / "now.mp4", frames, (WIDTH, HEIGHT), 8)
    digests = [hashlib.sha256((tmp_path / name).read_bytes()).digest() for name in ("before.mp4", "now.mp4")]
    assert digests[0] == digests[1]


def test_frames_of_16_bits_are_resized_as_those_of_8_are(tmp_path):
    small = (WIDTH // 2 - 3, HEIGHT // 2 - 1)  # odd, which lossless formats take
    write_video(tmp_path / "video.mkv", clip(), small, 8, VideoFormat.ffv1)
    assert (track(tmp_path / "video.mkv").width, track(tmp_path / "video.mkv").height) == small
    for found, frame in zip(decoded(tmp_path / "video.mkv"), clip(), strict=True):
        expected = Image.fromarray(to_depth(frame, 8)).resize(small, Image.Resampling.LANCZOS)
        away = to_depth(found.to_ndarray(format="rgb48le"), 8).astype(int) - np.asarray(expected)
        assert (np.abs(away) > 1).mean() < 0.02 and abs(away.mean()) < 0.1  # Pillow clips between columns and rows


def test_depths_hold_each_others_values():
    values = np.arange(256, dtype=np.uint8)
    assert to_depth(values, 16).tolist() == [257 * value for value in range(256)]
    assert (to_depth(to_depth(values, 16), 8) == values).all()
    deep = np.arange(65536, dtype=np.uint16)
    np.testing.assert_array_equal(to_depth(deep, 8), np.round(deep / 257.0))
    assert to_depth(values, 8) is values and to_depth(deep, 16) is deep


@pytest.mark.parametrize("format", VideoFormat)
def test_what_is_written_is_read_again_in_its_depth(written, format):
    frames = read_video(written[format])
    assert frames.shape == clip().shape and frames.dtype == (np.uint8 if format is VideoFormat.h264 else np.uint16)
    away = np.abs(to_depth(frames, 16) / 65535 - clip() / 65535)
    assert away.mean() < (0.02 if format in LOSSY else 1e-9)


def test_animation_of_odd_size_and_16_bits_is_saved_as_h264(tmp_path):
    frames = clip()[:, : HEIGHT - 1, :255]
    path = Animation(frames, None, {"config": {"video": {"format": "h264", "quality": None}}}, NTSC, None).save(
        tmp_path / "clip.mp4"
    )
    assert (track(path).width, track(path).height, track(path).bit_depth) == (254, HEIGHT - 2, 8)
    assert np.abs(read_video(path) / 255 - to_depth(frames, 8)[:, :-1, :-1] / 255).mean() < 0.03


def test_encoder_of_av1_says_nothing_on_stderr(tmp_path, monkeypatch, capfd):
    monkeypatch.delenv("SVT_LOG", raising=False)
    write_video(tmp_path / "video.mp4", clip()[:1], (WIDTH, HEIGHT), 24, VideoFormat.av1)
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(not video.TASKS.is_dir(), reason="asks Linux which threads there are")
@pytest.mark.parametrize("format", [format for format in VideoFormat if format is not VideoFormat.frames])
def test_no_encoder_runs_ahead_of_all_else_on_the_machine(tmp_path, format):
    """As root SVT-AV1 would: its threads, and this one with all processes that it starts later."""
    seen = []

    class Frames(list):
        def __iter__(self):
            for frame in super().__iter__():
                yield frame
                seen.append({os.sched_getscheduler(int(thread)) for thread in os.listdir(video.TASKS)})

    encoding = FORMATS[format]
    write_video(tmp_path / encoding.file_name, Frames(clip()), (WIDTH, HEIGHT), 24, format)
    assert seen == [{os.SCHED_OTHER}] * FRAMES and os.sched_getscheduler(0) == os.SCHED_OTHER


def test_video_is_written_where_threads_cannot_be_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "TASKS", tmp_path / "nowhere")
    write_video(tmp_path / "video.mp4", clip(), (WIDTH, HEIGHT), 24)
    assert len(read_video(tmp_path / "video.mp4")) == FRAMES
