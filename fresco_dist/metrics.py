"""What a clip is measured by. Frames are uint8 (F, H, W, 3), numpy; everything runs on the CPU.

Sharpness and temporal consistency follow the paper's C.1; its prior similarity needs DINOv3, and `prior_distance` is a
stand-in without weights, under a name of its own.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from fresco_dist.grid import Window

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601


def grey(frames: np.ndarray) -> np.ndarray:
    """Luma, float32 (F, H, W) in 0..255."""
    return frames.astype(np.float32) @ LUMA


def resize_area(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Area-averaged frames, uint8 (F, height, width, 3); `size` is (width, height)."""
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX)) for frame in frames])


def sharpness(frames: np.ndarray) -> float:
    """Tenengrad: mean squared Sobel gradient of the grey frames at full size (Pertuz et al. 2013, GRA6)."""
    padded = np.pad(grey(frames), ((0, 0), (1, 1), (1, 1)), mode="edge")
    across = padded[:, :, 2:] - padded[:, :, :-2]
    down = padded[:, 2:] - padded[:, :-2]
    gradient_x = across[:, :-2] + 2 * across[:, 1:-1] + across[:, 2:]
    gradient_y = down[:, :, :-2] + 2 * down[:, :, 1:-1] + down[:, :, 2:]
    return float(np.mean(gradient_x**2 + gradient_y**2))


def temporal_difference(frames: np.ndarray, size: tuple[int, int]) -> float:
    """Mean squared difference of consecutive grey frames, area-averaged to `size` (width, height); lower is calmer."""
    small = grey(resize_area(frames, size))
    return float(np.mean(np.diff(small, axis=0) ** 2))


def prior_distance(frames: np.ndarray, prior_frames: np.ndarray, region: np.ndarray | None = None) -> float:
    """Mean squared difference to the decoded prior, after area-averaging to the prior's size; 0 is the prior itself.

    `region`, bool (H, W) at the prior's size, restricts it.
    """
    height, width = prior_frames.shape[1:3]
    small = resize_area(frames, (width, height)).astype(np.float32)
    error_FHW = np.mean((small - prior_frames) ** 2, axis=-1)
    return float(np.mean(error_FHW if region is None else error_FHW[:, region]))


def seam_energy(frames: np.ndarray, windows_px: Sequence[Window]) -> float:
    """How much more the motion changes across window edges than elsewhere; 1 means that no edge can be told.

    The motion is each frame's difference to the first, so that the picture's own edges do not count. The ratio of mean
    squared differences between neighbouring pixels that an inner window edge separates, to all other neighbours.
    """
    motion = grey(frames[1:]) - grey(frames[:1])
    height, width = motion.shape[1:]
    ratios = []
    for axis, size, edges in (
        (1, height, {edge for w in windows_px for edge in (w.top, w.top + w.height)}),
        (2, width, {edge for w in windows_px for edge in (w.left, w.left + w.width)}),
    ):
        energy = np.mean(np.diff(motion, axis=axis) ** 2, axis=(0, 3 - axis))  # between cells k and k + 1
        at_edge = np.isin(np.arange(1, size), sorted(edges - {0, size}))
        if at_edge.any() and not at_edge.all() and energy[~at_edge].mean() > 0:
            ratios.append(energy[at_edge].mean() / energy[~at_edge].mean())
    return float(np.mean(ratios)) if ratios else 1.0
