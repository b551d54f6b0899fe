"""Training losses: what the weights mean, and how DreamBooth's terms add up."""

from __future__ import annotations

import pytest
import torch

from maquette.diffusion.losses import denoising_loss, min_snr_weight, prior_preservation_loss
from maquette.diffusion.schedule import NoiseSchedule


def test_min_snr_weights_are_one_loss_in_three_forms(generator):
    """The weighted error is the same whether the network says x0, eps or v."""
    schedule, t = NoiseSchedule.scaled_linear(), torch.tensor([20, 300, 700, 980])
    x0, eps, error = (torch.randn(4, 4, 8, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    x_t = schedule.add_noise(x0, eps, t)
    eps_pred = eps + error
    pairs = {
        "eps": (eps_pred, eps),
        "x0": (schedule.x0_from_eps(x_t, eps_pred, t), x0),
        "v": (schedule.v_from(schedule.x0_from_eps(x_t, eps_pred, t), eps_pred, t), schedule.v_from(x0, eps, t)),
    }
    snr = schedule.snr(t, x0).flatten()
    losses = [
        denoising_loss(pred=pred, target=target, sample_weight=min_snr_weight(snr, 5.0, form))
        for form, (pred, target) in pairs.items()
    ]
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(losses[2], losses[0])


def test_a_cap_that_no_snr_reaches_is_plain_eps_training():
    snr = torch.tensor([0.1, 2.0])
    torch.testing.assert_close(min_snr_weight(snr, 1e9, "eps"), torch.ones(2))
    with pytest.raises(ValueError, match="positive"):
        min_snr_weight(snr, 0.0, "eps")


def test_prior_preservation_adds_a_weighted_second_term(generator):
    pred, target, prior_pred, prior_target = (torch.randn(2, 4, 4, 4, generator=generator) for _ in range(4))
    both = {"pred": pred, "target": target, "prior_pred": prior_pred, "prior_target": prior_target}
    first = torch.nn.functional.mse_loss(pred, target)
    second = torch.nn.functional.mse_loss(prior_pred, prior_target)
    torch.testing.assert_close(prior_preservation_loss(**both, prior_weight=0.3), first + 0.3 * second)
    torch.testing.assert_close(prior_preservation_loss(**both, prior_weight=0.0), first)
    halved = prior_preservation_loss(**both, sample_weight=torch.full((2,), 0.5))
    torch.testing.assert_close(halved, 0.5 * first + second)
