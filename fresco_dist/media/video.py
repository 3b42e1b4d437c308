"""Videos in all formats, frame by frame, and contact sheets: what shows a run at a glance.

Frames are uint8 or uint16 (H, W, 3), sRGB. Luma and chroma of more than 8 bits are made here, by the formula of BT.709
(ITU-R BT.709-6, 3.2 to 3.5): FFmpeg's own conversion of 16-bit RGB is off by up to four steps of 10 bits.
"""

import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image, ImageDraw
from safetensors.numpy import load_file

from fresco_dist.config import FORMATS, Encoding, VideoFormat
from fresco_dist.media.pictures import resize_image, to_depth

TASKS = Path("/proc/self/task")  # of this process, each thread by its number
SHEET_CELL_PX = 960
LUMA = np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)  # BT.709
BAND = 256  # rows that are converted at a time, to stay in the caches
BT709, SRGB = 1, 13  # ITU-T H.273: primaries, transfer and matrix; transfer of sRGB
RGB, LIMITED, FULL = 0, 1, 2  # H.273's matrix of RGB, and FFmpeg's numbers of ranges


def write_video(
    path: Path,
    frames: np.ndarray | Sequence[np.ndarray],
    size: tuple[int, int],
    fps: int | Fraction,
    format: VideoFormat = VideoFormat.h264,
    quality: float | None = None,
) -> None:
    """One frame after the other, all of BT.709 and tagged so; by default as H.264, which plays in any browser.

    `size` is (width, height), even where the format asks for it; frames of another size are resized (Lanczos). What is
    written is a file, or with `png` a folder of 00000.png and so on. `quality` is in [0, 10], None the format's own.
    """
    encoding = FORMATS[format]
    fitting = (_resize(to_depth(frame, encoding.bits), size) for frame in frames)
    if not encoding.codec:
        _write_tensor(path, fitting, (len(frames), size[1], size[0], 3), fps)
        return
    url = os.path.abspath(path)  # a name with a colon is taken for a protocol
    if encoding.container == "image2":
        path.mkdir()
        url = url.replace("%", "%%") + "/%05d.png"
    if format is VideoFormat.av1:
        os.environ.setdefault("SVT_LOG", "1")  # its encoder has no other way to be told: errors alone
    options = dict(encoding.options)
    if encoding.crf:
        options["crf"] = f"{encoding.crf.at(quality):g}"
    with av.open(url, "w", format=encoding.container, options=encoding.container_options) as container:
        stream = container.add_stream(encoding.codec, rate=Fraction(fps), options=options)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = *size, encoding.pixels
        if encoding.bits > 8:  # of H.264 every player knows it
            stream.codec_context.sample_aspect_ratio = Fraction(1)
        _tag(stream.codec_context, encoding)
        if encoding.tag:
            stream.codec_context.codec_tag = encoding.tag
        with _priority_kept():
            stream.codec_context.open()
        for pixels in fitting:
            frame = _to_frame(pixels, encoding)
            _tag(frame, encoding)  # PNG and ProRes have what their frames say
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@contextmanager
def _priority_kept() -> Iterator[None]:
    """This thread, and those that begin meanwhile, go on with the priority that it has.

    SVT-AV1 gives itself and the thread that opens it real-time priority where it may, as root: nothing else would run.
    """
    if not TASKS.is_dir():  # not Linux, or hidden
        yield
        return
    policy, parameters, before = os.sched_getscheduler(0), os.sched_getparam(0), os.listdir(TASKS)
    before.remove(str(threading.get_native_id()))
    try:
        yield
    finally:
        for thread in map(int, set(os.listdir(TASKS)).difference(before)):
            with suppress(ProcessLookupError):  # it has ended
                if os.sched_getscheduler(thread) != policy:
                    os.sched_setscheduler(thread, policy, parameters)


def _tag(stream_or_frame: Any, encoding: Encoding) -> None:
    """Its primaries, transfer, matrix and range."""
    stream_or_frame.color_primaries = BT709
    stream_or_frame.color_trc = SRGB if encoding.is_rgb else BT709
    stream_or_frame.colorspace = RGB if encoding.is_rgb else BT709
    stream_or_frame.color_range = FULL if encoding.is_rgb else LIMITED


