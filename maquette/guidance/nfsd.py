"""Noise-free score distillation: SDS without its noise-induced residual, at ordinary guidance scales
(arXiv:2310.17590)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

NEGATIVE_TEXT = "unrealistic, blurry, low quality, out of focus, ugly, low contrast, dull, dark, low-resolution, gloomy"
"""The paper's description of what is out of the domain of good pictures."""


def direction(
    *,
    eps_cond: Float[Tensor, "*b"],
    eps_uncond: Float[Tensor, "*b"],
    eps_neg: Float[Tensor, "*b"],
    t: Int[Tensor, "*#b"],
    weight: Float[Tensor, "*#b"],
    guidance_scale: float = 7.5,
    threshold: int = 200,
) -> Float[Tensor, "*b"]:
    """w(t) (delta_D + s (eps_cond - eps_uncond)).

    The domain term delta_D is eps_uncond for t < threshold and eps_uncond - eps_neg above.

    At small t the unconditional prediction is almost noise-free and is the domain correction itself; later its
    noise is cancelled by the prediction for `NEGATIVE_TEXT`. `t` broadcasts against the predictions.
    """
    domain = torch.where(t < threshold, eps_uncond, eps_uncond - eps_neg)
    return weight * (domain + guidance_scale * (eps_cond - eps_uncond))
