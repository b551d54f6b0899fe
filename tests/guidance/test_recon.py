"""ImageDream's guidance: closed forms with a prior that knows the answer, and the order of its halves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from maquette.guidance import score
from maquette.guidance.base import Draws, distill
from maquette.guidance.recon import ReconConfig, ReconGuidance
from maquette.images import Prompt
from maquette.priors.base import predict_pair
from tests.guidance.oracle import oracle
from tests.priors.tiny import PRIORS, cameras_for, four_cameras, noisy, prompt

WHITE = torch.ones(3)
PLAIN = ReconConfig(guidance_scale=1.0, rescale=0.0)


def leaf(prior, scenes=1, seed=5):
    generator = torch.Generator().manual_seed(seed)
    shape = (scenes, 4, *prior.codec.latent_shape)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def draws(latents, t=400, seed=6):
    generator = torch.Generator().manual_seed(seed)
    eps = torch.randn(latents.shape, generator=generator, dtype=latents.dtype)
    return Draws(torch.full((len(latents),), t), eps)


def gradient(prior, latents, config, t=400, background=WHITE):
    guidance = ReconGuidance(prior, Prompt(None, "words"), config)
    result = guidance.on_latents(latents, None, background, draws(latents, t))
    (grad,) = torch.autograd.grad(result.loss, latents)
    return grad


@pytest.mark.parametrize("t", [0, 20, 500, 999])
def test_an_oracle_gives_the_closed_forms(t):
    prior = oracle()
    latents = leaf(prior)
    away = latents.detach() - prior.x_cond
    torch.testing.assert_close(gradient(prior, latents, PLAIN, t), away / 4)
    a = prior.noise_schedule.alphas_cumprod[t]
    # w(t) alpha_t / sigma_t (x - x*) with w = sigma_t^2
    expected = (1 - a) * (a / (1 - a)).sqrt() * away / 4
    torch.testing.assert_close(gradient(prior, latents, replace(PLAIN, form="eps"), t), expected)


@pytest.mark.parametrize("scale", [0.0, 1.0, 5.0])
def test_guidance_moves_away_from_the_unconditional_answer(scale):
    prior = oracle()
    latents = leaf(prior)
    guided = prior.x_uncond + scale * (prior.x_cond - prior.x_uncond)
    config = replace(PLAIN, guidance_scale=scale)
    torch.testing.assert_close(gradient(prior, latents, config), (latents.detach() - guided) / 4)


def test_optimisation_converges_to_the_answer():
    prior = oracle(dtype=torch.float32)
    # Images whose latents are the oracle's answer.
    answer = prior.codec.decode(prior.x_cond)
    images = torch.full_like(answer, 0.5).requires_grad_()
    guidance = ReconGuidance(prior, Prompt(None, "words"), PLAIN)
    optimiser = torch.optim.SGD([images], lr=0.8)
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        optimiser.zero_grad()
        guidance(images, None, WHITE, (0.02, 0.98), generator).loss.backward()
        optimiser.step()
    torch.testing.assert_close(images.detach(), answer, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["nano (x0)", "nano (eps)", "published pixel"])
def test_without_rescale_it_is_sds_with_weight_sigma_over_alpha(name):
    prior = PRIORS[name]()
    latents = noisy(prior, seed=3).requires_grad_()
    step = draws(latents, t=600)
    guidance = ReconGuidance(prior, prompt(), ReconConfig(guidance_scale=5.0, rescale=0.0))
    cond, uncond = guidance.condition.at(WHITE)

    def sds(noised):
        pair = predict_pair(prior, noised.latents_t, noised.t, cond=cond, uncond=uncond, cameras=noised.cameras)
        weight = noised.sigma_t / noised.alpha_t
        return score.direction(
            eps_cond=pair.cond.eps, eps_uncond=pair.uncond.eps, eps=noised.eps, guidance_scale=5.0, weight=weight
        )

    ours = guidance.on_latents(latents, four_cameras(), WHITE, step)
    theirs = distill(latents, four_cameras(), prior.noise_schedule, step, sds)
    (a,), (b,) = (torch.autograd.grad(result.loss, latents) for result in (ours, theirs))
    torch.testing.assert_close(a, b, atol=1e-4 * float(b.abs().max()), rtol=0)


def test_rescaling_restores_the_contrast_of_the_conditional_answer_per_scene():
    prior = oracle(scenes=2)
    prior.x_cond[1] *= 3
    latents = leaf(prior, scenes=2)
    config = ReconConfig(guidance_scale=7.0, rescale=1.0)
    target = latents.detach() - 8 * gradient(prior, latents, config)
    for scene in range(2):
        assert float(target[scene].std()) == pytest.approx(float(prior.x_cond[scene].std()), rel=1e-6)
    guided = prior.x_uncond + 7.0 * (prior.x_cond - prior.x_uncond)
    half = latents.detach() - 8 * gradient(prior, latents, replace(config, rescale=0.5))
    torch.testing.assert_close(half, 0.5 * target + 0.5 * guided)


def test_the_halves_cannot_be_exchanged_unseen():
    """A prior that gives zeros for one half and ones for the other; guidance must end beyond the ones."""
    prior = oracle()
    prior.x_cond, prior.x_uncond = torch.ones_like(prior.x_cond), torch.zeros_like(prior.x_uncond)
    latents = torch.zeros_like(prior.x_cond).requires_grad_()
    config = replace(PLAIN, guidance_scale=5.0)
    torch.testing.assert_close(gradient(prior, latents, config), torch.full_like(latents, -5 / 4))
    assert prior.asked == [["cond", "uncond"]], "both halves in one evaluation"
    gradient(prior, latents, PLAIN)
    assert len(prior.asked) == 1, "without guidance the unconditional half is not evaluated"


def test_keeping_conditions_changes_nothing():
    prior = PRIORS["nano (x0)"]()
    colours = [torch.tensor([0.5, 0.25, 1.0]), torch.zeros(3), torch.tensor([0.5, 0.25, 1.0])]
    images = torch.rand(1, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def gradients(step):
        guidance = ReconGuidance(prior, prompt(), ReconConfig(background_step=step))
        return [
            torch.autograd.grad(
                guidance(images, four_cameras(), colour, (0.2, 0.8), torch.Generator().manual_seed(i)).loss, images
            )[0]
            for i, colour in enumerate(colours)
        ]

    # These colours are multiples of 1/16, so rounding leaves them alone.
    for kept, fresh in zip(gradients(1 / 16), gradients(0.0), strict=True):
        assert torch.equal(kept, fresh)


def test_the_background_reaches_the_network():
    prior = PRIORS["nano (x0)"]()
    images = torch.rand(1, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def ask(alignment, background):
        guidance = ReconGuidance(prior, prompt(), ReconConfig(alignment=alignment))
        result = guidance(images, four_cameras(), background, (0.5, 0.5), torch.Generator().manual_seed(0))
        return torch.autograd.grad(result.loss, images)[0]

    red, grey = torch.tensor([0.75, 0.0, 0.0]), torch.full((3,), 0.25)
    assert torch.equal(ask("none", red), ask("none", grey))
    assert torch.equal(ask("grey", red), ask("grey", grey)), "only brightness"
    assert not torch.equal(ask("colour", red), ask("colour", grey))
    assert torch.equal(ask("colour", grey), ask("grey", grey))


@pytest.mark.parametrize("name", list(PRIORS))
@pytest.mark.parametrize("form", ["x0", "eps"])
def test_every_prior_can_be_distilled(name, form):
    prior = PRIORS[name]()
    shape = (2, prior.num_views or 1, 3, 24, 24)
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    guidance = ReconGuidance(prior, prompt(), ReconConfig(form=form))
    result = guidance(images, cameras_for(prior), WHITE, (0.02, 0.98), torch.Generator().manual_seed(1))
    result.loss.backward()
    assert result.loss.ndim == 0 and torch.isfinite(images.grad).all() and images.grad.any()
    assert 20 <= result.metrics["t"] <= 980 and result.metrics["grad_norm"] > 0
    assert all(parameter.grad is None for parameter in prior.network.parameters())


def test_settings_are_validated():
    with pytest.raises(ValueError, match="share between 0 and 1, got 1.5"):
        ReconConfig(rescale=1.5)
    with pytest.raises(ValueError, match="guidance_scale"):
        ReconConfig(guidance_scale=-1.0)
