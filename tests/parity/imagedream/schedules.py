"""The noise schedule, the sampler's step lists, and the linear ramps of the distillation."""

from __future__ import annotations

import re
from typing import Any

import torch

from maquette.diffusion.sampling import SamplingSteps
from maquette.diffusion.schedule import NoiseSchedule
from maquette.schedules import Linear, timestep_bounds
from tests.parity.golden import CAMERA, EXACT, Checks, Golden, Kind


def run_noise(golden: Golden, checks: Checks) -> None:
    """betas, alphas_cumprod, and for every number of steps S in the file its list; all stored in ascending order."""
    betas = checks.expected["betas"]
    schedule = NoiseSchedule.scaled_linear(len(betas), float(betas[0]), float(betas[-1]))
    checks.compare("betas", schedule.betas, CAMERA)
    checks.compare("alphas_cumprod", schedule.alphas_cumprod, CAMERA)
    checks.compare_if_expected("alphas_cumprod_f32", lambda: schedule.alphas_cumprod.float(), CAMERA)
    for name in checks.expected:
        match = re.fullmatch(r"(timesteps|alphas|alphas_prev|sigmas)\.(\d+)(?:\.eta([0-9.]+))?", name)
        if match is None:
            continue
        steps = SamplingSteps.released(schedule, int(match[2]))
        if match[1] == "timesteps":
            checks.compare(name, steps.t.flip(0), EXACT)
        elif match[1] == "alphas":
            checks.compare(name, steps.alphas_cumprod.flip(0), CAMERA)
        elif match[1] == "alphas_prev":
            checks.compare(name, steps.previous.flip(0), CAMERA)
        elif match[3] is not None:
            # 1 - a / a_prev of neighbouring float32 values loses three digits in the reference.
            checks.compare(name, steps.sigmas(float(match[3])).flip(0), 1e-5)


def expected_ramps(golden: Golden) -> Checks:
    """Every number of every row, as tensors."""
    rows = golden.facts["rows"]
    return Checks({
        f"{i}.{key}": torch.tensor(value, dtype=torch.float64)
        for i, row in enumerate(rows) for key, value in row.items() if key != "step"
    })  # fmt: skip


def run_ramps(golden: Golden, checks: Checks) -> None:
    """Ramps [start_step, start, end, end_step] at the steps of the file, and integer bounds of the timestep."""
    ramps: dict[str, Linear] = {}
    for key, spec in golden.facts.items():
        if key.endswith("_spec"):
            begin, first, last, end = spec
            ramps[key.removesuffix("_spec")] = Linear(first, last, end, begin, unit="step")
    for i, row in enumerate(golden.facts["rows"]):
        step = row["step"]
        low, high = timestep_bounds(ramps["min"], ramps["max"], step, max(step, 1))
        ours: dict[str, Any] = {
            "min_t": low, "max_t": high, "min_percent": ramps["min"](step), "max_percent": ramps["max"](step),
            **{f"lambda_{name}": ramp(step) for name, ramp in ramps.items() if name not in ("min", "max")},
        }  # fmt: skip
        for key in row:
            if key in ours:
                limit = EXACT if key.endswith("_t") else CAMERA
                checks.compare(f"{i}.{key}", torch.tensor(ours[key], dtype=torch.float64), limit)


def _is_ramps(golden: Golden) -> bool:
    if golden.path.suffix != ".json":
        return False
    return isinstance(golden.facts, dict) and {"min_spec", "max_spec", "rows"} <= set(golden.facts)


def _is_noise(golden: Golden) -> bool:
    steps = any(re.fullmatch(r"timesteps\.\d+", name) for name in golden.tensors)
    return steps and {"betas", "alphas_cumprod"} <= set(golden.tensors)


KINDS = [
    Kind("noise schedule", _is_noise, run_noise, lambda golden: Checks(dict(golden.tensors))),
    Kind("annealing", _is_ramps, run_ramps, expected_ramps),
]
