"""The slow twin of the volume renderer: every sample of every ray, no grid, no packing, no early end."""

from __future__ import annotations

import torch
from torch import Tensor

from maquette.fields.material import shade
from maquette.rendering.base import Shot
from maquette.rendering.rays import cast_rays
from maquette.rendering.sampling import draw_offsets
from maquette.rendering.scene import VolumeScene
from maquette.rendering.volume import accumulate, composite, dense_weights


def render_densely(
    scene: VolumeScene, shot: Shot, generator: torch.Generator | None = None, reach: float = 5.0
) -> dict[str, Tensor]:
    """rgb, opacity, depth and normal of a shot, from all samples inside the cube up to distance `reach`."""
    rays = cast_rays(shot.cameras, shot.pixels)
    shape = rays.rays_d.shape[:-1]
    flat = rays.flatten()
    step = scene.step_length
    k = torch.arange(int(reach / step), dtype=flat.rays_o.dtype)
    t = (k + draw_offsets(flat, generator)[:, None]) * step  # [r, s]
    positions = flat.rays_o[:, None] + t[..., None] * flat.rays_d[:, None]
    inside = (positions.abs() <= 1).all(-1)
    want = {"density", "rgb"} | ({"normal"} if shot.needs_normals else set())
    answer = scene.field(positions, want=frozenset(want))
    density = answer.density[..., 0] * inside
    weights, _ = dense_weights(density, torch.full_like(t, step))
    light = None
    if shot.light is not None:
        per_camera = flat.rays_o.shape[0] // shot.cameras.fovy.numel()
        light = shot.light.reshape(-1, 1, 1, 3).expand(-1, per_camera, 1, 3).reshape(-1, 1, 3)
    rgb = shade(shot.shading, answer.rgb, answer.normal, positions, light, shot.ambient)
    opacity = weights.sum(-1, keepdim=True)
    background = scene.background(flat.rays_d) if shot.background is None else shot.background.expand(len(t), 3)
    out = {
        "rgb": composite(accumulate(weights, rgb), opacity, background).reshape(*shape, 3),
        "opacity": opacity.reshape(*shape, 1),
        "depth": accumulate(weights, t[..., None]).reshape(*shape, 1),
    }
    if answer.normal is not None:
        normal = torch.nn.functional.normalize(accumulate(weights, answer.normal), dim=-1)
        out["normal"] = normal.reshape(*shape, 3)
    return out
