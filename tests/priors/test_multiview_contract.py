"""What every prior of several views promises beside the contract of all priors."""

from __future__ import annotations

import pytest
import torch

from maquette.images import Prompt
from maquette.priors.base import predict_pair
from maquette.priors.multiview import MultiViewPrior
from tests.priors.test_contract import CLOSE, WHITE, tensors
from tests.priors.tiny import MULTIVIEW, four_cameras, noisy, prompt


@pytest.fixture(params=list(MULTIVIEW))
def prior(request: pytest.FixtureRequest) -> MultiViewPrior:
    return MULTIVIEW[request.param]()


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
