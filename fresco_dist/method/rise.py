"""How a level of twice the sides takes over in mid-sampling: the Hadamard step of arXiv 2601.07462; what goes first.

Flow matching alone. A cell z = (1 - sigma) x0 + sigma e0 becomes four, by a Hadamard matrix of entries +-1 and three
unit noises of the cell's own (no name of the paper's is known for its scales; these keep the noise white):

    z_j = (z + sigma sum_k H_jk e_k) / (1 + sigma),  k = 1, 2, 3

Their noise level is that of the time shift by 2, see `prediction.risen_levels`.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch

from fresco_dist.method.grid import Window
from fresco_dist.method.level import part_to_rise

NUM_NOISES = 3
HADAMARD = (
    (1, 1, 1, 1),
    (1, -1, 1, -1),
    (1, 1, -1, -1),
    (1, -1, -1, 1),
)  # row j: the child in row j // 2, column j % 2


def rise(z_CTHW: torch.Tensor, noises_3CTHW: Sequence[torch.Tensor], part: Window, level_above: float) -> torch.Tensor:
    """`part` of the level above, at its noise level, from `part_to_rise` of the one below and its three noises."""
    sigma = level_above / (2.0 - level_above)
    C, T, H, W = z_CTHW.shape
    children = z_CTHW.new_empty(C, T, 2 * H, 2 * W)
    for j, (_, *signs) in enumerate(HADAMARD):
        noise = sum(sign * noise for sign, noise in zip(signs, noises_3CTHW, strict=True))
        children[..., j // 2 :: 2, j % 2 :: 2] = (z_CTHW + sigma * noise) / (1.0 + sigma)
    below = part_to_rise(part)
    return children[(..., *part.within(Window(2 * below.top, 2 * below.left, 2 * H, 2 * W)).slices)]


def variance_of_estimates(canvases: Sequence[torch.Tensor], sigmas: Sequence[float]) -> float:
    """How much the clean estimate changes from step to step: its variance over them, averaged over a part.

    `canvases` are that part before successive steps, at noise levels `sigmas`: two of them lie on a line that meets
    x0_hat = x - sigma (x - x_next) / (sigma - sigma_next) at level 0. Small where the picture has settled.
    """
    levels = list(zip(canvases, sigmas, strict=True))
    estimates = [x - (sigma / (sigma - after)) * (x - x_next) for (x, sigma), (x_next, after) in pairwise(levels)]
    return float(torch.stack(estimates).double().var(dim=0, correction=0).mean())
