"""What runs come to, while they run: the looks of the workers put together, and the picture that is made of them.

Knows neither latents nor models: what arrives are the colours of latent cells, see `runtime.step.Denoiser.look`.
F frames, h, w latent cells.
"""

import io

import numpy as np
from PIL import Image

from fresco_dist.media.pictures import resize_image
from fresco_dist.method.level import Level
from fresco_dist.schedule.trace import TaskRecord

BOX_PX = (1280, 720)  # that the picture fits in
GAP_PX = 4  # between its frames


class Looks:
    """Of steps of which not all cells have been looked at."""

    def __init__(self) -> None:
        self._of: dict[str, dict[int, np.ndarray]] = {}  # by the canvas after the step, and cell

    def take(self, record: TaskRecord, level: Level) -> np.ndarray | None:
        """The frames of a step, uint8 (F, h, w, 3), if those of this task complete it."""
        cells = self._of.setdefault(record.task.of, {})
        cells.update(record.looks)  # some may come twice, after losses
        if len(cells) < len(level.cells):
            return None
        del self._of[record.task.of]
        frames_FHW3 = np.empty((len(cells[0]), *level.canvas, 3), np.uint8)
        for i, look_FHW3 in cells.items():
            frames_FHW3[(slice(None), *level.cells[i].slices)] = look_FHW3
        return frames_FHW3


def lay_out(frames_FHW3: np.ndarray, size_px: tuple[int, int]) -> Image.Image:
    """Frames of a video of this size (width, height) in one picture, at most as large as there.

    Beside each other, or above where that leaves them larger.
    """
    (width, height), number = size_px, len(frames_FHW3)
    gaps = GAP_PX * (number - 1)
    beside = min((BOX_PX[0] - gaps) / (number * width), BOX_PX[1] / height)
    above = min(BOX_PX[0] / width, (BOX_PX[1] - gaps) / (number * height))
    scale = min(1.0, max(beside, above))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    step = (size[0] + GAP_PX, 0) if beside >= above else (0, size[1] + GAP_PX)
    sheet = Image.new("RGB", (size[0] + (number - 1) * step[0], size[1] + (number - 1) * step[1]), "white")
    for i, frame_HW3 in enumerate(frames_FHW3):
        sheet.paste(Image.fromarray(resize_image(Image.fromarray(frame_HW3), size)), (i * step[0], i * step[1]))
    return sheet


def encode_png(image: Image.Image) -> bytes:
    """A picture that is soon replaced: fast before small."""
    file = io.BytesIO()
    image.save(file, format="PNG", compress_level=1)
    return file.getvalue()
