"""The recorded numbers of USD's step are met, and a changed one is seen."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import save_file

from tests.parity.golden import read_tensors
from tests.parity.runner import run_case
from tests.parity.usd import cameras, formulas

QUICK = {
    "usd_gradient_formula": formulas.GIVEN,
    "usd_reference_cameras": tuple(f"pose_args_{i}" for i in range(4)),
    "usd_train_cameras": cameras.GIVEN,
    "patch_renderer": ("rays_o", "rays_d", "patch_x", "patch_y"),
}
"""Cases that take no time, and their inputs."""


@pytest.mark.parametrize("case", [*QUICK, "usd_guidance_full", "dreambooth_refine", "scalar_schedules"])
def test_a_case_is_met(goldens, case):
    (path,) = (goldens / "usd").glob(f"{case}.*")
    assert run_case(path).verdict == "ok"


@pytest.mark.parametrize("case", QUICK)
def test_a_changed_number_is_seen_in_every_expected_tensor(goldens, tmp_path, case):
    tensors, metadata = read_tensors(goldens / "usd" / f"{case}.safetensors")
    path = tmp_path / f"{case}.safetensors"
    names = [name for name in tensors if name.split(".", 1)[-1] not in QUICK[case]]
    for name in names if len(names) < 20 else names[::7]:
        wrong = tensors[name].clone()
        wrong.view(-1)[-1] += 0.01 * float(wrong.abs().max()) + 1e-4
        save_file({**tensors, name: wrong}, path, metadata)
        assert run_case(path).verdict == "FAIL", name


def test_a_window_elsewhere_is_seen(goldens, tmp_path):
    tensors, metadata = read_tensors(goldens / "usd" / "patch_renderer.safetensors")
    path = tmp_path / "patch_renderer.safetensors"
    for name in ("patch_x", "patch_y"):
        save_file({**tensors, name: tensors[name] + 1}, path, metadata)
        assert run_case(path).verdict == "FAIL"


@pytest.mark.parametrize("name", ["max_step_percent", "lambda_opaque", "three"])
def test_a_changed_schedule_is_seen(goldens, tmp_path, name):
    facts = json.loads((goldens / "usd" / "scalar_schedules.json").read_text())
    facts[name][2] += 0.01
    facts[name][-1] *= 1.01
    path = tmp_path / "scalar_schedules.json"
    path.write_text(json.dumps(facts))
    assert run_case(path).verdict == "FAIL"


def test_the_line_of_a_ramp_is_recovered():
    assert formulas.recovered([0, 10, 20, 30, 40], [1.0, 1.0, 2.0, 3.0, 4.0]) == pytest.approx([10, 1, 4, 40])
    assert formulas.recovered([0, 10, 20], [1.0, 1.0, 5.0]) == [10, 1.0, 5.0, 20]
    assert formulas.schedule_of([0.0, 1.0, 2000])(500) == 0.25 and formulas.schedule_of(3)(7) == 3.0
