"""What stands for t / T in a skip residual, against diffusers' noise scheduler of SDXL."""

import math

import pytest
from diffusers import EulerDiscreteScheduler

from fresco_dist.method.residual import ResidualTime, residual_base, residual_time

SIGMAS = (0.9615, 0.9091, 0.8333, 0.7143, 0.5)


def fade(time: ResidualTime, step: int, sigma: float) -> float:
    """DemoFusion's c at a step of six, of flow matching."""
    at = {"step": step, "num_steps": 6, "timestep_share": sigma, "signal": 1 - sigma, "noise": sigma}
    return residual_base(residual_time(time, **at)) ** 3


@pytest.mark.parametrize("t", [0, 1, 250, 500, 999])
def test_time_of_equal_signal_to_noise_is_sdxls_own_at_its_timesteps(t):
    scheduler = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    alpha_bar = float(scheduler.alphas_cumprod[t])
    at = {"step": 0, "num_steps": 1, "timestep_share": 0.0}
    signal, noise = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    assert residual_time(ResidualTime.snr, signal=signal, noise=noise, **at) == pytest.approx(t / 1000, abs=1e-4)


def test_noise_beyond_sdxls_is_its_end():
    at = {"step": 0, "num_steps": 1, "timestep_share": 0.0}
    assert residual_time(ResidualTime.snr, signal=0.0, noise=1.0, **at) == 1.0
    assert residual_time(ResidualTime.snr, signal=1e-9, noise=1.0, **at) == 0.999
    assert residual_time(ResidualTime.snr, signal=1.0, noise=1e-9, **at) == 0.0


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("timestep", (0.989, 0.941, 0.812, 0.535, 0.125)),
        ("unshifted", (0.812, 0.422, 0.125, 0.016, 0.0003)),
        ("step", (0.740, 0.280, 0.041, 0.001, 0.0)),
        ("snr", (1.0, 0.968, 0.731, 0.330, 0.022)),
    ],
)
def test_residual_fades_as_worked_out_by_hand(time, expected):
    """Six steps at a shift of 5, after the first."""
    made = [fade(ResidualTime(time), step, sigma) for step, sigma in enumerate(SIGMAS, start=1)]
    assert made == pytest.approx(expected, abs=0.003)


def test_one_step_is_the_beginning():
    assert residual_time(ResidualTime.step, step=0, num_steps=1, timestep_share=1.0, signal=0.0, noise=1.0) == 1.0
