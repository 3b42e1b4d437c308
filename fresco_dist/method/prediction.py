"""The one-step clean estimate as an affine function of the model output: x0_hat = a*x - b*m (METHOD 1, Eq. 5, 9-10).

One table for every parameterisation; nothing else in the project branches on the prediction type.
"""

import math
from collections.abc import Sequence
from enum import Enum
from typing import Any


class Prediction(Enum):
    """What the model's output is."""

    flow_velocity = "flow_velocity"
    epsilon = "epsilon"
    v_prediction = "v_prediction"
    sample = "sample"


def x0_coefficients(prediction: Prediction, noise_level: float) -> tuple[float, float]:
    """(a, b) of x0_hat = a*x - b*m.

    `noise_level` is sigma for flow matching (x = (1 - sigma) x0 + sigma eps), and alpha-bar, the cumulated signal
    power, for the variance-preserving rows.
    """
    if prediction is Prediction.flow_velocity:
        return 1.0, noise_level
    if prediction is Prediction.sample:
        return 0.0, -1.0
    signal, noise = math.sqrt(noise_level), math.sqrt(1.0 - noise_level)
    if prediction is Prediction.epsilon:
        return 1.0 / signal, noise / signal
    return signal, noise


def signal_and_noise(prediction: Prediction, noise_level: float) -> tuple[float, float]:
    """(signal, noise) of x = signal x0 + noise eps at a noise level, see `x0_coefficients`."""
    if prediction is Prediction.flow_velocity:
        return 1.0 - noise_level, noise_level
    return math.sqrt(noise_level), math.sqrt(1.0 - noise_level)


def noise_level_of(scheduler: Any, step: int) -> tuple[Prediction, float]:
    """What a diffusers noise scheduler has the model predict, and its noise level at `step`; its timesteps are set."""
    if "flow" in scheduler.config.get("prediction_type", "flow_prediction"):
        return Prediction.flow_velocity, float(scheduler.sigmas[step])
    alpha_bar = float(scheduler.alphas_cumprod[int(scheduler.timesteps[step])])
    return Prediction(scheduler.config.prediction_type), alpha_bar


def risen_levels(sigmas: Sequence[float], until: int) -> list[float]:
    """Noise levels of a level whose cells come from the one below up to the step `until`: 2 sigma / (1 + sigma).

    Later ones are as they are. See `method.rise`.
    """
    return [2.0 * sigma / (1.0 + sigma) if step <= until else sigma for step, sigma in enumerate(sigmas)]
