"""Videos and contact sheets: what a browser plays and what shows a run at a glance.

Frames are uint8 (H, W, 3), sRGB.
"""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

from fresco_dist.media.pictures import resize_image

SHEET_CELL_PX = 960


def write_video(path: Path, frames: Iterable[np.ndarray], size: tuple[int, int], fps: int | Fraction) -> None:
    """H.264, 4:2:0, BT.709, index at the front: plays in any browser. `size` is (width, height), both even.

    Frames of another size are resized (Lanczos).
    """
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps), options={"crf": "14", "preset": "medium"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.colorspace = stream.codec_context.color_primaries = stream.codec_context.color_trc = 1
        for pixels in frames:
            resized = resize_image(Image.fromarray(pixels), size)
            frame = av.VideoFrame.from_ndarray(resized, format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def read_video(path: Path) -> np.ndarray:
    """All frames of a video, uint8 (F, H, W, 3)."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def resize_frames(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Frames at `size` (width, height), Lanczos; themselves if they have that size."""
    if frames.shape[2:0:-1] == size:
        return frames
    resized = np.empty((len(frames), *size[::-1], 3), dtype=np.uint8)
    for i, pixels in enumerate(frames):
        resized[i] = resize_image(Image.fromarray(pixels), size)
    return resized


def contact_sheet(image: np.ndarray, frames: np.ndarray) -> Image.Image:
    """Input, first, middle and last frame, two by two, each at most SHEET_CELL_PX wide and labelled with its number."""
    last = len(frames) - 1
    cells = [("input", image)] + [(f"frame {i}", frames[i]) for i in (0, last // 2, last)]
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
