"""Classifier score distillation: only the part of SDS that the prompt is responsible for (arXiv:2310.19415)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def direction(
    *,
    eps_cond: Float[Tensor, "*b"],
    eps_uncond: Float[Tensor, "*b"],
    weight: Float[Tensor, "*#b"],
    positive: float = 1.0,
) -> Float[Tensor, "*b"]:
    """w(t) positive (eps_cond - eps_uncond): the gradient of an implicit classifier's log probability of the prompt.

    There is no generative term, hence no scale to balance it against; `positive` only sets the size of the step.
    """
    return weight * positive * (eps_cond - eps_uncond)


def direction_with_negative(
    *,
    eps_cond: Float[Tensor, "*b"],
    eps_uncond: Float[Tensor, "*b"],
    eps_neg: Float[Tensor, "*b"],
    weight: Float[Tensor, "*#b"],
    positive: float = 1.0,
    negative: float = 0.5,
) -> Float[Tensor, "*b"]:
    """w(t) (positive (eps_cond - eps_uncond) - negative (eps_neg - eps_uncond)): also away from a negative text.

    The paper anneals `negative` from 0 to 1 over 5000 steps in its first stage; with both at 1 the unconditional
    score cancels.
    """
    return weight * (positive * (eps_cond - eps_uncond) - negative * (eps_neg - eps_uncond))
