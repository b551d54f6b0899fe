"""Noise schedules, lists of steps in both conventions, and relative poses."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from maquette.cameras import Cameras, from_angles
from maquette.diffusion.sampling import SamplingSteps
from maquette.diffusion.schedule import NoiseSchedule
from maquette.priors.published import schedule_vectors
from maquette.priors.zero123_pose import camera_angles, relative_pose
from tests.parity.golden import EXACT, Checks, Golden, Kind, has
from tests.parity.usd.zero123_networks import NETWORK, all_but

POSE_INPUTS = (
    "cond_c2w", "cond_elev_azim_radius", "cond_w2c_3x4", "target_c2w", "target_elev_azim_radius", "target_w2c_3x4",
)  # fmt: skip
STEPS = {"ldm": SamplingSteps.released, "diffusers": SamplingSteps.leading}


def run_schedules(golden: Golden, checks: Checks) -> None:
    """Vectors of the noise schedule, and for every number of steps its list, in which ldm's coefficients ascend."""
    betas = checks.expected["betas"]
    schedule = NoiseSchedule.scaled_linear(len(betas), float(betas[0]), float(betas[-1]))
    for name, vector in schedule_vectors(schedule).items():
        if name == "posterior_log_variance_clipped":
            # The first variance is 0; the recording takes the logarithm of float32's 1e-20.
            vector = torch.where(vector < -40, torch.tensor(1e-20).log(), vector)
        checks.compare(name, vector, NETWORK)
    checks.compare("diffusers.alphas_cumprod", schedule.alphas_cumprod, NETWORK)
    for name in checks.expected:
        match = re.fullmatch(r"(ldm|diffusers)\.(timesteps|alphas|alphas_prev|sigmas_eta([0-9.]+))_(\d+)", name)
        if match is None:
            continue
        steps = STEPS[match[1]](schedule, int(match[4]))
        kind = match[2].split("_eta")[0]
        values = {
            "timesteps": steps.t, "alphas": steps.alphas_cumprod, "alphas_prev": steps.previous,
            "sigmas": steps.sigmas(float(match[3] or 0)),
        }[kind]  # fmt: skip
        if kind == "timesteps":
            checks.compare(name, values, EXACT)
        else:
            checks.compare(name, values.flip(0) if match[1] == "ldm" else values, NETWORK)
    # What the last update ends at, where diffusers takes it from its settings.
    last = SamplingSteps.leading(schedule, schedule.num_steps // 20).previous[-1:]
    checks.compare("diffusers.final_alpha_cumprod", last, NETWORK)


def run_poses(golden: Golden, checks: Checks) -> None:
    """Relative poses from angles, from camera-to-world and from world-to-camera matrices, which must all agree."""
    given = golden.tensors
    for picture, view in zip(_angles(given, "cond"), _angles(given, "target"), strict=True):
        checks.compare("T_zero123", relative_pose(view, picture), NETWORK)
        checks.compare("T_stable_zero123", relative_pose(view, picture, "stable-zero123"), NETWORK)
        checks.compare("T_usd", relative_pose(view, picture[:, :2]), NETWORK)
    picture, view = (given[f"{side}_elev_azim_radius"] for side in ("cond", "target"))
    turn = torch.rad2deg(relative_pose(view, picture)[:, 0])
    checks.compare("usd_delta_polar_azimuth_deg", torch.stack([turn, view[:, 1] - picture[:, 1]], dim=-1), NETWORK)


def _angles(given: dict[str, Tensor], side: str) -> list[Tensor]:
    """Elevation, azimuth and distance of the recorded cameras, told in every way that the file has."""
    found = []
    if (angles := given.get(f"{side}_elev_azim_radius")) is not None:
        elevation, azimuth, distance = angles.unbind(-1)
        made = from_angles(azimuth, elevation, distance, torch.tensor(40.0), height=1, width=1)
        found += [angles, camera_angles(made)]
    if (c2w := given.get(f"{side}_c2w")) is not None:
        found.append(camera_angles(Cameras(c2w, c2w.new_full(c2w.shape[:1], 40.0), 1, 1)))
    if (w2c := given.get(f"{side}_w2c_3x4")) is not None:
        position = -w2c[:, :, :3].transpose(1, 2) @ w2c[:, :, 3:]
        pose = torch.eye(4).repeat(len(w2c), 1, 1)
        pose[:, :3, 3:] = position
        found.append(camera_angles(Cameras(pose, pose.new_full(pose.shape[:1], 40.0), 1, 1)))
    return found


def _is_schedules(golden: Golden) -> bool:
    return "betas" in golden.tensors and any(name.startswith("ldm.timesteps_") for name in golden.tensors)


KINDS = [
    Kind("zero123 schedules", _is_schedules, run_schedules, all_but()),
    Kind("relative poses", has("cond_elev_azim_radius", "target_elev_azim_radius"), run_poses, all_but(*POSE_INPUTS)),
]
