"""USD: what its formula reduces to, that no half of a network is wasted, and that any pair of priors will do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from maquette.cameras import orbit
from maquette.diffusion.schedule import NoiseSchedule
from maquette.guidance import csd, score, unbiased
from maquette.guidance.base import Draws, Guidance, Noised, draw
from maquette.guidance.unbiased import ReferenceConfig, ReferenceGuidance, UnbiasedConfig, UnbiasedGuidance
from maquette.images import ImagePrompt, Prompt
from maquette.priors.codecs import SpaceToDepth
from maquette.priors.guided import predict_singly
from tests.guidance.oracle import oracle
from tests.priors.tiny import four_cameras, picture, prompt, tiny_prior, tiny_published

WHITE = torch.ones(3)
WORDS = Prompt(None, "words")


@pytest.fixture
def case(generator):
    names = ("eps_cond", "eps_null", "eps")
    tensors = {n: torch.randn(2, 1, 4, 8, 8, generator=generator, dtype=torch.float64) for n in names}
    return {**tensors, "weight": torch.rand(2, 1, 1, 1, 1, generator=generator, dtype=torch.float64)}


def free_oracle(views=4, seed=9):
    """A 2D prior whose answer is one latent image, the same for every view, with or without words."""
    prior = oracle(seed)
    answer = prior.x_cond[:, :1]
    return replace(prior, x_cond=answer, x_uncond=answer, num_views=None)


def latents_of(prior, seed=5):
    generator = torch.Generator().manual_seed(seed)
    shape = (1, 4, *prior.codec.latent_shape)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def draws_of(latents, t=400, seed=6):
    generator = torch.Generator().manual_seed(seed)
    eps = torch.randn(latents.shape, generator=generator, dtype=latents.dtype)
    return Draws(torch.full((len(latents),), t), eps)


def gradient(guidance, latents, *arguments):
    result = guidance.on_latents(latents, *arguments)
    (grad,) = torch.autograd.grad(result.loss, latents)
    return grad * latents.shape[0] * latents.shape[1]


def test_with_its_own_null_it_is_sds_and_classifier_distillation(case):
    halves = {"eps_cond": case["eps_cond"], "eps_uncond": case["eps_null"]}
    weight = case["weight"]
    sds = score.direction(**halves, eps=case["eps"], guidance_scale=7.5, weight=weight)
    torch.testing.assert_close(unbiased.direction(**case, omega=7.5, lambda_=1.0), sds)
    torch.testing.assert_close(
        unbiased.direction(**case, omega=7.5), csd.direction(**halves, weight=weight, positive=7.5)
    )


def test_the_added_noise_has_no_say_without_lambda(case):
    other = {**case, "eps": torch.full_like(case["eps"], float("nan"))}
    torch.testing.assert_close(unbiased.direction(**other), unbiased.direction(**case))
    change = unbiased.direction(**case, lambda_=0.3) - unbiased.direction(**case)
    torch.testing.assert_close(change, case["weight"] * 0.3 * (case["eps_null"] - case["eps"]))


@pytest.mark.parametrize("t", [20, 500, 980])
def test_oracles_give_the_closed_form(t):
    """eps of an oracle is (x_t - alpha x*) / sigma, so USD points from the free prior's answer to the view prior's."""
    prior, free = oracle(), free_oracle()
    latents = latents_of(prior)
    guidance = UnbiasedGuidance(prior, free, WORDS)
    found = gradient(guidance, latents, four_cameras(), WHITE, draws_of(latents, t))
    schedule, level = prior.noise_schedule, torch.tensor([t])
    alpha, sigma = schedule.alpha(level, latents), schedule.sigma(level, latents)
    torch.testing.assert_close(found, 7.5 * alpha * sigma * (free.x_cond - prior.x_cond).expand_as(found).double())


@pytest.mark.parametrize(
    ("config", "asked", "free_calls"),
    [
        (UnbiasedConfig(), [["cond"]], 1),
        (UnbiasedConfig(lambda_=1.0), [["cond"]], 1),
        (UnbiasedConfig(null="own", lambda_=1.0), [["cond", "uncond"]], 0),
        (UnbiasedConfig(null="own", omega=1.0, lambda_=1.0), [["cond"]], 0),
        (UnbiasedConfig(omega=0.0, lambda_=1.0), [], 1),
    ],
)
def test_nothing_is_evaluated_for_nothing(config, asked, free_calls):
    prior, free = oracle(), free_oracle()
    latents = latents_of(prior)
    guidance, calls = UnbiasedGuidance(prior, free, WORDS, config), []
    guidance.free.predict = lambda *given: calls.append(given) or type(free).predict(free, *given)  # type: ignore[method-assign]
    found = gradient(guidance, latents, None, WHITE, draws_of(latents))
    assert prior.asked == asked and len(calls) == free_calls
    # The shortcut is the formula with everything in it.
    eps = draws_of(latents).eps
    schedule, t = prior.noise_schedule, torch.tensor([400])
    x_t = schedule.add_noise(latents.detach(), eps, t)
    null = prior.x_uncond if config.null == "own" else free.x_cond.expand_as(x_t)
    whole = unbiased.direction(
        eps_cond=schedule.eps_from_x0(x_t, prior.x_cond, t), eps_null=schedule.eps_from_x0(x_t, null, t), eps=eps,
        weight=schedule.sigma(t, x_t).square(), omega=config.omega, lambda_=config.lambda_,
    )  # fmt: skip
    torch.testing.assert_close(found, whole)


def test_all_three_predictions_can_be_had_by_name():
    prior, free = oracle(), free_oracle()
    guidance, latents = UnbiasedGuidance(prior, free, WORDS), latents_of(prior).detach()
    noised = noised_of(prior, latents)
    found = guidance.predict(noised, WHITE, ("cond", "uncond", "free"))
    assert prior.asked == [["cond", "uncond"]], "the prior's two in one call"
    torch.testing.assert_close(found["cond"].x0, prior.x_cond.expand_as(latents))
    torch.testing.assert_close(found["uncond"].x0, prior.x_uncond.expand_as(latents))
    torch.testing.assert_close(found["free"].x0, free.x_cond.expand_as(latents))


def noised_of(prior, latents, t=400, cameras=None):
    draws = draws_of(latents, t)
    x_t = prior.noise_schedule.add_noise(latents, draws.eps, draws.t)
    return Noised(latents, draws.eps, x_t, draws.t, cameras, prior.noise_schedule)


@pytest.mark.parametrize("make", [tiny_prior, tiny_published])
def test_a_multi_view_prior_is_rectified_by_its_own_2d_half(make):
    """Four views with cameras and a picture against the same network as a 2D model of single views (MVDream's)."""
    prior = make()
    cameras, shown = four_cameras(), prompt()
    guidance = UnbiasedGuidance(prior, prior, shown)
    assert isinstance(guidance, Guidance)
    calls = []
    handle = prior.network.register_forward_pre_hook(lambda _, given: calls.append((given[0].shape[:2], given[3])))
    images = torch.rand(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
    result = guidance(images, cameras, WHITE, (0.3, 0.6), torch.Generator().manual_seed(2))
    result.loss.backward()
    handle.remove()
    assert bool(images.grad.isfinite().all()) and float(images.grad.abs().max()) > 0
    assert len(calls) == 2, "one call a network"
    assert calls[0][0][0] == 2 and calls[0][1] is not None, "two scenes with cameras"
    assert tuple(calls[1][0]) == (8, 1) and calls[1][1] is None, "eight single views without"
    # The same by hand, from the priors' plain calls.
    draws = draw(prior, images.detach(), (0.3, 0.6), torch.Generator().manual_seed(2))
    x_t = prior.noise_schedule.add_noise(prior.codec.encode(images.detach(), draws.codec_noise), draws.eps, draws.t)
    cond = prior.predict(x_t, draws.t, prior.condition(shown, WHITE), cameras).eps
    nothing = prior.condition(Prompt(None), WHITE)
    views = [prior.predict(x_t[:, i : i + 1], draws.t, nothing).eps for i in range(4)]
    weight = prior.noise_schedule.sigma(draws.t, x_t).square()
    expected = unbiased.direction(eps_cond=cond, eps_null=torch.cat(views, 1), eps=draws.eps, weight=weight)
    assert result.metrics["grad_norm"] == pytest.approx(float(expected.norm()) / 8, rel=1e-4)


def test_single_views_keep_their_order_and_their_steps():
    prior = tiny_prior()
    t = torch.tensor([100, 800])
    x_t = torch.randn(2, 3, *prior.codec.latent_shape, generator=torch.Generator().manual_seed(0))
    condition = prior.condition(Prompt(None, "a barrel"), WHITE)
    together = predict_singly(prior, x_t, t, condition)
    for scene in range(2):
        for view in range(3):
            alone = prior.predict(x_t[scene, view][None, None], t[scene : scene + 1], condition)
            torch.testing.assert_close(together.eps[scene, view], alone.eps[0, 0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(together.x0[scene, view], alone.x0[0, 0], rtol=1e-4, atol=1e-5)


def test_one_network_without_cameras_answers_everything_at_once():
    prior = tiny_prior(control="none")
    guidance = UnbiasedGuidance(prior, prior, Prompt(None, "a barrel"))
    latents = torch.randn(1, 1, *prior.codec.latent_shape, generator=torch.Generator().manual_seed(0))
    noised, calls = noised_of(prior, latents), []
    handle = prior.network.register_forward_pre_hook(lambda _, given: calls.append(len(given[0])))
    found = guidance.predict(noised, WHITE, ("cond", "uncond", "free"))
    handle.remove()
    assert calls == [3]
    single = predict_singly(prior, noised.latents_t, noised.t, guidance.nothing)
    torch.testing.assert_close(found["free"].eps, single.eps, rtol=1e-4, atol=1e-5)


def test_the_published_noise_levels():
    assert unbiased.NOISE.at(5000, 15000) == pytest.approx((0.02, 0.98))
    assert unbiased.NOISE.at(5001, 15000) == pytest.approx((0.02, 0.5))
    assert unbiased.REFERENCE_NOISE.at(14999, 15000) == (0.02, 0.98)


# The reference view


def a_picture():
    return ImagePrompt(torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(3)), torch.ones(1, 8, 8))


def test_the_reference_asks_nothing_of_a_render_that_is_the_input():
    prior, shown = tiny_prior(), picture(size=16)
    images = shown.composite(WHITE).expand(1, 1, -1, -1, -1).clone().requires_grad_()
    guidance = ReferenceGuidance(prior, shown)
    assert isinstance(guidance, Guidance)
    result = guidance(images, None, WHITE, (0.1, 0.9), torch.Generator().manual_seed(0))
    assert result.metrics["grad_norm"] == pytest.approx(0, abs=1e-5)
    other = (images.detach() * 0.8).requires_grad_()
    assert guidance(other, None, WHITE, (0.1, 0.9), torch.Generator().manual_seed(0)).metrics["grad_norm"] > 1e-3


def test_the_reference_is_the_difference_of_two_scores_in_one_call(generator):
    prior, calls = tiny_published(), []
    shape = (2, 1, *prior.codec.latent_shape)
    latents, target = (torch.randn(shape, generator=generator) for _ in range(2))
    latents.requires_grad_()
    draws = Draws(torch.tensor([300, 700]), torch.randn(shape, generator=generator))
    guidance = ReferenceGuidance(prior, a_picture())
    handle = prior.network.register_forward_pre_hook(lambda _, given: calls.append(len(given[0])))
    found = gradient(guidance, latents, target, draws)
    handle.remove()
    assert calls == [4]
    schedule = prior.noise_schedule
    nothing = prior.condition(Prompt(None), WHITE)
    scores = [
        prior.predict(schedule.add_noise(x.detach(), draws.eps, draws.t), draws.t, nothing).eps
        for x in (latents, target)
    ]
    weight = schedule.sigma(draws.t, latents.detach()).square()
    torch.testing.assert_close(found, weight * (scores[0] - scores[1]), rtol=1e-4, atol=1e-5)


def test_the_input_is_shown_on_the_render_s_background_and_kept_where_it_is_exact():
    prior = tiny_prior()
    shown = ImagePrompt(torch.zeros(3, 16, 16), torch.zeros(1, 16, 16))
    guidance = ReferenceGuidance(prior, shown)
    grey = torch.full((3,), 0.25)
    torch.testing.assert_close(prior.codec.decode(guidance.target(grey)), torch.full((1, 1, 3, 16, 16), 0.25))
    assert guidance.target(grey) is guidance.target(grey)
    assert not torch.equal(guidance.target(WHITE), guidance.target(grey))
    sampled = ReferenceGuidance(tiny_published(), shown)
    noise = torch.randn(1, 1, *sampled.free.codec.latent_shape, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(sampled.target(WHITE, noise), sampled.target(WHITE, -noise))


# Faults and fingerprints


def test_impossible_pairs_and_settings_are_refused():
    prior = oracle()
    with pytest.raises(ValueError, match="null='free' needs a free prior"):
        UnbiasedGuidance(prior, None, WORDS)
    small = replace(free_oracle(), codec=SpaceToDepth(16, 4))
    with pytest.raises(ValueError, match="oracle and oracle cannot judge one another's noisy latents .*48 channels"):
        UnbiasedGuidance(prior, small, WORDS)
    cosine = replace(free_oracle(), noise_schedule=NoiseSchedule.cosine())
    with pytest.raises(ValueError, match="different noise schedules"):
        UnbiasedGuidance(prior, cosine, WORDS)
    with pytest.raises(ValueError, match="both 0"):
        UnbiasedConfig(omega=0.0)
    with pytest.raises(ValueError, match="at least 0"):
        UnbiasedConfig(omega=-1.0)
    with pytest.raises((ValueError, TypeError), match="'mine'"):
        UnbiasedConfig(null="mine")
    own = UnbiasedGuidance(prior, None, WORDS, UnbiasedConfig(null="own"))
    with pytest.raises(ValueError, match="no free prior"):
        own.predict(noised_of(prior, latents_of(prior).detach()), WHITE, ("free",))


def test_fingerprints_cover_both_priors_and_every_setting():
    prior, free, shown = tiny_prior(), tiny_prior("eps"), prompt()
    prints = {
        guidance.fingerprint()
        for guidance in (
            UnbiasedGuidance(prior, free, shown),
            UnbiasedGuidance(prior, prior, shown),
            UnbiasedGuidance(prior, free, prompt("a blue chair")),
            UnbiasedGuidance(prior, free, shown, UnbiasedConfig(lambda_=0.1)),
            ReferenceGuidance(free, picture()),
            ReferenceGuidance(free, picture(seed=1)),
            ReferenceGuidance(free, picture(), ReferenceConfig(sample_posterior=False)),
        )
    }
    assert len(prints) == 7
    assert UnbiasedGuidance(prior, free, shown).fingerprint() in prints


def test_other_cameras_give_another_direction():
    prior = tiny_prior()
    guidance, latents = UnbiasedGuidance(prior, prior, prompt()), torch.randn(1, 4, *prior.codec.latent_shape)
    latents.requires_grad_()
    one, two = (
        gradient(guidance, latents, orbit(4, elevation=e, height=16, width=16), WHITE, draws_of(latents))
        for e in (0.0, 40.0)
    )
    assert float((one - two).abs().max()) > 1e-3
