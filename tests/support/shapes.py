"""Solids given by functions, and meshes made without the code under test."""

from __future__ import annotations

import numpy as np
import torch

from maquette.asset import Mesh


def sphere_sdf(radius: float = 0.6, centre: tuple[float, float, float] = (0.0, 0.0, 0.0)):
    """Signed distance to a sphere, negative inside."""
    middle = torch.tensor(centre)
    return lambda points: (points - middle.to(points)).norm(dim=-1) - radius


def union(*parts):
    """The smallest of several signed distances."""
    return lambda points: torch.stack([part(points) for part in parts]).amin(0)


def torus_sdf(ring: float = 0.5, tube: float = 0.18):
    """Signed distance to a torus around +z."""

    def sdf(points: torch.Tensor) -> torch.Tensor:
        flat = points[..., :2].norm(dim=-1) - ring
        return torch.stack([flat, points[..., 2]], dim=-1).norm(dim=-1) - tube

    return sdf


def density_of_sdf(sdf, *, peak: float = 60.0, sharpness: float = 60.0):
    """A soft density: `peak` inside, falling to zero across the surface."""
    return lambda points: peak * torch.sigmoid(-sharpness * sdf(points))


def icosphere(radius: float = 0.6, subdivisions: int = 3) -> Mesh:
    """A sphere of triangles, outward."""
    import trimesh

    ball = trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius)
    return Mesh(np.asarray(ball.vertices), np.asarray(ball.faces))


def signed_volume(mesh: Mesh) -> float:
    """Enclosed volume; positive if wound outwards."""
    corners = mesh.vertices[mesh.faces].astype(np.float64)
    return float(np.einsum("ij,ij->i", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])).sum() / 6)


def position_color(points: torch.Tensor) -> torch.Tensor:
    """A colour that tells the position: (p + 1) / 2."""
    return (points + 1) / 2


def opacity_of(density, steps: int = 128):
    """Silhouettes of a density by plain quadrature along pixel rays."""

    def silhouettes(cameras) -> torch.Tensor:
        from maquette.rendering.rays import cast_rays

        rays = cast_rays(cameras)
        near, far = cameras.distance.min() - 1.8, cameras.distance.max() + 1.8
        t = torch.linspace(float(near), float(far), steps)
        total = torch.zeros(rays.rays_d.shape[:-1])
        for step in t:
            total += density(rays.rays_o + step * rays.rays_d)
        return 1 - torch.exp(-total * (t[1] - t[0]))

    return silhouettes
