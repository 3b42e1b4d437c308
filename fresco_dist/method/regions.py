"""Prompts by region: shares of the prompts that add up to 1 in every latent cell, and which of them count in a window.

numpy alone, once per level, before any work. Shapes: R regions; P prompts, that of the rest of the picture first;
H, W latent cells of a level. Lengths are in shares of the picture or in cells, so that every level has the same shapes.
"""

from collections.abc import Sequence

import numpy as np

from fresco_dist.method.grid import Window

MIN_SHARE = 0.02  # less is noise in a mask's file, or the end of a soft edge; it would cost a forward per window
UNITS = 2**20  # shares are whole numbers of 1 / UNITS: their sum is 1, not nearly 1, in float32, too


def cover(box: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    """The share of each cell, float64 (H, W), that lies in a box: left, top, right, bottom in shares of the picture."""
    left, top, right, bottom = box

    def along(start: float, end: float, num_cells: int) -> np.ndarray:
        cells = np.arange(num_cells)
        return np.clip(np.minimum(end * num_cells, cells + 1) - np.maximum(start * num_cells, cells), 0.0, None)

    return along(top, bottom, size[0])[:, None] * along(left, right, size[1])[None, :]


def feather(mask_HW: np.ndarray, widths: Sequence[float]) -> np.ndarray:
    """A mask whose edges fade over so many cells (height, width): averaged twice over half of that; 0: as it is."""
    for axis, width in enumerate(widths):
        for _ in range(2):
            mask_HW = np.moveaxis(_average(np.moveaxis(mask_HW, axis, -1), width / 2), -1, axis)
    return mask_HW


def _average(rows: np.ndarray, length: float) -> np.ndarray:
    """Of the last axis the mean over `length` cells around the middle of each, or what of them is in the picture."""
    if length <= 1.0:  # all in the same cell
        return rows
    size = rows.shape[-1]
    sums = np.concatenate([np.zeros_like(rows[..., :1]), np.cumsum(rows, axis=-1)], axis=-1)
    middles = np.arange(size) + 0.5
    first, last = np.clip(middles - length / 2, 0.0, size), np.clip(middles + length / 2, 0.0, size)

    def until(place: np.ndarray) -> np.ndarray:
        whole = np.minimum(place.astype(int), size - 1)
        return sums[..., whole] + (place - whole) * rows[..., whole]

    return (until(last) - until(first)) / (last - first)


def share_out(masks_RHW: np.ndarray) -> np.ndarray:
    """Shares of the prompts, float32 (1 + R, H, W), of masks in [0, 1]; regions that overlap share what there is."""
    rest_HW = np.clip(1.0 - masks_RHW.sum(axis=0), 0.0, None)
    shares_PHW = np.concatenate([rest_HW[None], masks_RHW])
    shares_PHW /= shares_PHW.sum(axis=0)
    largest_HW = shares_PHW.argmax(axis=0)[None]
    shares_PHW[(shares_PHW < MIN_SHARE) & (shares_PHW < shares_PHW.max(axis=0))] = 0.0
    units_PHW = np.floor(shares_PHW / shares_PHW.sum(axis=0) * UNITS)
    left_HW = UNITS - units_PHW.sum(axis=0)
    np.put_along_axis(units_PHW, largest_HW, np.take_along_axis(units_PHW, largest_HW, 0) + left_HW, 0)
    return (units_PHW / UNITS).astype(np.float32)


def prompts_in(shares_PHW: np.ndarray, window: Window) -> tuple[int, ...]:
    """The prompts that have a share in a window."""
    counts = shares_PHW[(..., *window.slices)].any(axis=(1, 2))
    return tuple(int(prompt) for prompt in np.flatnonzero(counts))


def main_prompt(shares_PHW: np.ndarray, window: Window) -> int:
    """The prompt with the largest share of a window."""
    return int(shares_PHW[(..., *window.slices)].sum(axis=(1, 2), dtype=np.float64).argmax())
