"""volume_render: compositing from opacities and densities, dense and packed, and the penalties on what comes out."""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor

from maquette.fields.radiance import GaussianBlob, LinearBlob, truncated_exp
from maquette.rendering.volume import (
    accumulate,
    composite,
    dense_weights,
    packed_weights,
    packed_weights_from_alpha,
    sum_by_ray,
    weights_from_alpha,
)
from maquette.stages.regularizers import HIT, binary_entropy, normal_smoothness, orientation_terms, sparsity, z_variance
from tests.parity.golden import NETWORK, Checks, Golden, Kind, has

INPUTS = re.compile(
    r"alpha|background|rgb|normal|normal_smooth_in|sigma|t_(dirs|ends|starts)|density\.(net_out|points)"
    r"|packed\.(alpha|ray_indices|rgb|t_mid)"
)
BLOBS = {"blob_magic3d": LinearBlob(), "blob_dreamfusion": GaussianBlob()}
ACTIVATIONS = {"softplus": F.softplus, "exp": torch.exp, "trunc_exp": truncated_exp}


def expects(golden: Golden) -> Checks:
    return Checks({name: tensor for name, tensor in golden.tensors.items() if not INPUTS.fullmatch(name)})


def run(golden: Golden, checks: Checks) -> None:
    """Rays and samples as many as the file has."""
    given = {name: tensor for name, tensor in golden.tensors.items() if INPUTS.fullmatch(name)}
    from_opacity(given, checks)
    from_density(given, checks)
    packed(given, checks)
    densities(given, checks)


def from_opacity(given: dict[str, Tensor], checks: Checks) -> None:
    """Dense rays, by definition and packed."""
    alpha, background = given["alpha"], given["background"]
    rays, samples = alpha.shape
    t_mid = (given["t_starts"] + given["t_ends"]) / 2
    index = torch.arange(rays).repeat_interleave(samples)
    weights, trans = weights_from_alpha(alpha)
    flat, flat_trans = packed_weights_from_alpha(alpha.flatten(), index, rays)
    for w, t in ((weights, trans), (flat.view_as(alpha), flat_trans.view_as(alpha))):
        checks.compare("weights", w, NETWORK)
        checks.compare("trans", t, NETWORK)
    opacity = weights.sum(-1, keepdim=True)
    rgb = accumulate(weights, given["rgb"])
    checks.compare("opacity", opacity, NETWORK)
    checks.compare("depth", accumulate(weights, t_mid[..., None]), NETWORK)
    checks.compare("comp_rgb", rgb, NETWORK)
    checks.compare("comp_rgb_full", composite(rgb, opacity, background.expand_as(rgb)), NETWORK)
    checks.compare("comp_normal", F.normalize(accumulate(weights, given["normal"]), dim=-1), NETWORK)


def from_density(given: dict[str, Tensor], checks: Checks) -> None:
    """The same rays with densities, and every penalty on them."""
    sigma, background = given["sigma"], given["background"]
    delta = given["t_ends"] - given["t_starts"]
    t_mid = (given["t_starts"] + given["t_ends"]) / 2
    rays, samples = sigma.shape
    index = torch.arange(rays).repeat_interleave(samples)
    weights, trans = dense_weights(sigma, delta)
    flat, flat_trans = packed_weights((sigma * delta).flatten(), index, rays)
    for w, t in ((weights, trans), (flat.view_as(sigma), flat_trans.view_as(sigma))):
        checks.compare("d_weights", w, NETWORK)
        checks.compare("d_trans", t, NETWORK)
    checks.compare("d_alpha", -torch.expm1(-sigma * delta), NETWORK)
    opacity, rgb = weights.sum(-1, keepdim=True), accumulate(weights, given["rgb"])
    checks.compare("d_opacity", opacity, NETWORK)
    checks.compare("d_depth", accumulate(weights, t_mid[..., None]), NETWORK)
    checks.compare("d_comp_rgb", rgb, NETWORK)
    checks.compare("d_comp_rgb_bg", composite(rgb, opacity, background.expand_as(rgb)), NETWORK)
    spread = z_variance(flat, t_mid.flatten(), index, rays)[:, None]
    checks.compare("z_variance", spread, NETWORK)
    checks.compare("loss_z_variance_valid_mean", spread[opacity > HIT].mean()[None], NETWORK)
    checks.compare("loss_sparsity", sparsity(opacity).mean()[None], NETWORK)
    checks.compare("loss_opaque", binary_entropy(opacity).mean()[None], NETWORK)
    turned = orientation_terms(weights, given["normal"], given["t_dirs"]).sum()
    checks.compare("loss_orient", (turned / (opacity > 0).sum())[None], NETWORK)
    checks.compare("loss_normal_smooth", normal_smoothness(given["normal_smooth_in"])[None], NETWORK)


def packed(given: dict[str, Tensor], checks: Checks) -> None:
    """Rays with different numbers of samples."""
    index = given["packed.ray_indices"]
    rays = checks.expected["packed.opacity"].shape[0] if "packed.opacity" in checks.expected else int(index.max()) + 1
    weights, _ = packed_weights_from_alpha(given["packed.alpha"], index, rays)
    checks.compare("packed.weights", weights, NETWORK)
    values = torch.cat([torch.ones_like(weights)[:, None], given["packed.t_mid"][:, None], given["packed.rgb"]], dim=1)
    summed = sum_by_ray(weights[:, None] * values, index, rays)
    checks.compare("packed.opacity", summed[:, :1], NETWORK)
    checks.compare("packed.depth", summed[:, 1:2], NETWORK)
    checks.compare("packed.comp_rgb", summed[:, 2:], NETWORK)


def densities(given: dict[str, Tensor], checks: Checks) -> None:
    """Biased outputs of a network, and the density that activations make of them."""
    for name in checks.expected:
        if match := re.fullmatch(r"density\.(\w+)\.(\w+)\.(density|raw)", name):
            raw = given["density.net_out"] + BLOBS[match[1]](given["density.points"])
            checks.compare(name, raw if match[3] == "raw" else ACTIVATIONS[match[2]](raw), NETWORK)


KINDS = [Kind("volume rendering", has("alpha", "sigma", "t_starts", "t_ends"), run, expects)]
