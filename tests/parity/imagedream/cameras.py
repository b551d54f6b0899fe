"""Cameras: the released helper's circles, single poses in both frames, and batches of the distillation sampler."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maquette.cameras import Cameras, from_angles
from maquette.priors.multiview_cameras import (
    append_prompt_camera,
    from_helper_frame,
    mvdream_camera_condition,
    released_helper_cameras,
    to_helper_frame,
)
from maquette.rendering.lights import place_lights
from maquette.rendering.rays import cast_rays
from tests.parity.golden import CAMERA, Checks, Golden, Kind

DRAWS = ("elevation", "azimuth", "fovy", "camera_distances")
"""Random draws of the sampler, which are inputs here."""


def expects(golden: Golden) -> Checks:
    """All tensors but the sampler's draws."""
    return Checks({name: value for name, value in golden.tensors.items() if name.split(".")[-1] not in DRAWS})


def run(golden: Golden, checks: Checks) -> None:
    """Rebuild every camera from the angles in the JSON file beside it."""
    facts = golden.facts
    for entry in facts.get("get_camera", []):
        cameras = released_helper_cameras(
            entry["num_frames"],
            elevation=entry["elevation"],
            azimuth_start=entry["azimuth_start"],
            azimuth_span=entry["azimuth_span"],
        )
        rows = mvdream_camera_condition(cameras)
        if not entry["blender_coord"]:
            rows = to_helper_frame(rows.unflatten(-1, (4, 4))).flatten(-2)
        checks.compare(entry["key"], append_prompt_camera(rows) if entry["extra_view"] else rows, CAMERA)
    for entry in facts.get("single", []):
        pose = released_helper_cameras(1, elevation=entry["elevation"], azimuth_start=entry["azimuth"]).c2w[0]
        checks.compare(f"c2w_blender.{entry['index']}", pose, CAMERA)
        checks.compare(f"c2w_opengl.{entry['index']}", to_helper_frame(pose), CAMERA)
        checks.compare(f"c2w_blender.{entry['index']}", from_helper_frame(to_helper_frame(pose)), CAMERA)
    settings = facts.get("sampling", {}).get("settings", {})
    for j in sorted({name.split(".")[1] for name in golden.tensors if name.startswith("sample.")}):
        sample(golden.under(f"sample.{j}."), f"sample.{j}.", checks, settings)


def sample(given: dict[str, Tensor], prefix: str, checks: Checks, settings: dict[str, Any]) -> None:
    """One batch of the sampler from its draws: matrices, rays, projection, lights, the network's camera vector."""
    cameras = from_angles(
        given["azimuth"], given["elevation"], given["camera_distances"], given["fovy"],
        height=settings["height"], width=settings["width"],
    )  # fmt: skip
    rays = cast_rays(cameras)
    checks.compare(prefix + "c2w", cameras.c2w, CAMERA)
    checks.compare(prefix + "camera_positions", cameras.position, CAMERA)
    checks.compare(prefix + "camera_condition", mvdream_camera_condition(cameras), CAMERA)
    checks.compare(prefix + "rays_o", rays.rays_o, CAMERA)
    checks.compare(prefix + "rays_d", rays.rays_d, CAMERA)
    checks.compare(prefix + "mvp_mtx", projection(cameras), CAMERA)
    views = settings["n_view"]
    lights = given["light_positions"].unflatten(0, (-1, views))
    positions = cameras.position.unflatten(0, (-1, views))
    ours = place_lights(positions, light_offset(positions, lights), lights.norm(dim=-1).mean(dim=-1))
    # The offset is recovered from the recording, so its rounding comes in a second time.
    checks.compare(prefix + "light_positions", ours.flatten(0, 1), 1e-5)


def light_offset(positions: Tensor, lights: Tensor) -> Tensor:
    """The draw that is not recorded: the offset [S, 3] that puts every (position + offset) on its light's ray.

    Least squares over the views of a scene of the part of position + offset across the light's direction.
    """
    direction = torch.nn.functional.normalize(lights.double(), dim=-1)
    across = torch.eye(3, dtype=torch.float64) - direction[..., :, None] * direction[..., None, :]  # [S, V, 3, 3]
    right = -(across @ positions.double()[..., None]).sum(dim=1)
    return torch.linalg.solve(across.sum(dim=1), right)[..., 0].to(positions)


def projection(cameras: Cameras, near: float = 0.1, far: float = 1000.0) -> Tensor:
    """The 4x4 matrix that takes the world to clip space, read off `Cameras.project` and `Cameras.w2c`.

    `project` is a projective map, so its values at four points of general position determine the rows for x, y and w.
    The row for z is that of the recording (y down, near 0.1, far 1000), which nothing of ours needs.
    """
    points = torch.cat([torch.eye(3), torch.zeros(1, 3)]).to(cameras.c2w).expand(*cameras.batch_shape, 4, 3)
    # A step towards the camera's right, up and front from in front of it keeps every point in front.
    points = cameras.position[..., None, :] + 2 * cameras.forward[..., None, :] + 0.5 * points
    pixels, depth = cameras.project(points)
    size = pixels.new_tensor([cameras.width, cameras.height])
    ndc = 2 * pixels / size - 1  # y down, as recorded
    z = (far + near) / (far - near) * depth - 2 * far * near / (far - near)
    clip = torch.stack([ndc[..., 0] * depth, ndc[..., 1] * depth, z, depth], dim=-1)  # [*b, 4 points, 4]
    homogeneous = torch.cat([points, torch.ones_like(points[..., :1])], dim=-1)
    return torch.linalg.solve(homogeneous.double(), clip.double()).transpose(-1, -2).to(cameras.dtype)


KIND = Kind("cameras", lambda golden: any(name.startswith("get_camera.") for name in golden.tensors), run, expects)
