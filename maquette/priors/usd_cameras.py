"""Cameras of USD's released code: where the picture stands, where training looks from, what is exported.

Its spherical pose is (theta, phi, radius) in degrees: azimuth = 90 - theta, elevation = -phi in our frame, so the
picture's camera (0, -15, 1.5) stands at azimuth 90 and elevation 15. All views share its distance and field of view.
The networks only see differences of angles, never a camera itself.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from maquette.cameras import Cameras, OrbitSampler, elevation_at, from_angles

FOVY = 39.597755
"""Degrees (0.69111 rad). Zero-1-to-3 itself was trained with 49.13, which goes unnoticed: it sees relative poses."""
DISTANCE = 1.5
"""From the origin, in the released code's box [-1, 1]^3."""
AZIMUTH = 90.0
"""Degrees, of the picture's camera in the released code."""
ELEVATION = 15.0
"""Degrees, of the picture's camera; the released code takes it for every picture."""
TRAINING_ELEVATION = (-10.0, 45.0)
"""Degrees above the horizon of training views."""


def training_cameras(distance: float = DISTANCE, fovy: float = FOVY) -> OrbitSampler:
    """Single views all around; half of them uniform in degrees of elevation, half in area.

    Differs from the released code: there the second half covers -6.4..30 degrees only (see `elevation_at`).
    """
    return OrbitSampler(
        elevation=TRAINING_ELEVATION, fovy=(fovy, fovy), distance=(distance, distance), azimuth=(-180.0, 180.0),
        num_views=1, area_uniform_probability=0.5,
    )  # fmt: skip


def input_camera(
    elevation: float = ELEVATION, azimuth: float = AZIMUTH, *, distance: float = DISTANCE, fovy: float = FOVY,
    size: int = 512,
) -> Cameras:  # fmt: skip
    """The picture's own camera [1]."""
    angles = (torch.tensor([value]) for value in (azimuth, elevation, distance, fovy))
    return from_angles(*angles, height=size, width=size)


def input_sampler(
    elevation: float = ELEVATION, azimuth: float = AZIMUTH, *, distance: float = DISTANCE, fovy: float = FOVY
) -> OrbitSampler:
    """A sampler that always draws the picture's own camera, for the guidance that compares it with the picture."""
    return OrbitSampler(
        elevation=(elevation, elevation), azimuth=(azimuth, azimuth), distance=(distance, distance), fovy=(fovy, fovy),
        num_views=1,
    )  # fmt: skip


def export_cameras(
    generator: torch.Generator, num_views: int = 120, *, distance: float = DISTANCE, fovy: float = FOVY, size: int = 512
) -> Cameras:
    """Cameras [V] of the views that are refined: evenly around, each at an elevation of its own.

    Differs from the released code: its last view repeats the azimuth of the first, and nothing seeds its elevations.
    """
    azimuth = torch.arange(num_views) * (360.0 / num_views)
    drawn = torch.rand(num_views, generator=generator, device=generator.device).cpu()
    elevation = elevation_at(drawn, TRAINING_ELEVATION, "degrees")
    return from_angles(azimuth, elevation, torch.tensor(distance), torch.tensor(fovy), height=size, width=size)


def from_released(pose: Float[Tensor, "*b 3"], *, fovy: float = FOVY, size: int = 512) -> Cameras:
    """Cameras of (theta, phi, radius)."""
    theta, phi, radius = pose.unbind(-1)
    return from_angles(90 - theta, -phi, radius, torch.full_like(theta, fovy), height=size, width=size)


def to_released(cameras: Cameras) -> Float[Tensor, "*b 3"]:
    """(theta, phi, radius) of cameras, theta in (-180, 180]; the inverse of `from_released`."""
    theta = 90 - cameras.azimuth
    return torch.stack([180 - (180 - theta) % 360, -cameras.elevation, cameras.distance], dim=-1)


def pose_difference(cameras: Cameras, reference: Cameras) -> Float[Tensor, "*b 3"]:
    """What the released code tells Zero-1-to-3: differences of polar angle and azimuth in degrees, and 0.

    The polar angle falls as the elevation rises; azimuths are not wrapped, for only their sine and cosine are used.
    """
    polar = reference.elevation - cameras.elevation
    azimuth = cameras.azimuth - reference.azimuth
    return torch.stack([polar, azimuth.expand_as(polar), torch.zeros_like(polar)], dim=-1)