def _resize(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Lanczos; of 16 bits channel by channel, since Pillow has no such pictures in colour."""
    if pixels.dtype == np.uint8:
        return resize_image(Image.fromarray(pixels), size)
    if pixels.shape[1::-1] == size:
        return pixels
    channels = [resize_image(Image.fromarray(pixels[..., i].astype(np.float32)), size) for i in range(3)]
    return np.stack(channels, axis=-1).round().clip(0, 65535).astype(np.uint16)


def _to_frame(pixels: np.ndarray, encoding: Encoding) -> av.VideoFrame:
    """A frame as its encoder takes it; `pixels` are as deep as the encoding asks for."""
    if encoding.bits == 8:
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        return frame.reformat(format=encoding.pixels, dst_colorspace="ITU709")
    if encoding.is_rgb:
        return av.VideoFrame.from_ndarray(pixels, format="rgb48le").reformat(format=encoding.pixels)
    frame = av.VideoFrame(pixels.shape[1], pixels.shape[0], encoding.pixels)
    planes = [_samples(plane) for plane in frame.planes]
    down = planes[0].shape[0] // planes[1].shape[0]
    for top in range(0, len(pixels), BAND):
        for plane, band in zip(planes, _to_ycbcr(pixels[top : top + BAND], planes[1].shape[1], down)):
            first = top * len(plane) // len(pixels)
            plane[first : first + len(band)] = band
    return frame


def _samples(plane: av.video.plane.VideoPlane) -> np.ndarray:
    """Its 16-bit samples (H, W), to be filled."""
    samples = np.frombuffer(plane, dtype="<u2")  # type: ignore[call-overload]  # a buffer, which its stubs do not say
    return samples.reshape(plane.height, plane.line_size // 2)[:, : plane.width]


def _to_ycbcr(rgb_HW3: np.ndarray, chroma_width: int, down: int) -> Iterator[np.ndarray]:
    """Y, Cb and Cr of 10 bits, limited range, of uint16 RGB; chroma of so many columns, one row for `down` rows.

    Halved chroma has its samples at even columns and, of rows, between two, as is usual of MPEG.
    """
    rgb_HW3 = rgb_HW3.astype(np.float32) / 65535.0
    y_HW = rgb_HW3 @ LUMA
    yield (876.0 * y_HW + 64.5).astype(np.uint16)
    for channel, scale in ((2, 2.0 * (1.0 - LUMA[2])), (0, 2.0 * (1.0 - LUMA[0]))):
        c_HW = (rgb_HW3[..., channel] - y_HW) / scale
        c_HW = c_HW.reshape(-1, down, c_HW.shape[1]).mean(axis=1)
        if chroma_width < c_HW.shape[1]:
            left = np.concatenate([c_HW[:, :1], c_HW[:, 1:-1:2]], axis=1)
            c_HW = 0.25 * left + 0.5 * c_HW[:, ::2] + 0.25 * c_HW[:, 1::2]
        yield (896.0 * c_HW + 512.5).astype(np.uint16)


def _write_tensor(path: Path, frames: Iterator[np.ndarray], shape: tuple[int, ...], fps: int | Fraction) -> None:
    """`frames`, uint16, as a safetensors file, whose own writers would hold all of it (format: 8 bytes, JSON, data)."""
    num_bytes = 2 * int(np.prod(shape))
    entry = {"dtype": "U16", "shape": shape, "data_offsets": [0, num_bytes]}
    facts = {"range": "0..65535", "color": "sRGB", "fps": str(fps)}
    header = json.dumps({"__metadata__": facts, "frames": entry}).encode()
    header += b" " * (-len(header) % 8)  # the data are aligned
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for frame in frames:
            file.write(np.ascontiguousarray(frame, dtype="<u2").data)


def read_video(path: Path) -> np.ndarray:
    """All frames of what was written, (F, H, W, 3): uint16 of formats with more than 8 bits, else uint8."""
    if path.suffix == ".safetensors":
        return load_file(path)["frames"]
    frames = []
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        with av.open(os.path.abspath(file)) as container:
            is_deep = container.streams.video[0].format.components[0].bits > 8
            kind = "rgb48le" if is_deep else "rgb24"
            frames += [frame.to_ndarray(format=kind) for frame in container.decode(video=0)]
    return np.stack(frames)


def resize_frames(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Frames at `size` (width, height), Lanczos; themselves if they have that size."""
    if frames.shape[2:0:-1] == size:
        return frames
    resized = np.empty((len(frames), *size[::-1], 3), dtype=frames.dtype)
    for i, pixels in enumerate(frames):
        resized[i] = _resize(pixels, size)
    return resized


def contact_sheet(image: np.ndarray, frames: np.ndarray) -> Image.Image:
    """Input, first, middle and last frame, two by two, each at most SHEET_CELL_PX wide and labelled with its number."""
    last = len(frames) - 1
    cells = [("input", image)] + [(f"frame {i}", to_depth(frames[i], 8)) for i in (0, last // 2, last)]
    height, width = frames.shape[1:3]
    scale = min(1.0, SHEET_CELL_PX / max(height, width))
    cell_size = (max(1, round(width * scale)), max(1, round(height * scale)))
    label_px, gap = 14, 4
    pitch = (cell_size[0] + gap, cell_size[1] + label_px + gap)
    sheet = Image.new("RGB", (2 * pitch[0] - gap, 2 * pitch[1] - gap), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (label, pixels) in enumerate(cells):
        left, top = i % 2 * pitch[0], i // 2 * pitch[1]
        draw.text((left + 2, top), label, fill="black")
        sheet.paste(Image.fromarray(resize_image(Image.fromarray(pixels), cell_size)), (left, top + label_px))
    return sheet
