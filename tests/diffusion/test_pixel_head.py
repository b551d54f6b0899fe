"""The head at full pixel resolution: patches join without a seam, and pixels may be the prompt's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from maquette.diffusion.blocks import PixelHead


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
