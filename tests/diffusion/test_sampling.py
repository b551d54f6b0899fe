"""DDIM: its step lists, what a perfect network makes of it, and that a sample does not know its neighbours."""

from __future__ import annotations

import pytest
import torch

from maquette.diffusion.sampling import (
    SamplingSteps,
    averaged_updates,
    ddim,
    ddim_updates,
    noise_to,
    spawn_generators,
    translate,
    unit_noise,
)
from maquette.diffusion.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule.scaled_linear()


def oracle(x0):
    """The network that knows the answer: the eps that leads from x_t back to x0."""
    return lambda x_t, t: SCHEDULE.eps_from_x0(x_t, x0, t)


def test_the_released_list_of_fifty():
    steps = SamplingSteps.released(SCHEDULE, 50)
    assert steps.t.tolist() == list(range(981, 0, -20))
    a = SCHEDULE.alphas_cumprod
    torch.testing.assert_close(steps.alphas_cumprod, a[steps.t])
    assert steps.previous[-1] == a[0]
    assert (steps.previous[:-1] == a[steps.t[1:]]).all()


def test_the_released_list_has_more_steps_where_it_does_not_divide():
    assert len(SamplingSteps.released(SCHEDULE, 30)) == 31
    assert len(SamplingSteps.released(SCHEDULE, 7)) == 8


def test_zero123_drops_the_noisiest_step():
    full, cut = SamplingSteps.released(SCHEDULE, 50), SamplingSteps.zero123(SCHEDULE, 50)
    assert len(cut) == 49 and int(cut.t[0]) == 961
    assert torch.equal(cut.t, full.t[1:]) and torch.equal(cut.previous, full.previous[1:])
    assert len(SamplingSteps.zero123(SCHEDULE, 1)) == 0


def test_the_leading_list_is_the_released_one_where_it_divides():
    for count in (1, 20, 50, 500):
        assert torch.equal(SamplingSteps.leading(SCHEDULE, count).t, SamplingSteps.released(SCHEDULE, count).t)
    leading = SamplingSteps.leading(SCHEDULE, 75)
    assert len(leading) == 75 and int(leading.t[0]) == 963 and int(leading.t[-1]) == 1
    assert torch.equal(leading.previous[:-1], SCHEDULE.alphas_cumprod[leading.t[1:]])
    assert leading.previous[-1] == SCHEDULE.alphas_cumprod[0]
    assert int(SamplingSteps.leading(SCHEDULE, 300).t[0]) == 898, "the released rule cannot make this list"
    for count in (0, 1000, 1001):
        with pytest.raises(ValueError, match="steps"):
            SamplingSteps.leading(SCHEDULE, count)


@pytest.mark.parametrize("count", [3, 9, 300, 1000])
def test_the_released_list_refuses_what_steps_out_of_the_schedule(count):
    with pytest.raises(ValueError, match="SamplingSteps.exact"):
        SamplingSteps.released(SCHEDULE, count)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 9, 30, 300, 999, 1000])
def test_the_exact_list_has_that_many_steps_from_the_noisiest_to_the_clean_sample(count):
    steps = SamplingSteps.exact(SCHEDULE, count)
    assert len(steps) == count
    assert steps.t[0] == 999
    assert steps.previous[-1] == 1.0
    gaps = -steps.t.diff()
    assert count == 1 or int(gaps.max() - gaps.min()) <= 1


@pytest.mark.parametrize("count", [0, -1, 1001])
@pytest.mark.parametrize("make", [SamplingSteps.released, SamplingSteps.exact])
def test_impossible_numbers_of_steps_are_refused(make, count):
    with pytest.raises(ValueError, match="between 1 and 1000"):
        make(SCHEDULE, count)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("count", [1, 4, 50])
def test_an_oracle_is_recovered_exactly(count, eta, generator):
    x0, x_T = torch.randn(2, 2, 4, 3, 8, 8, generator=generator, dtype=torch.float64)
    noise = unit_noise(spawn_generators(generator, 2), x_T)
    steps = SamplingSteps.exact(SCHEDULE, count)
    torch.testing.assert_close(ddim(oracle(x0), x_T, steps, eta=eta, noise=noise), x0, rtol=0, atol=1e-9)


def test_with_the_released_list_a_trace_of_noise_is_left(generator):
    x0, eps = torch.randn(2, 1, 4, 3, 8, 8, generator=generator, dtype=torch.float64)
    steps = SamplingSteps.released(SCHEDULE, 20)
    x_T = noise_to(x0, eps, steps)
    found = ddim(oracle(x0), x_T, steps)
    torch.testing.assert_close(found, SCHEDULE.add_noise(x0, eps, torch.tensor([0])))


