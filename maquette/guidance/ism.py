"""Interval score matching: two points of one deterministic path instead of a prediction and its noise
(LucidDreamer, arXiv:2311.11284)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from maquette.diffusion.cfg import guide


def direction(
    *,
    eps_cond: Float[Tensor, "*b"],
    eps_uncond: Float[Tensor, "*b"],
    eps_s: Float[Tensor, "*b"],
    weight: Float[Tensor, "*#b"],
    guidance_scale: float = 7.5,
) -> Float[Tensor, "*b"]:
    """w(t) (eps_pred(x_t) - eps_s(x_s)), with w = sigma_t / alpha_t in the paper's code.

    x_s and, after it, x_t are reached from the render by unconditional DDIM inversion; `eps_s` is the unconditional
    prediction at the earlier point s < t. Without fresh noise the target is the same every time, which is what
    keeps detail.
    """
    return weight * (guide(eps_cond=eps_cond, eps_uncond=eps_uncond, guidance_scale=guidance_scale) - eps_s)
