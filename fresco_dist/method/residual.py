"""How strongly a canvas is pulled to the level below before a step: DemoFusion's skip residual (arXiv 2311.16973).

    x <- (1 - c) x + c n,   c = ((1 + cos(pi (1 - u))) / 2) ^ detail,   u falls from 1 to 0 over the steps

There u is t / T of SDXL's noise scheduler. What it is for other noise levels the paper does not say: `ResidualTime`.
FreeScale (arXiv 2412.09626) calls the exponent the detail level, which may differ over the canvas.
"""

import math
from bisect import bisect_left
from enum import Enum
from functools import cache


class ResidualTime(Enum):
    """What u is at step i of S: t / T, that of SDXL with as much signal to noise, 1 - i / S, or 1 - i / (S - 1)."""

    timestep = "timestep"
    snr = "snr"
    unshifted = "unshifted"
    step = "step"


def residual_time(
    time: ResidualTime, *, step: int, num_steps: int, timestep_share: float, signal: float, noise: float
) -> float:
    """u in [0, 1]; `timestep_share` is t / T, and x = signal x0 + noise eps."""
    if time is ResidualTime.timestep:
        return timestep_share
    if time is ResidualTime.snr:
        return _sdxl_time(2.0 * math.log(noise / signal)) if signal > 0.0 else 1.0
    return 1.0 - step / (num_steps if time is ResidualTime.unshifted else max(1, num_steps - 1))


def residual_base(u: float) -> float:
    """(1 + cos(pi (1 - u))) / 2 in [0, 1], which the detail level is the exponent of."""
    return 0.5 * (1.0 + math.cos(math.pi * (1.0 - u)))


def _sdxl_time(log_noise_to_signal: float) -> float:
    """t / T at which SDXL has this much noise to signal, in powers; between its timesteps linear in the logarithm."""
    levels = _sdxl_levels()
    right = bisect_left(levels, log_noise_to_signal)
    if right in (0, len(levels)):
        return min(right, len(levels) - 1) / len(levels)
    left, low, high = right - 1, levels[right - 1], levels[right]
    return (left + (log_noise_to_signal - low) / (high - low)) / len(levels)


@cache
def _sdxl_levels() -> tuple[float, ...]:
    """log(noise / signal), in powers, at each of the 1000 timesteps: betas 0.00085 to 0.012, linear in their roots."""
    low, high, levels, alpha_bar = math.sqrt(0.00085), math.sqrt(0.012), [], 1.0
    for t in range(1000):
        alpha_bar *= 1.0 - (low + (high - low) * t / 999) ** 2
        levels.append(math.log((1.0 - alpha_bar) / alpha_bar))
    return tuple(levels)
