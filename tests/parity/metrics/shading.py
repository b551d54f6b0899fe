"""shading_orientation: volume rendering with light, DreamFusion's penalties, normals, blobs and schedules."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maquette.cameras import read_transforms
from maquette.fields.material import lambert_term, shade
from maquette.fields.normals import differentiate, normals_from_gradient
from maquette.fields.radiance import GaussianBlob, LinearBlob
from maquette.rendering.volume import accumulate, composite, dense_weights, packed_weights, sum_by_ray
from maquette.schedules import Cosine, Linear, Schedule
from maquette.stages.regularizers import binary_entropy, orientation_terms, sparsity, z_variance
from maquette.training.data import view_words
from tests.parity.golden import EXACT, Checks, Golden, Kind, has
from tests.parity.metrics.numbers import FORMULA, encode, expected, facts, from_name, tell

INPUT_ARRAYS = re.compile(
    r"normals|positions|albedo|ray_dirs|light_\w+|sigma|delta|t_mid|background|blob_points|field_points|field_matrix"
)
INPUT_NUMBERS = re.compile(
    r"opaque_clamp|focal_to_fov_deg\.\d+\.focal_multiplier|view_prompts\.\d+\.(azimuth|elevation)|schedules\.\w+\.\d+\.step"
)
LABELS = ("front", "side", "back", "overhead")
PEAK, BOTTOM = 3000, 15000
SCHEDULES: dict[str, Callable[[int], Schedule]] = {
    "covariance_scale_dreamfusion": lambda step: Linear(0.05, 0.002, end=5000, unit="step"),
    "orient_weight_dreamfusion": lambda step: Linear(1e-4, 1e-2, end=5000, unit="step"),
    "lr_dreamfusion": lambda step: (
        Linear(1e-9, 1e-4, end=PEAK, unit="step")
        if step < PEAK
        else Cosine(1e-4, 1e-6, begin=PEAK, end=BOTTOM, unit="step")
    ),
}


def expects(golden: Golden) -> Checks:
    values = facts(golden, instead="shading_orientation")
    checks = expected(
        golden, values, lambda n: bool(INPUT_NUMBERS.fullmatch(n)), arrays=lambda n: not INPUT_ARRAYS.fullmatch(n)
    )
    if "view_prompts" in values:
        checks.expected["view_prompts"] = encode([LABELS.index(entry["label"]) for entry in values["view_prompts"]])
    return checks


def run(golden: Golden, checks: Checks) -> None:
    """All of it in float64; rays and samples as many as the file has."""
    values = facts(golden, instead="shading_orientation")
    given = {name: tensor.double() for name, tensor in golden.tensors.items() if INPUT_ARRAYS.fullmatch(name)}
    weights, opacity = volume(given, checks)
    colours(given, weights, opacity, checks)
    penalties(given, values, weights, opacity, checks)
    densities(given, checks)
    scalars(values, checks)


def volume(given: dict[str, Tensor], checks: Checks) -> tuple[Tensor, Tensor]:
    """Weights, transmittances, opacity and depth, by the dense definition and by packed samples."""
    sigma, delta, t_mid = given["sigma"], given["delta"], given["t_mid"]
    rays, samples = sigma.shape
    index = torch.arange(rays).repeat_interleave(samples)
    weights, trans = dense_weights(sigma, delta)
    packed, packed_trans = packed_weights((sigma * delta).flatten(), index, rays)
    for w, t in ((weights, trans), (packed.reshape(sigma.shape), packed_trans.reshape(sigma.shape))):
        tell(checks, "weights", w)
        tell(checks, "transmittance", t)
    sums = sum_by_ray(torch.stack([packed, packed * t_mid.flatten()], dim=1), index, rays)
    tell(checks, "opacity", sums[:, 0])
    tell(checks, "depth_unnormalised", sums[:, 1])
    return weights, sums[:, 0]


def colours(given: dict[str, Tensor], weights: Tensor, opacity: Tensor, checks: Checks) -> None:
    """Light on every sample, then compositing over each ray's background."""
    light, ambient, diffuse = given["light_position"], given["light_ambient"], given["light_diffuse"]
    arguments = (given["albedo"], given["normals"], given["positions"], light, ambient, diffuse)
    tell(checks, "lambert_term", lambert_term(given["normals"], given["positions"], light)[..., 0])
    named = {"shaded": shade("diffuse", *arguments), "textureless": shade("textureless", *arguments)}
    for name, value in named.items():
        tell(checks, name, value)
    for name, value in {**named, "albedo": shade("albedo", *arguments)}.items():
        picture = composite(accumulate(weights, value), opacity[:, None], given["background"])
        tell(checks, f"composited_{name}", picture)


