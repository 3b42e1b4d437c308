"""The fused model output: one weighted least-squares problem per canvas cell, in closed form (METHOD 1, Eq. 3-6).

    minimise  sum_i w_i (m - m_i)^2 + lam (a x - b m - z)^2
    m* = (N + lam b (a x - z)) / (D + lam b^2),   N = sum_i w_i m_i,   D = sum_i w_i

lam = 0 is MultiDiffusion (Eq. 4).
"""

import torch

from fresco_dist.method.cache_blocks import cache_blocks
from fresco_dist.method.grid import Window


def fuse_(
    N_CTHW: torch.Tensor,
    D_HW: torch.Tensor,
    x_CTHW: torch.Tensor,
    z_CTHW: torch.Tensor | None,
    *,
    lam: float | torch.Tensor,
    a: float,
    b: float,
) -> torch.Tensor:
    """m* of Eq. 6, in place of `N_CTHW`, which is returned.

    `lam` >= 0 is a scalar or (H, W); `z_CTHW`, the prior, may be None where lam = 0. (a, b) come from
    `prediction.x0_coefficients`.
    """
    lam_HW = torch.as_tensor(lam, device=D_HW.device).expand_as(D_HW)
    gain_HW = 1.0 / (D_HW + lam_HW * b**2)
    if not lam_HW.any():
        return N_CTHW.mul_(gain_HW)
    assert z_CTHW is not None
    for N, x, z in cache_blocks(N_CTHW, x_CTHW, z_CTHW):
        N.addcmul_((a * x).sub_(z), lam_HW, value=b).mul_(gain_HW)
    return N_CTHW


def strength_map(active: float, background: float, activity_HW: torch.Tensor) -> torch.Tensor:
    """lam_i as float32 (H, W): M lam_active + (1 - M) lam_background, with M 1 where motion is expected (Eq. 8)."""
    return activity_HW.float() * active + (1.0 - activity_HW.float()) * background


def resize_part(
    z_CTHW: torch.Tensor, part: Window, below: tuple[int, int], canvas: tuple[int, int], cell: Window
) -> torch.Tensor:
    """What lies in `cell` of a canvas of size `below` (height, width) that is resized to `canvas`.

    `z_CTHW` is the `part` of it that `level.part_below` gives, or more. Trilinear, endpoint-aligned, frame count
    unchanged (METHOD 3; 3.2 and A.1 of the paper): what `F.interpolate(..., mode="trilinear", align_corners=True)` of
    the whole gives there.
    """
    axes = (
        (-2, cell.top, cell.height, canvas[0], below[0], part.top),
        (-1, cell.left, cell.width, canvas[1], below[1], part.left),
    )
    for axis, start, size, whole, source, origin in axes:
        last = source - 1
        position = torch.arange(start, start + size, device=z_CTHW.device) * (last / max(1, whole - 1))
        low = position.floor().long().clamp(max=last)
        shape = (-1, 1) if axis == -2 else (-1,)
        fraction = (position - low).view(shape)
        under = z_CTHW.index_select(axis, low - origin)
        z_CTHW = torch.lerp(under, z_CTHW.index_select(axis, (low + 1).clamp(max=last) - origin), fraction)
    return z_CTHW


def pull(x_CTHW: torch.Tensor, n_CTHW: torch.Tensor, weight: float | torch.Tensor) -> torch.Tensor:
    """(1 - c) x + c n: a canvas pulled to another of the same noise level; c in [0, 1] is a scalar or (H, W)."""
    return x_CTHW * (1.0 - weight) + n_CTHW * weight
