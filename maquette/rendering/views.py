"""Looking at a scene without learning from it: whole pictures in pieces that fit the memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from maquette.cameras import Cameras, orbit
from maquette.images import Views
from maquette.matting import spread_colour
from maquette.rendering.base import Rendering, Scene, Shot
from maquette.rendering.rays import pixel_centres

RAYS_AT_ONCE = 1 << 16
"""Rays of one piece; at some ten samples each a piece takes about 100 MB."""
COVERED = 1 / 255
"""Opacity from which on a pixel's own colour is known."""


@torch.no_grad()
def render_pictures(scene: Scene, shot: Shot, rays_at_once: int = RAYS_AT_ONCE) -> Rendering:
    """What `scene.render(shot)` shows, without gradients, samples or jitter, rendered some rows at a time."""
    pixels = shot.pixels
    if pixels is None:
        pixels = pixel_centres(shot.cameras.height, shot.cameras.width, shot.cameras.c2w)
        pixels = pixels.expand(*shot.cameras.batch_shape, *pixels.shape)
    batch, (height, width) = shot.cameras.batch_shape, pixels.shape[-3:-1]
    pixels = pixels.reshape(-1, height, width, 2)
    cameras = shot.cameras.flatten()
    light = None if shot.light is None else shot.light.reshape(-1, 3)
    rows = max(1, min(height, rays_at_once // width))
    per_piece = max(1, rays_at_once // (height * width)) if rows == height else 1
    pictures = []
    for first in range(0, len(cameras), per_piece):
        chosen = slice(first, first + per_piece)
        bands = []
        for top in range(0, height, rows):
            piece = replace(
                shot,
                cameras=cameras[chosen],
                light=None if light is None else light[chosen],
                pixels=pixels[chosen, top : top + rows],
            )
            bands.append(scene.render(piece).without_samples())
        pictures.append(_join(bands, dim=-3))
    return _join(pictures, dim=0).reshape(*batch, height, width)


def render_views(scene: Scene, cameras: Cameras, rays_at_once: int = RAYS_AT_ONCE) -> Views:
    """Views of a scene from cameras [V] as straight (un-premultiplied) colours and masks, without gradients.

    `Views.composite` puts them on any flat background; `render_pictures` shows the scene's own, its normals, its light.
    """
    if len(cameras.batch_shape) != 1:
        raise ValueError(f"render_views expects cameras [V], got {tuple(cameras.batch_shape)}; flatten them first")
    black = torch.zeros(3, dtype=cameras.dtype, device=cameras.device)
    seen = render_pictures(scene, Shot(cameras, background=black), rays_at_once)
    straight = (seen.rgb / seen.opacity.clamp(min=COVERED)).clamp(0, 1)
    images = torch.stack([_spread(colour, mask) for colour, mask in zip(straight, seen.opacity, strict=True)])
    return Views(images.movedim(-1, -3), seen.masks().clamp(0, 1), cameras)


def render_turn(scene: Scene, frames: int = 20, size: int = 80) -> Views:
    """A scene seen from all around, its front first, as it shows when it turns to the right; on the CPU."""
    parameter = next(iter(scene.parameter_groups().values()))[0]
    cameras = orbit(frames, elevation=15.0, height=size, width=size, span=-360.0).to(parameter.device)
    # A surface that is still soft has three times the samples, each with seven evaluations: in large pieces a preview
    # would take more memory than the fit.
    return render_views(scene, cameras, RAYS_AT_ONCE // 8).to("cpu")


def _spread(colour: Tensor, opacity: Tensor) -> Tensor:
    """Colours [h, w, 3] in which pixels that saw nothing repeat the nearest one that did."""
    known = (opacity[..., 0] >= COVERED).cpu().numpy()
    spread = spread_colour(np.asarray(colour.cpu(), dtype=np.float32), known)
    return torch.from_numpy(spread).to(colour)


def _join(parts: list[Rendering], dim: int) -> Rendering:
    """Renderings side by side along a leading axis, or (-3) one above the other."""
    if len(parts) == 1:
        return parts[0]
    normals = [part.normal for part in parts if part.normal is not None]
    return Rendering(
        rgb=torch.cat([part.rgb for part in parts], dim),
        opacity=torch.cat([part.opacity for part in parts], dim),
        depth=torch.cat([part.depth for part in parts], dim),
        background=torch.cat([part.background for part in parts], dim),
        normal=torch.cat(normals, dim) if normals else None,
    )
