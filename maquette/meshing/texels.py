"""Which texel of a texture belongs to which point of the surface.

Texture coordinates are glTF's (v grows downwards); texel (row, column) has its centre at ((column + 0.5) / width, (row
+ 0.5) / height).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from maquette.asset import Mesh

MARGIN = 1.5
"""Texels around a chart that bilinear reading at its border can touch (up to sqrt 2 from a covered point)."""


@dataclass(frozen=True)
class Texels:
    """The texels that show the surface, and the surface points they show."""

    row: Int[np.ndarray, " n"]
    column: Int[np.ndarray, " n"]
    face: Int[np.ndarray, " n"]
    barycentric: Float[np.ndarray, "n 3"]
    inside: Bool[np.ndarray, " n"]
    """Whether the texel's centre is covered; the others lie within `MARGIN` and show the nearest point of a chart's
    border.
    """
    height: int
    width: int

    def __len__(self) -> int:
        return len(self.row)

    def interpolate(self, per_vertex: Float[np.ndarray, "v c"], mesh: Mesh) -> Float[np.ndarray, "n c"]:
        """A per-vertex quantity (positions, normals) at the texels."""
        return np.einsum("nk,nkc->nc", self.barycentric, per_vertex[mesh.faces[self.face]])

    @property
    def coverage(self) -> float:
        """Part of the texture whose texel centres are covered, in [0, 1]."""
        return float(self.inside.sum()) / (self.height * self.width)


def rasterize_uv(mesh: Mesh, height: int, width: int, *, margin: float = MARGIN) -> Texels:
    """All texels of a height x width texture that `mesh` covers, or that lie within `margin` texels of it.

    Where faces overlap in uv, the one with the lowest number wins. Raises ValueError for a mesh without uv.
    """
    if mesh.uv is None:
        raise ValueError("rasterize_uv needs a mesh with uv; unwrap it first")
    corners = mesh.uv[mesh.faces].astype(np.float64) * (width, height)  # [f, 3, 2] in texels
    owner = np.full(height * width, -1, np.int64)
    weights = np.zeros((height * width, 3), np.float32)
    near: list[tuple[np.ndarray, ...]] = []
    for face, texel, point in _candidates(corners, height, width, margin):
        barycentric = _barycentric(corners[face], point)
        covered = (barycentric >= -1e-9).all(1)
        # In reverse, so that of several faces the first written last, the lowest number, stays.
        at = np.flatnonzero(covered)[::-1]
        at = at[(owner[texel[at]] < 0) | (face[at] < owner[texel[at]])]
        owner[texel[at]], weights[texel[at]] = face[at], barycentric[at]
        at = np.flatnonzero(~covered)
        at = at[owner[texel[at]] < 0]
        closest, distance = _closest(corners[face[at]], point[at])
        close = distance <= margin
        near.append((texel[at[close]], distance[close], face[at[close]], closest[close]))
    inside = owner >= 0
    if near:
        texel, distance, face, closest = (np.concatenate(part) for part in zip(*near, strict=True))
        free = owner[texel] < 0
        texel, distance, face, closest = texel[free], distance[free], face[free], closest[free]
        order = np.lexsort((face, distance, texel))
        first = order[np.concatenate([[True], np.diff(texel[order]) > 0])] if len(order) else order
        owner[texel[first]], weights[texel[first]] = face[first], closest[first]
    chosen = np.flatnonzero(owner >= 0)
    return Texels(chosen // width, chosen % width, owner[chosen], weights[chosen], inside[chosen], height, width)


def covering_pairs(
    corners: Float[np.ndarray, "f 3 2"], height: int, width: int
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """(texel, face) for every texel centre strictly inside a face, overlaps included; corners in texels."""
    texels, faces = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for face, texel, point in _candidates(corners, height, width, 0.0):
        strictly = (_barycentric(corners[face], point) > 1e-6).all(1)
        texels.append(texel[strictly])
        faces.append(face[strictly])
    return np.concatenate(texels), np.concatenate(faces)


def _candidates(
    corners: np.ndarray, height: int, width: int, margin: float, chunk: int = 1 << 20
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(face, texel, texel centre) for the texels in each face's bounding box widened by `margin`, about `chunk` at a
    time.
    """
    low = np.ceil(corners.min(1) - margin - 0.5).astype(np.int64)
    high = np.floor(corners.max(1) + margin - 0.5).astype(np.int64)
    low, high = np.maximum(low, 0), np.minimum(high, np.array([width - 1, height - 1]))
    extent = np.maximum(high - low + 1, 0)
    count = extent[:, 0] * extent[:, 1]
    ends = np.cumsum(count)
    start = 0
    while start < len(corners):
        stop = max(start + 1, int(np.searchsorted(ends, (ends[start - 1] if start else 0) + chunk, side="right")))
        face = np.repeat(np.arange(start, stop), count[start:stop])
        if len(face):
            number = np.arange(len(face)) - np.repeat(
                ends[start:stop] - count[start:stop] - (ends[start] - count[start]), count[start:stop]
            )
            column = low[face, 0] + number % extent[face, 0]
            row = low[face, 1] + number // extent[face, 0]
            yield face, row * width + column, np.stack([column + 0.5, row + 0.5], axis=-1)
        start = stop


def _barycentric(corners: np.ndarray, point: np.ndarray) -> np.ndarray:
    a, ab, ac = corners[:, 0], corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    ap = point - a
    area = ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0]
    flat = np.abs(area) < 1e-12
    area = np.where(flat, 1, area)
    v = (ap[:, 0] * ac[:, 1] - ap[:, 1] * ac[:, 0]) / area
    w = (ab[:, 0] * ap[:, 1] - ab[:, 1] * ap[:, 0]) / area
    weights = np.stack([1 - v - w, v, w], axis=-1)
    weights[flat] = -1
    return weights


def _closest(corners: np.ndarray, point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Barycentric weights of the border point of each triangle nearest to `point` (outside of it), and the distance."""
    best = np.full(len(point), np.inf)
    weights = np.zeros((len(point), 3))
    for i, j in ((0, 1), (1, 2), (2, 0)):
        edge = corners[:, j] - corners[:, i]
        length = (edge**2).sum(-1)
        t = np.clip(((point - corners[:, i]) * edge).sum(-1) / np.where(length > 0, length, 1), 0, 1)
        distance = np.linalg.norm(corners[:, i] + t[:, None] * edge - point, axis=-1)
        closer = distance < best
        best = np.where(closer, distance, best)
        candidate = np.zeros((len(point), 3))
        candidate[:, i], candidate[:, j] = 1 - t, t
        weights[closer] = candidate[closer]
    return weights, best
