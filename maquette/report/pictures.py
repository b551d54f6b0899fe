"""Pictures of the finished mesh for the page: the sides that were imagined, as they became, in colour and in shape."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from maquette.asset import Mesh
from maquette.cameras import Cameras
from maquette.rendering.lighting import Light, Lighting
from maquette.rendering.raster import MeshRenderer


@dataclass(frozen=True)
class Sides:
    """What cameras [V] see of a mesh."""

    colour: Float[Tensor, "v h w 4"]
    """Straight colours in a soft light, and coverage."""
    normals: Float[Tensor, "v h w 4"]
    """Normals as colours, and coverage."""


def soft(azimuth: float) -> Lighting:
    """A light for a viewer at `azimuth` degrees in which colours stay comparable with unlit pictures."""
    return Lighting(0.8, (Light(azimuth + 30.0, 55.0, 0.3),))


def look_at_sides(mesh: Mesh, cameras: Cameras, size: int = 256) -> Sides:
    """The mesh from `cameras` [V], `size` pixels a side, lit from each camera's side."""
    renderer = MeshRenderer(mesh)
    cameras = cameras.with_size(size, size)
    colour = renderer.render(cameras, lighting=[soft(turn) for turn in cameras.azimuth.tolist()], samples=2)
    # Normals come one a pixel; drawn twice as large and averaged they have soft edges too.
    large = renderer.render(cameras.with_size(2 * size, 2 * size), samples=1, want=frozenset({"normal"}))
    assert large.normal is not None, "normals were asked for"
    return Sides(colour.rgba, _halved(paint_normals(large.normal, cameras)))


def paint_normals(normals: Float[Tensor, "v h w 3"], cameras: Cameras) -> Float[Tensor, "v h w 4"]:
    """Unit normals (world) as straight RGBA, in the frame of each camera: red right, green up, blue towards it.

    colour = (R^T n + 1) / 2 with R the camera's rotation; where there is no normal, nothing.
    """
    rotation = cameras.c2w[:, :3, :3].to(normals)
    seen = torch.einsum("vhwc,vcd->vhwd", normals, rotation)
    mask = (normals.square().sum(-1, keepdim=True) > 0).to(normals)
    return torch.cat([(seen + 1) / 2 * mask, mask], dim=-1)


def _halved(rgba: Float[Tensor, "v h w 4"]) -> Float[Tensor, "v h2 w2 4"]:
    """Straight pictures at half their size."""
    premultiplied = torch.cat([rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]], dim=-1).movedim(-1, 1)
    small = F.avg_pool2d(premultiplied, 2).movedim(1, -1)
    alpha = small[..., 3:]
    return torch.cat([small[..., :3] / alpha.clamp(min=1e-6), alpha], dim=-1)