def penalties(
    given: dict[str, Tensor], values: dict[str, Any], weights: Tensor, opacity: Tensor, checks: Checks
) -> None:
    """Orientation in both normalisations with its gradient, opacity, entropy, variance of depth."""
    normals = given["normals"].clone().requires_grad_()
    learned = weights.clone().requires_grad_()
    directions = given["ray_dirs"][:, None].expand_as(normals)
    per_ray = orientation_terms(learned, normals, directions).sum(-1)
    per_ray.sum().backward()
    assert normals.grad is not None and learned.grad is None
    hits = int((opacity > 0).sum())
    tell(checks, "orientation_sum_grad_wrt_normals", normals.grad)
    tell(checks, "orientation_per_ray", per_ray)
    tell(checks, "orientation_sum", per_ray.sum())
    tell(checks, "orientation_mean_over_rays", per_ray.mean())
    tell(checks, "orientation_sum_over_rays_with_opacity", per_ray.sum() / hits)
    tell(checks, "n_rays_with_opacity", hits, EXACT)
    tell(checks, "opacity_loss_per_ray", sparsity(opacity))
    tell(checks, "opacity_loss_mean", sparsity(opacity).mean())
    tell(checks, "opaque_binary_entropy_mean", binary_entropy(opacity, values["opaque_clamp"]).mean())
    rays, samples = weights.shape
    index = torch.arange(rays).repeat_interleave(samples)
    variance = z_variance(weights.flatten(), given["t_mid"].flatten(), index, rays)
    # Where nothing is hit the variance is undefined; ours is 0 there, and no penalty looks at it.
    tell(checks, "z_variance_per_ray", torch.where(opacity > 0, variance, torch.full_like(variance, torch.nan)))


def densities(given: dict[str, Tensor], checks: Checks) -> None:
    """Blobs, and normals of densities by automatic differentiation."""
    number = r"(\d+(?:p\d+)?)"
    for name in checks.expected:
        if match := re.fullmatch(rf"blob_gaussian_scale{number}_std{number}", name):
            blob = GaussianBlob(from_name(match[1]), from_name(match[2]))
            tell(checks, name, blob(given["blob_points"])[:, 0])
        elif match := re.fullmatch(rf"blob_linear_scale{number}_radius{number}", name):
            linear = LinearBlob(from_name(match[1]), from_name(match[2]))
            tell(checks, name, linear(given["blob_points"])[:, 0])
    _, gradient = differentiate(GaussianBlob(), given["field_points"])
    tell(checks, "field_normals_gaussian_blob", normals_from_gradient(gradient))

    def anisotropic(x: Tensor) -> Tensor:
        return torch.exp(1.5 - 0.5 * torch.einsum("ni,ij,nj->n", x, given["field_matrix"], x))[:, None]

    density, gradient = differentiate(anisotropic, given["field_points"])
    tell(checks, "field_density_anisotropic", density[:, 0])
    tell(checks, "field_normals_anisotropic", normals_from_gradient(gradient))


def scalars(values: dict[str, Any], checks: Checks) -> None:
    """View words, fields of view, schedules."""
    words = [
        view_words(float(entry["azimuth"]), float(entry["elevation"]), True) for entry in values.get("view_prompts", [])
    ]
    tell(checks, "view_prompts", [LABELS.index(word.strip(", ").removesuffix(" view")) for word in words], EXACT)
    for index, entry in enumerate(values.get("focal_to_fov_deg", [])):
        tell(checks, f"focal_to_fov_deg.{index}.fov_deg", fovy_of_focal(entry["focal_multiplier"]), 1e-6)
    for name, entries in values.get("schedules", {}).items():
        for index, entry in enumerate(entries):
            (key,) = entry.keys() - {"step"}
            if name in SCHEDULES:
                tell(checks, f"schedules.{name}.{index}.{key}", SCHEDULES[name](entry["step"])(entry["step"]), FORMULA)


def fovy_of_focal(multiplier: float) -> Tensor:
    """The field of view of a camera file whose focal length is `multiplier` image heights."""
    size = 1000
    camera = {
        "fl_x": multiplier * size,
        "fl_y": multiplier * size,
        "cx": size / 2,
        "cy": size / 2,
        "w": size,
        "h": size,
    }
    frames = [{"file_path": "0.png", "transform_matrix": torch.eye(4).tolist()}]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "transforms.json"
        path.write_text(json.dumps({**camera, "camera_model": "OPENCV", "frames": frames}))
        return read_transforms(path)[0].fovy[0].double()


KIND = Kind("shading_orientation", has("ray_dirs", "sigma", "light_position"), run, expects)
