"""Normals of a density: its downhill direction, by autograd or by finite differences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from maquette.errors import UserError

Density = Callable[[Tensor], Tensor]
"""positions [n, 3] -> density [n, 1]"""


@dataclass(frozen=True)
class AnalyticNormals:
    """Normals by automatic differentiation: exact, and a double backward pass where they are trained."""


@dataclass(frozen=True)
class FiniteDifferenceNormals:
    """Normals by central differences: six more density queries, smoother, and no double backward pass."""

    epsilon: float = 0.01
    """Half the distance of the two points compared, scene units; about a grid cell."""

    def __post_init__(self) -> None:
        if not self.epsilon > 0:
            raise UserError(f"finite differences need epsilon > 0, got {self.epsilon}")


@dataclass(frozen=True)
class ProgressiveNormals:
    """Central differences over one cell of the finest level in use: they sharpen as levels are unlocked (Neuralangelo,
    arXiv:2306.03092)."""


NormalsConfig = AnalyticNormals | FiniteDifferenceNormals


def normals_from_gradient(gradient: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
    """n = -grad density / |grad density|; zero, with zero derivative, where the gradient vanishes."""
    return -F.normalize(gradient, dim=-1, eps=1e-12)


def differentiate(
    density: Density, positions: Float[Tensor, "n 3"], create_graph: bool = False
) -> tuple[Float[Tensor, "n 1"], Float[Tensor, "n 3"]]:
    """A function's values and its gradient by position, exact; `create_graph` keeps the way back to the parameters.

    Works where gradients are switched off around it, too; values then carry no graph either.
    """
    with torch.enable_grad():
        # Positions that are themselves being differentiated (a learned camera) keep their history.
        where = positions if positions.requires_grad else positions.detach().requires_grad_(True)
        values = density(where)
        (gradient,) = torch.autograd.grad(values.sum(), where, create_graph=create_graph, retain_graph=True)
    if not create_graph and not torch.is_grad_enabled():
        values = values.detach()
    return values, gradient


def central_differences(density: Density, positions: Float[Tensor, "n 3"], epsilon: float) -> Float[Tensor, "n 3"]:
    """(f(x + epsilon e_i) - f(x - epsilon e_i)) / (2 epsilon) for the three axes, in one query of 6 n points."""
    return gradient_of_stencil(stencil(density, positions, epsilon), epsilon)


def stencil(
    function: Density, positions: Float[Tensor, "n 3"], epsilon: float, bound: float | None = None
) -> Float[Tensor, "2 n 3"]:
    """f(x + epsilon e_i) and f(x - epsilon e_i) for the three axes; points beyond +-`bound` are moved onto it."""
    axes = torch.eye(3, dtype=positions.dtype, device=positions.device) * epsilon
    moved = torch.stack([positions[:, None] + axes, positions[:, None] - axes])  # [2, n, 3, 3]
    if bound is not None:
        moved = moved.clamp(-bound, bound)
    return function(moved.reshape(-1, 3)).reshape(2, -1, 3)


def gradient_of_stencil(around: Float[Tensor, "2 n 3"], epsilon: float) -> Float[Tensor, "n 3"]:
    """Central first differences."""
    return (around[0] - around[1]) / (2 * epsilon)


def laplacian_of_stencil(
    around: Float[Tensor, "2 n 3"], middle: Float[Tensor, "n 1"], epsilon: float
) -> Float[Tensor, "n 1"]:
    """Sum over the axes of (f(x + epsilon e_i) + f(x - epsilon e_i) - 2 f(x)) / epsilon^2."""
    return (around.sum(dim=0) - 2 * middle).sum(dim=1, keepdim=True) / epsilon**2
