"""What is seen where a ray meets nothing: a learned function of direction, or one colour."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from maquette.errors import UserError

SH_COEFFICIENTS = 9


def spherical_harmonics(directions: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 9"]:
    """The nine real spherical harmonics of degrees 0, 1, 2 at unit directions, orthonormal on the sphere.

    Order: degree by degree, m = -l .. l, with Y_1 = sqrt(3 / 4 pi) (y, z, x) and no Condon-Shortley sign.
    """
    x, y, z = directions.unbind(dim=-1)
    first = math.sqrt(3 / (4 * math.pi))
    mixed = math.sqrt(15 / (4 * math.pi))
    values = [
        torch.full_like(x, math.sqrt(1 / (4 * math.pi))),
        first * y,
        first * z,
        first * x,
        mixed * x * y,
        mixed * y * z,
        math.sqrt(5 / (16 * math.pi)) * (3 * z * z - 1),
        mixed * x * z,
        math.sqrt(15 / (16 * math.pi)) * (x * x - y * y),
    ]
    return torch.stack(values, dim=-1)


@dataclass(frozen=True)
class LearnedBackgroundConfig:
    """A small network of the direction; defaults are ImageDream's."""

    hidden: int = 16
    """Width of the network."""
    layers: int = 2
    """Hidden layers."""

    def __post_init__(self) -> None:
        if self.hidden < 1 or self.layers < 1:
            raise UserError(f"a learned background needs hidden, layers >= 1, got {self.hidden} and {self.layers}")


@dataclass(frozen=True)
class FlatBackgroundConfig:
    """One fixed colour."""

    rgb: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """The colour, in [0, 1]."""

    def __post_init__(self) -> None:
        if not all(0 <= value <= 1 for value in self.rgb):
            raise UserError(f"a background's colour lies in [0, 1], got {self.rgb}")


BackgroundConfig = LearnedBackgroundConfig | FlatBackgroundConfig


class LearnedBackground(nn.Module):
    """rgb(d) = sigmoid(MLP(spherical harmonics of d)), without biases: smooth, so that it cannot paint the object."""

    def __init__(self, config: LearnedBackgroundConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = SH_COEFFICIENTS
        for _ in range(config.layers):
            layers += [nn.Linear(width, config.hidden, bias=False), nn.ReLU()]
            width = config.hidden
        self.network = nn.Sequential(*layers, nn.Linear(width, 3, bias=False))

    def forward(self, directions: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
        """Colours in [0, 1] seen along unit directions."""
        colour: Tensor = self.network(spherical_harmonics(directions))
        return colour.sigmoid()


class FlatBackground(nn.Module):
    """The same colour in every direction."""

    rgb: Tensor

    def __init__(self, config: FlatBackgroundConfig) -> None:
        super().__init__()
        self.register_buffer("rgb", torch.tensor(config.rgb), persistent=False)

    def forward(self, directions: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
        """The colour, as often as there are directions."""
        return self.rgb.to(directions.dtype).expand_as(directions)


def build_background(config: BackgroundConfig) -> LearnedBackground | FlatBackground:
    """The background that `config` describes."""
    return LearnedBackground(config) if isinstance(config, LearnedBackgroundConfig) else FlatBackground(config)
