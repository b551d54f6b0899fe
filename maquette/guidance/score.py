"""Score distillation sampling, and the weightings w(t) that the formulas of this folder share.

Every estimator here is a pure function from noise predictions to a *direction* in latent space, w(t) sum_k a_k e_k,
for the one surrogate of `base.py`. Predictions are named, never stacked: `eps_cond` with the prompt, `eps_uncond`
without, `eps` the noise that was added. `alpha_t` and `sigma_t` broadcast against them. Guidance scales follow
eps_uncond + s (eps_cond - eps_uncond), so s = 1 is no guidance; papers that write (1 + w) eps_cond - w eps_uncond
mean s = 1 + w (`from_dreamfusion`).
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from maquette.diffusion.cfg import guide


def sigma_squared(*, alpha_t: Float[Tensor, "*w"], sigma_t: Float[Tensor, "*w"]) -> Float[Tensor, "*w"]:
    """w(t) = sigma_t^2 = 1 - alphas_cumprod: DreamFusion's choice, and the usual one."""
    return sigma_t.square()


def uniform(*, alpha_t: Float[Tensor, "*w"], sigma_t: Float[Tensor, "*w"]) -> Float[Tensor, "*w"]:
    """w(t) = 1, which DreamFusion found about as good."""
    return sigma_t.new_ones(sigma_t.shape)


def alpha_sigma_squared(*, alpha_t: Float[Tensor, "*w"], sigma_t: Float[Tensor, "*w"]) -> Float[Tensor, "*w"]:
    """w(t) = alpha_t sigma_t^2, Fantasia3D's second stage: least at both ends of the noise range."""
    return alpha_t * sigma_t.square()


def sigma_over_alpha(*, alpha_t: Float[Tensor, "*w"], sigma_t: Float[Tensor, "*w"]) -> Float[Tensor, "*w"]:
    """w(t) = sigma_t / alpha_t, which turns (eps_pred - eps) into x - x0_pred: the weight of x0 forms and of ISM."""
    return sigma_t / alpha_t


def inverse_snr(*, alpha_t: Float[Tensor, "*w"], sigma_t: Float[Tensor, "*w"]) -> Float[Tensor, "*w"]:
    """w(t) = sigma_t^2 / alpha_t^2."""
    return (sigma_t / alpha_t).square()


def from_dreamfusion(omega: float) -> float:
    """The guidance scale s of eps_uncond + s (eps_cond - eps_uncond) that equals (1 + omega) eps_cond - omega
    eps_uncond."""
    return 1.0 + omega


def direction(
    *,
    eps_cond: Float[Tensor, "*b"],
    eps_uncond: Float[Tensor, "*b"],
    eps: Float[Tensor, "*b"],
    guidance_scale: float,
    weight: Float[Tensor, "*#b"],
    limit: float | None = None,
) -> Float[Tensor, "*b"]:
    """SDS, w(t) (eps_pred - eps); DreamFusion, arXiv:2209.14988, Eq. 3.

    The network's Jacobian is left out, and eps is a control variate: without it the expectation is the same and the
    variance larger. Typical scales are 100 for latent models, 20 for pixel ones, 3 for Zero-1-to-3. `limit` clamps
    every entry to [-limit, limit], which tames the rare step that throws a young field away.
    """
    if limit is not None and limit <= 0:
        raise ValueError(f"limit bounds the entries of the direction and must be positive, got {limit}; None is none")
    found = weight * (guide(eps_cond=eps_cond, eps_uncond=eps_uncond, guidance_scale=guidance_scale) - eps)
    return found if limit is None else found.clamp(-limit, limit)
