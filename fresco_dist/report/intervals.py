"""95% intervals of means over pictures: Student's t of one method, the bootstrap of paired differences. numpy only.

A mean takes the half width that is exact for normal values, however few. What differs between two methods on the same
picture is often skewed; its mean takes the bootstrap's BCa interval (Efron 1987), resampled over pictures. That one is
too narrow for few pictures: of normal values it holds the mean in about 85% of the cases with 5, 91% with 10, 93% with
20.
"""

import math
from statistics import NormalDist

import numpy as np

LEVEL = 0.95
NUM_RESAMPLES, SEED = 10_000, 0
FEW = 20  # pictures, below which the bootstrap's interval is told to be too narrow


def t_quantile(degrees: int, level: float = LEVEL) -> float:
    """The value that |t| stays below with probability `level`, at an integer number of degrees of freedom."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        low, high = (angle, high) if _within(angle, degrees) < level else (low, angle)
    return math.sqrt(degrees) * math.tan(low)


def _within(angle: float, degrees: int) -> float:
    """P(|t| < sqrt(degrees) tan(angle)): Abramowitz and Stegun 26.7.3 and 26.7.4."""
    odd = degrees % 2
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for k in range(2 + odd, degrees + 1, 2):
        total += term
        term *= (k - 1) / k * math.cos(angle) ** 2
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total


def half_width(values_NK: np.ndarray) -> np.ndarray:
    """Half widths (K,) of the 95% intervals of the means over N >= 2 pictures."""
    num = len(values_NK)
    return t_quantile(num - 1) * values_NK.std(axis=0, ddof=1) / math.sqrt(num)


def bootstrap_interval(values_NK: np.ndarray) -> np.ndarray:
    """Lower and upper ends (2, K) of the 95% intervals of the means over N >= 2 pictures, BCa.

    All K columns are resampled together, with the same seed each time.
    """
    num = len(values_NK)
    shares_RN = np.random.default_rng(SEED).multinomial(num, np.full(num, 1 / num), size=NUM_RESAMPLES) / num
    means_RK, means_K = shares_RN @ values_NK, values_NK.mean(axis=0)
    centred_NK = values_NK - means_K
    ends = []
    for drawn, mean, centred in zip(means_RK.T, means_K, centred_NK.T):
        if np.ptp(drawn) <= 1e-12 * abs(mean):  # all pictures are the same
            ends.append((mean, mean))
            continue
        acceleration = np.sum(centred**3) / (6 * np.sum(centred**2) ** 1.5)
        below = (np.mean(drawn < mean) + np.mean(drawn <= mean)) / 2
        ends.append(np.quantile(drawn, _bca_levels(float(below), float(acceleration))))
    return np.array(ends).T


def _bca_levels(below: float, acceleration: float) -> list[float]:
    """Which quantiles of the resampled means are the ends."""
    normal = NormalDist()
    bias = normal.inv_cdf(min(max(below, 1 / NUM_RESAMPLES), 1 - 1 / NUM_RESAMPLES))
    levels = []
    for tail in ((1 - LEVEL) / 2, (1 + LEVEL) / 2):
        shifted = bias + normal.inv_cdf(tail)
        levels.append(normal.cdf(bias + shifted / (1 - acceleration * shifted)))
    return levels
