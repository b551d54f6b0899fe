"""Laws of the forward process, and numbers of the published schedule."""

from __future__ import annotations

import math

import pytest
import torch

from maquette.diffusion.schedule import NoiseSchedule

SCHEDULES = [NoiseSchedule.scaled_linear(), NoiseSchedule.cosine(), NoiseSchedule.scaled_linear(40, 0.001, 0.2)]


def test_published_values():
    a = NoiseSchedule.scaled_linear().alphas_cumprod
    expected = {0: 0.99915, 20: 0.98131, 250: 0.67379, 500: 0.27633, 750: 0.05617, 981: 0.00578, 999: 0.00466}
    assert a.dtype == torch.float64
    for t, value in expected.items():
        assert float(a[t]) == pytest.approx(value, abs=5e-6)


def test_cosine_follows_its_formula_until_the_last_steps():
    a = NoiseSchedule.cosine(1000).alphas_cumprod
    f = [math.cos(((k + 1) / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for k in range(900)]
    f0 = math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    torch.testing.assert_close(a[:900], torch.tensor(f, dtype=torch.float64) / f0, rtol=1e-9, atol=0)
    assert 0 < a[-1] < 1e-6


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_betas_and_cumulative_products_say_the_same(schedule):
    rebuilt = NoiseSchedule.from_betas(schedule.betas)
    torch.testing.assert_close(rebuilt.alphas_cumprod, schedule.alphas_cumprod, rtol=1e-12, atol=0)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
def test_alpha_and_sigma_are_a_right_triangle_and_broadcast(schedule, lead, generator):
    like = torch.empty(2, 3, 4, 5, 6, dtype=torch.float64)
    t = torch.randint(schedule.num_steps, lead, generator=generator)
    alpha, sigma = schedule.alpha(t, like), schedule.sigma(t, like)
    assert alpha.shape == sigma.shape == torch.Size(lead) + (1,) * (5 - len(lead))
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha))
    torch.testing.assert_close(alpha.flatten() ** 2, schedule.alphas_cumprod[t].flatten())
    torch.testing.assert_close(schedule.snr(t, like), (alpha / sigma) ** 2)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_conversions_invert_one_another(schedule, generator):
    x0, eps = torch.randn(2, 2, 3, 4, 4, 4, generator=generator, dtype=torch.float64)
    t = torch.randint(schedule.num_steps, (2, 3), generator=generator)
    x_t, v = schedule.add_noise(x0, eps, t), schedule.v_from(x0, eps, t)
    close = {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(schedule.x0_from_eps(x_t, eps, t), x0, **close)
    torch.testing.assert_close(schedule.eps_from_x0(x_t, x0, t), eps, **close)
    torch.testing.assert_close(schedule.x0_from_v(x_t, v, t), x0, **close)
    torch.testing.assert_close(schedule.eps_from_v(x_t, v, t), eps, **close)


@pytest.mark.parametrize("predicts", ["eps", "x0", "v"])
def test_split_of_a_perfect_network_gives_the_truth(predicts, generator):
    schedule = NoiseSchedule.scaled_linear(predicts=predicts)
    x0, eps = torch.randn(2, 5, 1, 4, 4, 4, generator=generator, dtype=torch.float64)
    t = torch.tensor([0, 20, 500, 981, 999])
    found = schedule.split(schedule.target(x0, eps, t), schedule.add_noise(x0, eps, t), t)
    for actual, expected in zip(found, (eps, x0), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_the_direction_in_x0_is_the_weighted_direction_in_eps(generator):
    schedule = NoiseSchedule.scaled_linear()
    x0, eps, wrong = torch.randn(3, 1, 4, 4, 8, 8, generator=generator, dtype=torch.float64)
    t = torch.tensor([437])
    x0_pred = schedule.x0_from_eps(schedule.add_noise(x0, eps, t), wrong, t)
    ratio = schedule.sigma(t, x0) / schedule.alpha(t, x0)
    torch.testing.assert_close(x0 - x0_pred, ratio * (wrong - eps))


@pytest.mark.parametrize(
    ("t", "message"),
    [
        (torch.tensor([1, 2, 3]), "leading axes"),
        (torch.tensor([-1, 2]), "must be in"),
        (torch.zeros(1, 1, 1, 1), "lead"),
    ],
)
def test_wrong_steps_are_refused(t, message):
    with pytest.raises(ValueError, match=message):
        NoiseSchedule.scaled_linear().alpha(t.long(), torch.zeros(2, 4, 8))


@pytest.mark.parametrize(
    "alphas_cumprod",
    [
        torch.linspace(1, 0, 10),
        torch.linspace(0, 1, 10).double(),
        torch.tensor([1.1, 0.5]).double(),
        torch.zeros(0).double(),
    ],
)
def test_what_is_no_schedule_is_refused(alphas_cumprod):
    with pytest.raises(ValueError, match="alphas_cumprod must"):
        NoiseSchedule(alphas_cumprod)
