"""The activity map of a picture from masks of what may move in it (the paper's C.4). No model.

Masks and maps are (h, w) of any size, in the picture's aspect ratio.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from fresco_dist.config import Sam3Config


def is_kept(mask_hw: np.ndarray, config: Sam3Config) -> bool:
    """Whether a mask (bool) is no whole scene and does not hug the picture's border."""
    area = np.count_nonzero(mask_hw)
    if area == 0 or area > config.max_area * mask_hw.size:
        return False
    margin = round(config.border * min(mask_hw.shape))
    inner = mask_hw[margin : mask_hw.shape[0] - margin, margin : mask_hw.shape[1] - margin]
    return bool(area - np.count_nonzero(inner) <= config.max_border * area)


def dilate(mask_hw: np.ndarray, share: float) -> np.ndarray:
    """All that is no farther from a mask (bool) than that share of the shorter side, from centre to centre."""
    from scipy.ndimage import distance_transform_edt  # a quarter of a second, for the few who need it

    return distance_transform_edt(~mask_hw) <= share * min(mask_hw.shape)


def support(masks_hw: Iterable[np.ndarray], config: Sam3Config, size: tuple[int, int]) -> tuple[np.ndarray, int]:
    """What the masks of one prompt cover, bool (h, w) of `size`, and how many of them were kept."""
    covered_hw, num_kept = np.zeros(size, dtype=bool), 0
    for mask_hw in masks_hw:
        if is_kept(mask_hw, config):
            covered_hw |= mask_hw
            num_kept += 1
    return dilate(covered_hw, config.dilation) if num_kept else covered_hw, num_kept


def mean_support(supports_hw: Sequence[np.ndarray]) -> np.ndarray:
    """The share of the prompts that cover each pixel, float32 (h, w)."""
    return np.asarray(np.mean(supports_hw, axis=0, dtype=np.float32))


def active_cells(map_hw: np.ndarray, canvas: tuple[int, int], threshold: float) -> np.ndarray:
    """Where a map, float32 in [0, 1], is above a threshold on average: bool (H, W) latent cells of `canvas`."""
    mean_HW = Image.fromarray(map_hw).resize((canvas[1], canvas[0]), Image.Resampling.BOX)
    return np.asarray(mean_HW) > threshold
