"""What a field is: a function of position, and what it answers when asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

Want = frozenset[str]
"""Names of `FieldSample` members; a field computes what is asked and what it needs on the way."""

DENSITY_AND_RGB: Want = frozenset({"density", "rgb"})
DENSITY: Want = frozenset({"density"})
RGB: Want = frozenset({"rgb"})
SDF: Want = frozenset({"sdf"})
SDF_AND_RGB: Want = frozenset({"sdf", "rgb"})


@dataclass(frozen=True)
class FieldSample:
    """What a field holds at some positions; members that were not asked for may be None."""

    density: Float[Tensor, "*n 1"] | None = None
    """Differential opacity per scene unit, >= 0."""
    sdf: Float[Tensor, "*n 1"] | None = None
    """Signed distance to the surface, negative inside, scene units."""
    rgb: Float[Tensor, "*n 3"] | None = None
    """Colour (albedo, where the scene is shaded) in [0, 1]."""
    normal: Float[Tensor, "*n 3"] | None = None
    """Outward unit normals; zero where the gradient vanishes."""
    gradient: Float[Tensor, "*n 3"] | None = None
    """Derivative of the density (or of the signed distance) by position."""
    laplacian: Float[Tensor, "*n 1"] | None = None
    """Sum of the second derivatives of the signed distance; twice the mean curvature on a surface of unit gradient."""


@runtime_checkable
class Field(Protocol):
    """A function of position in the cube [-1, 1]^3; a `torch.nn.Module` in practice."""

    def __call__(
        self,
        positions: Float[Tensor, "*n 3"],
        directions: Float[Tensor, "*n 3"] | None = None,
        want: Want = DENSITY_AND_RGB,
    ) -> FieldSample:
        """The members of `want` at `positions`, seen along `directions` where colour depends on them."""
        ...


def check_want(want: Want, offered: Want, field: str) -> None:
    """Raise ValueError if `want` names something that `field` does not have."""
    if not want <= offered:
        raise ValueError(f"{field} answers {sorted(offered)}, got want={sorted(want)}; drop {sorted(want - offered)}")
