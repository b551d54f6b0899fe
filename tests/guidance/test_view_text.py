"""Text-to-3D with words for views: which word belongs where, and one batch for text and null."""

from __future__ import annotations

import pytest
import torch

from maquette.cameras import Cameras, from_angles, orbit
from maquette.guidance import unbiased
from maquette.guidance.base import Draws, Guidance
from maquette.guidance.view_text import VIEW_WORDS, ViewTextConfig, ViewTextGuidance, rows_of, view_word_index
from maquette.images import Prompt
from tests.priors.tiny import tiny_prior

PROMPT = Prompt(None, "a red barrel", "blue")


def looking(*angles: tuple[float, float]) -> Cameras:
    azimuth, elevation = torch.tensor(angles, dtype=torch.float32).T
    return from_angles(azimuth, elevation, torch.tensor(2.0), torch.tensor(40.0), height=16, width=16)


def test_words_follow_the_camera():
    cameras = looking((0, 0), (29, 10), (31, 10), (-90, 0), (151, 0), (-170, 20), (180, 59), (0, 61), (120, 80))
    words = [VIEW_WORDS[i].split()[0] for i in view_word_index(cameras).tolist()]
    assert words == ["front", "front", "side", "side", "back", "back", "back", "overhead", "overhead"]
    wide = view_word_index(looking((44, 0), (46, 0), (136, 0), (0, 50)), front=45, overhead=45)
    assert wide.tolist() == [0, 1, 2, 3]


def test_every_view_is_asked_with_its_own_words_in_one_call(generator):
    prior, calls = tiny_prior(control="none"), []
    cameras = orbit(4, elevation=10.0, height=16, width=16)  # front, side, back, side
    guidance = ViewTextGuidance(prior, PROMPT)
    assert isinstance(guidance, Guidance)
    latents = torch.randn(2, 4, *prior.codec.latent_shape, generator=generator).requires_grad_()
    draws = Draws(torch.tensor([300, 800]), torch.randn(latents.shape, generator=generator))
    handle = prior.network.register_forward_pre_hook(lambda _, given: calls.append(tuple(given[0].shape[:2])))
    result = guidance.on_latents(latents, cameras, draws)
    handle.remove()
    assert calls == [(16, 1)], "2 scenes of 4 views, text and null, in one batch"
    (found,) = torch.autograd.grad(result.loss, latents)
    schedule = prior.noise_schedule
    x_t = schedule.add_noise(latents.detach(), draws.eps, draws.t)
    for view, word in enumerate(("front", "side", "back", "side")):
        text = prior.condition(Prompt(None, f"a red barrel, {word} view", "blue"), torch.ones(3))
        pair = prior.predict_each(x_t[:, [view]], draws.t, {"text": text, "null": prior.unconditional(text)})
        weight = schedule.sigma(draws.t, x_t[:, [view]]).square()
        expected = 7.5 * weight * (pair["text"].eps - pair["null"].eps) / 8
        torch.testing.assert_close(found[:, [view]], expected, rtol=1e-4, atol=1e-6)


def test_without_words_for_views_cameras_do_not_matter(generator):
    prior = tiny_prior(control="none")
    guidance = ViewTextGuidance(prior, PROMPT, ViewTextConfig(view_words=False, omega=3.0, lambda_=1.0))
    images = torch.rand(1, 2, 3, 16, 16, generator=generator).requires_grad_()
    seeds = [torch.Generator().manual_seed(1) for _ in range(2)]
    free = guidance(images, None, torch.ones(3), (0.5, 0.5), seeds[0])
    posed = guidance(images, looking((0, 0), (90, 0)), torch.ones(3), (0.5, 0.5), seeds[1])
    assert torch.equal(free.loss, posed.loss)
    with pytest.raises(ValueError, match="need the views' cameras"):
        ViewTextGuidance(prior, PROMPT)(images, None, torch.ones(3), (0.5, 0.5), seeds[0])


def test_rows_are_taken_whole():
    prior = tiny_prior(control="none")
    one, two = (prior.condition(Prompt(None, words, "blue"), torch.ones(3)) for words in ("red", "green"))
    rows = rows_of([one, two], torch.tensor([1, 0, 1]))
    assert torch.equal(rows.text, torch.cat([two.text, one.text, two.text]))
    assert rows.negative.shape[0] == 3 and rows.image_latents is None
    assert unbiased.NOISE.low.value == 0.02  # the levels of text-to-3D are those of USD
    with pytest.raises(ValueError, match="omega is above 0"):
        ViewTextConfig(omega=0.0)


def test_fingerprints_follow_the_prompt_and_the_settings():
    prior = tiny_prior(control="none")
    prints = {
        ViewTextGuidance(prior, PROMPT).fingerprint(),
        ViewTextGuidance(prior, Prompt(None, "a chair")).fingerprint(),
        ViewTextGuidance(prior, PROMPT, ViewTextConfig(front=45.0)).fingerprint(),
    }
    assert len(prints) == 3
