"""Guided priors as callables for samplers, with their own null and with another's."""

from __future__ import annotations

import pytest
import torch

from maquette.diffusion.sampling import SamplingSteps, ddim
from maquette.images import Prompt
from maquette.priors.guided import guided_x0, predict_singly, rectified_x0
from tests.priors.tiny import four_cameras, noisy, prompt, tiny_prior, tiny_published

WHITE = torch.ones(3)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.mark.parametrize("make", [tiny_prior, tiny_published])
def test_rectified_sampling_is_the_formula_at_every_step(make):
    prior, cameras = make(), four_cameras()
    cond, t = prior.condition(prompt(), WHITE), torch.tensor([300, 800])
    x_t = noisy(prior)
    predict = rectified_x0(prior, prior, cond=cond, cameras=cameras, guidance_scale=3.0)
    own, free = (
        prior.predict(x_t, t, cond, cameras),
        predict_singly(prior, x_t, t, prior.condition(Prompt(None), WHITE)),
    )
    eps = 3.0 * (own.eps - free.eps) + free.eps
    torch.testing.assert_close(predict(x_t, t), prior.noise_schedule.x0_from_eps(x_t, eps, t), rtol=1e-3, atol=1e-3)
    # At scale 1 nobody asks the free prior; with its own null the answer is another one.
    plain = rectified_x0(prior, prior, cond=cond, cameras=cameras, guidance_scale=1.0)
    torch.testing.assert_close(plain(x_t, t), own.x0, **CLOSE)
    usual = guided_x0(prior, cond=cond, uncond=prior.unconditional(cond), cameras=cameras, guidance_scale=3.0)
    assert float((usual(x_t, t) - predict(x_t, t)).abs().max()) > 1e-2


def test_samplers_take_it():
    prior = tiny_prior()
    cond = prior.condition(prompt(), WHITE)
    predict = rectified_x0(prior, prior, cond=cond, cameras=four_cameras(), guidance_scale=2.0, rescale=0.5)
    steps = SamplingSteps.exact(prior.noise_schedule, 3)
    with torch.no_grad():
        found = ddim(predict, noisy(prior), steps, predicts="x0")
    assert found.shape == noisy(prior).shape and bool(found.isfinite().all())


def test_priors_of_other_latents_cannot_rectify():
    with pytest.raises(ValueError, match="cannot judge one another's noisy latents"):
        rectified_x0(tiny_prior(), tiny_published(), cond=tiny_prior().condition(prompt(), WHITE))
