"""The fused model output: one weighted least-squares problem per canvas cell, in closed form (METHOD 1, Eq. 3-6).

    minimise  sum_i w_i (m - m_i)^2 + lam (a x - b m - z)^2
    m* = (N + lam b (a x - z)) / (D + lam b^2),   N = sum_i w_i m_i,   D = sum_i w_i

lam = 0 is MultiDiffusion (Eq. 4).
"""

import torch
import torch.nn.functional as F


def fuse(
    N_CTHW: torch.Tensor,
    D_HW: torch.Tensor,
    x_CTHW: torch.Tensor,
    z_CTHW: torch.Tensor | None,
    *,
    lam: float | torch.Tensor,
    a: float,
    b: float,
) -> torch.Tensor:
    """m* of Eq. 6, same shape and dtype as `N_CTHW`.

    `lam` >= 0 is a scalar or (H, W); `z_CTHW`, the prior, may be None where lam = 0. (a, b) come from
    `prediction.x0_coefficients`. Works plane by plane, so that the intermediate values stay in cache.
    """
    lam_b = lam * b
    gain_HW = 1.0 / (D_HW + lam_b * b)
    if z_CTHW is None or not torch.as_tensor(lam).any():
        return N_CTHW * gain_HW
    m_CTHW = torch.empty_like(N_CTHW)
    for m_THW, N_THW, x_THW, z_THW in zip(m_CTHW, N_CTHW, x_CTHW, z_CTHW):
        torch.mul(x_THW, a, out=m_THW)
        m_THW.sub_(z_THW).mul_(lam_b).add_(N_THW).mul_(gain_HW)
    return m_CTHW


def resize_prior(z_BCTHW: torch.Tensor, canvas: tuple[int, int]) -> torch.Tensor:
    """The prior on the canvas: trilinear, endpoint-aligned, frame count unchanged (METHOD 3, 3.2 and A.1)."""
    size = (z_BCTHW.shape[2], *canvas)
    return F.interpolate(z_BCTHW.float(), size=size, mode="trilinear", align_corners=True)
