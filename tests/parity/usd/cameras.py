"""USD's cameras: its spherical poses, and sampled training batches from their random numbers."""

from __future__ import annotations

import re

import torch

from maquette.cameras import elevation_at, from_angles
from maquette.priors.usd_cameras import (
    DISTANCE,
    FOVY,
    TRAINING_ELEVATION,
    from_released,
    input_camera,
    pose_difference,
    to_released,
)
from maquette.rendering.rays import cast_rays
from tests.parity.golden import CAMERA, Checks, Golden, Kind
from tests.parity.imagedream.cameras import projection

GIVEN = ("u_elevation", "u_azimuth", "branch_uniform_elevation")
"""Random numbers of the sampler, which are inputs here."""
ANGLE = 1e-5
"""Degrees in float32, by way of sines."""


def run_reference(golden: Golden, checks: Checks) -> None:
    """(theta, phi, radius) to a camera and back."""
    for name, pose in golden.under("pose_args_").items():
        cameras = from_released(pose)
        checks.compare(f"pose_spherical_{name}", cameras.c2w, CAMERA)
        checks.compare(f"get_s_{name}", to_released(cameras), ANGLE)


def run_training(golden: Golden, checks: Checks) -> None:
    """Cameras, every few rays of them, projections and differences of pose, from u in [0, 1]."""
    note = golden.metadata.get("note", "")
    size, stride = (int(number(note, pattern)) for pattern in (r"(\d+)x\d+ image", r"\[::(\d+),"))
    fovy = number(note, r"fovy ([0-9.]+) deg", FOVY)
    distance = number(note, r"distance ([0-9.]+?)[;,]", DISTANCE)
    few = (..., slice(None, None, stride), slice(None, None, stride), slice(None))
    for j in sorted({name.split(".")[0] for name in golden.tensors}):
        given = golden.under(f"{j}.")
        spread = "degrees" if bool(given["branch_uniform_elevation"]) else "released"
        elevation = elevation_at(given["u_elevation"], TRAINING_ELEVATION, spread)
        azimuth = -180 + 360 * given["u_azimuth"]
        cameras = from_angles(
            azimuth, elevation, torch.full_like(azimuth, distance), torch.full_like(azimuth, fovy),
            height=size, width=size,
        )  # fmt: skip
        picture = input_camera(distance=distance, fovy=fovy, size=size)
        rays = cast_rays(cameras)
        found = {
            "azimuth": cameras.azimuth,
            "elevation": cameras.elevation,
            "camera_distances": cameras.distance,
            "camera_positions": cameras.position,
            "c2w": cameras.c2w,
            "mvp_mtx": projection(cameras),
            "rays_o": rays.rays_o[few],
            "rays_d": rays.rays_d[few],
            "GT_mvp_mtx": projection(picture),
            "GT_rays_d": cast_rays(picture).rays_d[few],
            "GT_rays_o": cast_rays(picture).rays_o[few],
            "delta": pose_difference(cameras, picture)[0],
        }
        for name, value in found.items():
            checks.compare(f"{j}.{name}", value, ANGLE)


def number(note: str, pattern: str, default: float | None = None) -> float:
    """The number that a case's note gives; ValueError where there is none and no default."""
    match = re.search(pattern, note)
    if match is None and default is None:
        raise ValueError(f"the case's note does not say {pattern!r}")
    return float(match[1]) if match else float(default or 0.0)


def results(*given: str):
    """Everything but the tensors whose names end so."""
    return lambda golden: Checks({n: v for n, v in golden.tensors.items() if not n.split(".")[-1].startswith(given)})


KINDS = [
    Kind("USD's poses", lambda g: any(n.startswith("pose_spherical_") for n in g.tensors), run_reference,
         results("pose_args_")),
    Kind("USD's training cameras", lambda g: any(n.endswith(".GT_rays_d") for n in g.tensors), run_training,
         results(*GIVEN)),
]  # fmt: skip
