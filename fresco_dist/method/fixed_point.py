"""Reproducible sums: weighted predictions as int32, so that no order of adding changes a bit (METHOD 7).

One power-of-two scale serves a step, derived from its grid and the run's guidance alone, so nobody waits to agree on
it. A prediction within `LIMIT` can then never overflow, on any worker or in their sum; one outside is refused.
"""

import math

import torch

from fresco_dist.method.cache_blocks import cache_blocks

LIMIT = 64.0  # largest magnitude of a prediction; latents have unit variance, so a sound one is far below


def choose_scale(max_denominator: float, sum_abs_coefficients: float) -> float:
    """Largest power of two with LIMIT * max D * sum |coefficient| * scale < 2^31."""
    bound = LIMIT * max_denominator * sum_abs_coefficients
    return 2.0 ** math.floor(math.log2((2**31 - 1) / (bound * (1 + 2**-20))))


def check_range(prediction: torch.Tensor) -> None:
    """Raise FloatingPointError if a value is not finite or exceeds LIMIT in magnitude; any shape."""
    low, high = torch.aminmax(prediction)
    if not (low >= -LIMIT and high <= LIMIT):  # also catches nan
        raise FloatingPointError(
            f"prediction in [{float(low):.3g}, {float(high):.3g}] is outside +-{LIMIT:g}, the fixed-point range"
        )


def accumulate_(total_CTHW: torch.Tensor, prediction_CTHW: torch.Tensor, weight_HW: torch.Tensor, scale: float) -> None:
    """total += round(weight * prediction * scale) in int32, in place; `weight_HW` includes the branch coefficient.

    The prediction must have passed `check_range`.
    """
    scaled_HW = weight_HW * scale
    product = rounded = torch.empty(0)  # reused: fresh memory for every block would cost more than the arithmetic
    for total, prediction in cache_blocks(total_CTHW, prediction_CTHW.float()):
        if product.shape != prediction.shape:
            product, rounded = torch.empty_like(prediction), torch.empty_like(prediction, dtype=torch.int32)
        torch.mul(prediction, scaled_HW, out=product)
        total += rounded.copy_(product.round_())


def to_float(total_CTHW: torch.Tensor, scale: float) -> torch.Tensor:
    """The accumulated sum as float32, same shape."""
    return total_CTHW.float().mul_(1.0 / scale)
