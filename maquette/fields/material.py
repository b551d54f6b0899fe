"""From albedo to colour: what light does at one point of a field (DreamFusion, arXiv:2209.14988, section 3.1)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Shading = Literal["albedo", "textureless", "diffuse"]
"""Flat colour; light on white; light on colour."""


def lambert_term(
    normal: Float[Tensor, "*n 3"], positions: Float[Tensor, "*n 3"], light: Float[Tensor, "*#n 3"]
) -> Float[Tensor, "*n 1"]:
    """max(0, n . (l - x) / |l - x|) for a point light at `light`; zero where the normal is zero."""
    towards = F.normalize(light - positions, dim=-1)
    return (normal * towards).sum(-1, keepdim=True).clamp(min=0)


def shade(
    shading: Shading,
    albedo: Float[Tensor, "*n 3"],
    normal: Float[Tensor, "*n 3"] | None = None,
    positions: Float[Tensor, "*n 3"] | None = None,
    light: Float[Tensor, "*#n 3"] | None = None,
    ambient: float | Float[Tensor, "*#n c"] = 0.1,
    diffuse: float | Float[Tensor, "*#n c"] | None = None,
) -> Float[Tensor, "*n 3"]:
    """Colour of points under a point light.

    s = diffuse max(0, n . l) + ambient;  diffuse: albedo s;  textureless: s;  albedo: albedo, without any light.
    `diffuse` is the light's strength, by default 1 - ambient, so that colours stay in [0, 1]. Shading is evaluated for
    each sample of a ray and then composited, as in the paper. Raises ValueError if light falls and a normal, a
    position or the light's place is missing.
    """
    if shading == "albedo":
        return albedo
    if normal is None or positions is None or light is None:
        raise ValueError(f"shading={shading!r} needs normal, positions and light; pass them, or ask for 'albedo'")
    strength = 1 - ambient if diffuse is None else diffuse
    received = strength * lambert_term(normal, positions, light) + ambient
    return albedo * received if shading == "diffuse" else received.expand_as(albedo)
