"""The score-distillation formulas: how they reduce to one another, and recorded values."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from maquette.diffusion.schedule import NoiseSchedule
from maquette.guidance import csd, ism, nfsd, perp_neg, score, sjc, vsd


@pytest.fixture
def case(generator):
    names = ("x", "eps", "eps_cond", "eps_uncond", "eps_neg", "other")
    tensors = {n: torch.randn(2, 1, 4, 8, 8, generator=generator, dtype=torch.float64) for n in names}
    schedule, t = NoiseSchedule.scaled_linear(), torch.tensor([120, 700])
    tensors["alpha_t"], tensors["sigma_t"] = schedule.alpha(t, tensors["x"]), schedule.sigma(t, tensors["x"])
    return tensors


def halves(case):
    return {"eps_cond": case["eps_cond"], "eps_uncond": case["eps_uncond"]}


def weigh(case, weighting):
    return weighting(alpha_t=case["alpha_t"], sigma_t=case["sigma_t"])


def test_weightings_are_what_they_say(case):
    a, s = case["alpha_t"], case["sigma_t"]
    for weighting, expected in (
        (score.sigma_squared, 1 - a**2),
        (score.uniform, torch.ones_like(a)),
        (score.alpha_sigma_squared, a * (1 - a**2)),
        (score.sigma_over_alpha, s / a),
        (score.inverse_snr, (1 - a**2) / a**2),
    ):
        torch.testing.assert_close(weigh(case, weighting), expected)


def test_dreamfusion_writes_guidance_with_one_less(case):
    omega = 7.5
    theirs = (1 + omega) * case["eps_cond"] - omega * case["eps_uncond"] - case["eps"]
    ours = score.direction(
        **halves(case), eps=case["eps"], guidance_scale=score.from_dreamfusion(omega), weight=weigh(case, score.uniform)
    )
    torch.testing.assert_close(ours, theirs)


def test_an_oracle_denoiser_pulls_straight_to_its_target(case):
    """With eps_pred = (x_t - alpha x*) / sigma the SDS direction is w alpha / sigma (x - x*): distillation
    converges to x*."""
    a, s, target = case["alpha_t"], case["sigma_t"], case["other"]
    x_t = a * case["x"] + s * case["eps"]
    oracle = (x_t - a * target) / s
    weight = weigh(case, score.sigma_over_alpha)
    found = score.direction(eps_cond=oracle, eps_uncond=oracle, eps=case["eps"], guidance_scale=100.0, weight=weight)
    torch.testing.assert_close(found, case["x"] - target)


def test_estimators_reduce_to_one_another(case):
    weight, common = weigh(case, score.sigma_squared), halves(case)
    sds = score.direction(**common, eps=case["eps"], guidance_scale=7.5, weight=weight)
    torch.testing.assert_close(vsd.direction(**common, eps_lora=case["eps"], weight=weight), sds)
    torch.testing.assert_close(ism.direction(**common, eps_s=case["eps"], weight=weight), sds)
    # CSD is what of SDS grows with the scale.
    more = score.direction(**common, eps=case["eps"], guidance_scale=8.5, weight=weight)
    torch.testing.assert_close(csd.direction(**common, weight=weight), more - sds)
    # With both weights at 1 the unconditional score cancels; with no negative it is the plain estimator.
    both = csd.direction_with_negative(**common, eps_neg=case["eps_neg"], weight=weight, positive=1.0, negative=1.0)
    torch.testing.assert_close(both, weight * (case["eps_cond"] - case["eps_neg"]))
    none = csd.direction_with_negative(**common, eps_neg=case["eps_neg"], weight=weight, negative=0.0)
    torch.testing.assert_close(none, csd.direction(**common, weight=weight))


def test_nfsd_switches_its_domain_term_at_the_threshold(case):
    t = torch.tensor([199, 200]).reshape(2, 1, 1, 1, 1)
    weight, common = weigh(case, score.uniform), halves(case)
    found = nfsd.direction(**common, eps_neg=case["eps_neg"], t=t, weight=weight, guidance_scale=3.0)
    guided = case["eps_uncond"] + 3.0 * (case["eps_cond"] - case["eps_uncond"])
    torch.testing.assert_close(found[0], guided[0])
    torch.testing.assert_close(found[1], guided[1] - case["eps_neg"][1])


def test_score_jacobian_chaining_is_uniform_sds(case):
    u = case["sigma_t"] / case["alpha_t"]
    z, seen = sjc.perturb(case["x"], case["eps"], u)
    torch.testing.assert_close(seen, case["alpha_t"] * case["x"] + case["sigma_t"] * case["eps"])
    torch.testing.assert_close(z, case["x"] + u * case["eps"])
    found = sjc.direction(x=case["x"], eps=case["eps"], eps_pred=case["eps_cond"], u=u)
    torch.testing.assert_close(found, case["eps_cond"] - case["eps"])


def test_perpendicular_negatives_never_touch_the_positive(case):
    weights = torch.tensor([[-1.0, -0.3]], dtype=torch.float64)
    guided = perp_neg.guide_perpendicular(
        **halves(case), eps_neg=case["eps_neg"][None], weights=weights, guidance_scale=7.5
    )
    plain = case["eps_uncond"] + 7.5 * (case["eps_cond"] - case["eps_uncond"])
    positive = case["eps_cond"] - case["eps_uncond"]
    overlap = ((guided - plain) * positive).flatten(1).sum(1)
    torch.testing.assert_close(overlap, torch.zeros(2, dtype=torch.float64), atol=1e-9, rtol=0)
    assert (guided - plain).abs().max() > 0.1
    # A negative prompt that says the same as the positive one changes nothing.
    same = perp_neg.guide_perpendicular(
        **halves(case), eps_neg=case["eps_cond"][None], weights=weights, guidance_scale=7.5
    )
    torch.testing.assert_close(same, plain)
    with pytest.raises(ValueError, match="at most 0"):
        perp_neg.guide_perpendicular(
            **halves(case), eps_neg=case["eps_neg"][None], weights=-weights, guidance_scale=1.0
        )


def test_view_weights_interpolate_and_repel():
    for azimuth in range(-720, 720, 15):
        mix = perp_neg.view_weights(float(azimuth))
        assert sum(mix.positive.values()) == pytest.approx(1) and min(mix.positive.values()) >= 0
        assert max(mix.negative.values()) <= 0
        assert mix == perp_neg.view_weights(-float(azimuth))
    assert perp_neg.view_weights(0.0).positive == {"front": 1.0, "side": 0.0}
    assert perp_neg.view_weights(90.0).positive == {"side": 1.0, "back": 0.0}
    assert perp_neg.view_weights(180.0).positive == {"side": 0.0, "back": 1.0}
    assert perp_neg.view_weights(0.0).negative["side"] == pytest.approx(-(4 - 2.426))
    assert perp_neg.view_weights(180.0).negative["front"] == pytest.approx(-(1 + 0.967))


def test_recorded_directions(goldens):
    data = {k: torch.from_numpy(v) for k, v in np.load(goldens / "metrics" / "sds_examples.npz").items()}
    alpha_bar = data["alpha_bar"].reshape(-1, 1, 1, 1)
    parts = {"alpha_t": alpha_bar.sqrt(), "sigma_t": (1 - alpha_bar).sqrt()}
    common = {"eps_cond": data["eps_cond"], "eps_uncond": data["eps_uncond"]}
    weight = score.sigma_squared(**parts)
    t = data["t"].reshape(-1, 1, 1, 1)
    found = {
        "grad_csd_sigma2": csd.direction(**common, weight=weight),
        "grad_csd_negative_sigma2": csd.direction_with_negative(**common, eps_neg=data["eps_neg"], weight=weight),
        "grad_nfsd_sigma2": nfsd.direction(**common, eps_neg=data["eps_neg"], t=t, weight=weight),
        "grad_vsd_sigma2": vsd.direction(**common, eps_lora=data["eps_lora"], weight=weight),
        "grad_ism": ism.direction(**common, eps_s=data["eps_s"], weight=score.sigma_over_alpha(**parts)),
    }
    for name, value in found.items():
        torch.testing.assert_close(value, data[name], rtol=1e-9, atol=1e-12, msg=name)


def test_a_limit_clamps_every_entry_of_the_direction(case):
    given = {**halves(case), "eps": case["eps"], "guidance_scale": 3.0, "weight": weigh(case, score.sigma_squared)}
    free, clamped = score.direction(**given), score.direction(**given, limit=0.5)
    assert float(free.abs().max()) > 0.5 == float(clamped.abs().max())
    small = free.abs() <= 0.5
    assert torch.equal(clamped[small], free[small]) and torch.equal(clamped.sign(), free.sign())
    with pytest.raises(ValueError, match="must be positive"):
        score.direction(**given, limit=0.0)
