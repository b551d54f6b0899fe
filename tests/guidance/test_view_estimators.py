"""Other estimators for single views: their directions against the formulas, one view at a time."""

from __future__ import annotations

import pytest
import torch

from maquette.cameras import from_angles
from maquette.errors import UserError
from maquette.guidance import nfsd, score
from maquette.guidance.base import Draws, Guidance
from maquette.guidance.perp_neg import guide_perpendicular, view_weights
from maquette.guidance.view_noise_free import NoiseFreeConfig, NoiseFreeGuidance
from maquette.guidance.view_perp_neg import PerpNegConfig, PerpNegGuidance
from maquette.guidance.view_text import ViewTextConfig, ViewTextGuidance
from maquette.images import Prompt
from tests.priors.tiny import tiny_prior, tiny_stable_diffusion

PROMPT = Prompt(None, "k", "blurry")  # short, since the tiny text encoder reads six letters
ANGLES = ((0.0, 10.0), (60.0, 10.0), (180.0, 0.0), (20.0, 75.0))


@pytest.fixture(params=[lambda: tiny_prior(control="none"), tiny_stable_diffusion], ids=["nano", "sd"])
def step(request, generator):
    """A prior, cameras of two scenes with two views, latents and the random numbers of a step."""
    prior = request.param()
    azimuth, elevation = torch.tensor(ANGLES).reshape(2, 2, 2).unbind(-1)
    cameras = from_angles(azimuth, elevation, torch.tensor(2.0), torch.tensor(40.0), height=16, width=16)
    latents = torch.randn(2, 2, *prior.codec.latent_shape, generator=generator).requires_grad_()
    return prior, cameras, latents, Draws(torch.tensor([150, 700]), torch.randn(latents.shape, generator=generator))


def found(guidance, step):
    _, cameras, latents, draws = step
    (gradient,) = torch.autograd.grad(guidance.on_latents(latents, cameras, draws).loss, latents)
    return gradient * 4  # the surrogate is a mean over views


def asked(step, scene, view, **captions):
    """eps of one view under captions, its noise, timestep and weight."""
    prior, _, latents, draws = step
    t = draws.t[scene : scene + 1]
    x_t = prior.noise_schedule.add_noise(latents, draws.eps, draws.t).detach()[scene, view][None, None]
    conditions = {name: prior.condition(Prompt(None, text), torch.ones(3)) for name, text in captions.items()}
    eps = {name: p.eps[0] for name, p in prior.predict_each(x_t, t, conditions).items()}
    return eps, draws.eps[scene, view][None], t, prior.noise_schedule.sigma(t, x_t)[0].square()


def test_noise_free_scores_of_every_view(step):
    guidance = NoiseFreeGuidance(step[0], PROMPT, NoiseFreeConfig(guidance_scale=3.0, bad="dark"))
    assert isinstance(guidance, Guidance)
    gradient = found(guidance, step)
    for number, word in enumerate(("front", "side", "back", "overhead")):
        scene, view = divmod(number, 2)
        eps, _, t, weight = asked(step, scene, view, text=f"k, {word} view", null="blurry", bad="dark")
        expected = nfsd.direction(
            eps_cond=eps["text"], eps_uncond=eps["null"], eps_neg=eps["bad"], t=t.reshape(-1, 1, 1, 1), weight=weight,
            guidance_scale=3.0,
        )  # fmt: skip
        torch.testing.assert_close(gradient[scene, view][None], expected, rtol=1e-3, atol=1e-5)


def test_negative_words_belong_to_the_azimuth(step):
    prior = step[0]
    guidance = PerpNegGuidance(prior, PROMPT, PerpNegConfig(guidance_scale=4.0))
    assert isinstance(guidance, Guidance)
    gradient = found(guidance, step)
    for number, (azimuth, _) in enumerate(ANGLES[:3]):
        scene, view = divmod(number, 2)
        sides = {word: f"k, {word} view" for word in ("front", "side", "back")}
        eps, noise, t, weight = asked(step, scene, view, null="blurry", **sides)
        mix = view_weights(azimuth)
        blend = sum(share * prior.encode_text(sides[word]) for word, share in mix.positive.items())
        condition = prior.condition(PROMPT, torch.ones(3)).__class__(text=blend)
        x_t = prior.noise_schedule.add_noise(step[2], step[3].eps, step[3].t).detach()[scene, view][None, None]
        wish = prior.predict(x_t, t, condition).eps[0]
        guided = guide_perpendicular(
            eps_cond=wish, eps_uncond=eps["null"], eps_neg=torch.stack([eps[word] for word in mix.negative]),
            weights=torch.tensor([[value] for value in mix.negative.values()]), guidance_scale=4.0,
        )  # fmt: skip
        torch.testing.assert_close(gradient[scene, view][None], weight * (guided - noise), rtol=1e-3, atol=1e-4)


def test_from_above_perp_neg_is_plain_guidance(step):
    """And with no strength so is every view that looks along one of the words."""
    prior = step[0]
    plain = found(ViewTextGuidance(prior, PROMPT, ViewTextConfig(omega=4.0, lambda_=1.0)), step)
    mixed = found(PerpNegGuidance(prior, PROMPT, PerpNegConfig(guidance_scale=4.0)), step)
    weak = found(PerpNegGuidance(prior, PROMPT, PerpNegConfig(guidance_scale=4.0, strength=0.0)), step)
    torch.testing.assert_close(mixed[1, 1], plain[1, 1], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(weak[0, 0], plain[0, 0], rtol=1e-3, atol=1e-4)
    assert (mixed[0, 1] - plain[0, 1]).abs().max() > 1e-3


def test_sds_is_plain_guidance_with_both_weights(step):
    """What the two others are compared with: view-text at lambda 1 is SDS."""
    gradient = found(ViewTextGuidance(step[0], PROMPT, ViewTextConfig(omega=4.0, lambda_=1.0)), step)
    eps, noise, _, weight = asked(step, 1, 0, text="k, back view", null="blurry")
    expected = score.direction(
        eps_cond=eps["text"], eps_uncond=eps["null"], eps=noise, guidance_scale=4.0, weight=weight
    )
    torch.testing.assert_close(gradient[1, 0][None], expected, rtol=1e-3, atol=1e-4)


def test_what_makes_no_sense_is_refused(step):
    with pytest.raises(UserError, match="guidance_scale and threshold"):
        NoiseFreeConfig(threshold=-1)
    with pytest.raises(UserError, match="guidance_scale and strength"):
        PerpNegConfig(strength=-1.0)
    prior, _, latents, draws = step
    with pytest.raises(ValueError, match="pass the views' cameras"):
        PerpNegGuidance(prior, PROMPT).on_latents(latents, None, draws)
    prints = {PerpNegGuidance(prior, PROMPT).fingerprint(), NoiseFreeGuidance(prior, PROMPT).fingerprint()}
    prints.add(PerpNegGuidance(prior, PROMPT, PerpNegConfig(strength=2.0)).fingerprint())
    assert len(prints) == 3
