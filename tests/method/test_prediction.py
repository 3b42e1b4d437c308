"""The table of parameterisations against diffusers' own schedulers."""

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from fresco_dist.method.prediction import noise_level_of, signal_and_noise, x0_coefficients


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_coefficients_give_the_clean_estimate_of_ddim(prediction_type):
    scheduler = DDIMScheduler(prediction_type=prediction_type, clip_sample=False)
    scheduler.set_timesteps(5)
    generator = torch.Generator().manual_seed(0)
    for step, timestep in enumerate(scheduler.timesteps):
        x, m = torch.randn(2, 4, 4, generator=generator)
        a, b = x0_coefficients(*noise_level_of(scheduler, step))
        theirs = scheduler.step(m, timestep, x).pred_original_sample
        torch.testing.assert_close(a * x - b * m, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    ],
    ids=["euler", "unipc"],
)
def test_coefficients_of_flow_matching_undo_the_noise(scheduler):
    scheduler.set_timesteps(4)
    x0, epsilon = torch.randn(2, 1, 4, generator=torch.Generator().manual_seed(0))
    for step in range(4):
        sigma = scheduler.sigmas[step]
        x, velocity = (1 - sigma) * x0 + sigma * epsilon, epsilon - x0
        a, b = x0_coefficients(*noise_level_of(scheduler, step))
        torch.testing.assert_close(a * x - b * velocity, x0)


@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        *(DDIMScheduler(prediction_type=kind) for kind in ("epsilon", "v_prediction", "sample")),
    ],
    ids=["flow", "epsilon", "v_prediction", "sample"],
)
def test_signal_and_noise_are_those_that_the_scheduler_adds(scheduler):
    scheduler.set_timesteps(5)
    x0, epsilon = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    levels = []
    for step, timestep in enumerate(scheduler.timesteps):
        signal, noise = signal_and_noise(*noise_level_of(scheduler, step))
        if hasattr(scheduler, "scale_noise"):
            theirs = scheduler.scale_noise(x0, timestep[None], epsilon)
        else:
            theirs = scheduler.add_noise(x0, epsilon, timestep[None])
        torch.testing.assert_close(signal * x0 + noise * epsilon, theirs, rtol=1e-5, atol=1e-5)
        levels.append(noise)
    assert levels == sorted(set(levels), reverse=True) and levels[0] > 0.9
