"""The doctor sees what is wrong and says what to do, and never trips over it itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from maquette import doctor
from maquette.run.memory import GIB

REPOSITORY = Path(__file__).resolve().parents[1]


def test_a_report_names_versions_machine_and_extras(tmp_path):
    report = doctor.examine(tmp_path / "not" / "there" / "yet")
    for name in ("maquette", "python", "torch", "numpy", "opencv-python-headless"):
        assert report.findings["versions"][name]
    assert report.findings["machine"]["cores"] >= 1
    assert set(report.findings["optional extras"]) == set(doctor.EXTRAS)
    text = report.as_text()
    assert "worth knowing" in text or not report.hints
    assert json.loads(json.dumps(report.as_json()))["healthy"] is report.healthy


def test_too_little_memory_and_disk_are_faults(monkeypatch):
    monkeypatch.setattr(doctor, "available_memory", lambda: GIB // 2)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: type("Usage", (), {"free": 10})())
    report = doctor.examine()
    assert not report.healthy
    advice = "\n".join(report.faults)
    assert "4.0 GiB of memory and 0.5 GiB is available" in advice
    assert "of disk is free" in advice
    assert "torch" not in report.findings  # it would crash


def test_a_missing_and_an_old_library_are_named(monkeypatch):
    found = {"torch": "2.9.1+cpu", "rich": None}
    monkeypatch.setattr(doctor, "_installed", lambda name: found.get(name, "99.0"))
    report = doctor.Report()
    doctor._versions(report)
    assert "torch 2.9.1+cpu is too old: pip install 'torch>=2.10'" in report.faults
    assert "rich is not installed: pip install rich" in report.faults
    assert len(report.faults) == 2


def fake_library(folder, name, version, code):
    """An installed distribution `name` whose module runs `code` when it is imported."""
    (folder / f"{name}.py").write_text(code)
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.mark.parametrize("works", [True, False])
def test_a_torchvision_that_does_not_fit_is_a_fault(tmp_path, works):
    code = "import types, sys\nops = types.ModuleType('torchvision.ops'); ops.nms = None\n"
    code += "__path__ = []\nsys.modules['torchvision.ops'] = ops\n"
    if not works:
        code = "raise RuntimeError('operator torchvision::nms does not exist')"
    fake_library(tmp_path, "torchvision", "0.28.0", code)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(tmp_path)])}
    done = subprocess.run(
        [sys.executable, "-m", "maquette", "doctor", "--json"], env=environment, capture_output=True, text=True
    )
    report = json.loads(done.stdout)
    advice = [line for line in report["faults"] if "torchvision" in line]
    if works:
        assert advice == [] and report["torch"]["torchvision"] == "0.28.0"
    else:
        assert done.returncode == 1 and report["torch"]["torchvision"] == "0.28.0, broken"
        assert "nms does not exist" in advice[0] and "pip uninstall torchvision" in advice[0]


def test_a_torch_that_does_not_import_is_a_fault(tmp_path):
    fake_library(tmp_path, "torch", "2.13.0", "raise OSError('libtorch_cpu.so: cannot open shared object file')")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)])}
    done = subprocess.run([sys.executable, "-m", "maquette", "doctor"], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "PyTorch does not import (libtorch_cpu.so" in done.stdout and "Traceback" not in done.stderr
