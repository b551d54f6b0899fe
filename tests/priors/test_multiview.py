"""Controllers of the multi-view prior, and what it hides: the prompt's view."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from maquette.errors import UserError
from maquette.images import ImagePrompt, Prompt
from maquette.priors.multiview import ImageWeight, MultiViewConfig, MultiViewPrior, parse_control
from tests.priors.tiny import four_cameras, noisy, picture, prompt, tiny_prior, tiny_published

WHITE = torch.ones(3)


def ask(prior: MultiViewPrior, question: Prompt | None = None) -> torch.Tensor:
    latents_t, t = noisy(prior), torch.tensor([500, 300])
    return prior.predict(latents_t, t, prior.condition(question or prompt(), WHITE), four_cameras()).x0


def call(prior: MultiViewPrior, cameras: bool = True) -> dict[str, Any]:
    """Arguments and result of the one call of the network that a prediction makes."""
    seen: list[dict[str, Any]] = []

    def hook(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        seen.append({**dict(zip(("x", "t", "context", "camera"), args, strict=True)), **kwargs, "out": output})

    handle = prior.network.register_forward_hook(hook, with_kwargs=True)
    latents_t = noisy(prior, views=4 if cameras else 1)
    out = prior.predict(
        latents_t, torch.tensor([500, 300]), prior.condition(prompt(), WHITE), four_cameras() if cameras else None
    )
    handle.remove()
    (only,) = seen
    return {**only, "latents_t": latents_t, "x0": out.x0}


@pytest.mark.parametrize(
    "control", ["none", "global", "local", "pixel", "global+local", "local+pixel", "global+local+pixel"]
)
def test_controllers_by_name(control):
    seen = call(tiny_prior(control=control))
    names = parse_control(control)
    assert (seen["global_feature"] is not None) == ("global" in names)
    assert (seen["local_features"] is not None) == ("local" in names)
    assert seen["x"].shape[1] == (5 if "pixel" in names else 4)
    assert seen["x0"].shape == seen["latents_t"].shape


def test_a_controller_switched_off_ignores_what_a_condition_still_carries():
    prior = tiny_prior()
    cond, latents_t, t = prior.condition(prompt(), WHITE), noisy(prior), torch.tensor([500, 300])
    for control in ("none", "local", "global+pixel"):
        other = prior.with_config(control=control)
        carried = other.predict(latents_t, t, cond, four_cameras()).x0
        assert torch.equal(carried, other.predict(latents_t, t, other.condition(prompt(), WHITE), four_cameras()).x0)


def test_every_controller_changes_the_answer():
    answers = [ask(tiny_prior(control=control)) for control in ("none", "global", "local", "pixel")]
    for i, one in enumerate(answers):
        for other in answers[:i]:
            assert (one - other).abs().max() > 1e-3


@pytest.mark.parametrize("make", [tiny_prior, tiny_published])
def test_the_prompts_view(make):
    prior = make(control="local+pixel")
    seen = call(prior)
    assert seen["x"].shape[1] == 5
    assert torch.equal(seen["x"][:, :4], seen["latents_t"])
    expected = prior.condition(prompt(), WHITE).image_latents
    assert torch.equal(seen["x"][:, 4], expected.expand(2, *expected.shape[1:]))
    assert seen["camera"].shape == (2, 5, 16)
    assert not seen["camera"][:, 4].any() and seen["camera"][:, :4].any(dim=-1).all()
    assert seen["t"].tolist() == [500, 300], "one step a scene: the prompt's view has the views' own"
    two_d = call(prior.with_config(picture_in_2d=True), cameras=False)
    assert two_d["x"].shape[1] == 2 and two_d["camera"] is None


def test_the_prompts_latents_are_those_of_its_composite():
    prior = tiny_prior()
    red = torch.tensor([1.0, 0.0, 0.0])
    inside = ImagePrompt(torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(1)), picture(16).mask)
    latents = prior.condition(Prompt(inside, "a ball"), red).image_latents
    torch.testing.assert_close(prior.codec.decode(latents[:, None])[0, 0], inside.composite(red), atol=1e-6, rtol=0)


def test_a_sample_of_the_prompts_posterior():
    prior = tiny_published()
    noise = torch.randn(1, *prior.codec.latent_shape, generator=torch.Generator().manual_seed(0))
    mean = prior.condition(prompt(), WHITE).image_latents
    assert torch.equal(prior.condition(prompt(), WHITE, latent_noise=0 * noise).image_latents, mean)
    assert not torch.allclose(prior.condition(prompt(), WHITE, latent_noise=noise).image_latents, mean)


@pytest.mark.parametrize("level", ["global", "local", "pixel"])
def test_weight_nought_is_absence_and_one_is_nothing_special(level):
    every, rest = "global+local+pixel", "+".join(n for n in ("global", "local", "pixel") if n != level)
    field = "global_" if level == "global" else level
    plain = ask(tiny_prior(control=every))
    assert torch.equal(ask(tiny_prior(control=every).with_config(image_weight=ImageWeight())), plain)
    off = tiny_prior(control=every).with_config(image_weight=ImageWeight(**{field: 0.0}))
    assert torch.equal(ask(off), ask(tiny_prior(control=rest)))


@pytest.mark.parametrize(("level", "beside"), [("global", False), ("local", False), ("pixel", False), ("pixel", True)])
def test_weights_are_continuous_between(level, beside):
    field = "global_" if level == "global" else level
    # Alone, for among others a token's absence also changes the softmax that it shares.
    prior = tiny_prior(control=level, beside=beside)
    half, almost_none, almost_one = (
        ask(prior.with_config(image_weight=ImageWeight(**{field: weight}))) for weight in (0.5, 1e-7, 1 - 1e-6)
    )
    one, none = ask(prior), ask(tiny_prior(control="none", beside=beside))
    torch.testing.assert_close(almost_none, none, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(almost_one, one, atol=1e-4, rtol=1e-3)
    assert (half - one).abs().max() > 1e-4 and (half - none).abs().max() > 1e-4


def test_local_and_global_tokens_can_weigh_differently():
    prior = tiny_prior(control="global+local")
    seen = call(prior.with_config(image_weight=ImageWeight(global_=0.25, local=2.0)))
    assert seen["image_weight"].flatten().tolist() == [2.0, 2.0, 2.0, 0.25, 0.25]
    equal = ask(prior.with_config(image_weight=ImageWeight(global_=0.5, local=0.5)))
    nearly = ask(prior.with_config(image_weight=ImageWeight(global_=0.5, local=0.5 + 1e-7)))
    torch.testing.assert_close(equal, nearly, atol=1e-5, rtol=1e-4)


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="got 'lokal'"):
        MultiViewConfig(control="lokal")
    with pytest.raises(UserError, match="combination"):
        MultiViewConfig(control="local+local")
    with pytest.raises(UserError, match="at least 0"):
        ImageWeight(pixel=-1.0)
    with pytest.raises(UserError, match="at least one view"):
        MultiViewConfig(num_views=0)
    with pytest.raises(UserError, match="ImageDream has no global control; it knows local, pixel"):
        tiny_published("global+pixel")
    prior = tiny_prior()
    with pytest.raises(UserError, match="needs an image encoder"):
        MultiViewPrior(prior.network, prior.codec, prior.noise_schedule, prior.tokenizer, prior.text_encoder)
    cond = prior.condition(prompt(), WHITE)
    with pytest.raises((ValueError, TypeError), match="'ones'"):  # the shape checker of the tests may be first
        prior.unconditional(cond, "ones")


def test_other_view_counts_of_other_networks():
    prior = tiny_prior().with_config(num_views=3)
    out = prior.predict(
        noisy(prior, views=3), torch.tensor([5, 5]), prior.condition(prompt(), WHITE), four_cameras()[:3]
    )
    assert out.x0.shape[1] == 3


def test_networks_can_be_exchanged_and_weights_stay_shared():
    prior = tiny_prior()
    other = prior.with_config(control="none")
    assert other.network is prior.network and other.text_encoder is prior.text_encoder
    replaced = prior.with_network(tiny_prior("eps").network)
    assert replaced.codec is prior.codec and replaced.network is not prior.network


def test_half_precision_is_the_networks_own_business():
    prior = tiny_prior()
    full = ask(prior)
    half = ask(prior.to("cpu", torch.bfloat16))
    assert half.dtype == torch.float32
    assert (half - full).abs().max() < 0.2 * full.abs().max()
