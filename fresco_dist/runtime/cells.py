"""Parts of a canvas on their way between workers: numpy arrays, cut from and put together into windows and cells."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from fresco_dist.method.grid import Window
from fresco_dist.schedule.plan import Layout


def cut(window: Window, layout: Layout, parts: Mapping[int, np.ndarray]) -> np.ndarray:
    """What lies inside `window` (C, T, h, w), from the parts of the canvas in the cells that cover it."""
    whole = np.empty((*layout.latent_shape[:2], window.height, window.width), dtype=np.float32)
    for i in layout.cells_of(window):
        common = window.intersection(layout.cells[i])
        whole[(..., *common.within(window).slices)] = parts[i][(..., *common.within(layout.cells[i]).slices)]
    return whole


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
