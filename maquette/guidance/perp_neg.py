"""Perp-Neg: negative prompts that cannot cancel the positive one, for views (arXiv:2304.04968).

A plain negative prompt also removes what it shares with the positive one. Here only the part perpendicular to the
positive prediction is subtracted, so that "not the front" does not also mean "not the dog".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


def guide_perpendicular(
    *,
    eps_cond: Float[Tensor, "b *c"],
    eps_uncond: Float[Tensor, "b *c"],
    eps_neg: Float[Tensor, "k b *c"],
    weights: Float[Tensor, "k b"],
    guidance_scale: float,
) -> Float[Tensor, "b *c"]:
    """eps_uncond + s (e_pos + sum_k w_k perp(e_k, e_pos)), a guided prediction for any estimator that takes one.

    e_pos = eps_cond - eps_uncond and e_k = eps_neg[k] - eps_uncond; perp(a, b) = a - (a.b / b.b) b with dot
    products over everything but the leading axis. Weights are at most 0 (ValueError otherwise): a positive one
    would pull towards the negative prompt.
    """
    if bool((weights > 0).any()):
        raise ValueError(
            f"weights of negative prompts are at most 0, got {float(weights.max())}; pass -w for a strength w"
        )
    positive = eps_cond - eps_uncond
    total = positive
    for neg, weight in zip(eps_neg, weights, strict=True):
        total = total + weight.reshape(-1, *[1] * (positive.ndim - 1)) * perpendicular(neg - eps_uncond, positive)
    return eps_uncond + guidance_scale * total


def perpendicular(a: Float[Tensor, "b *c"], b: Float[Tensor, "b *c"]) -> Float[Tensor, "b *c"]:
    """The part of `a` that is perpendicular to `b`, for each entry of the leading axis; `a` itself where b = 0."""
    dims = tuple(range(1, a.ndim))
    dot, square = (a * b).sum(dims, keepdim=True), b.square().sum(dims, keepdim=True)
    return a - dot / square.clamp(min=a.new_tensor(1e-30)) * b


@dataclass(frozen=True)
class ViewWeights:
    """How much of each view word belongs to one azimuth: the mix of the positive text, and the weights of the
    negatives."""

    positive: dict[str, float]
    """View words and their shares of the interpolated text embedding; they add up to 1."""
    negative: dict[str, float]
    """View words and their weights, at most 0."""


def view_weights(azimuth: float) -> ViewWeights:
    """Interpolation of "front", "side" and "back" for an azimuth in degrees, as in the paper's released code.

    Up to 90 degrees from the front, r = 1 - |azimuth| / 90 mixes front and side; beyond, r = 2 - |azimuth| / 90
    mixes side and back. Negative weights fall off as f(r) = a exp(-b r) + c. Overhead views (elevation above 60)
    take plain guidance instead.
    """
    angle = abs((azimuth + 180.0) % 360.0 - 180.0)
    if angle < 90.0:
        r = 1.0 - angle / 90.0
        negative = {"front": -_decay(r, 4.0, 0.5, -2.426), "side": -_decay(1.0 - r, 4.0, 0.5, -2.426)}
        return ViewWeights({"front": r, "side": 1.0 - r}, negative)
    r = 2.0 - angle / 90.0
    negative = {"side": -_decay(r, 1.0, 0.5, -0.606), "front": -_decay(r, 1.0, 0.5, 0.967)}
    return ViewWeights({"side": r, "back": 1.0 - r}, negative)


def _decay(r: float, a: float, b: float, c: float) -> float:
    return a * math.exp(-b * r) + c
