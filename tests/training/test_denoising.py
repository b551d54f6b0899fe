"""Which noise levels the nano priors are trained at."""

from __future__ import annotations

import pytest
import torch

from maquette.diffusion.schedule import NoiseSchedule
from maquette.training.denoising import draw_noisy, draw_steps

SCHEDULE = NoiseSchedule.scaled_linear()


@pytest.mark.parametrize("high_noise", [0.0, 0.5, 1.0])
def test_a_share_of_the_steps_lies_in_the_upper_part(high_noise: float) -> None:
    """Of the others, 30 % lie there as well; within each part the steps are uniform."""
    t = draw_steps(20000, SCHEDULE, high_noise, torch.Generator().manual_seed(0))
    upper = t >= 700
    assert int(t.min()) >= 0 and int(t.max()) <= 999
    assert float(upper.float().mean()) == pytest.approx(high_noise + 0.3 * (1 - high_noise), abs=0.02)
    assert float(t[upper].float().mean()) == pytest.approx(849.5, abs=5)
    if high_noise < 1.0:
        assert float(t[~upper].float().mean()) == pytest.approx(349.5, abs=8)
    assert t.dtype == torch.int64


def test_without_a_share_the_steps_are_the_plain_draw() -> None:
    """So that runs from before the option resume on the batches that they would have seen."""
    plain = torch.randint(0, 1000, (64,), generator=torch.Generator().manual_seed(3))
    assert torch.equal(draw_steps(64, SCHEDULE, 0.0, torch.Generator().manual_seed(3)), plain)


def test_a_share_of_the_scenes_is_noise_alone() -> None:
    """Told the last step, and with nothing of the picture in it; the others are what they would be without."""
    latents = torch.ones(400, 1, 2, 2, 2)
    plain, steps = draw_noisy(latents, SCHEDULE, torch.Generator().manual_seed(1))
    noisy, t = draw_noisy(latents, SCHEDULE, torch.Generator().manual_seed(1), blank=0.25)
    eps = (plain - SCHEDULE.alpha(steps, latents) * latents) / SCHEDULE.sigma(steps, latents)
    blank = (noisy != plain).flatten(1).any(dim=1)
    assert float(blank.float().mean()) == pytest.approx(0.25, abs=0.06)
    assert torch.allclose(noisy[blank], eps[blank], atol=1e-4) and bool((t[blank] == 999).all())
    assert torch.equal(t[~blank], steps[~blank])
