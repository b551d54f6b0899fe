"""What a good field looks like whatever it shows: penalties on renderings and their samples.

With w_i the weights of a ray's samples, o = sum w_i its opacity, n_i normals, d the ray's direction (camera to scene):

    orientation  = sum_i stop_grad(w_i) max(0, n_i . d)^2        visible normals face the camera (DreamFusion 3.2)
    sparsity     = sqrt(o^2 + 0.01)                              prefer nothing (DreamFusion 3.2)
    opaque       = -o log o - (1 - o) log(1 - o)                 prefer all or nothing; o clamped to [0.001, 0.999]
    z_variance   = sum_i w_i / o (t_i - sum_j w_j / o t_j)^2     thin surfaces (HiFA), where o > 0.5
    smoothness   = squared differences of neighbouring pixels' normals, in both directions
    eikonal      = (|gradient of the signed distance| - 1)^2     over samples
    curvature    = |Laplacian of the signed distance|            over samples (Neuralangelo)
    crowding     = exp(-k |signed distance|)                     over samples: few surfaces, and far from the others

Published weights of the orientation loss do not port: some codes divide by the number of rays, some by that of rays
with opacity > 0. `Regularizers.orientation_per` says which.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from maquette.errors import UserError
from maquette.rendering.base import Rendering, Samples
from maquette.rendering.volume import sum_by_ray, take_by_ray
from maquette.schedules import Constant, Linear, Piecewise

Ramp = Constant | Linear | Piecewise
"""A schedule that a configuration can hold."""
PENALTIES = ("orientation", "sparsity", "opaque", "z_variance", "smoothness", "eikonal", "curvature", "crowding")
"""In the order in which they are added up."""
HIT = 0.5
"""Opacity above which a ray counts as having hit something, for its variance of depth."""


def orientation_terms(
    weights: Float[Tensor, "*n"], normal: Float[Tensor, "*n 3"], directions: Float[Tensor, "*n 3"]
) -> Float[Tensor, "*n"]:
    """stop_grad(w) max(0, n . d)^2 for each sample.

    With the weights detached, turning the normal is the only way to pay less; shrinking the object away is none.
    """
    return weights.detach() * (normal * directions).sum(-1).clamp(min=0).square()


def sparsity(opacity: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """sqrt(o^2 + 0.01)."""
    return (opacity.square() + 0.01).sqrt()


def binary_entropy(opacity: Float[Tensor, "*n"], clamp: float = 1e-3) -> Float[Tensor, "*n"]:
    """Entropy in nats of a coin that falls with probability o, clamped to [clamp, 1 - clamp]."""
    o = opacity.clamp(clamp, 1 - clamp)
    return -(o * o.log() + (1 - o) * (1 - o).log())


def z_variance(
    weights: Float[Tensor, "n"], t_mid: Float[Tensor, "n"], ray_index: Int[Tensor, "n"], num_rays: int
) -> Float[Tensor, "r"]:
    """Variance of the distance along each ray under its normalised weights; zero for rays of zero opacity."""
    moments = sum_by_ray(torch.stack([weights, weights * t_mid], dim=1), ray_index, num_rays)
    opacity = moments[:, 0]
    safe = torch.where(opacity > 0, opacity, torch.ones_like(opacity))
    mean = take_by_ray((moments[:, 1] / safe)[:, None], ray_index)[:, 0]
    return sum_by_ray((weights * (t_mid - mean).square())[:, None], ray_index, num_rays)[:, 0] / safe


def normal_smoothness(normal: Float[Tensor, "*b h w 3"]) -> Float[Tensor, ""]:
    """Mean squared difference of vertical neighbours plus that of horizontal ones."""
    return normal.diff(dim=-3).square().mean() + normal.diff(dim=-2).square().mean()


def eikonal(gradient: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n"]:
    """(|g| - 1)^2, zero for a distance function."""
    return (torch.linalg.vector_norm(gradient, dim=-1) - 1).square()


def crowding(sdf: Float[Tensor, "*n"], scale: float = 1.0) -> Float[Tensor, "*n"]:
    """exp(-scale |f|): NeuS codes call it the sparsity of the surface."""
    return torch.exp(-scale * sdf.abs())


def mask_entropy(opacity: Float[Tensor, "*n"], mask: Float[Tensor, "*n"], clamp: float = 1e-3) -> Float[Tensor, "*n"]:
    """Cross entropy in nats of the opacity, clamped to [clamp, 1 - clamp], against a mask in [0, 1]."""
    o = opacity.clamp(clamp, 1 - clamp)
    return -(mask * o.log() + (1 - mask) * (1 - o).log())


@dataclass(frozen=True)
class Regularizers:
    """Weights of the penalties over a run; all are off by default, means over rays (or pixels, or samples)."""

    orientation: Ramp = Constant(0.0)
    """Normals that are seen face the camera."""
    sparsity: Ramp = Constant(0.0)
    """Little opacity."""
    opaque: Ramp = Constant(0.0)
    """Opacity of 0 or 1."""
    z_variance: Ramp = Constant(0.0)
    """One surface along a ray; mean over rays that hit something."""
    smoothness: Ramp = Constant(0.0)
    """Neighbouring pixels' normals agree."""
    eikonal: Ramp = Constant(0.0)
    """Unit gradients; for fields of signed distance."""
    curvature: Ramp = Constant(0.0)
    """Flat surfaces; for fields of signed distance with normals by finite differences."""
    crowding: Ramp = Constant(0.0)
    """Samples far from every surface; for fields of signed distance."""
    crowding_scale: float = 1.0
    """The k of exp(-k |signed distance|), per scene unit."""
    orientation_per: Literal["rays", "hits"] = "rays"
    """Divide the orientation loss by the number of all rays, or (released ImageDream) of those with opacity > 0."""

    def __post_init__(self) -> None:
        if self.orientation_per not in ("rays", "hits"):
            raise UserError(f"orientation_per is 'rays' or 'hits', got {self.orientation_per!r}")

    def need_normals(self, step: int, total: int) -> bool:
        """Whether a rendering at `step` of `total` must come with normals."""
        need = (self.orientation, self.smoothness, self.eikonal, self.curvature)
        return any(ramp.at(step, total) > 0 for ramp in need)

    def __call__(
        self, rendering: Rendering, step: int, total: int
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """The weighted sum of all penalties that are on, and each of them unweighted, detached."""
        loss = rendering.rgb.new_zeros(())
        metrics: dict[str, Tensor] = {}
        for name in PENALTIES:
            weight = getattr(self, name).at(step, total)
            if weight > 0:
                value = getattr(self, f"_{name}")(rendering)
                loss = loss + weight * value
                metrics[name] = value.detach()
        return loss, metrics

    def _orientation(self, rendering: Rendering) -> Tensor:
        samples = _samples(rendering)
        if samples.normal is None:
            raise ValueError("the orientation loss needs normals; render with Shot(normals=True)")
        total = orientation_terms(samples.weights, samples.normal, samples.directions).sum()
        if self.orientation_per == "rays":
            return total / samples.num_rays
        return total / (rendering.opacity > 0).sum().clamp(min=1)

    def _sparsity(self, rendering: Rendering) -> Tensor:
        return sparsity(rendering.opacity).mean()

    def _opaque(self, rendering: Rendering) -> Tensor:
        return binary_entropy(rendering.opacity).mean()

    def _z_variance(self, rendering: Rendering) -> Tensor:
        samples = _samples(rendering)
        variance = z_variance(samples.weights, samples.t_mid, samples.ray_index, samples.num_rays)
        hit = (rendering.opacity.reshape(-1) > HIT).to(variance)
        return (variance * hit).sum() / hit.sum().clamp(min=1)

    def _smoothness(self, rendering: Rendering) -> Tensor:
        if rendering.normal is None:
            raise ValueError("the smoothness of normals needs normals; render with Shot(normals=True)")
        return normal_smoothness(rendering.normal)

    def _eikonal(self, rendering: Rendering) -> Tensor:
        samples = _samples(rendering)
        if samples.gradient is None:
            raise ValueError("the eikonal loss needs gradients; render with Shot(normals=True)")
        return _mean(eikonal(samples.gradient))

    def _curvature(self, rendering: Rendering) -> Tensor:
        samples = _samples(rendering)
        if samples.laplacian is None:
            raise ValueError(
                "the curvature loss needs Laplacians: a field of signed distance with normals by finite differences"
            )
        return _mean(samples.laplacian.abs())

    def _crowding(self, rendering: Rendering) -> Tensor:
        samples = _samples(rendering)
        if samples.sdf is None:
            raise ValueError("the crowding loss needs signed distances; this scene has a density")
        return _mean(crowding(samples.sdf, self.crowding_scale))


def _mean(values: Tensor) -> Tensor:
    """The mean; 0 where there are no samples at all."""
    return values.mean() if len(values) else values.sum()


def _samples(rendering: Rendering) -> Samples:
    if rendering.samples is None:
        raise ValueError("this penalty needs the samples of a rendering; do not drop them")
    return rendering.samples
