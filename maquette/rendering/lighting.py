"""Directional lights for pictures of meshes.

Shading is Lambert's: rgb = albedo (ambient + sum_l intensity_l color_l max(0, n . l)), clipped to 1. It is applied to
display values, as in the rendering of fields, so that an unlit picture is the one with ambient 1 and no lights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from maquette.errors import UserError


@dataclass(frozen=True)
class Light:
    """A distant light."""

    azimuth: float
    """Degrees from +x towards +y of the direction it comes from."""
    elevation: float
    """Degrees above the horizon of the direction it comes from."""
    intensity: float = 0.6
    """Brightness that it adds to a surface facing it."""
    color: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Its colour in [0, 1]."""

    @property
    def direction(self) -> tuple[float, float, float]:
        """Unit vector towards the light, world frame."""
        a, e = math.radians(self.azimuth), math.radians(self.elevation)
        return (math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e))


@dataclass(frozen=True)
class Lighting:
    """What shines on a mesh."""

    ambient: float = 0.45
    """Light from everywhere, as a share of the albedo."""
    lights: tuple[Light, ...] = (Light(azimuth=35.0, elevation=50.0),)
    """Lights from afar."""

    def __post_init__(self) -> None:
        if self.ambient < 0 or any(light.intensity < 0 for light in self.lights):
            raise UserError(f"light is not negative, got {self}")

    def irradiance(self, normals: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        """The factor on the albedo of surfaces with these unit normals (world frame), red, green and blue."""
        total = np.full((len(normals), 3), self.ambient, np.float32)
        for light in self.lights:
            facing = np.maximum(normals @ np.asarray(light.direction, np.float32), 0)
            total += facing[:, None] * (light.intensity * np.asarray(light.color, np.float32))
        return total


def studio(azimuth: float = 0.0) -> Lighting:
    """Key, fill and back light around a viewer at `azimuth` (degrees): shape shows, colours stay readable."""
    return Lighting(
        ambient=0.4,
        lights=(
            Light(azimuth + 40.0, 45.0, intensity=0.55),
            Light(azimuth - 60.0, 15.0, intensity=0.2),
            Light(azimuth + 180.0, 60.0, intensity=0.25),
        ),
    )


def random_lighting(
    generator: np.random.Generator,
    azimuth: float,
    *,
    lights: tuple[int, int] = (1, 3),
    ambient: tuple[float, float] = (0.45, 0.7),
) -> Lighting:
    """A moderate light for a viewer at `azimuth` (degrees): `lights` (lowest, highest) lights within 80 degrees of it.

    Their intensities add up to 1.1 - ambient, so that what faces them keeps about its own brightness.
    """
    base = generator.uniform(*ambient)
    count = int(generator.integers(lights[0], lights[1], endpoint=True))
    shares = generator.uniform(0.3, 1.0, max(count, 1))
    shares = shares / shares.sum() * (1.1 - base)
    return Lighting(
        ambient=float(base),
        lights=tuple(
            Light(
                azimuth=float(azimuth + generator.uniform(-80.0, 80.0)),
                elevation=float(generator.uniform(10.0, 75.0)),
                intensity=float(share),
            )
            for share in shares[:count]
        ),
    )
