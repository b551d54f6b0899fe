"""The surface field: a signed distance and a colour from one encoding, beginning as a sphere (NeuS, arXiv:2106.10689).

The network and its initialisation are instant-nsr-pl's: a small MLP with weight normalisation and a sharp softplus over
the position and its features, whose first output is the distance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from maquette.errors import UserError
from maquette.fields.background import SH_COEFFICIENTS, spherical_harmonics
from maquette.fields.base import SDF_AND_RGB, FieldSample, Want, check_want
from maquette.fields.encodings import EncodingConfig, HashGridConfig, build_encoding
from maquette.fields.normals import (
    AnalyticNormals,
    FiniteDifferenceNormals,
    ProgressiveNormals,
    gradient_of_stencil,
    laplacian_of_stencil,
    stencil,
)

SurfaceNormals = AnalyticNormals | FiniteDifferenceNormals | ProgressiveNormals
GEOMETRY: Want = frozenset({"normal", "gradient", "laplacian"})


@dataclass(frozen=True)
class TextureConfig:
    """The head that makes colour; the defaults are instant-nsr-pl's."""

    hidden: int = 64
    """Width of its layers."""
    layers: int = 2
    """Hidden layers."""
    normals: bool = True
    """Read the normal."""
    directions: bool = True
    """Read the viewing direction; without one (as when a texture is baked) a point is seen along its normal."""
    encoding: bool = False
    """Read the encoding's features too: a texture is finer than what the distance's few features carry."""

    def __post_init__(self) -> None:
        if self.hidden < 1 or self.layers < 1:
            raise UserError(f"a texture head needs hidden, layers >= 1, got {self.hidden} and {self.layers}")


@dataclass(frozen=True)
class SurfaceFieldConfig:
    """A field of signed distance and colour; the defaults are instant-nsr-pl's `neus-blender`."""

    encoding: EncodingConfig = HashGridConfig(base_resolution=32, growth=1.3195079107728942)
    """Features of a position."""
    hidden: int = 64
    """Width of the distance network."""
    layers: int = 1
    """Its hidden layers."""
    features: int = 13
    """Its outputs; the first is the distance, all of them go to the texture head."""
    sphere: float = 0.5
    """Radius of the sphere that the field begins as, scene units."""
    sharpness: float = 100.0
    """Beta of the softplus between layers: large ones are nearly ReLU, yet have second derivatives."""
    normals: SurfaceNormals = AnalyticNormals()
    """How normals are found; the Laplacian needs finite differences."""
    texture: TextureConfig = TextureConfig()
    """Colour."""

    def __post_init__(self) -> None:
        if min(self.hidden, self.layers, self.features) < 1:
            raise UserError(
                "a surface field needs hidden, layers, features >= 1, got "
                f"{self.hidden}, {self.layers}, {self.features}"
            )
        if not (self.sphere > 0 and self.sharpness > 0):
            raise UserError(
                f"a surface field needs sphere > 0 and sharpness > 0, got {self.sphere} and {self.sharpness}"
            )


class NormalizedLinear(nn.Module):
    """y = W x + b with W_i = g_i v_i / |v_i| row by row: length and direction are learned apart."""

    def __init__(self, weight: Float[Tensor, "o i"], bias: float = 0.0) -> None:
        super().__init__()
        self.length = nn.Parameter(torch.linalg.vector_norm(weight, dim=1, keepdim=True))
        self.direction = nn.Parameter(weight.clone())
        self.bias = nn.Parameter(torch.full((len(weight),), bias))

    def forward(self, x: Float[Tensor, "n i"]) -> Float[Tensor, "n o"]:
        """The layer's output."""
        return F.linear(x, self.length * F.normalize(self.direction, dim=1), self.bias)


class DistanceNetwork(nn.Module):
    """MLP with a sharp softplus that is |x| - radius before it has learned anything (Atzmon and Lipman,
    arXiv:1911.10414).

    Its input begins with the position; the weights of all other inputs begin at zero.
    """

    def __init__(self, config: SurfaceFieldConfig, inputs: int) -> None:
        super().__init__()
        self.sharpness = config.sharpness
        std = math.sqrt(2) / math.sqrt(config.hidden)
        first = torch.zeros(config.hidden, inputs)
        first[:, :3] = std * torch.randn(config.hidden, 3)
        middle = [std * torch.randn(config.hidden, config.hidden) for _ in range(config.layers - 1)]
        last = math.sqrt(math.pi) / math.sqrt(config.hidden) + 1e-4 * torch.randn(config.features, config.hidden)
        self.layers = nn.ModuleList(NormalizedLinear(weight) for weight in (first, *middle))
        self.layers.append(NormalizedLinear(last, bias=-config.sphere))

    def forward(self, x: Float[Tensor, "n i"]) -> Float[Tensor, "n f"]:
        """All outputs; the first is the distance."""
        for layer in self.layers[:-1]:
            x = F.softplus(layer(x), beta=self.sharpness)
        result: Tensor = self.layers[-1](x)
        return result


