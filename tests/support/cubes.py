"""Meshes small enough to write down: a triangle, a cube, a cube with a texture."""

from __future__ import annotations

import numpy as np

from maquette.asset import Mesh

TRIANGLE = [[0, 0, 0], [1, 0, 0], [0, 1, 0]]


def cube(half: float = 0.5, **fields) -> Mesh:
    """A closed cube around the origin, outward, 12 faces, 8 vertices."""
    corners = np.stack(np.meshgrid([-half, half], [-half, half], [-half, half], indexing="ij"), -1).reshape(8, 3)
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = [triangle for a, b, c, d in quads for triangle in ((a, b, c), (a, c, d))]
    return Mesh(corners, np.array(faces), **fields)


def textured_cube(size: int = 32, seed: int = 0) -> Mesh:
    """A cube whose every face has its own patch of a noisy texture."""
    plain = cube()
    texture = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    uv = []
    for number in range(len(plain.faces)):
        x, y = number % 4 / 4, number // 4 / 4
        uv += [[x + 0.02, y + 0.02], [x + 0.22, y + 0.03], [x + 0.05, y + 0.21]]
    return Mesh(
        plain.vertices[plain.faces].reshape(-1, 3), np.arange(36).reshape(12, 3), uv=np.array(uv), texture=texture
    )
