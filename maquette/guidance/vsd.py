"""Variational score distillation: the prior's score against that of the current renders (ProlificDreamer,
arXiv:2305.16213)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from maquette.diffusion.cfg import guide


def direction(
    *,
    eps_cond: Float[Tensor, "*b"],
    eps_uncond: Float[Tensor, "*b"],
    eps_lora: Float[Tensor, "*b"],
    weight: Float[Tensor, "*#b"],
    guidance_scale: float = 7.5,
) -> Float[Tensor, "*b"]:
    """w(t) (eps_pred - eps_lora); Eq. 9 of the paper.

    `eps_lora` is the noise prediction of a copy of the prior that keeps learning the distribution of the renders;
    where that copy predicts v, convert it with `NoiseSchedule.eps_from_v` first. The guidance scale belongs to the
    prior alone.
    """
    return weight * (guide(eps_cond=eps_cond, eps_uncond=eps_uncond, guidance_scale=guidance_scale) - eps_lora)
