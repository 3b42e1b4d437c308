"""The fused model output: one weighted least-squares problem per canvas cell, in closed form (METHOD 1, Eq. 3-6).

    minimise  sum_i w_i (m - m_i)^2 + lam (a x - b m - z)^2
    m* = (N + lam b (a x - z)) / (D + lam b^2),   N = sum_i w_i m_i,   D = sum_i w_i

lam = 0 is MultiDiffusion (Eq. 4).
"""

import torch
import torch.nn.functional as F

from fresco_dist.cache_blocks import cache_blocks


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


def resize_prior(z_BCTHW: torch.Tensor, canvas: tuple[int, int]) -> torch.Tensor:
    """The prior on the canvas: trilinear, endpoint-aligned, frame count unchanged (METHOD 3, 3.2 and A.1)."""
    size = (z_BCTHW.shape[2], *canvas)
    return F.interpolate(z_BCTHW.float(), size=size, mode="trilinear", align_corners=True)
