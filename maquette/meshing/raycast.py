"""Rays against a mesh (Embree): which points a camera sees, and what it sees through its pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from maquette.asset import Mesh
from maquette.cameras import Cameras, orbit


@dataclass(frozen=True)
class Hits:
    """First intersections of rays with a mesh; `face` is -1 where a ray meets nothing."""

    face: Int[np.ndarray, " n"]
    barycentric: Float[np.ndarray, "n 3"]
    """Weights of the face's three corners."""
    distance: Float[np.ndarray, " n"]
    """In lengths of the ray's direction; infinite without a hit."""


class RayCaster:
    """A mesh made ready for ray casting; surfaces are two-sided."""

    def __init__(self, mesh: Mesh) -> None:
        from embreex import rtcore_scene
        from embreex.mesh_construction import TriangleMesh

        if not len(mesh.faces):
            raise ValueError("rays need a mesh with at least one face, got none")
        self._scene = rtcore_scene.EmbreeScene()
        # The scene holds no reference of its own to the geometry, so it is kept here.
        self._geometry = TriangleMesh(self._scene, mesh.vertices[mesh.faces])

    def first_hits(self, origins: Float[np.ndarray, "n 3"], directions: Float[np.ndarray, "n 3"]) -> Hits:
        """Where the rays first meet the surface."""
        result = self._scene.run(_single(origins), _single(directions), output=True)
        hit = result["geomID"] >= 0
        u, v = result["u"], result["v"]
        barycentric = np.where(hit[:, None], np.stack([1 - u - v, u, v], axis=-1), 0).astype(np.float32)
        face = np.where(hit, result["primID"].astype(np.int64), -1)
        return Hits(face, barycentric, np.where(hit, result["tfar"], np.inf))

    def occluded(self, origins: Float[np.ndarray, "n 3"], targets: Float[np.ndarray, "n 3"]) -> Bool[np.ndarray, " n"]:
        """Whether the surface lies between `origins` and `targets` (both ends excluded by the caller's offsets)."""
        directions = targets - origins
        length = np.linalg.norm(directions, axis=-1, keepdims=True)
        unit = np.divide(directions, length, out=np.zeros_like(directions), where=length > 0)
        result = self._scene.run(_single(origins), _single(unit), _single(length[:, 0]), query="OCCLUDED")
        return np.asarray(result) >= 0


def surround(mesh: Mesh, *, views: int = 26, size: int = 96) -> list[Cameras]:
    """Single cameras all around a mesh that contain all of it: both poles and three rings."""
    import torch

    low, high = mesh.bounds.astype(np.float64)
    radius = max(float(np.linalg.norm(high - low)) / 2, 1e-6)
    centre = torch.tensor((low + high) / 2, dtype=torch.float32)
    ring = max((views - 2) // 3, 1)
    distance = radius / np.sin(np.deg2rad(20.0)) * 1.02
    parts = [
        orbit(ring, elevation=e, azimuth=e, distance=distance, height=size, width=size) for e in (-45.0, 0.0, 45.0)
    ]
    parts += [orbit(1, elevation=e, distance=distance, height=size, width=size) for e in (-90.0, 90.0)]
    cameras = Cameras.cat(parts)
    c2w = cameras.c2w.clone()
    c2w[:, :3, 3] += centre
    return list(Cameras(c2w, cameras.fovy, size, size))


def pixel_rays(camera: Cameras, samples: int = 1) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, "n 3"]]:
    """Origins and unit directions of the rays of one camera through a `samples` x `samples` grid in each pixel.

    Row by row; with several samples the sub-rows of a row of pixels follow each other, as in an image `samples` times
    larger.
    """
    camera = camera.reshape(1)[0]
    height, width = camera.height * samples, camera.width * samples
    focal = float(camera.intrinsics()) * samples
    c2w = camera.c2w.detach().cpu().double().numpy()
    y, x = np.mgrid[0:height, 0:width] + 0.5
    local = np.stack([(x - width / 2) / focal, (height / 2 - y) / focal, -np.ones_like(x)], axis=-1).reshape(-1, 3)
    directions = local @ c2w[:3, :3].T
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    return np.broadcast_to(c2w[:3, 3], directions.shape).astype(np.float32), directions.astype(np.float32)


def _single(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, np.float32)
