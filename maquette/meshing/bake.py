"""A texture from any colour function of position.

Every texel that a bilinear reader can touch gets the colour of a point *on* the surface: those whose centre a chart
covers, and a rim of `texels.MARGIN` around each chart, which takes the nearest point of its border. The rest of the
image repeats the nearest such texel, so that no background colour bleeds in at seams, also not through a viewer's
mipmaps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from maquette.asset import Mesh, Tile
from maquette.meshing.texels import Texels, rasterize_uv

ColorFunction = Callable[[Float[Tensor, "n 3"]], Float[Tensor, "n 3"]]
DensityFunction = Callable[[Float[Tensor, "n 3"]], Float[Tensor, "n *c"]]


def bake_texture(
    mesh: Mesh,
    color: ColorFunction,
    *,
    size: int = 1024,
    density: DensityFunction | None = None,
    depth: float = 0.0,
    samples: int = 6,
    chunk: int = 1 << 18,
    device: torch.device | str = "cpu",
) -> Mesh:
    """`mesh` (with uv) with a size x size texture of `color`, read at the texels' surface points.

    With `density` and a positive `depth`, each texel gets what a camera looking straight at it would see of the volume
    between `depth` outside and `depth` inside the surface (scene units; see `color_through`): a volume's colour is
    learned where its weight is, which is rarely exactly on the extracted surface.
    """
    texels = rasterize_uv(mesh, size, size)
    if not len(texels):
        raise ValueError(f"no texel of a {size} x {size} texture is covered; is the uv empty?")
    positions = torch.from_numpy(texels.interpolate(mesh.vertices, mesh).astype(np.float32))
    if density is not None and depth > 0:
        normals = texels.interpolate(mesh.vertex_normals(), mesh)
        normals /= np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-9)
        inward = -torch.from_numpy(normals.astype(np.float32))
        parts = zip(positions.split(chunk // samples), inward.split(chunk // samples), strict=True)
        values = [color_through(density, color, p.to(device), d.to(device), depth, samples).cpu() for p, d in parts]
    else:
        with torch.no_grad():
            values = [color(part.to(device)).detach().cpu() for part in positions.split(chunk)]
    rgb = torch.cat(values).float()
    if rgb.shape != positions.shape:
        raise ValueError(f"a colour function answers rgb [n, 3], got {list(rgb.shape)} for {len(positions)} points")
    if not torch.isfinite(rgb).all():
        raise ValueError("the colour function is not finite on the surface; it cannot be baked")
    return replace(mesh, **own_texture(texture_of(rgb.numpy(), texels)), vertex_colors=None)


@torch.no_grad()
def color_through(
    density: DensityFunction,
    color: ColorFunction,
    positions: Float[Tensor, "n 3"],
    inward: Float[Tensor, "n 3"],
    depth: float,
    samples: int,
) -> Float[Tensor, "n 3"]:
    """Volume-rendered colour of the segments positions - depth inward .. positions + depth inward, in `samples` steps.

    The usual quadrature: w_i = T_i (1 - exp(-sigma_i delta)), colours averaged by w_i / sum w. Where nothing is hit,
    the colour at the position itself.
    """
    delta = 2 * depth / samples
    offsets = (torch.arange(samples, device=positions.device, dtype=positions.dtype) + 0.5) * delta - depth
    points = (positions[:, None] + offsets[:, None] * inward[:, None]).reshape(-1, 3)
    optical = density(points).reshape(len(positions), samples) * delta
    before = torch.cumsum(optical, dim=-1) - optical
    weights = torch.exp(-before) * (1 - torch.exp(-optical))  # [n, s]
    # Colours that nobody would see are not asked for.
    weights = torch.where(weights > 1e-3 * weights.sum(-1, keepdim=True), weights, 0)
    total = weights.sum(-1, keepdim=True)
    seen = (weights > 0).reshape(-1)
    rgb = points.new_zeros(points.shape)
    rgb[seen] = color(points[seen]).to(rgb)
    rgb = (weights[..., None] * rgb.reshape(len(positions), samples, 3)).sum(1) / total.clamp_min(1e-6)
    empty = (total <= 1e-3)[:, 0]
    rgb[empty] = color(positions[empty]).to(rgb)
    return rgb


def texture_of(rgb: Float[np.ndarray, "n 3"], texels: Texels) -> UInt8[np.ndarray, "h w 3"]:
    """An image with `rgb` in [0, 1] at `texels` and the nearest of them everywhere else."""
    values = np.round(np.clip(rgb, 0, 1) * 255).astype(np.uint8)
    return values[nearest_texel(texels)]


def own_texture(texture: UInt8[np.ndarray, "h w 3"]) -> dict[str, Any]:
    """The fields of a Mesh whose uv lie within one image; nothing wraps around its border."""
    tile = Tile(0, 0, texture.shape[1], texture.shape[0], "clamp", "clamp")
    return {"texture": texture, "tiles": (tile,), "face_tile": None}


def nearest_texel(texels: Texels) -> Int[np.ndarray, "h w"]:
    """For every pixel of the texture the number of the nearest of `texels`."""
    from scipy import ndimage

    number = np.full((texels.height, texels.width), -1, np.int64)
    number[texels.row, texels.column] = np.arange(len(texels))
    row, column = ndimage.distance_transform_edt(number < 0, return_distances=False, return_indices=True)
    return number[row, column]
