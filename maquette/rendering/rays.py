"""Rays through the pixels of cameras, and where they cross a box."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from maquette.cameras import Cameras


@dataclass(frozen=True)
class Rays:
    """Half-lines from camera centres into the scene."""

    rays_o: Float[Tensor, "*n 3"]
    """Origins, world frame."""
    rays_d: Float[Tensor, "*n 3"]
    """Unit directions, world frame."""

    @property
    def num_rays(self) -> int:
        """How many rays there are, over all axes."""
        return self.rays_d.shape[:-1].numel()

    def flatten(self) -> Rays:
        """The same rays along one axis."""
        return Rays(self.rays_o.reshape(-1, 3), self.rays_d.reshape(-1, 3))


def pixel_centres(height: int, width: int, like: Tensor) -> Float[Tensor, "h w 2"]:
    """(x, y) of all pixel centres, x right and y down, the first at (0.5, 0.5)."""
    y = torch.arange(height, dtype=like.dtype, device=like.device) + 0.5
    x = torch.arange(width, dtype=like.dtype, device=like.device) + 0.5
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([columns, rows], dim=-1)


def cast_rays(cameras: Cameras, pixels: Float[Tensor, "*b h w 2"] | None = None) -> Rays:
    """Rays [*b, h, w] through `pixels`, by default through all pixel centres; the inverse of `Cameras.project`.

    In the camera's frame (x right, y up, looking along -z) the ray through (x, y) has the direction
    ((x - width / 2) / focal, -(y - height / 2) / focal, -1), normalised.
    """
    if pixels is None:
        pixels = pixel_centres(cameras.height, cameras.width, cameras.c2w)
        pixels = pixels.expand(*cameras.batch_shape, *pixels.shape)
    elif pixels.shape[:-3] != cameras.batch_shape or pixels.shape[-1] != 2:
        raise ValueError(f"pixels of cameras {tuple(cameras.batch_shape)} are [*b, h, w, 2], got {tuple(pixels.shape)}")
    focal = cameras.intrinsics()[..., None, None]
    x = (pixels[..., 0] - 0.5 * cameras.width) / focal
    y = -(pixels[..., 1] - 0.5 * cameras.height) / focal
    local = F.normalize(torch.stack([x, y, -torch.ones_like(x)], dim=-1), dim=-1)  # [*b, h, w, 3]
    rotation = cameras.c2w[..., None, :3, :3]
    rays_d = local @ rotation.transpose(-1, -2)
    rays_o = cameras.position[..., None, None, :].expand(rays_d.shape)
    return Rays(rays_o, rays_d)


def intersect_box(
    rays: Rays, low: Float[Tensor, "3"], high: Float[Tensor, "3"]
) -> tuple[Float[Tensor, "*n"], Float[Tensor, "*n"]]:
    """Distances at which rays enter and leave an axis-aligned box; they miss it where enter >= leave. enter >= 0."""
    # A zero component gives +-inf, which the slab method takes as it is, except for 0/0 on a face: there 1e-12 decides.
    tiny = torch.full_like(rays.rays_d, 1e-12)
    inverse = 1 / torch.where(rays.rays_d.abs() < 1e-12, tiny, rays.rays_d)
    first, second = (low - rays.rays_o) * inverse, (high - rays.rays_o) * inverse
    enter = torch.minimum(first, second).amax(dim=-1).clamp(min=0)
    leave = torch.maximum(first, second).amin(dim=-1)
    return enter, leave
