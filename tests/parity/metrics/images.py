"""image_pairs: PSNR, SSIM in all its variants, pooled against per-image means, compositing."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from maquette.evaluation import image as metrics
from tests.parity.golden import Checks, Golden, Kind
from tests.parity.metrics.numbers import FORMULA, SINGLE, expected, facts, tell

FIGURES = {
    "mse": metrics.mean_squared_error,
    "mae": metrics.mean_absolute_error,
    "psnr_db": metrics.psnr,
    "psnr_closed_form_db": metrics.psnr,
    "ssim_gauss11_border_cropped": metrics.ssim,
    "ssim_gauss11_reflect_border_included": metrics.ssim_with_border,
    "ssim_uniform7_sample_cov": metrics.ssim_uniform,
    "ssim_half_brightness_range_1": lambda a, b: metrics.ssim_with_border(a / 2, b / 2),
    "ssim_half_brightness_range_inferred_from_data": lambda a, b: metrics.ssim_with_border(
        a / 2, b / 2, metrics.inferred_range(a / 2, b / 2)
    ),
}


def recognises(golden: Golden) -> bool:
    """Pairs of arrays NAME_a and NAME_b."""
    return golden.path.suffix == ".npz" and any(
        f"{name[:-2]}_b" in golden.tensors for name in golden.tensors if name.endswith("_a")
    )


def expects(golden: Golden) -> Checks:
    values = facts(golden, instead="image_metrics")
    return expected(golden, values, lambda name: False, arrays=lambda name: name == "rgba_over_white")


def run(golden: Golden, checks: Checks) -> None:
    """Every figure of every pair, in float64 unless the figure says float32."""
    for name in {key.split(".", 1)[0] for key in checks.expected if "." in key}:
        if (names := re.fullmatch(r"batch_(\w+)", name)) and f"{name}_a" not in golden.tensors:
            pooled(golden, checks, name, names[1].split("_"))
            continue
        a, b = pair(golden, name)
        for figure, function in FIGURES.items():
            tell(checks, f"{name}.{figure}", function(a.double(), b.double()), FORMULA)
        tell(checks, f"{name}.ssim_gauss11_border_cropped_float32", metrics.ssim(a.float(), b.float()), SINGLE)
    if "rgba" in golden.tensors:
        rgba = golden.tensors["rgba"].double().movedim(-1, 0)
        tell(checks, "rgba_over_white", metrics.over(rgba[:3], rgba[3:]).movedim(0, -1))


def pooled(golden: Golden, checks: Checks, name: str, members: list[str]) -> None:
    """Mean of per-image PSNR, and PSNR of the mean error, of several pairs."""
    pairs = [pair(golden, member) for member in members]
    a, b = (torch.stack([one[side] for one in pairs]).double() for side in (0, 1))
    tell(checks, f"{name}.mean_of_per_image_psnr", metrics.psnr(a, b).mean())
    together = metrics.psnr(torch.cat(list(a), dim=-1), torch.cat(list(b), dim=-1))
    tell(checks, f"{name}.psnr_of_mean_mse", together)


def pair(golden: Golden, name: str) -> tuple[Tensor, Tensor]:
    """Both images of a pair, channels first."""
    a, b = (golden.tensors[f"{name}_{side}"].movedim(-1, 0) for side in "ab")
    return a, b


KIND = Kind("image_pairs", recognises, run, expects)
