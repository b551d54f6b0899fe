"""The head at full pixel resolution: patches join without a seam, and pixels may be the prompt's own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from maquette.diffusion.blocks import PixelHead
from maquette.diffusion.schedule import NoiseSchedule
from maquette.diffusion.unet import MultiViewUNet, UNetConfig, mixture_table
from maquette.priors.nano.assembly import NoiseConfig
from tests.priors.tiny import TINY_NETWORK, tiny_config


def inputs(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features, noisy pixels and a prompt's pixels [2, 3, 16, 16]."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(2, 8, 4, 4, generator=generator),
        torch.randn(2, 3, 16, 16, generator=generator),
        torch.rand(2, 3, 16, 16, generator=generator),
    )


def test_a_patch_sees_over_its_border():
    head = PixelHead(8, 48, 48, 4, 4)
    features, noisy, _ = inputs()
    other = noisy.clone()
    other[:, :, 4, 4] += 1.0  # the first pixel of the second patch
    change = (head(features, F.pixel_unshuffle(noisy, 4)) - head(features, F.pixel_unshuffle(other, 4))).abs()
    changed = F.pixel_shuffle(change, 4).sum(1)[0] > 1e-7
    assert changed[3, 3] and changed[2, 2] and not changed[1, 1]


def test_a_gate_chooses_between_the_prompt_and_the_networks_own():
    head = PixelHead(8, 96, 48, 4, 4, copy=True)
    features, noisy, prompt = inputs()
    seen = F.pixel_unshuffle(torch.cat([noisy, prompt], dim=1), 4)
    with torch.no_grad():
        head.out.weight[3].zero_()
        head.out.bias[3] = 50.0
        torch.testing.assert_close(F.pixel_shuffle(head(features, seen), 4), prompt)
        head.out.bias[3] = -50.0
        own = head(features, seen)
        head.out.bias[3] = 0.0
        half = head(features, seen)
    torch.testing.assert_close(half, 0.5 * (own + F.pixel_unshuffle(prompt, 4)))
    plain = PixelHead(8, 96, 48, 4, 4)
    plain.load_state_dict(
        {name: value[:3] if name.startswith("out") else value for name, value in head.state_dict().items()}
    )
    torch.testing.assert_close(plain(features, seen), own)


def test_a_gate_learns_to_copy_in_a_few_steps():
    """What it is for: views that are their prompt."""
    torch.manual_seed(0)
    errors = {}
    for copy in (False, True):
        head = PixelHead(8, 96, 48, 4, 4, copy=copy)
        optimiser = torch.optim.AdamW(head.parameters(), 1e-2)
        for step in range(60):
            features, noisy, prompt = inputs(step)
            out = head(features, F.pixel_unshuffle(torch.cat([noisy, prompt], dim=1), 4))
            loss = (out - F.pixel_unshuffle(prompt, 4)).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        errors[copy] = float(loss.detach())
    assert errors[True] < 0.2 * errors[False]


def test_a_gate_without_a_prompt_is_refused():
    with pytest.raises(ValueError, match="in_channels = 96; got 48"):
        PixelHead(8, 48, 48, 4, 4, copy=True)
    with pytest.raises(ValueError, match=r"divisible by patch\^2 = 16"):
        PixelHead(8, 50, 50, 4, 4)


def test_nothing_is_taken_from_a_prompt_of_zeros():
    head = PixelHead(8, 96, 48, 4, 4, copy=True)
    features, noisy, _ = inputs()
    seen = F.pixel_unshuffle(torch.cat([noisy, torch.zeros_like(noisy)], dim=1), 4)
    before = head(features, seen)
    with torch.no_grad():
        head.out.bias[3] += 5.0
    torch.testing.assert_close(head(features, seen), before)


def test_a_mixture_weighs_what_is_seen_against_what_is_added():
    head = PixelHead(8, 48, 48, 4, 4)
    features, noisy, _ = inputs()
    seen = F.pixel_unshuffle(noisy, 4)
    skip, scale = (torch.tensor([a, b])[:, None, None, None] for a, b in ((1.0, 0.25), (0.0, 0.5)))
    mixed, own = head(features, seen, (skip, scale)), head(features, seen)
    torch.testing.assert_close(mixed[0], seen[0])
    torch.testing.assert_close(mixed[1], 0.25 * seen[1] + 0.5 * own[1])


def test_the_mixture_is_the_best_linear_guess_and_leaves_a_unit_target():
    """c_skip x_t is the least-squares estimate of x0, and what is left of it, over c_out, has unit variance."""
    schedule, deviation = NoiseSchedule.scaled_linear(), 0.6
    table = mixture_table(deviation)
    generator = torch.Generator().manual_seed(1)
    for step in (20, 300, 700, 980):
        t = torch.tensor(step)
        x0 = deviation * torch.randn(200_000, generator=generator)
        x_t = schedule.add_noise(x0, torch.randn(len(x0), generator=generator), t)
        skip, scale = table[:, step]
        assert abs(float(skip) - float((x0 * x_t).mean() / x_t.square().mean())) < 0.01
        assert abs(float(((x0 - skip * x_t) / scale).std()) - 1) < 0.01


def test_a_preconditioned_network_passes_on_what_is_nearly_clean():
    config = replace(TINY_NETWORK, camera_dim=None, image_prompt=None, data_deviation=0.6)
    network = MultiViewUNet(config).eval()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, config.in_channels, 4, 4, generator=generator)
    x0 = x[:, :, : config.out_channels]
    with torch.no_grad():
        errors = [
            float((network(x, torch.tensor([t]), torch.zeros(1, 3, config.context_dim)) - x0).square().mean())
            for t in (0, 300, 900)
        ]
    assert errors[0] < 0.02 and errors[0] < errors[1] < errors[2]
    assert "mixture" not in network.state_dict()


def test_a_deviation_needs_a_pixel_head_and_a_positive_value():
    for change in ({"data_deviation": 0.6}, {"data_deviation": 0.0, "pixel_head": 4}):
        with pytest.raises(ValueError, match="positive deviation of clean latents"):
            UNetConfig(**change)


def test_a_preconditioned_network_belongs_to_one_schedule():
    network = replace(TINY_NETWORK, data_deviation=0.6)
    for noise in (NoiseConfig(kind="cosine"), NoiseConfig(predicts="v"), NoiseConfig(num_steps=500)):
        with pytest.raises(ValueError, match="scaled-linear schedule of 1000 steps, got noise="):
            replace(tiny_config(), network=network, noise=noise)