class SurfaceField(nn.Module):
    """sdf(x) and features from MLP([x, e(x)]), rgb = sigmoid(MLP'([features, e(x)?, harmonics(d)?, n?])).

    The distance is negative inside, in scene units; normal = grad sdf, normalised, pointing outwards. Nothing forces
    |grad sdf| = 1 but the eikonal loss. The field lives in the cube [-1, 1]^3.
    """

    OFFERS: Want = frozenset({"sdf", "rgb", "normal", "gradient", "laplacian"})

    def __init__(self, config: SurfaceFieldConfig) -> None:
        super().__init__()
        self.config = config
        self.encoding = build_encoding(config.encoding)
        encoded, texture = self.encoding.num_features, config.texture
        # An encoding that puts the position in front itself serves as the whole input.
        self._position_first = not getattr(self.encoding, "include_input", False)
        self.distance_network = DistanceNetwork(config, encoded + 3 * self._position_first)
        # Differs from instant-nsr-pl: harmonics up to degree 2 rather than 3.
        width = config.features + encoded * texture.encoding + SH_COEFFICIENTS * texture.directions
        layers: list[nn.Module] = []
        width += 3 * texture.normals
        for _ in range(texture.layers):
            layers += [nn.Linear(width, texture.hidden, bias=False), nn.ReLU()]
            width = texture.hidden
        self.rgb_network = nn.Sequential(*layers, nn.Linear(width, 3, bias=False))

    @property
    def epsilon(self) -> float:
        """Half the distance of the two points that finite differences compare, now; 0 where they are not used."""
        normals = self.config.normals
        if isinstance(normals, FiniteDifferenceNormals):
            return normals.epsilon
        return self.encoding.cell if isinstance(normals, ProgressiveNormals) else 0.0

    def forward(
        self,
        positions: Float[Tensor, "*n 3"],
        directions: Float[Tensor, "*n 3"] | None = None,
        want: Want = SDF_AND_RGB,
    ) -> FieldSample:
        """The members of `want` at `positions`, seen along unit `directions` (without: against the normal).

        Raises ValueError for a Laplacian of analytic normals.
        """
        check_want(want, self.OFFERS, "SurfaceField")
        shape, flat = positions.shape[:-1], positions.reshape(-1, 3)
        texture = self.config.texture
        colour = "rgb" in want
        seen_along_normal = colour and texture.directions and directions is None
        gradient = laplacian = normal = None
        if want & GEOMETRY or seen_along_normal or (colour and texture.normals):
            encoded, features, gradient, laplacian = self._differentiate(flat, "laplacian" in want)
            normal = F.normalize(gradient, dim=-1, eps=1e-12)
        else:
            encoded, features = self._features(flat)
        rgb = None
        if colour:
            parts = [features]
            if texture.encoding:
                parts.append(encoded)
            if texture.directions:
                along = directions.reshape(-1, 3) if directions is not None else -_known(normal)
                parts.append(spherical_harmonics(along))
            if texture.normals:
                parts.append(_known(normal))
            rgb = self.rgb_network(torch.cat(parts, dim=1)).sigmoid()
        unflat = {
            "sdf": features[:, :1],
            "rgb": rgb,
            "normal": normal,
            "gradient": gradient,
            "laplacian": laplacian,
        }
        return FieldSample(
            **{name: value.reshape(*shape, value.shape[-1]) for name, value in unflat.items() if value is not None}
        )

    def sdf(self, positions: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 1"]:
        """Signed distance alone, the cheapest question."""
        _, features = self._features(positions.reshape(-1, 3))
        return features[:, :1].reshape(*positions.shape[:-1], 1)

    def features(self, positions: Float[Tensor, "n 3"]) -> Float[Tensor, "n f"]:
        """All outputs of the distance network, the distance first."""
        return self._features(positions)[1]

    def _features(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The encoding's features, and the outputs of the distance network."""
        encoded = self.encoding(positions)
        whole = torch.cat([positions, encoded], dim=1) if self._position_first else encoded
        return encoded, self.distance_network(whole)

    def _differentiate(self, positions: Tensor, curved: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Encoding, features, gradient of the distance and, where it is `curved`, its Laplacian."""
        if epsilon := self.epsilon:
            encoded, features = self._features(positions)
            around = stencil(self.sdf, positions, epsilon, bound=1.0)
            laplacian = laplacian_of_stencil(around, features[:, :1], epsilon) if curved else None
            return encoded, features, gradient_of_stencil(around, epsilon), laplacian
        if curved:
            raise ValueError("the Laplacian needs finite differences; set the field's normals to them")
        training = torch.is_grad_enabled()
        with torch.enable_grad():
            # Positions that are themselves being differentiated (a learned camera) keep their history.
            where = positions if positions.requires_grad else positions.detach().requires_grad_(True)
            encoded, features = self._features(where)
            (gradient,) = torch.autograd.grad(features[:, 0].sum(), where, create_graph=training, retain_graph=training)
        return (
            (encoded, features, gradient, None) if training else (encoded.detach(), features.detach(), gradient, None)
        )


def _known(value: Tensor | None) -> Tensor:
    assert value is not None  # asked for above
    return value
