"""Cameras as MVDream and ImageDream want them, and the helper conventions of their released code.

A view is told to the network as 16 numbers: its camera-to-world matrix, read row by row, with the position scaled to
unit length. So only where the camera looks from counts, neither its distance nor its field of view. The frame is
ours: z-up world, OpenGL camera axes, the object's front towards +x.

The released code has a helper that lists cameras on a circle, whose azimuth starts a quarter turn earlier: *helper
azimuth = azimuth + 90*. With its default start 0 (the ImageDream demo) the views are at azimuths -90, 0, 90, 180, so
the front is the second one; with start 90 (the MVDream demo) it is the first.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from maquette.cameras import Cameras, orbit

HELPER_AZIMUTH_OFFSET = 90.0
"""Degrees; helper azimuth = azimuth + this."""


def mvdream_camera_condition(cameras: Cameras) -> Float[Tensor, "*b 16"]:
    """The camera vector of every view: c2w with unit-length position, flattened row by row.

    Cameras are assumed to look at the origin from outside it, as in training; one at the origin gives a zero position.
    """
    c2w = cameras.c2w
    # The published constant: it only matters at the origin.
    length = torch.linalg.vector_norm(c2w[..., :3, 3:], dim=-2, keepdim=True) + 1e-8
    top = torch.cat([c2w[..., :3, :3], c2w[..., :3, 3:] / length], dim=-1)
    return torch.cat([top, c2w[..., 3:, :]], dim=-2).flatten(-2)


def append_prompt_camera(camera: Float[Tensor, "*b v 16"]) -> Float[Tensor, "*b v+1 16"]:
    """The cameras of a scene and that of its prompt view: sixteen zeros.

    Zeros still pass through the camera embedding, which answers with its biases; that is not the same as no camera.
    """
    return torch.cat([camera, torch.zeros_like(camera[..., :1, :])], dim=-2)


def released_helper_cameras(
    num_views: int = 4,
    *,
    elevation: float = 15.0,
    azimuth_start: float = 0.0,
    azimuth_span: float = 360.0,
    distance: float = 1.0,
    fovy: float = 40.0,
    height: int = 256,
    width: int = 256,
) -> Cameras:
    """The circle of the released helper, in our frame: view k at *helper* azimuth start + k span / num_views (degrees).

    `distance` and `fovy` are not known to the network; the helper has none. Use them for what is done with the views.
    """
    return orbit(
        num_views,
        elevation=elevation,
        azimuth=azimuth_start - HELPER_AZIMUTH_OFFSET,
        distance=distance,
        fovy=fovy,
        height=height,
        width=width,
        span=azimuth_span,
    )


def to_helper_frame(c2w: Float[Tensor, "*b 4 4"]) -> Float[Tensor, "*b 4 4"]:
    """Camera-to-world matrices for the helper's y-up world (its `blender_coord=False`): (x, y, z) -> (x, z, -y).

    Only the world turns; the camera's own axes are OpenGL's on both sides. No network wants this frame; files made
    with the released helper may hold it.
    """
    return _turn(c2w, [[1, 0, 0], [0, 0, 1], [0, -1, 0]])


def from_helper_frame(c2w: Float[Tensor, "*b 4 4"]) -> Float[Tensor, "*b 4 4"]:
    """The inverse of `to_helper_frame`: (x, y, z) -> (x, -z, y)."""
    return _turn(c2w, [[1, 0, 0], [0, 0, -1], [0, 1, 0]])


def _turn(c2w: Tensor, rotation: list[list[int]]) -> Tensor:
    return torch.cat([c2w.new_tensor(rotation) @ c2w[..., :3, :], c2w[..., 3:, :]], dim=-2)