@pytest.mark.parametrize("predicts", ["eps", "x0", "v"])
def test_all_parametrisations_walk_the_same_path(predicts, generator):
    x0, x_T = torch.randn(2, 1, 4, 3, 8, 8, generator=generator, dtype=torch.float64)
    steps = SamplingSteps.exact(SCHEDULE, 6)
    schedule = NoiseSchedule(SCHEDULE.alphas_cumprod, predicts)

    def network(x_t, t):
        eps = (0.3 * x_t).tanh() * 2
        return schedule.target(schedule.x0_from_eps(x_t, eps, t), eps, t)

    expected = ddim(lambda x_t, t: (0.3 * x_t).tanh() * 2, x_T, steps)
    torch.testing.assert_close(ddim(network, x_T, steps, predicts=predicts), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_noisy_updates_keep_the_variance_of_the_schedule(eta, generator):
    """For unit-normal data the right eps is sigma_t x_t, and every x_t is unit-normal again."""
    x_T = torch.randn(1, 1, 4, 128, 128, generator=generator)
    noise = unit_noise(spawn_generators(generator, 1), x_T)
    x = ddim(lambda x_t, t: SCHEDULE.sigma(t, x_t) * x_t, x_T, SamplingSteps.exact(SCHEDULE, 200), eta=eta, noise=noise)
    assert float(x.std()) == pytest.approx(1.0, abs=0.02)


def test_eta_one_is_the_posterior_variance_of_the_forward_process():
    steps = SamplingSteps.exact(SCHEDULE, 1000)
    posterior = (1 - steps.previous) / (1 - steps.alphas_cumprod) * SCHEDULE.betas[steps.t]
    torch.testing.assert_close(steps.sigmas(1.0), posterior.sqrt(), rtol=1e-9, atol=1e-12)
    assert (steps.sigmas(0.0) == 0).all()


def test_a_scene_does_not_depend_on_its_batch(generator):
    x_T = torch.randn(3, 2, 3, 8, 8, generator=generator)
    steps = SamplingSteps.exact(SCHEDULE, 5)

    def network(x_t, t):
        return 0.5 * x_t.sin()

    def run(scenes):
        generators = spawn_generators(torch.Generator().manual_seed(7), 3)[scenes]
        x = x_T[scenes]
        return ddim(network, x, steps, eta=1.0, noise=unit_noise(generators, x))

    together = run(slice(None))
    for scene in range(3):
        torch.testing.assert_close(run(slice(scene, scene + 1)), together[scene : scene + 1])


def test_spawned_generators_do_not_depend_on_their_number():
    draws = [
        [torch.rand((), generator=g).item() for g in spawn_generators(torch.Generator().manual_seed(3), count)]
        for count in (2, 5)
    ]
    assert draws[0] == draws[1][:2]
    assert len(set(draws[1])) == 5


def test_img2img_strength_goes_from_the_image_to_nothing_of_it(generator):
    x0, eps, other = torch.randn(3, 1, 1, 3, 8, 8, generator=generator, dtype=torch.float64)
    steps = SamplingSteps.released(SCHEDULE, 50)
    assert torch.equal(ddim(oracle(other), noise_to(x0, eps, steps.partial(0.0)), steps.partial(0.0)), x0)
    fifth = steps.partial(0.2)
    assert fifth.t.tolist() == [181, 161, 141, 121, 101, 81, 61, 41, 21, 1]
    start = noise_to(x0, eps, fifth)
    torch.testing.assert_close(start, SCHEDULE.add_noise(x0, eps, torch.tensor([181])))
    assert len(steps.partial(1.0)) == 50
    # What is left of the image grows fainter with the strength.
    kept = [float((noise_to(x0, eps, steps.partial(s)) * x0).mean() / x0.square().mean()) for s in (0.2, 0.6, 1.0)]
    assert kept == sorted(kept, reverse=True)


def test_a_skipped_share_is_rounded_down_before_it_is_taken_away(generator):
    steps = SamplingSteps.released(SCHEDULE, 50)
    assert steps.skipping(0.8).t.tolist() == [181, 161, 141, 121, 101, 81, 61, 41, 21, 1]
    assert len(steps.partial(1 - 0.8)) == 9, "why there are two methods"
    assert len(steps.skipping(0.0)) == 50 and len(steps.skipping(1.0)) == 0 and len(steps.skipping(0.99)) == 1
    with pytest.raises(ValueError, match="skipped share"):
        steps.skipping(-0.1)


def test_translation_ends_where_its_prior_wants_and_stays_without_steps(generator):
    x0, eps, wanted = torch.randn(3, 1, 1, 3, 8, 8, generator=generator, dtype=torch.float64)
    some = SamplingSteps.exact(SCHEDULE, 20).skipping(0.6)
    torch.testing.assert_close(translate(oracle(wanted), x0, eps, some), wanted)
    torch.testing.assert_close(
        translate(lambda x_t, t: 0.3 * x_t, x0, eps, some),
        ddim(lambda x_t, t: 0.3 * x_t, noise_to(x0, eps, some), some),
    )
    assert translate(oracle(wanted), x0, eps, some.last(0)) is x0


def test_corrected_estimates_bound_the_sample(generator):
    x_T = torch.randn(1, 1, 3, 8, 8, generator=generator)
    steps = SamplingSteps.exact(SCHEDULE, 8)

    def clip(x0, t):
        return x0.clamp(-1, 1)

    states = list(ddim_updates(lambda x_t, t: -x_t, x_T, steps, correct_x0=clip))
    assert [s.index for s in states] == list(range(8))
    assert [int(s.t[0]) for s in states] == steps.t.tolist()
    for state in states:
        assert float(state.x0_pred.abs().max()) <= 1.0
    torch.testing.assert_close(states[-1].x, states[-1].x0_pred)
    free = ddim(lambda x_t, t: -x_t, x_T, steps)
    assert float(free.abs().max()) > 10.0


def test_noise_must_be_brought_and_eta_be_positive():
    steps, x = SamplingSteps.exact(SCHEDULE, 2), torch.zeros(1, 1, 3, 4, 4)
    with pytest.raises(ValueError, match="pass `noise`"):
        ddim(lambda x_t, t: x_t, x, steps, eta=0.5)
    with pytest.raises(ValueError, match="cannot be negative"):
        ddim(lambda x_t, t: x_t, x, steps, eta=-0.5)
    with pytest.raises(ValueError, match="one generator per scene"):
        unit_noise([], x)
    with pytest.raises(ValueError, match="strength"):
        steps.partial(1.5)
    with pytest.raises(ValueError, match="can be kept"):
        steps.last(3)


@pytest.mark.parametrize("t", [[1, 5], [5, 5], [1000, 1], [5, -1]])
def test_lists_that_do_not_fall_or_leave_the_schedule_are_refused(t):
    with pytest.raises(ValueError, match="sampling steps must"):
        SamplingSteps(SCHEDULE, torch.tensor(t), torch.ones(len(t), dtype=torch.float64))


def test_averaged_estimates_settle_on_the_most_likely_sample_and_vary_less_with_more_draws():
    """Where the data are normal, E[x0 | x_t] pulls towards their mean, and fresh noise is all that varies."""
    mean, deviation = 0.3, 0.2

    def posterior_mean(x_t, t):
        alpha, sigma = SCHEDULE.alpha(t, x_t), SCHEDULE.sigma(t, x_t)
        gain = deviation**2 * alpha / ((deviation * alpha).square() + sigma.square())
        return mean + gain * (x_t - alpha * mean)

    like = torch.zeros(1, 20_000)
    steps = SamplingSteps.exact(SCHEDULE, 8)
    spread = {}
    for draws in (1, 4):
        noise = unit_noise([torch.Generator().manual_seed(2)], like)
        states = list(averaged_updates(posterior_mean, like, steps, draws=draws, noise=noise, predicts="x0"))
        assert abs(float(states[-1].x.mean()) - mean) < 0.01
        assert len(states) == 8 and states[3].x is states[3].x0_pred
        spread[draws] = float(states[-3].x.var())
    assert 0.15 < spread[4] / spread[1] < 0.35
    assert spread[1] < deviation**2  # so it does not sample the data


def test_averaging_needs_a_draw_and_keeps_to_the_correction():
    like = torch.zeros(1, 4)
    noise = unit_noise([torch.Generator()], like)
    steps = SamplingSteps.exact(SCHEDULE, 2)
    with pytest.raises(ValueError, match="at least one draw, got draws=0"):
        next(averaged_updates(oracle(like), like, steps, draws=0, noise=noise))
    states = averaged_updates(
        oracle(like + 3), like, steps, draws=2, noise=noise, correct_x0=lambda x0, t: x0.clamp(-1, 1)
    )
    assert all(torch.equal(state.x, like + 1) for state in states)
