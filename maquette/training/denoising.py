"""Noise levels and loss of the nano priors' training: x0, weighted so that neither level nor background takes over."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import repeat
from jaxtyping import Float, Int
from torch import Tensor

from maquette.diffusion.schedule import NoiseSchedule


@dataclass(frozen=True)
class X0Loss:
    """Squared error of x0 weighted by min(1 / sigma_t^2, cap) and by object against background."""

    weight_cap: float = 4.0
    """Cap of the weight 1 / sigma_t^2, which alone would spend all effort on clean pictures."""
    object_weight: float = 1.65
    """Weight of the object's pixels; most pixels of a render are background."""
    background_weight: float = 0.35

    def __call__(
        self,
        x0_pred: Float[Tensor, "b v c h w"],
        latents: Float[Tensor, "b v c h w"],
        masks: Float[Tensor, "b v 1 H W"],
        t: Int[Tensor, " b"],
        schedule: NoiseSchedule,
        patch: int,
    ) -> Float[Tensor, ""]:
        """The mean over space-to-depth latents of `patch` pixels a side."""
        weight = schedule.sigma(t, latents).square().reciprocal().clamp_max(self.weight_cap)
        pixels = repeat(F.pixel_unshuffle(masks, patch), "b v p h w -> b v (k p) h w", k=latents.shape[2] // patch**2)
        pixels = self.background_weight + (self.object_weight - self.background_weight) * pixels
        error = (x0_pred - latents.to(x0_pred.device)).square()
        return (error * (weight * pixels).to(x0_pred.device)).mean()


HIGH_NOISE = 0.7
"""Share of the schedule below what counts as high noise: above it little but the conditions tells views apart."""


def draw_noisy(
    latents: Float[Tensor, "b v c h w"],
    schedule: NoiseSchedule,
    generator: torch.Generator,
    *,
    high_noise: float = 0.0,
    blank: float = 0.0,
) -> tuple[Float[Tensor, "b v c h w"], Int[Tensor, " b"]]:
    """Noisy latents of scenes and their steps, drawn as `draw_steps` does; a share `blank` is noise alone.

    At the last step of the scaled-linear schedule 0.5 % of the picture's power is left in the noise, enough to read its
    mean colours from, and sampling begins without them (arXiv:2305.08891). Only scenes that are noise alone, which are
    told the last step, teach what to predict then.
    """
    t = draw_steps(len(latents), schedule, high_noise, generator)
    eps = torch.randn(latents.shape, generator=generator)
    noisy = schedule.add_noise(latents, eps, t)
    if blank == 0.0:
        return noisy, t
    chosen = torch.rand(len(latents), generator=generator) < blank
    last = torch.full_like(t, schedule.num_steps - 1)
    return torch.where(chosen[:, None, None, None, None], eps, noisy), torch.where(chosen, last, t)


def draw_steps(count: int, schedule: NoiseSchedule, high_noise: float, generator: torch.Generator) -> Int[Tensor, " n"]:
    """Steps of `count` samples: uniform over the schedule, a share `high_noise` of them over its upper part alone.

    Where the noise is low a network restores what it sees; only where it is high does it learn what cameras and prompts
    mean, and those gradients drown among the others.
    """
    t = torch.randint(0, schedule.num_steps, (count,), generator=generator)
    if high_noise == 0.0:
        return t
    lowest = round(HIGH_NOISE * schedule.num_steps)
    high = torch.rand(count, generator=generator) < high_noise
    return torch.where(high, lowest + (1 - HIGH_NOISE) * t, t).long()
