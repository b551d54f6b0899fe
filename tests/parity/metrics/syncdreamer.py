"""metrics (of the USD goldens): SyncDreamer's evaluator, and the PSNR and SSIM of instant-nsr-pl."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

from maquette.evaluation import image as metrics
from maquette.evaluation.geometry import PointDistances, longest_side
from maquette.evaluation.voxels import voxel_iou
from tests.parity.golden import CAMERA, NETWORK, Checks, Golden, Kind, has

INPUTS = re.compile(r"pts_[ab]|verts|vol_[ab]|img_rgba?_u8|ssim_img[12]")


def expects(golden: Golden) -> Checks:
    return Checks({name: tensor for name, tensor in golden.tensors.items() if not INPUTS.fullmatch(name)})


def run(golden: Golden, checks: Checks) -> None:
    """Recorded in float32."""
    given = golden.tensors
    distances = PointDistances.between(given["pts_a"].numpy(), given["pts_b"].numpy())
    checks.compare("dist_ab", torch.from_numpy(distances.p_to_q), NETWORK)
    checks.compare("dist_ba", torch.from_numpy(distances.q_to_p), NETWORK)
    checks.compare("chamfer", torch.tensor([distances.cd_l1]), NETWORK)
    checks.compare("iou", torch.tensor([voxel_iou(given["vol_a"].numpy(), given["vol_b"].numpy())]), NETWORK)
    placed = torch.from_numpy(longest_side(given["verts"].numpy())(given["verts"].numpy()))
    checks.compare("norm_coords", placed, CAMERA)
    for name in checks.expected:
        if match := re.fullmatch(r"transform_gt_(-?\d+(?:\.\d+)?)", name):
            checks.compare(name, turned(placed, -float(match[1])), NETWORK)
    rgba = given["img_rgba_u8"].movedim(-1, 0).double() / 255
    composited = metrics.over(rgba[:3], rgba[3:])
    checks.compare("img_rgba_comp", composited.movedim(0, -1), CAMERA)
    other = given["img_rgb_u8"].movedim(-1, 0).double() / 255
    checks.compare("psnr", metrics.psnr(composited, other)[None], NETWORK)
    first, second = given["ssim_img1"], given["ssim_img2"]
    # That code takes the error of a whole batch together.
    pooled = metrics.mean_squared_error(first, second).mean()
    checks.compare("psnr_nsr", -10 * torch.log10(pooled)[None], NETWORK)
    checks.compare("ssim_nsr", metrics.ssim_with_border(first, second).mean()[None], NETWORK)


def turned(points: Tensor, degrees: float) -> Tensor:
    """Points carried about +z, from +x towards +y."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return points @ points.new_tensor([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])


KIND = Kind("syncdreamer", has("pts_a", "pts_b", "ssim_img1"), run, expects)
