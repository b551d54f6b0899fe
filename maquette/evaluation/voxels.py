"""Solids on a grid: which cells a mesh fills, and how much two solids overlap.

Two readings of "inside". `winding_occupancy` asks whether a cell's centre lies strictly inside a closed mesh:
exact, and meaningless for meshes with holes. `enclosed_occupancy` voxelises the surface and takes everything that
cannot be reached from outside: right for the open, overlapping meshes that people model, and one cell fatter than
the solid. Never compare figures of the two.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int


@dataclass(frozen=True)
class Grid:
    """A cube of resolution^3 cells around `center` with sides of length 2 half_side; cell centres lie half a
    cell inside."""

    resolution: int
    half_side: float = 1.0
    center: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def cell(self) -> float:
        """Side of a cell."""
        return 2 * self.half_side / self.resolution

    def to_cells(self, points: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
        """World to cell coordinates: the cube spans [0, resolution], cell i the interval [i, i + 1)."""
        return (np.asarray(points, np.float64) - np.asarray(self.center) + self.half_side) / self.cell


def voxel_iou(a: Bool[np.ndarray, "x y z"], b: Bool[np.ndarray, "x y z"]) -> float:
    """Intersection over union of two occupancy grids; 1 if both are empty."""
    if a.shape != b.shape:
        raise ValueError(f"both grids need the same shape, got {a.shape} and {b.shape}")
    union = int(np.count_nonzero(a | b))
    return int(np.count_nonzero(a & b)) / union if union else 1.0


def stray_volume(result: Bool[np.ndarray, "x y z"], truth: Bool[np.ndarray, "x y z"]) -> float:
    """Volume of the parts of `result` that nowhere meet `truth`, in volumes of `truth`: floaters, and nothing else.

    Parts are joined by faces, edges or corners of cells. Too fat a result has none; a cloud beside it counts whole.
    """
    from scipy.ndimage import label

    if not truth.any():
        raise ValueError("floaters are measured against a truth that has a volume; its grid is empty")
    parts, count = label(result, structure=np.ones((3, 3, 3)))
    meeting = np.zeros(count + 1, bool)
    meeting[parts[truth]] = True
    meeting[0] = True
    return int(np.count_nonzero(~meeting[parts])) / int(np.count_nonzero(truth))


def winding_occupancy(
    vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"], grid: Grid
) -> Bool[np.ndarray, "n n n"]:
    """Cells whose centre lies strictly inside a closed mesh, indexed [x, y, z].

    A ray goes up from every centre; the signed crossings add up to the winding number, so that overlapping closed
    parts count once. Rays that meet an edge or a vertex exactly are decided as if shifted by (e, e^2) for an
    infinitesimal e: no crossing is counted twice or lost.
    """
    resolution = grid.resolution
    points = grid.to_cells(vertices) - 0.5  # cell centres become integers
    change = np.zeros((resolution, resolution, resolution + 1), np.int32)
    for triangle in points[np.asarray(faces)]:
        low = np.maximum(np.ceil(triangle[:, :2].min(0)), 0).astype(int)
        high = np.minimum(np.floor(triangle[:, :2].max(0)), resolution - 1).astype(int)
        if (low > high).any():
            continue
        x, y = np.meshgrid(np.arange(low[0], high[0] + 1), np.arange(low[1], high[1] + 1), indexing="ij")
        edges = [_edge(triangle[i], triangle[(i + 1) % 3], x, y) for i in range(3)]
        signs = [sign for _, sign in edges]
        inside = (signs[0] == signs[1]) & (signs[1] == signs[2])
        if not inside.any():
            continue
        values = [value[inside] for value, _ in edges]
        # Edge i is opposite to corner i + 2: its function is that corner's barycentric weight, up to the common factor.
        height = sum(values[i] * triangle[(i + 2) % 3, 2] for i in range(3)) / sum(values)
        # Centres strictly below the crossing are k < height: they lie under k = ceil(height).
        above = np.clip(np.ceil(height), 0, resolution).astype(int)
        np.add.at(change, (x[inside], y[inside], np.zeros_like(above)), signs[0][inside])
        np.add.at(change, (x[inside], y[inside], above), -signs[0][inside])
    return np.cumsum(change, axis=2)[:, :, :-1] != 0


def _edge(a: np.ndarray, b: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The edge function of a -> b at integer points, and its sign with ties broken; exactly antisymmetric in a
    and b."""
    forward = tuple(a) <= tuple(b)
    start, end = (a, b) if forward else (b, a)
    dx, dy = end[0] - start[0], end[1] - start[1]
    value = dx * (y - start[1]) - dy * (x - start[0])
    tie = -np.sign(dy) if dy != 0 else np.sign(dx)
    sign = np.where(value != 0, np.sign(value), tie).astype(np.int32)
    return (value, sign) if forward else (-value, -sign)


def surface_cells(
    vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"], grid: Grid
) -> Bool[np.ndarray, "n n n"]:
    """Cells that hold a point of a lattice laid on every triangle, no two neighbours more than half a cell apart.

    Dense enough to be watertight against walks through cell faces: where such a walk crosses the surface, some
    lattice point is nearer than half a cell to the crossing and so lies in one of the two cells. Parts outside the
    grid are left out.
    """
    corners = grid.to_cells(vertices)[np.asarray(faces)]  # [f, 3, 3], cell units
    longest = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2).max(axis=1)
    steps = np.maximum(np.ceil(longest / 0.5), 1).astype(int)
    occupied = np.zeros((grid.resolution,) * 3, bool)
    for step in np.unique(steps):
        i, j = (index.ravel() for index in np.meshgrid(np.arange(step + 1), np.arange(step + 1), indexing="ij"))
        weights = np.stack([i, j, step - i - j], axis=1)[i + j <= step] / step
        chosen = corners[steps == step]
        chunk = max(1, 2_000_000 // len(weights))
        for start in range(0, len(chosen), chunk):
            points = np.einsum("lk,fkc->flc", weights, chosen[start : start + chunk]).reshape(-1, 3)
            points = points[((points >= 0) & (points <= grid.resolution)).all(axis=1)]
            # The upper border belongs to the last cell, as the lower one to the first.
            index = np.minimum(points.astype(np.int64), grid.resolution - 1)
            occupied[index[:, 0], index[:, 1], index[:, 2]] = True
    return occupied


def enclosed_occupancy(
    vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"], grid: Grid
) -> Bool[np.ndarray, "n n n"]:
    """Cells that cannot be reached from outside the grid by steps through cell faces, once surface cells are walls.

    The walls belong to the solid, so a thin sheet fills the cells that it crosses.
    """
    from scipy.ndimage import label

    # A layer of air around the grid joins all ways in, also where the object touches the border.
    air = np.pad(~surface_cells(vertices, faces, grid), 1, constant_values=True)
    parts, _ = label(air)  # 6-connected
    return (parts != parts[0, 0, 0])[1:-1, 1:-1, 1:-1]
