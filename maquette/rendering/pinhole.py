"""Rays of one pinhole camera in NumPy: bands of its picture, and points in their pixels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class Band:
    """A rectangle of pixels."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.top, self.bottom), slice(self.left, self.right)


@dataclass(frozen=True)
class Pinhole:
    """One camera: c2w [4, 4], tan(fovy / 2), image size."""

    c2w: Float[np.ndarray, "4 4"]
    slope: float
    height: int
    width: int

    def bands(self, bounds: Float[np.ndarray, "2 3"], pixels: int) -> Iterator[Band]:
        """Bands of at most `pixels` pixels (or one row) that cover the box `bounds` in the picture; none if outside."""
        choice = np.stack(np.meshgrid([0, 1], [0, 1], [0, 1], indexing="ij"), axis=-1).reshape(8, 3)
        corners = np.take_along_axis(bounds.astype(np.float64), choice, axis=0)
        x, y, back = ((corners - self.c2w[:3, 3]) @ self.c2w[:3, :3]).T
        left, right, top, bottom = 0, self.width, 0, self.height
        if (back < -1e-6).all():  # else the camera is inside or beside the box, which may then be anywhere
            focal = 0.5 * self.height / self.slope
            columns, rows = 0.5 * self.width - focal * x / back, 0.5 * self.height + focal * y / back
            left, right = max(left, math.floor(columns.min())), min(right, math.ceil(columns.max()))
            top, bottom = max(top, math.floor(rows.min())), min(bottom, math.ceil(rows.max()))
        if left < right:
            step = max(1, pixels // (right - left))
            for start in range(top, bottom, step):
                yield Band(start, min(start + step, bottom), left, right)

    def rays(
        self, band: Band, pixels: Int[np.ndarray, " m"], offsets: Float[np.ndarray, "k 2"]
    ) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, "n 3"]]:
        """Origins and directions (to the plane at depth 1) through `offsets` (x, y) in `pixels`, offset by offset."""
        row, column = np.divmod(pixels, band.width)
        right, up, back, position = self.c2w[:3].T.astype(np.float32)
        pixel = 2 * self.slope / self.height
        x = (band.left - 0.5 * self.width + column + offsets[:, :1]) * pixel  # [k, m]
        y = (0.5 * self.height - band.top - row - offsets[:, 1:]) * pixel
        x, y = x.reshape(-1, 1).astype(np.float32), y.reshape(-1, 1).astype(np.float32)
        directions = x * right + (y * up - back)
        origins = np.empty_like(directions)
        origins[:] = position
        return origins, directions


def sample_grid(samples: int) -> tuple[Float[np.ndarray, "samples 2"], Float[np.ndarray, "rest 2"]]:
    """Centres (x, y) of a samples x samples grid in the unit square: one from each row and column, then the others."""
    row, column = np.divmod(np.arange(samples**2), samples)
    lines = np.arange(samples)
    # Rooks that do not threaten each other and do not line up: 1, 3, 0, 2 for four rows (the "rotated grid").
    rook = (2 * lines + 2) % (samples + 1) - 1 if samples % 2 == 0 else 2 * lines % samples
    chosen = column == rook[row]
    centres = (np.stack([column, row], axis=-1) + 0.5) / samples
    return centres[chosen], centres[~chosen]
