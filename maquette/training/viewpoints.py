"""Where training pictures of an object are taken from, and in which light: evenly around it, or scattered.

A configuration draws its cameras with a generator that belongs to one object, so an object's pictures depend on
nothing but its name and the seed: not on the other objects, their order, or the number of processes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from maquette.cameras import Cameras, fit_distance, from_angles
from maquette.errors import UserError
from maquette.rendering.lighting import Lighting, random_lighting

Range = tuple[float, float]


@dataclass(frozen=True)
class Viewpoints:
    """Cameras that look at the origin, and their lights."""

    azimuth: Float[np.ndarray, " v"]
    """Degrees."""
    elevation: Float[np.ndarray, " v"]
    """Degrees."""
    distance: Float[np.ndarray, " v"]
    """Scene units."""
    fovy: Float[np.ndarray, " v"]
    """Degrees."""
    lighting: tuple[Lighting | None, ...]
    """None: unlit base colour."""

    def __len__(self) -> int:
        return len(self.azimuth)

    @staticmethod
    def cat(parts: Sequence[Viewpoints]) -> Viewpoints:
        """Several sets as one, in order."""
        azimuth, elevation, distance, fovy = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("azimuth", "elevation", "distance", "fovy")
        )
        return Viewpoints(azimuth, elevation, distance, fovy, tuple(light for part in parts for light in part.lighting))

    def cameras(self, size: int) -> Cameras:
        """As cameras of `size` x `size` pixels."""
        values = (torch.from_numpy(v) for v in (self.azimuth, self.elevation, self.distance, self.fovy))
        return from_angles(*values, height=size, width=size).to(torch.float32)

    def poses(self) -> Float[np.ndarray, "v 8"]:
        """Rows of azimuth, elevation, distance, fovy, lit (0 or 1), and the unit direction to the first light or 0."""
        rows = np.zeros((len(self), 8), np.float32)
        rows[:, :4] = np.stack([self.azimuth, self.elevation, self.distance, self.fovy], axis=-1)
        for row, lighting in zip(rows, self.lighting, strict=True):
            if lighting is not None:
                row[4] = 1
                row[5:] = lighting.lights[0].direction if lighting.lights else 0
        return rows


@dataclass(frozen=True)
class Circle:
    """Views evenly spaced around the object at one elevation, unlit."""

    num_views: int = 8
    """Views on the circle."""
    elevation: tuple[Range, ...] = ((5.0, 5.0),)
    """Degrees above the horizon: each object draws one of these ranges, then a value from it."""
    azimuth: Range = (0.0, 0.0)
    """Degrees from the front of the first view, drawn for each object."""
    fovy: float = 40.0
    """Vertical field of view in degrees."""
    fill: float = 0.8
    """Share of the picture's height that the object's bounding sphere fills."""

    def __post_init__(self) -> None:
        _check_views(self.num_views, self.elevation, (self.fovy, self.fovy), (self.fill, self.fill))

    def draw(self, generator: np.random.Generator) -> Viewpoints:
        """The views of one object."""
        elevation = _mixture(generator, self.elevation)
        azimuth = generator.uniform(*self.azimuth) + np.arange(self.num_views) * (360 / max(self.num_views, 1))
        ones = np.ones(self.num_views)
        distance = fit_distance(self.fovy, fill=self.fill)
        return Viewpoints(azimuth, elevation * ones, distance * ones, self.fovy * ones, (None,) * self.num_views)


@dataclass(frozen=True)
class Scatter:
    """Independent random views, some of them lit."""

    num_views: int = 8
    """Views."""
    azimuth: Range = (-180.0, 180.0)
    """Degrees from the front."""
    elevation: tuple[Range, ...] = ((-20.0, 70.0),)
    """Degrees above the horizon: each view draws one of these ranges, then a value from it."""
    fovy: Range = (40.0, 40.0)
    """Vertical field of view in degrees."""
    fill: Range = (0.8, 0.8)
    """Share of the picture's height that the object's bounding sphere fills."""
    lit: float = 0.0
    """Share of the views that are lit, spread evenly over them; the others show the base colour."""
    lights: tuple[int, int] = (1, 3)
    """Fewest and most lights of a lit view."""
    ambient: Range = (0.45, 0.7)
    """Light from everywhere in a lit view."""

    def __post_init__(self) -> None:
        _check_views(self.num_views, self.elevation, self.fovy, self.fill)
        if not 0 <= self.lit <= 1:
            raise UserError(f"lit is a share between 0 and 1, got {self.lit}.")
        if not 0 <= self.lights[0] <= self.lights[1]:
            raise UserError(f"lights is a range (fewest, most), got {self.lights}.")
        if not 0 <= self.ambient[0] <= self.ambient[1] <= 1:
            raise UserError(f"ambient is a range between 0 and 1, got {self.ambient}.")

    def draw(self, generator: np.random.Generator) -> Viewpoints:
        """The views of one object."""
        azimuth, elevation, distance, fovy = np.zeros((4, self.num_views))
        lighting: list[Lighting | None] = []
        for view in range(self.num_views):
            azimuth[view] = generator.uniform(*self.azimuth)
            elevation[view] = _mixture(generator, self.elevation)
            fovy[view] = generator.uniform(*self.fovy)
            distance[view] = fit_distance(fovy[view], fill=generator.uniform(*self.fill))
            light = random_lighting(generator, azimuth[view], lights=self.lights, ambient=self.ambient)
            is_lit = math.floor((view + 1) * self.lit + 1e-9) > math.floor(view * self.lit + 1e-9)
            lighting.append(light if is_lit else None)
        return Viewpoints(azimuth, elevation, distance, fovy, tuple(lighting))


def object_generator(seed: int, name: str, purpose: str) -> np.random.Generator:
    """The generator of the object `name` for `purpose`, the same on every machine."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{name}".encode()).digest()
    return np.random.default_rng(list(digest))


def _mixture(generator: np.random.Generator, ranges: tuple[Range, ...]) -> float:
    return float(generator.uniform(*ranges[int(generator.integers(len(ranges)))]))


def _check_views(num_views: int, elevation: tuple[Range, ...], fovy: Range, fill: Range) -> None:
    if num_views < 0:
        raise UserError(f"a number of views is not negative, got {num_views}.")
    if not elevation or not all(-90 <= low <= high <= 90 for low, high in elevation):
        raise UserError(f"elevation is one or more ranges (low, high) within -90 and 90 degrees, got {elevation}.")
    if not 0 < fovy[0] <= fovy[1] < 180:
        raise UserError(f"fovy is within 0 and 180 degrees, got {fovy}.")
    if not 0 < fill[0] <= fill[1]:
        raise UserError(f"fill is positive, got {fill}.")
