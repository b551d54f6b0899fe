"""Laws of classifier-free guidance."""

from __future__ import annotations

import pytest
import torch

from maquette.diffusion.cfg import guide, guide_rectified, rescale_std
from maquette.diffusion.schedule import NoiseSchedule


@pytest.fixture
def pair(generator):
    return torch.randn(2, 2, 4, 3, 8, 8, generator=generator, dtype=torch.float64)


def test_scales_zero_and_one_are_the_halves_themselves(pair):
    cond, uncond = pair
    assert guide(eps_cond=cond, eps_uncond=uncond, guidance_scale=1.0) is cond
    torch.testing.assert_close(guide(eps_cond=cond, eps_uncond=uncond, guidance_scale=0.0), uncond)


def test_it_moves_away_from_the_unconditional(pair):
    cond, uncond = pair
    guided = guide(eps_cond=cond, eps_uncond=uncond, guidance_scale=5.0)
    torch.testing.assert_close(guided - cond, 4.0 * (cond - uncond))


def test_guiding_x0_is_guiding_eps(pair, generator):
    schedule, t = NoiseSchedule.scaled_linear(), torch.tensor([300, 800])
    x_t = torch.randn(2, 4, 3, 8, 8, generator=generator, dtype=torch.float64)
    by_eps = guide(eps_cond=pair[0], eps_uncond=pair[1], guidance_scale=7.5)
    x0 = [schedule.x0_from_eps(x_t, eps, t) for eps in pair]
    by_x0 = guide(eps_cond=x0[0], eps_uncond=x0[1], guidance_scale=7.5)
    torch.testing.assert_close(schedule.x0_from_eps(x_t, by_eps, t), by_x0)


def test_rectified_guidance_leaves_the_null_of_another_network(pair, generator):
    cond, free = pair
    assert guide_rectified(eps_cond=cond, eps_free=free, guidance_scale=1.0) is cond
    # supplement of arXiv:2312.06198: omega (eps_cond - eps_free) + eps_free
    torch.testing.assert_close(
        guide_rectified(eps_cond=cond, eps_free=free, guidance_scale=3.0), 3.0 * (cond - free) + free
    )
    schedule, t = NoiseSchedule.scaled_linear(), torch.tensor([300, 800])
    x_t = torch.randn(2, 4, 3, 8, 8, generator=generator, dtype=torch.float64)
    by_x0 = guide_rectified(
        eps_cond=schedule.x0_from_eps(x_t, cond, t), eps_free=schedule.x0_from_eps(x_t, free, t), guidance_scale=3.0
    )
    by_eps = guide_rectified(eps_cond=cond, eps_free=free, guidance_scale=3.0)
    torch.testing.assert_close(schedule.x0_from_eps(x_t, by_eps, t), by_x0)


def test_the_halves_have_no_order(pair):
    with pytest.raises(TypeError):
        guide(pair[0], pair[1], 5.0)


def test_full_rescaling_gives_each_scene_the_conditional_spread(pair):
    x0 = 3.0 * pair[0] + 1.0
    x0[1] *= 10.0
    rescaled = rescale_std(x0, x0_cond=pair[1], strength=1.0)
    for scene in range(2):
        assert float(rescaled[scene].std()) == pytest.approx(float(pair[1][scene].std()), rel=1e-6)
        # One factor per scene: views keep their contrast relative to one another.
        ratio = rescaled[scene] / x0[scene]
        torch.testing.assert_close(ratio, ratio.flatten()[0].expand_as(ratio))


def test_rescaling_mixes_linearly_in_its_strength(pair):
    x0, cond = 4.0 * pair[0], pair[1]
    assert rescale_std(x0, x0_cond=cond, strength=0.0) is x0
    full = rescale_std(x0, x0_cond=cond, strength=1.0)
    torch.testing.assert_close(rescale_std(x0, x0_cond=cond, strength=0.2), 0.2 * full + 0.8 * x0)


@pytest.mark.parametrize("strength", [-0.1, 1.1])
def test_a_strength_outside_the_unit_interval_is_refused(pair, strength):
    with pytest.raises(ValueError, match="strength"):
        rescale_std(pair[0], x0_cond=pair[1], strength=strength)
