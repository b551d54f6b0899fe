"""Score Jacobian chaining: distillation in the variance-exploding view (arXiv:2212.00774).

With u = sigma_t / alpha_t a render x is perturbed to z = x + u eps. A variance-preserving network sees alpha_t z,
which is exactly the usual x_t, and the denoiser is D(z) = z - u eps_pred. The direction is then that of SDS with w
= 1.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def perturb(
    x: Float[Tensor, "*b"], eps: Float[Tensor, "*b"], u: Float[Tensor, "*#b"]
) -> tuple[Float[Tensor, "*b"], Float[Tensor, "*b"]]:
    """(z, network input) for noise level u: x + u eps, and the same divided by sqrt(1 + u^2) = 1 / alpha_t."""
    z = x + u * eps
    return z, z / (1 + u.square()).sqrt()


def direction(
    *, x: Float[Tensor, "*b"], eps: Float[Tensor, "*b"], eps_pred: Float[Tensor, "*b"], u: Float[Tensor, "*#b"]
) -> Float[Tensor, "*b"]:
    """-(D(z) - x) / u, the perturb-and-average score with the render as control variate; equal to eps_pred - eps.

    `eps_pred` is the (guided) prediction at the network input of `perturb`.
    """
    z, _ = perturb(x, eps, u)
    denoised = z - u * eps_pred
    return -(denoised - x) / u
