"""Blending weights of windows and their sum (METHOD 2). Shapes: H, W latent cells of a window or of the canvas."""

from collections.abc import Iterable, Sequence

import torch

from fresco_dist.method.fixed_point import choose_scale
from fresco_dist.method.grid import Window
from fresco_dist.method.level import Grid


def ramp(size: int, length: int, min_weight: float, *, rising: bool, falling: bool) -> torch.Tensor:
    """One axis of a window's weight, float32 (size,): 1 in the core, linear down to `min_weight` at a ramped edge.

    An edge on the canvas border is not ramped (`rising` / `falling` False). Where both ramps meet in a narrow
    window, the smaller value holds.
    """
    weight = torch.ones(size)
    if length > 0:
        edge = min_weight + (1.0 - min_weight) * (torch.arange(size) / length).clamp(max=1.0)
        if rising:
            weight = torch.minimum(weight, edge)
        if falling:
            weight = torch.minimum(weight, edge.flip(0))
    return weight


def window_weight(window: Window, canvas: tuple[int, int], overlap: tuple[int, int], min_weight: float) -> torch.Tensor:
    """Separable weight w_i of one window, float32 (H, W) of the window, in [min_weight^2, 1].

    `overlap` is the nominal overlap (height, width) in latent cells and the length of the ramps.
    """
    bottom, right = window.top + window.height, window.left + window.width
    weight_H = ramp(window.height, overlap[0], min_weight, rising=window.top > 0, falling=bottom < canvas[0])
    weight_W = ramp(window.width, overlap[1], min_weight, rising=window.left > 0, falling=right < canvas[1])
    return weight_H[:, None] * weight_W[None, :]


def denominator(windows: Sequence[Window], weights: Iterable[torch.Tensor], canvas: tuple[int, int]) -> torch.Tensor:
    """D = sum_i w_i on the canvas, float32 (H, W), summed in float64; depends on the grid alone."""
    total_HW = torch.zeros(canvas, dtype=torch.float64)
    for window, weight_HW in zip(windows, weights, strict=True):
        total_HW[window.slices] += weight_HW
    return total_HW.float()


class GridWeights:
    """Blending weights of a grid, their sum D, and the scale of the fixed point for sums of predictions on it.

    Made where they are needed: no worker keeps as much as a canvas of them. `sum_abs_coefficients`: see `level.Level`.
    """

    def __init__(self, grid: Grid, canvas: tuple[int, int], sum_abs_coefficients: float, device: torch.device) -> None:
        self._grid, self._canvas, self._device = grid, canvas, device
        D_HW = denominator(grid.windows, map(self._weight, grid.windows), canvas)
        self.scale = choose_scale(float(D_HW.max()), sum_abs_coefficients)

    def of_window(self, index: int) -> torch.Tensor:
        """w_i, float32 (H, W) of the window."""
        return self._weight(self._grid.windows[index]).to(self._device)

    def D(self, part: Window) -> torch.Tensor:
        """Their sum in a part of the canvas, float32 (H, W)."""
        windows = [self._grid.windows[i] for i in self._grid.index.overlapping(part)]
        common = [part.intersection(window) for window in windows]
        weights = (self._weight(w)[inner.within(w).slices] for w, inner in zip(windows, common))
        inside = [inner.within(part) for inner in common]
        return denominator(inside, weights, (part.height, part.width)).to(self._device)

    def _weight(self, window: Window) -> torch.Tensor:
        return window_weight(window, self._canvas, self._grid.overlap, self._grid.min_weight)
