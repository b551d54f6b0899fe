"""Where a view is taken from, as Zero-1-to-3 is told: relative to the camera of the picture.

Four numbers, with theta the angle from the zenith (90 degrees minus elevation), phi the azimuth, r the distance,
subscript t the wanted view and c the picture's camera:

    zero123          [theta_t - theta_c, sin(phi_t - phi_c), cos(phi_t - phi_c), r_t - r_c]
    stable-zero123   [theta_t - theta_c, sin(phi_t - phi_c), cos(phi_t - phi_c), theta_c]

in radians and scene units. A *higher* view has a *negative* first number. World and azimuth are ours (+z up, azimuth
from +x to +y); other programs turn the azimuth or the elevation the other way, and then nothing fits.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from maquette.cameras import Cameras

PoseKind = Literal["zero123", "stable-zero123"]
"""What the fourth number is: the difference of distances, or the picture's angle from the zenith."""
POSE_LENGTH = 4


def camera_angles(cameras: Cameras) -> Float[Tensor, "*b 3"]:
    """Elevation and azimuth in degrees and distance of cameras, as `Condition.camera` holds them."""
    return torch.stack([cameras.elevation, cameras.azimuth, cameras.distance], dim=-1)


def relative_pose(
    view: Float[Tensor, "*b 3"], picture: Float[Tensor, "*#b k"], kind: PoseKind = "zero123"
) -> Float[Tensor, "*b 4"]:
    """The pose of views relative to the picture's camera; both as `camera_angles` gives them.

    Without the picture's distance (k = 2) it is taken to be each view's own, so that the difference is 0. ValueError
    for another kind.
    """
    if kind not in ("zero123", "stable-zero123"):
        raise ValueError(f"a relative pose is of kind 'zero123' or 'stable-zero123', got {kind!r}")
    higher, turn = torch.deg2rad(view[..., :2] - picture[..., :2]).unbind(-1)
    if kind == "stable-zero123":
        fourth = torch.deg2rad(90.0 - picture[..., 0]).expand_as(turn)
    elif picture.shape[-1] == 3:
        fourth = view[..., 2] - picture[..., 2]
    else:
        fourth = torch.zeros_like(turn)
    return torch.stack([-higher, torch.sin(turn), torch.cos(turn), fourth], dim=-1)
