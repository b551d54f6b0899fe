"""What every prior promises, whatever network it hides."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from maquette.priors.base import Codec, Condition, Prior, predict_pair
from tests.priors.tiny import PRIORS, cameras_for, noisy, prompt

WHITE = torch.ones(3)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(params=list(PRIORS))
def prior(request: pytest.FixtureRequest):
    return PRIORS[request.param]()


def tensors(condition: Condition) -> dict[str, torch.Tensor]:
    return {field.name: value for field in fields(condition) if (value := getattr(condition, field.name)) is not None}


def test_is_a_prior_and_owns_a_codec(prior):
    assert isinstance(prior, Prior)
    assert isinstance(prior.codec, Codec)
    assert len(prior.codec.latent_shape) == 3
    assert isinstance(prior.card(), dict)


def test_another_number_of_views_is_refused(prior):
    latents_t = noisy(prior, views=prior.num_views + 1)
    with pytest.raises(ValueError, match=rf"{prior.config.name}.* V = .*got {prior.num_views + 1}"):
        prior.predict(latents_t, torch.tensor([1, 1]), prior.condition(prompt(), WHITE), cameras_for(prior))


def test_prediction_explains_its_noisy_latents(prior):
    latents_t, t = noisy(prior), torch.tensor([400, 900])
    out = prior.predict(latents_t, t, prior.condition(prompt(), WHITE), cameras_for(prior))
    schedule = prior.noise_schedule
    assert out.eps.shape == out.x0.shape == latents_t.shape
    again = schedule.alpha(t, latents_t) * out.x0 + schedule.sigma(t, latents_t) * out.eps
    torch.testing.assert_close(again, latents_t, **CLOSE)


def test_the_raw_output_is_read_as_the_schedule_says(prior):
    latents_t, t = noisy(prior), torch.tensor([300, 300])
    raw = []
    handle = prior.network.register_forward_hook(lambda module, args, output: raw.append(output[:, : prior.num_views]))
    out = prior.predict(latents_t, t, prior.condition(prompt(), WHITE), cameras_for(prior))
    handle.remove()
    said = {"eps": out.eps, "x0": out.x0, "v": prior.noise_schedule.v_from(out.x0, out.eps, t)}
    torch.testing.assert_close(said[prior.noise_schedule.predicts], raw[0], **CLOSE)


def test_nothing_of_the_caller_is_written_to(prior):
    latents_t, t, cameras = noisy(prior), torch.tensor([500, 100]), cameras_for(prior)
    cond = prior.condition(prompt(), WHITE)
    uncond = prior.unconditional(cond)
    before = latents_t.clone(), t.clone(), cameras.c2w.clone(), {k: v.clone() for k, v in tensors(cond).items()}
    predict_pair(prior, latents_t, t, cond=cond, uncond=uncond, cameras=cameras)
    assert torch.equal(latents_t, before[0]) and torch.equal(t, before[1]) and torch.equal(cameras.c2w, before[2])
    assert all(torch.equal(value, before[3][name]) for name, value in tensors(cond).items())


@pytest.mark.parametrize("batched", [True, False])
def test_a_pair_is_two_single_predictions_by_name(prior, batched):
    prior = prior.with_config(batch_conditions=batched)
    latents_t, t, cameras = noisy(prior), torch.tensor([700, 700]), cameras_for(prior)
    cond = prior.condition(prompt(), WHITE)
    uncond = prior.unconditional(cond)
    pair = predict_pair(prior, latents_t, t, cond=cond, uncond=uncond, cameras=cameras)
    torch.testing.assert_close(pair.cond.x0, prior.predict(latents_t, t, cond, cameras).x0, **CLOSE)
    torch.testing.assert_close(pair.uncond.x0, prior.predict(latents_t, t, uncond, cameras).x0, **CLOSE)
    # The two differ by far more than rounding, so exchanging them would be seen above.
    assert (pair.cond.x0 - pair.uncond.x0).abs().max() > 1e-2
    other = prior.predict_each(latents_t, t, {"uncond": uncond, "cond": cond}, cameras)
    torch.testing.assert_close(other["cond"].x0, pair.cond.x0, **CLOSE)


def test_scenes_do_not_know_of_each_other(prior):
    latents_t, t, cameras = noisy(prior, scenes=3), torch.tensor([50, 500, 950]), cameras_for(prior)
    cond = prior.condition(prompt(), WHITE)
    together = prior.predict(latents_t, t, cond, cameras).x0
    for scene in range(3):
        alone = prior.predict(latents_t[scene : scene + 1], t[scene : scene + 1], cond, cameras).x0
        # At t = 950 a rounding error of eps is ten times as large in x0.
        torch.testing.assert_close(together[scene : scene + 1], alone, rtol=1e-3, atol=1e-4)


def test_one_condition_a_scene(prior):
    latents_t, t, cameras = noisy(prior), torch.tensor([500, 500]), cameras_for(prior)
    one, two = prior.condition(prompt(), WHITE), prior.condition(prompt("a blue chair", seed=1), WHITE)
    rows = {
        name: torch.cat([value, getattr(two, name)]) if value.ndim > 1 else value
        for name, value in tensors(one).items()
    }
    both = prior.predict(latents_t, t, Condition(**rows), cameras).x0
    torch.testing.assert_close(both[1:], prior.predict(latents_t[1:], t[1:], two, cameras).x0, **CLOSE)
    with pytest.raises(ValueError, match="2 rows but the latents 3 scenes"):
        prior.predict(noisy(prior, scenes=3), torch.tensor([1, 2, 3]), Condition(**rows), cameras)


def test_cameras_for_each_scene_or_shared(prior):
    latents_t, t, cameras = noisy(prior), torch.tensor([500, 100]), cameras_for(prior)
    cond = prior.condition(prompt(), WHITE)
    indices = torch.arange(len(cameras)).expand(2, -1)
    assert torch.equal(
        prior.predict(latents_t, t, cond, cameras[indices]).x0, prior.predict(latents_t, t, cond, cameras).x0
    )


def test_conditions_are_reproducible_and_carry_their_background(prior):
    grey = torch.full((3,), 0.25)
    one, two = prior.condition(prompt(), grey), prior.condition(prompt(), grey)
    assert tensors(one).keys() == tensors(two).keys()
    assert all(torch.equal(value, getattr(two, name)) for name, value in tensors(one).items())
    assert one.background is None or torch.equal(one.background, grey)


def test_fingerprints_follow_weights_and_settings(prior):
    assert prior.fingerprint() == prior.with_config(batch_conditions=False).fingerprint()
    assert prior.fingerprint() != prior.with_config(name="other").fingerprint()
    before = prior.fingerprint()
    with torch.no_grad():
        next(prior.network.parameters()).add_(1)
    assert prior.fingerprint() != before
