"""The radiance field: density and albedo from one encoding, with a blob of density to begin from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from maquette.errors import UserError
from maquette.fields.base import DENSITY_AND_RGB, FieldSample, Want, check_want
from maquette.fields.encodings import EncodingConfig, TriPlanesConfig, build_encoding
from maquette.fields.normals import (
    AnalyticNormals,
    FiniteDifferenceNormals,
    NormalsConfig,
    central_differences,
    normals_from_gradient,
)

CORNER = 3**0.5
"""Distance of the cube's corners from its middle."""


@dataclass(frozen=True)
class LinearBlob:
    """Magic3D's blob: scale (1 - |x| / radius); also pushes density down far outside."""

    scale: float = 10.0
    """Value at the origin."""
    radius: float = 0.5
    """Where it crosses zero, scene units."""

    def __post_init__(self) -> None:
        if not self.radius > 0:
            raise UserError(f"a blob needs radius > 0, got {self.radius}")

    def __call__(self, positions: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 1"]:
        """What is added to the network's output before the activation."""
        return self.scale * (1 - torch.linalg.vector_norm(positions, dim=-1, keepdim=True) / self.radius)


@dataclass(frozen=True)
class GaussianBlob:
    """DreamFusion's blob: scale exp(-|x|^2 / (2 std^2))."""

    scale: float = 5.0
    """Value at the origin."""
    std: float = 0.2
    """Width, scene units."""

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise UserError(f"a blob needs std > 0, got {self.std}")

    def __call__(self, positions: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 1"]:
        """What is added to the network's output before the activation."""
        return self.scale * torch.exp(-positions.square().sum(-1, keepdim=True) / (2 * self.std**2))


@dataclass(frozen=True)
class FlatBias:
    """The same everywhere: a low one begins with nearly empty space, best when pictures say where the object is."""

    value: float = -2.0
    """What is added to the network's output before the activation."""

    def __call__(self, positions: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 1"]:
        """What is added to the network's output before the activation."""
        return torch.full_like(positions[..., :1], self.value)


DensityBias = LinearBlob | GaussianBlob | FlatBias


@dataclass(frozen=True)
class RadianceConfig:
    """A field of density and albedo."""

    encoding: EncodingConfig = TriPlanesConfig()
    """Features of a position."""
    bias: DensityBias = LinearBlob()
    """Density to begin from, added before the activation."""
    activation: Literal["softplus", "exp"] = "softplus"
    """From the biased output to density."""
    density_scale: float = 1.0
    """Factor on the activation: large ones let a small network make hard surfaces quickly."""
    hidden: int = 64
    """Width of the hidden layer of each network."""
    radius: float = 2.0
    """There is nothing farther from the origin than this, scene units: floaters gather where few views look. The cube's
    corners are 1.74 away.
    """
    normals: NormalsConfig = AnalyticNormals()
    """How normals are found."""

    def __post_init__(self) -> None:
        if not self.radius > 0:
            raise UserError(f"a field needs radius > 0, got {self.radius}")
        if self.hidden < 1 or not self.density_scale > 0:
            raise UserError(
                f"a field needs hidden >= 1 and density_scale > 0, got {self.hidden} and {self.density_scale}"
            )


class RadianceField(nn.Module):
    """density(x) = scale activation(MLP(e(x)) + bias(x)), rgb(x) = sigmoid(MLP'(e(x))), from one encoding e.

    Two ReLU networks without biases, one hidden layer each; colour does not depend on direction. normal = -grad
    density, normalised. Positions are in scene units, the field lives in the cube [-1, 1]^3.
    """

    OFFERS: Want = frozenset({"density", "rgb", "normal", "gradient"})

    def __init__(self, config: RadianceConfig) -> None:
        super().__init__()
        self.config = config
        self.encoding = build_encoding(config.encoding)
        features = self.encoding.num_features
        self.density_network = _network(features, config.hidden, 1)
        self.rgb_network = _network(features, config.hidden, 3)

    def forward(
        self,
        positions: Float[Tensor, "*n 3"],
        directions: Float[Tensor, "*n 3"] | None = None,
        want: Want = DENSITY_AND_RGB,
    ) -> FieldSample:
        """The members of `want` at `positions`; `directions` are accepted and not used."""
        check_want(want, self.OFFERS, "RadianceField")
        shape = positions.shape[:-1]
        flat = positions.reshape(-1, 3)
        density = rgb = normal = gradient = None
        normals = self.config.normals
        if want & {"normal", "gradient"} and isinstance(normals, AnalyticNormals):
            density, gradient, features = self._differentiate(flat)
        else:
            features = self.encoding(flat)
            density = self._density(features, flat) if "density" in want else None
            if want & {"normal", "gradient"} and isinstance(normals, FiniteDifferenceNormals):
                gradient = central_differences(self.density, flat, normals.epsilon)
        if "rgb" in want:
            rgb = self.rgb_network(features).sigmoid()
        if gradient is not None:
            normal = normals_from_gradient(gradient)
        unflat = {"density": density, "rgb": rgb, "normal": normal, "gradient": gradient}
        return FieldSample(
            **{name: value.reshape(*shape, value.shape[-1]) for name, value in unflat.items() if value is not None}
        )

    def _differentiate(self, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Density, its gradient and the features, from one reading of the encoding."""
        training = torch.is_grad_enabled()
        with torch.enable_grad():
            # Positions that are themselves being differentiated (a learned camera) keep their history.
            where = positions if positions.requires_grad else positions.detach().requires_grad_(True)
            features = self.encoding(where)
            density = self._density(features, where)
            (gradient,) = torch.autograd.grad(density.sum(), where, create_graph=training, retain_graph=training)
        return (density, gradient, features) if training else (density.detach(), gradient, features.detach())

    def density(self, positions: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 1"]:
        """Density alone, the cheapest question."""
        flat = positions.reshape(-1, 3)
        return self._density(self.encoding(flat), flat).reshape(*positions.shape[:-1], 1)

    def albedo(self, positions: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
        """Albedo alone."""
        flat = positions.reshape(-1, 3)
        return self.rgb_network(self.encoding(flat)).sigmoid().reshape(positions.shape)

    def _density(self, features: Tensor, positions: Tensor) -> Tensor:
        raw = self.density_network(features) + self.config.bias(positions)
        activated = F.softplus(raw) if self.config.activation == "softplus" else truncated_exp(raw)
        if self.config.radius < CORNER:
            within = torch.linalg.vector_norm(positions.detach(), dim=-1, keepdim=True) <= self.config.radius
            activated = activated * within
        return self.config.density_scale * activated


def truncated_exp(raw: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """exp(raw), whose derivative is exp(min(raw, 15)) and so cannot overflow (instant-ngp)."""
    result: Tensor = _TruncatedExp.apply(raw)
    return result


class _TruncatedExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, raw: Tensor) -> Tensor:
        ctx.save_for_backward(raw)
        return torch.exp(raw)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (raw,) = ctx.saved_tensors
        return grads[0] * torch.exp(raw.clamp(max=15))


def _network(features: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, outputs, bias=False))
