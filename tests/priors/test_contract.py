"""What every prior promises, whatever network it hides."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from maquette.images import Prompt
from maquette.priors.base import Codec, Condition, Prior, predict_pair
from maquette.priors.multiview import MultiViewPrior
from tests.priors.tiny import PRIORS, four_cameras, noisy, prompt

WHITE = torch.ones(3)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(params=list(PRIORS))
def prior(request: pytest.FixtureRequest) -> MultiViewPrior:
    return PRIORS[request.param]()


def tensors(condition: Condition) -> dict[str, torch.Tensor]:
    return {field.name: value for field in fields(condition) if (value := getattr(condition, field.name)) is not None}


def test_is_a_prior_and_owns_a_codec(prior):
    assert isinstance(prior, Prior)
    assert isinstance(prior.codec, Codec)
    assert len(prior.codec.latent_shape) == 3
    assert prior.card()["control"] == prior.config.control


def test_prediction_explains_its_noisy_latents(prior):
    latents_t, t = noisy(prior), torch.tensor([400, 900])
    out = prior.predict(latents_t, t, prior.condition(prompt(), WHITE), four_cameras())
    schedule = prior.noise_schedule
    assert out.eps.shape == out.x0.shape == latents_t.shape
    again = schedule.alpha(t, latents_t) * out.x0 + schedule.sigma(t, latents_t) * out.eps
    torch.testing.assert_close(again, latents_t, **CLOSE)


def test_the_raw_output_is_read_as_the_schedule_says(prior):
    latents_t, t = noisy(prior), torch.tensor([300, 300])
    raw = []
    handle = prior.network.register_forward_hook(lambda module, args, output: raw.append(output[:, :4]))
    out = prior.predict(latents_t, t, prior.condition(prompt(), WHITE), four_cameras())
    handle.remove()
    said = {"eps": out.eps, "x0": out.x0, "v": prior.noise_schedule.v_from(out.x0, out.eps, t)}
    torch.testing.assert_close(said[prior.noise_schedule.predicts], raw[0], **CLOSE)


def test_nothing_of_the_caller_is_written_to(prior):
    latents_t, t, cameras = noisy(prior), torch.tensor([500, 100]), four_cameras()
    cond = prior.condition(prompt(), WHITE)
    uncond = prior.unconditional(cond)
    before = latents_t.clone(), t.clone(), cameras.c2w.clone(), {k: v.clone() for k, v in tensors(cond).items()}
    predict_pair(prior, latents_t, t, cond=cond, uncond=uncond, cameras=cameras)
    assert torch.equal(latents_t, before[0]) and torch.equal(t, before[1]) and torch.equal(cameras.c2w, before[2])
    assert all(torch.equal(value, before[3][name]) for name, value in tensors(cond).items())


@pytest.mark.parametrize("batched", [True, False])
def test_a_pair_is_two_single_predictions_by_name(prior, batched):
    prior = prior.with_config(batch_conditions=batched)
    latents_t, t, cameras = noisy(prior), torch.tensor([700, 700]), four_cameras()
    cond = prior.condition(prompt(), WHITE)
    uncond = prior.unconditional(cond)
    pair = predict_pair(prior, latents_t, t, cond=cond, uncond=uncond, cameras=cameras)
    torch.testing.assert_close(pair.cond.x0, prior.predict(latents_t, t, cond, cameras).x0, **CLOSE)
    torch.testing.assert_close(pair.uncond.x0, prior.predict(latents_t, t, uncond, cameras).x0, **CLOSE)
    # The two differ by far more than rounding, so exchanging them would be seen above.
    assert (pair.cond.x0 - pair.uncond.x0).abs().max() > 1e-2
    other = prior.predict_each(latents_t, t, {"uncond": uncond, "cond": cond}, cameras)
    torch.testing.assert_close(other["cond"].x0, pair.cond.x0, **CLOSE)


def test_views_are_equivariant_to_their_order(prior):
    latents_t, t, cameras = noisy(prior), torch.tensor([600, 200]), four_cameras()
    cond = prior.condition(prompt(), WHITE)
    order = torch.tensor([2, 0, 3, 1])
    straight = prior.predict(latents_t, t, cond, cameras).x0
    permuted = prior.predict(latents_t[:, order], t, cond, cameras[order]).x0
    torch.testing.assert_close(permuted, straight[:, order], **CLOSE)
    # Views know of each other and of their cameras: moving only one of both changes the answer.
    assert (prior.predict(latents_t, t, cond, cameras[order]).x0 - straight).abs().max() > 1e-3
    changed = latents_t.clone()
    changed[:, 3] += 1
    assert (prior.predict(changed, t, cond, cameras).eps[:, 0] - prior.predict(latents_t, t, cond, cameras).eps[:, 0]
            ).abs().max() > 1e-4  # fmt: skip


def test_scenes_do_not_know_of_each_other(prior):
    latents_t, t, cameras = noisy(prior, scenes=3), torch.tensor([50, 500, 950]), four_cameras()
    cond = prior.condition(prompt(), WHITE)
    together = prior.predict(latents_t, t, cond, cameras).x0
    for scene in range(3):
        alone = prior.predict(latents_t[scene : scene + 1], t[scene : scene + 1], cond, cameras).x0
        torch.testing.assert_close(together[scene : scene + 1], alone, **CLOSE)


def test_one_condition_a_scene(prior):
    latents_t, t, cameras = noisy(prior), torch.tensor([500, 500]), four_cameras()
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
    latents_t, t, cameras = noisy(prior), torch.tensor([500, 100]), four_cameras()
    cond = prior.condition(prompt(), WHITE)
    indices = torch.arange(4).expand(2, 4)
    assert torch.equal(
        prior.predict(latents_t, t, cond, cameras[indices]).x0, prior.predict(latents_t, t, cond, cameras).x0
    )


def test_a_wrong_number_of_views_is_refused(prior):
    cond, name = prior.condition(prompt(), WHITE), prior.config.name
    with pytest.raises(ValueError, match=rf"{name} expects V = 4 views, got 3; pass orbit\(num_views=4\)"):
        prior.predict(noisy(prior, views=3), torch.tensor([1, 1]), cond, four_cameras())
    with pytest.raises(ValueError, match="one camera a view"):
        prior.predict(noisy(prior), torch.tensor([1, 1]), cond, four_cameras()[:3])
    with pytest.raises(ValueError, match="without cameras is a 2D model"):
        prior.predict(noisy(prior), torch.tensor([1, 1]), cond)


def test_one_view_without_a_camera_is_a_2d_prior(prior):
    latents_t, t = noisy(prior, views=1), torch.tensor([500, 500])
    cond = prior.condition(prompt(), WHITE)
    calls = []
    handle = prior.network.register_forward_pre_hook(lambda module, args: calls.append(args[3]))
    out = prior.predict(latents_t, t, cond)
    handle.remove()
    assert out.x0.shape == latents_t.shape
    assert calls == [None], "the camera term must be skipped, which is not the same as a zero camera"


def test_words_and_negative_words_matter(prior):
    latents_t, t, cameras = noisy(prior), torch.tensor([500, 500]), four_cameras()

    def ask(caption: str, negative: str):
        cond = prior.condition(prompt(caption, negative), WHITE)
        return predict_pair(prior, latents_t, t, cond=cond, uncond=prior.unconditional(cond), cameras=cameras)

    one, two = ask("red barrel", "blue"), ask("red barrel", "green")
    assert torch.equal(one.cond.x0, two.cond.x0)
    assert not torch.allclose(one.uncond.x0, two.uncond.x0)
    assert not torch.allclose(one.cond.x0, ask("green chair", "blue").cond.x0)


def test_conditions_are_reproducible_and_carry_their_background(prior):
    grey = torch.full((3,), 0.25)
    one, two = prior.condition(prompt(), grey), prior.condition(prompt(), grey)
    assert tensors(one).keys() == tensors(two).keys()
    assert all(torch.equal(value, getattr(two, name)) for name, value in tensors(one).items())
    assert torch.equal(one.background, grey)


def test_unconditional_twins(prior):
    cond = prior.condition(prompt(), torch.tensor([0.2, 0.4, 0.6]))
    zeros, flat = prior.unconditional(cond, "zeros"), prior.unconditional(cond, "flat")
    assert torch.equal(zeros.text, cond.negative) and torch.equal(flat.text, cond.negative)
    for name in ("image_tokens", "image_embedding", "image_latents"):
        value = getattr(cond, name)
        if value is None:
            assert getattr(zeros, name) is None and getattr(flat, name) is None
            continue
        assert getattr(zeros, name).shape == getattr(flat, name).shape == value.shape
        assert not getattr(zeros, name).any()
        assert getattr(flat, name).any() and not torch.equal(getattr(flat, name), value)
    if flat.image_latents is not None:
        images = prior.codec.decode(flat.image_latents[:, None])
        direct = prior.codec.decode(prior.codec.encode(torch.tensor([0.2, 0.4, 0.6])[None, None, :, None, None]
                                                       .expand(1, 1, 3, 16, 16)))  # fmt: skip
        torch.testing.assert_close(images, direct)


def test_a_prompt_without_a_picture(prior):
    words, t = Prompt(None, "a red barrel", "blue"), torch.tensor([10, 10])
    absent = prior.with_config(missing_picture="absent").condition(words, WHITE)
    assert absent.image_tokens is None and absent.image_embedding is None and absent.image_latents is None
    without = prior.with_config(control="none").condition(prompt(), WHITE)
    assert torch.equal(
        prior.predict(noisy(prior), t, absent, four_cameras()).x0,
        prior.predict(noisy(prior), t, without, four_cameras()).x0,
    )
    dropped = prior.with_config(missing_picture="zeros").condition(words, WHITE)
    shown = prior.condition(prompt(), WHITE)
    for name in ("image_tokens", "image_embedding", "image_latents"):
        here, there = getattr(dropped, name), getattr(shown, name)
        assert (here is None) == (there is None)
        assert here is None or (here.shape == there.shape and not here.any())
    for cond in (absent, dropped):
        assert cond.background is None
        for kind in ("zeros", "flat"):
            twin = prior.unconditional(cond, kind)
            assert torch.equal(twin.text, cond.negative)
            same = {name: value for name, value in tensors(twin).items() if name != "text"}
            assert all(torch.equal(value, getattr(cond, name)) for name, value in same.items())


def test_the_picture_can_be_kept_from_single_views(prior):
    latents_t, t = noisy(prior, views=1), torch.tensor([500, 500])
    shown, words = prior.condition(prompt(), WHITE), prior.with_config(control="none").condition(prompt(), WHITE)
    blind, seeing = prior.with_config(picture_in_2d=False), prior.with_config(picture_in_2d=True)
    assert torch.equal(blind.predict(latents_t, t, shown).x0, seeing.predict(latents_t, t, words).x0)
    if prior.config.controls:
        assert not torch.equal(seeing.predict(latents_t, t, shown).x0, seeing.predict(latents_t, t, words).x0)


def test_fingerprints_follow_weights_and_settings(prior):
    assert prior.fingerprint() == prior.with_config(batch_conditions=False).fingerprint()
    assert prior.fingerprint() != prior.with_config(name="other", num_views=2).fingerprint()
    before = prior.fingerprint()
    with torch.no_grad():
        next(prior.network.parameters()).add_(1)
    assert prior.fingerprint() != before
