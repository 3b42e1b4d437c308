"""Parts of a canvas on their way between workers: numpy arrays, cut from and put together into windows and cells."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fresco_dist.method.grid import Window


def cut(part: Window, parts: Mapping[Window, np.ndarray]) -> np.ndarray:
    """What lies inside `part` of a space, from parts that cover it: arrays whose last dimensions are (H, W)."""
    some = next(iter(parts.values()))
    whole = np.empty((*some.shape[:-2], part.height, part.width), dtype=some.dtype)
    for window, array in parts.items():
        common = part.intersection(window)
        if common.height > 0 and common.width > 0:
            whole[(..., *common.within(part).slices)] = array[(..., *common.within(window).slices)]
    return whole


def add_up(cell: Window, windows: Sequence[Sequence[Window]], predictions: Sequence[np.ndarray]) -> np.ndarray:
    """What predictions (C, T, H, W) of windows, batch by batch, have in a cell, added up: int32."""
    total_CTHW = np.zeros((*predictions[0][0].shape[:2], cell.height, cell.width), dtype=np.int32)
    for members, batch in zip(windows, predictions, strict=True):
        for window, prediction_CTHW in zip(members, batch, strict=True):
            if window.overlaps(cell):
                common = cell.intersection(window)
                total_CTHW[(..., *common.within(cell).slices)] += prediction_CTHW[(..., *common.within(window).slices)]
    return total_CTHW


def send(value: Any) -> Any:
    """`value` with numpy arrays for its tensors: what travels needs no device, and Ray copies no contiguous array."""
    if isinstance(value, torch.Tensor):
        return value.contiguous().cpu().numpy()
    if isinstance(value, dict):
        return {key: send(entry) for key, entry in value.items()}
    return type(value)(map(send, value)) if isinstance(value, (list, tuple)) else value


def receive(value: Any, device: torch.device) -> Any:
    """The opposite of `send`."""
    if isinstance(value, np.ndarray):
        return torch.tensor(value, device=device)
    if isinstance(value, dict):
        return {key: receive(entry, device) for key, entry in value.items()}
    return type(value)(receive(entry, device) for entry in value) if isinstance(value, (list, tuple)) else value
