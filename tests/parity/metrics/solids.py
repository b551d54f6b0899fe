"""Closed forms for spheres and boxes, and the exact overlap of convex polyhedra: what sampled figures converge to."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maquette.evaluation.geometry import enclosed_volume

Array = NDArray[Any]
Mesh = tuple[Array, Array]


def closed_form(case: str) -> dict[str, float]:
    """Every figure of a case that is described in words; an unknown description gives none."""
    figures = [float(text) for text in re.findall(r"\d+\.?\d*", case)]
    if case.startswith("concentric spheres radii"):
        small, large = sorted(figures)
        gap = large - small
        return {**_chamfer(gap, gap, gap**2, gap**2), "value": (small / large) ** 3}
    if case.startswith("equal spheres radius"):
        radius, distance = figures
        lens = lens_volume(radius, radius, distance)
        return {"value": lens / (2 * sphere_volume(radius) - lens)}
    if case.startswith("sphere radius") and "inside a cube of half-side" in case:
        radius, half = figures
        cube, square = _cube_to_sphere(radius, half)
        sphere, sphere_square = _sphere_to_cube(radius, half)
        return {
            **_chamfer(sphere, cube, sphere_square, square),
            "cube_to_sphere_mean": cube,
            "sphere_to_cube_mean": sphere,
            "value": sphere_volume(radius) / (2 * half) ** 3,
        }
    return {}


def _chamfer(forth: float, back: float, forth_square: float, back_square: float) -> dict[str, float]:
    return {
        "cd_l1_half_sum": (forth + back) / 2,
        "cd_l1_sum": forth + back,
        "cd_l2_sum": forth_square + back_square,
        "cd_l2_half_sum": (forth_square + back_square) / 2,
    }


def _cube_to_sphere(radius: float, half: float) -> tuple[float, float]:
    """Mean and mean square, over a cube's surface, of the distance to a sphere around its centre."""
    nodes, weights = _gauss(0.0, half)
    x, y = np.meshgrid(nodes, nodes)
    distance = np.abs(np.sqrt(x**2 + y**2 + half**2) - radius)
    area = np.outer(weights, weights) / half**2
    return float((distance * area).sum()), float((distance**2 * area).sum())


def _sphere_to_cube(radius: float, half: float) -> tuple[float, float]:
    """Mean and mean square, over a sphere inside a cube, of the distance to the cube: half - max|x_i|."""
    if radius > half:
        raise ValueError("the closed form is for a sphere inside the cube")
    # The sphere over one face of the cube, in the face's coordinates u = y/x, v = z/x: solid angle (1 + u^2 +
    # v^2)^-3/2.
    nodes, weights = _gauss(0.0, 1.0)
    u, v = np.meshgrid(nodes, nodes)
    length = np.sqrt(1 + u**2 + v**2)
    solid_angle = np.outer(weights, weights) * length**-3 * 24 / (4 * math.pi)
    distance = half - radius / length
    return float((distance * solid_angle).sum()), float((distance**2 * solid_angle).sum())


def _gauss(low: float, high: float, count: int = 80) -> tuple[Array, Array]:
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return (high - low) / 2 * nodes + (high + low) / 2, weights * (high - low) / 2


def sphere_volume(radius: float) -> float:
    return 4 / 3 * math.pi * radius**3


def lens_volume(r: float, s: float, d: float) -> float:
    """Common volume of two spheres with radii r and s whose centres lie d apart."""
    if d >= r + s:
        return 0.0
    if d <= abs(r - s):
        return sphere_volume(min(r, s))
    return math.pi * (r + s - d) ** 2 * (d**2 + 2 * d * (r + s) - 3 * (r - s) ** 2) / (12 * d)


def smooth_iou(first: Mesh, second: Mesh) -> float:
    """Overlap of the ideal shapes behind two meshes: spheres for icospheres, boxes for themselves."""
    balls = [_ball(mesh) for mesh in (first, second)]
    if None in balls:
        common = intersection_volume(first, second)
        total = enclosed_volume(*first) + enclosed_volume(*second)
        return common / (total - common)
    (a, r), (b, s) = balls  # type: ignore[misc]
    common = lens_volume(r, s, float(np.linalg.norm(a - b)))
    return common / (sphere_volume(r) + sphere_volume(s) - common)


def _ball(mesh: Mesh) -> tuple[Array, float] | None:
    """Centre and radius if all of many vertices lie on one sphere."""
    vertices = mesh[0]
    if len(vertices) < 20:
        return None
    # |x|^2 = 2 c.x + (r^2 - |c|^2) is linear in the unknowns.
    system = np.concatenate([2 * vertices, np.ones((len(vertices), 1))], axis=1)
    solution, *_ = np.linalg.lstsq(system, (vertices**2).sum(1), rcond=None)
    centre, radius = solution[:3], math.sqrt(solution[3] + float(solution[:3] @ solution[:3]))
    on_it = np.allclose(np.linalg.norm(vertices - centre, axis=1), radius, rtol=1e-9)
    return (centre, radius) if on_it else None


def intersection_volume(first: Mesh, second: Mesh) -> float:
    """Exact common volume of two closed convex meshes, by intersecting their half-spaces."""
    from scipy.optimize import linprog
    from scipy.spatial import ConvexHull, HalfspaceIntersection

    spaces = np.unique(np.concatenate([_halfspaces(mesh) for mesh in (first, second)]).round(13), axis=0)
    # A point well inside: the centre of the largest ball.
    system = np.concatenate([spaces[:, :3], np.ones((len(spaces), 1))], axis=1)
    found = linprog([0, 0, 0, -1], system, -spaces[:, 3], bounds=[(None, None)] * 3 + [(0, None)])
    if not found.success or found.x[3] < 1e-12:
        return 0.0
    return float(ConvexHull(HalfspaceIntersection(spaces, found.x[:3]).intersections).volume)


def _halfspaces(mesh: Mesh) -> Array:
    vertices, faces = mesh
    a, b, c = (vertices[faces[:, corner]] for corner in range(3))
    normals = np.cross(b - a, c - a)
    normals = normals / np.linalg.norm(normals, axis=1, keepdims=True)
    offset = -np.einsum("ij,ij->i", normals, a)
    outward = np.sign(normals @ vertices.mean(0) + offset) < 0
    sign = np.where(outward, 1.0, -1.0)[:, None]
    return np.concatenate([normals, offset[:, None]], axis=1) * sign
