"""Noise levels given by the user, against the stock pipeline's schedulers stepping on the same levels."""

import pytest
import torch
from make_jobs import STEPS, denoise, denoise_prior, make_job

from fresco_dist import models

SIGMAS = [1.0, 0.8, 0.6, 0.2]


@pytest.mark.parametrize("scheduler", ["euler", "unipc"])
def test_sigmas_are_used_as_given(request, scheduler):
    path = request.getfixturevalue({"euler": "model_path", "unipc": "unipc_model_path"}[scheduler])
    backbone = models.load(make_job(path).config.model, torch.device("cpu"))
    made = backbone.make_scheduler(len(SIGMAS), None, SIGMAS)
    torch.testing.assert_close(made.sigmas, torch.tensor([*SIGMAS, 0.0]), rtol=0, atol=2e-6)
    torch.testing.assert_close(made.timesteps.float(), 1000 * torch.tensor(SIGMAS), rtol=0, atol=1.0)


def test_sigmas_decide_the_canvas_and_a_prior_of_as_many_steps(model_path):
    given = (f"sampler.sigmas={SIGMAS}", f"sampler.num_steps={STEPS}", "prior.area=512")
    backbone = models.load(make_job(model_path).config.model, torch.device("cpu"))
    own = [float(sigma) for sigma in backbone.make_scheduler(STEPS, None).sigmas[:-1]]
    same = f"sampler.sigmas={own}"
    for latents_of in (denoise, denoise_prior):
        plain, spelled_out, other = (
            latents_of(make_job(model_path, "prior.area=512", *overrides)) for overrides in ((), (same,), given)
        )
        torch.testing.assert_close(plain, spelled_out, rtol=0, atol=1e-5)
        assert float((plain - other).abs().max()) > 0.01


def test_a_prior_of_another_length_has_the_schedulers_own_levels(model_path):
    given = (f"sampler.sigmas={SIGMAS}", "prior.num_steps=2", "prior.area=512")
    plain = denoise_prior(make_job(model_path, "prior.num_steps=2", "prior.area=512"))
    assert torch.equal(denoise_prior(make_job(model_path, *given)), plain)
