"""The distillation step: surrogate, noise range, random numbers, backgrounds."""

from __future__ import annotations

import json

import pytest
import torch

from maquette.guidance.base import (
    AlignedCondition,
    Draws,
    Guidance,
    NoiseRange,
    distill,
    draw,
    draw_timesteps,
    surrogate,
)
from maquette.guidance.recon import ReconGuidance
from maquette.images import ImagePrompt, Prompt
from maquette.priors.base import Prior
from maquette.schedules import Constant, Linear
from tests.guidance.oracle import oracle


def a_prompt() -> Prompt:
    return Prompt(ImagePrompt(torch.rand(3, 8, 8), torch.ones(1, 8, 8)), "a thing")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_gradient_of_the_surrogate_is_the_direction(dtype, generator):
    latents = (100 * torch.randn(2, 4, 3, 5, 5, generator=generator)).to(dtype).requires_grad_()
    direction = (1e-3 * torch.randn(2, 4, 3, 5, 5, generator=generator)).to(dtype)
    loss = surrogate(latents, direction)
    loss.backward()
    assert torch.equal(latents.grad, direction / 8)
    if dtype == torch.float64:
        torch.testing.assert_close(loss, 0.5 * direction.square().sum() / 8, rtol=1e-9, atol=1e-12)


def test_the_surrogate_does_not_differentiate_its_direction(generator):
    latents = torch.randn(1, 1, 2, 2, 2, generator=generator, requires_grad=True)
    surrogate(latents, latents * 3).backward()
    torch.testing.assert_close(latents.grad, 3 * latents.detach())


def test_timesteps_reach_both_ends_and_no_further(generator):
    drawn = torch.cat([draw_timesteps((0.02, 0.03), 1000, 64, generator, shared=False) for _ in range(20)])
    assert set(drawn.tolist()) == set(range(20, 31))
    shared = draw_timesteps((0.0, 1.0), 1000, 5, generator)
    assert shared.shape == (5,) and len(set(shared.tolist())) == 1
    ends = torch.cat([draw_timesteps((1.0, 1.0), 10, 4, generator), draw_timesteps((0.0, 0.0), 10, 4, generator)])
    assert ends.tolist() == [9] * 4 + [0] * 4
    with pytest.raises(ValueError, match="0 <= low <= high <= 1"):
        draw_timesteps((0.5, 0.4), 1000, 1, generator)


def test_annealing_is_the_published_one(goldens, generator):
    rows = json.loads((goldens / "imagedream" / "anneal.json").read_text())["rows"]
    noise = NoiseRange()
    for row in rows:
        low, high = noise.at(row["step"], 12_500)
        drawn = draw_timesteps((low, high), 1000, 4000, generator, shared=False)
        assert drawn.min() >= row["min_t"] and drawn.max() <= row["max_t"], row
        if row["max_t"] - row["min_t"] < 300:
            assert drawn.min() == row["min_t"] and drawn.max() == row["max_t"], row
    assert NoiseRange(Constant(0.02), Linear(0.98, 0.5)).at(50, 100) == (0.02, 0.74)


def test_draws_follow_their_generator():
    prior, images = oracle(), torch.rand(2, 4, 3, 8, 8)
    one, two = (draw(prior, images, (0.1, 0.9), torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one.t, two.t) and torch.equal(one.eps, two.eps)
    assert one.codec_noise is None, "an exact codec has no posterior to sample"
    other = draw(prior, images, (0.1, 0.9), torch.Generator().manual_seed(2))
    assert not torch.equal(one.eps, other.eps)
    assert one.eps.shape == (2, 4, *prior.codec.latent_shape)
    assert abs(float(one.eps.std()) - 1) < 0.05 and abs(float(one.eps.mean())) < 0.05
    assert not torch.equal(one.eps[0], one.eps[1]) and not torch.equal(one.eps[:, 0], one.eps[:, 1])


def test_a_step_noises_asks_and_reports(generator):
    prior = oracle()
    latents = torch.randn(1, 4, *prior.codec.latent_shape, generator=generator, dtype=torch.float64, requires_grad=True)
    eps = torch.randn_like(latents)
    seen = []

    def direction(noised):
        seen.append(noised)
        return 2 * noised.latents

    result = distill(latents, None, prior.noise_schedule, Draws(torch.tensor([250]), eps), direction)
    result.loss.backward()
    (noised,) = seen
    assert not noised.latents.requires_grad and not noised.latents_t.requires_grad
    torch.testing.assert_close(noised.latents_t, noised.alpha_t * latents.detach() + noised.sigma_t * eps)
    torch.testing.assert_close(noised.alpha_t.square() + noised.sigma_t.square(), torch.ones(1, 1, 1, 1, 1).double())
    torch.testing.assert_close(latents.grad, latents.detach() / 2)
    assert result.metrics["t"] == 250
    assert result.metrics["grad_norm"] == pytest.approx(float(latents.grad.norm()))


@pytest.mark.parametrize(
    ("alignment", "expected"),
    [("none", (1.0, 1.0, 1.0)), ("grey", (0.5, 0.5, 0.5)), ("colour", (0.25, 0.5, 0.75))],
)
def test_the_prompt_takes_the_background_of_the_render(alignment, expected):
    prior = oracle()
    aligned = AlignedCondition(prior, a_prompt(), alignment)
    cond, _ = aligned.at(torch.tensor([0.26, 0.51, 0.74]))
    assert prior.backgrounds == [expected]
    assert tuple(cond.background.tolist()) == expected


def test_conditions_are_made_once_a_colour():
    prior = oracle()
    aligned = AlignedCondition(prior, a_prompt(), step=1 / 8)
    first = aligned.at(torch.tensor([0.26, 0.5, 0.74]))
    again = aligned.at(torch.tensor([0.23, 0.52, 0.77]))
    assert first is again and len(prior.backgrounds) == 1 and prior.twins == 1
    aligned.at(torch.tensor([1.0, 0.5, 0.74]))
    assert len(prior.backgrounds) == 2


def test_a_full_cache_forgets_what_was_not_used():
    prior = oracle()
    aligned = AlignedCondition(prior, a_prompt(), step=1 / 4, capacity=2)
    red, green, blue = torch.eye(3)
    for colour in (red, green, red, blue, red):
        aligned.at(colour)
    assert prior.backgrounds == [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]
    aligned.at(green)
    assert len(prior.backgrounds) == 4


def test_without_rounding_every_colour_is_exact_and_new():
    prior = oracle()
    aligned = AlignedCondition(prior, a_prompt(), step=0.0)
    for _ in range(2):
        aligned.at(torch.tensor([0.123, 0.5, 0.9]))
    assert len(prior.backgrounds) == 2
    assert prior.backgrounds[0] == pytest.approx((0.123, 0.5, 0.9))


def test_without_a_picture_there_is_nothing_to_align():
    prior = oracle()
    aligned = AlignedCondition(prior, Prompt(None, "words"), "colour")
    aligned.at(torch.zeros(3))
    aligned.at(torch.ones(3))
    assert len(prior.backgrounds) == 1


def test_impossible_settings_are_refused():
    with pytest.raises((ValueError, TypeError), match="'color'"):  # the shape checker of the tests may be first
        AlignedCondition(oracle(), a_prompt(), "color")
    with pytest.raises(ValueError, match="colour step"):
        AlignedCondition(oracle(), a_prompt(), step=-1.0)


def test_protocols():
    assert isinstance(oracle(), Prior)
    assert isinstance(ReconGuidance(oracle(), a_prompt()), Guidance)
