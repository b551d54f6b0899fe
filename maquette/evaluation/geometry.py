"""How alike two shapes are: sampling, normalisation, Chamfer distances, F-score, Hausdorff, normal consistency.

Arrays are NumPy, points float64 `[n, 3]` in whatever unit the caller has; `longest_side` brings a shape into the
unit that published tables mean. P is the first argument, usually the result, and Q the ground truth. Chamfer
figures in the literature differ by squares, halves and factors of a thousand: every convention here has its own
name and none is called just "chamfer".

Two samplings of one surface of area A with n points each still differ by about cd_l1 = sqrt(A / n) / 2: the floor
under every sampled figure (0.005 for a sphere of diameter 1 at 30 000 points). Volumes are in `voxels.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class Placement:
    """A change of unit and origin without rotation: p -> (p - center) * scale."""

    center: Float[np.ndarray, "3"]
    scale: float

    def __call__(self, points: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
        """The points, placed; float64."""
        return (np.asarray(points, np.float64) - self.center) * self.scale

    def inverse(self) -> Placement:
        """The placement that undoes this one."""
        return Placement(-self.center * self.scale, 1 / self.scale)


def bounding_box(points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "2 3"]:
    """Lowest and highest corner of the axis-aligned box around the points; ValueError if there are none."""
    points = np.asarray(points, np.float64)
    if points.ndim != 2 or points.shape[1] != 3 or not len(points):
        raise ValueError(f"a bounding box expects points [n, 3] with n >= 1, got shape {list(points.shape)}")
    return np.stack([points.min(0), points.max(0)])


def longest_side(points: Float[np.ndarray, "n 3"]) -> Placement:
    """Bounding-box centre to the origin, longest side to 1: the normalisation of the object benchmark (and
    SyncDreamer's)."""
    low, high = bounding_box(points)
    return _placement(low, high, float((high - low).max()))


def half_diagonal(points: Float[np.ndarray, "n 3"]) -> Placement:
    """Bounding-box centre to the origin, half of the box's diagonal to 1."""
    low, high = bounding_box(points)
    return _placement(low, high, float(np.linalg.norm(high - low)) / 2)


def bounding_sphere(points: Float[np.ndarray, "n 3"]) -> Placement:
    """Bounding-box centre to the origin, the farthest point from it to distance 1."""
    low, high = bounding_box(points)
    reach = np.linalg.norm(np.asarray(points, np.float64) - (low + high) / 2, axis=1)
    return _placement(low, high, float(reach.max()))


def _placement(low: np.ndarray, high: np.ndarray, length: float) -> Placement:
    if not np.isfinite(length) or length <= 0:
        raise ValueError(f"cannot normalise a shape of size {length}; it needs at least two different, finite points")
    return Placement((low + high) / 2, 1 / length)


def surface_area(vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"]) -> float:
    """Sum of the triangles' areas."""
    return float(_triangle_areas(vertices, faces).sum())


def enclosed_volume(vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"]) -> float:
    """Signed volume inside a closed mesh (divergence theorem); positive if the faces wind counter-clockwise seen
    from outside."""
    a, b, c = _corners(vertices, faces)
    origin = a.mean(0)
    return float(np.einsum("ij,ij->", a - origin, np.cross(b - origin, c - origin)) / 6)


def sample_surface(
    vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"], count: int, generator: np.random.Generator
) -> tuple[Float[np.ndarray, "n 3"], Int[np.ndarray, " n"]]:
    """`count` points spread uniformly over the area, hidden parts included, and the face that each lies on.

    Raises ValueError for a mesh without area.
    """
    areas = _triangle_areas(vertices, faces)
    total = areas.sum()
    if not np.isfinite(total) or total <= 0:
        raise ValueError(
            f"cannot sample a surface of area {total} with {len(faces)} faces; the mesh is empty or degenerate"
        )
    # A zero-area face must never be drawn, also if the uniform number is exactly 0.
    face = np.searchsorted(np.cumsum(areas), generator.random(count) * total, side="right").clip(max=len(faces) - 1)
    # (1 - sqrt(u), sqrt(u) (1 - v), sqrt(u) v) is uniform over a triangle.
    root, v = np.sqrt(generator.random(count))[:, None], generator.random(count)[:, None]
    a, b, c = (corner[face] for corner in _corners(vertices, faces))
    return (1 - root) * a + root * (1 - v) * b + root * v * c, face


def visible_from_outside(
    vertices: Float[np.ndarray, "v 3"],
    faces: Int[np.ndarray, "f 3"],
    points: Float[np.ndarray, "n 3"],
    num_directions: int = 64,
) -> np.ndarray:
    """Which surface points, `[n]` bool, a distant viewer can see from at least one of `num_directions` directions.

    The directions form a Fibonacci sphere. Surfaces count from both sides (many meshes are not closed and their
    winding is unreliable), so a point is hidden only where the mesh encloses it from all around.
    """
    scene = _embree_scene(vertices, faces)
    extent = float(np.ptp(np.asarray(vertices, np.float64), axis=0).max())
    visible = np.zeros(len(points), bool)
    pending = np.arange(len(points))
    for direction in fibonacci_sphere(num_directions):
        if not len(pending):
            break
        # Ten float32 steps of the object's size lift the ray off its own triangle.
        origins = np.asarray(points[pending] + direction * (1e-5 * extent), np.float32)
        rays = np.broadcast_to(direction.astype(np.float32), origins.shape)
        escaped = scene.run(origins, np.ascontiguousarray(rays), query="OCCLUDED") < 0
        visible[pending[escaped]] = True
        pending = pending[~escaped]
    return visible


def sample_visible_surface(
    vertices: Float[np.ndarray, "v 3"],
    faces: Int[np.ndarray, "f 3"],
    count: int,
    generator: np.random.Generator,
    num_directions: int = 64,
) -> tuple[Float[np.ndarray, "n 3"], Int[np.ndarray, " n"]]:
    """`count` points spread uniformly over the area that can be seen from outside, and their faces.

    Like `sample_surface`, with hidden points rejected. Raises ValueError if less than one point in two hundred can
    be seen.
    """
    points, face, drawn, kept = [], [], 0, 0
    while kept < count:
        candidates, candidate_face = sample_surface(vertices, faces, max(count // 2, 64), generator)
        seen = visible_from_outside(vertices, faces, candidates, num_directions)
        points.append(candidates[seen])
        face.append(candidate_face[seen])
        drawn, kept = drawn + len(seen), kept + int(seen.sum())
        if kept < drawn / 200:
            raise ValueError(
                f"only {kept} of {drawn} surface points can be seen from outside; the mesh hides its surface"
            )
    return np.concatenate(points)[:count], np.concatenate(face)[:count]


def fibonacci_sphere(count: int) -> Float[np.ndarray, "n 3"]:
    """`count` unit vectors spread evenly: equal steps of height, golden-angle steps of azimuth."""
    index = np.arange(count) + 0.5
    height = 1 - 2 * index / count
    azimuth = np.pi * (1 + np.sqrt(5)) * index
    radius = np.sqrt(1 - height**2)
    return np.stack([radius * np.cos(azimuth), radius * np.sin(azimuth), height], axis=1)


@dataclass(frozen=True)
class PointDistances:
    """Nearest-neighbour distances between two point sets, and every figure that is made of them."""

    p_to_q: Float[np.ndarray, " n"]
    """Distance of each point of P to the nearest of Q."""
    q_to_p: Float[np.ndarray, " m"]
    """Distance of each point of Q to the nearest of P."""
    nearest_in_q: Int[np.ndarray, " n"]
    """Index of that nearest point of Q."""
    nearest_in_p: Int[np.ndarray, " m"]
    """Index of that nearest point of P."""

    @classmethod
    def between(cls, p: Float[np.ndarray, "n 3"], q: Float[np.ndarray, "m 3"]) -> PointDistances:
        """Exact distances by k-d trees; ValueError if a set is empty or holds anything but finite numbers."""
        from scipy.spatial import cKDTree

        p, q = np.asarray(p, np.float64), np.asarray(q, np.float64)
        for name, points in (("P", p), ("Q", q)):
            if points.ndim != 2 or points.shape[1] != 3 or not len(points) or not np.isfinite(points).all():
                raise ValueError(
                    f"{name} must be finite points [n, 3] with n >= 1, got an array of shape {list(points.shape)}"
                )
        p_to_q, nearest_in_q = cKDTree(q).query(p)
        q_to_p, nearest_in_p = cKDTree(p).query(q)
        return cls(p_to_q, q_to_p, nearest_in_q, nearest_in_p)

    @property
    def cd_l1(self) -> float:
        """Half the sum of the two mean distances: SyncDreamer's and Wonder3D's Chamfer distance, and the
        benchmark's."""
        return float(self.p_to_q.mean() + self.q_to_p.mean()) / 2

    @property
    def cd_l1_sum(self) -> float:
        """The sum of the two mean distances."""
        return 2 * self.cd_l1

    @property
    def cd_l2(self) -> float:
        """The sum of the two mean squared distances (PyTorch3D's default; tables often multiply it by a thousand)."""
        return float((self.p_to_q**2).mean() + (self.q_to_p**2).mean())

    @property
    def cd_l2_half(self) -> float:
        """Half the sum of the two mean squared distances."""
        return self.cd_l2 / 2

    @property
    def hausdorff(self) -> float:
        """The largest distance, either way: one floater is enough to ruin it, which is why it is worth a look."""
        return float(max(self.p_to_q.max(), self.q_to_p.max()))

    def precision(self, threshold: float) -> float:
        """Share of P that lies nearer than `threshold` to Q."""
        return float((self.p_to_q < threshold).mean())

    def recall(self, threshold: float) -> float:
        """Share of Q that lies nearer than `threshold` to P."""
        return float((self.q_to_p < threshold).mean())

    def fscore(self, threshold: float) -> float:
        """Harmonic mean of precision and recall, 0 if both are."""
        precision, recall = self.precision(threshold), self.recall(threshold)
        return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0

    def normal_consistency(self, p_normals: Float[np.ndarray, "n 3"], q_normals: Float[np.ndarray, "m 3"]) -> float:
        """Mean |cosine| between the unit normals of nearest neighbours, averaged over both ways; 1 is best, 0.5
        is chance."""
        forth = np.abs(np.einsum("ij,ij->i", p_normals, q_normals[self.nearest_in_q])).mean()
        back = np.abs(np.einsum("ij,ij->i", q_normals, p_normals[self.nearest_in_p])).mean()
        return float(forth + back) / 2


def face_normals(vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"]) -> Float[np.ndarray, "f 3"]:
    """Unit normals by winding; zero for faces without area."""
    a, b, c = _corners(vertices, faces)
    normals = np.cross(b - a, c - a)
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    return np.divide(normals, length, out=np.zeros_like(normals), where=length > 0)


def _corners(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    vertices, faces = np.asarray(vertices, np.float64), np.asarray(faces)
    return vertices[faces[:, 0]], vertices[faces[:, 1]], vertices[faces[:, 2]]


def _triangle_areas(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    a, b, c = _corners(vertices, faces)
    return np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2


def _embree_scene(vertices: np.ndarray, faces: np.ndarray):  # type: ignore[no-untyped-def]
    from embreex import rtcore_scene
    from embreex.mesh_construction import TriangleMesh

    scene = rtcore_scene.EmbreeScene()
    TriangleMesh(scene, np.ascontiguousarray(vertices, np.float32), np.ascontiguousarray(faces, np.int32))
    return scene
