"""Mean and standard deviation of a canvas, cell by cell and in fixed point: no order of adding changes a bit."""

import math
from collections.abc import Iterable

import torch

SCALE = 2.0**16

Moments = tuple[int, int, int]  # how many numbers, their sum and that of their squares, both times SCALE


def moments(x: torch.Tensor) -> Moments:
    """Of a part of a canvas, any shape; exact sums of its rounded values; that of the squares is below 2^47."""
    wide = x.double()
    total, squares = (int(values.mul(SCALE).round().long().sum()) for values in (wide, wide.square()))
    return x.numel(), total, squares


def mean_and_deviation(parts: Iterable[Moments]) -> tuple[float, float]:
    """Of the whole canvas, in which all parts are; exact until the last division."""
    number, total, squares = map(sum, zip(*parts))
    variance = (number * squares - total * total / SCALE) / (number * number * SCALE)
    return total / (number * SCALE), math.sqrt(max(0.0, variance))


def standardising(own: Iterable[Moments], target: Iterable[Moments]) -> tuple[float, float]:
    """(gain, offset) of x gain + offset, which has the target's mean and deviation; gain 1 for a canvas without any."""
    (own_mean, own_deviation), (mean, deviation) = mean_and_deviation(own), mean_and_deviation(target)
    gain = deviation / own_deviation if own_deviation > 0.0 else 1.0
    return gain, mean - own_mean * gain
