"""The doctor sees what is wrong and says what to do, and never trips over it itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from maquette import doctor
from maquette.priors.registry import MODELS
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


def test_all_weights_are_listed_with_what_is_missing(tmp_path, monkeypatch):
    cards = [json.loads(path.read_text()) for path in (REPOSITORY / "maquette").rglob("card.json")]
    weights = tmp_path / "weights"
    monkeypatch.setenv("MAQUETTE_WEIGHTS", str(weights))
    for name in ("imagedream/sd-v2.1-base-4view-ipmv.pt", "stable-diffusion-1.5/unet/config.json",
                 "clip-tokenizer/merges.txt", "clip-tokenizer/vocab.json"):  # fmt: skip
        (weights / name).parent.mkdir(parents=True, exist_ok=True)
        (weights / name).write_text("{}")
    (weights / "mvdream").mkdir()
    card = {"name": "mvdream", "kind": "published-multiview", "licence": "", "config": {}}
    (weights / "mvdream" / "card.json").write_text(
        json.dumps({**card, "files": [{"file": "mvdream.safetensors", "bytes": 1, "sha256": ""}]})
    )
    (weights / "zero123").mkdir()
    (weights / "zero123" / "card.json").write_text("[]")
    report = doctor.Report()
    doctor._weights(report)
    assert report.findings["weights"] == {card["name"]: "present and intact, Apache-2.0" for card in cards}
    assert set(report.findings["weights"]) == {"nano", "nano-zero123", "nano-judge"}
    published = report.findings["published weights"]
    assert published.pop("looked for in") == str(weights)
    assert set(published) == set(MODELS)
    fetch = "`maquette models fetch {}`".format
    # So small a checkpoint has no CLIP towers.
    without = "here in part: sd-v2.1-base-4view-ipmv.pt, without clip-vit-h14"
    assert published["imagedream"] == f"{without}: {fetch('imagedream')}"
    assert published["clip-tokenizer"] == "here: merges.txt" and published["mvdream"] == "here: card.json"
    assert published["zero123-xl"] == f"not here: {fetch('zero123-xl')}"
    assert published["zero123"].startswith("not usable: ") and "is not a card of weights" in published["zero123"]
    partly = published["stable-diffusion-1.5"]
    assert partly.startswith("here in part: config.json, without unet/diffusion_pytorch_model.safetensors")
    assert "and 5 more" in partly and partly.endswith(fetch("stable-diffusion-1.5"))


def test_a_damaged_judge_stops_no_run(tmp_path, monkeypatch):
    monkeypatch.setattr("maquette.evaluation.judge.SHIPPED", tmp_path)
    report = doctor.Report()
    doctor._weights(report)
    assert report.findings["weights"]["nano-judge"] == "missing or damaged"
    assert report.healthy and "nano-judge" in report.hints[0]
    monkeypatch.setattr("maquette.priors.hub.NANO", tmp_path)
    doctor._weights(report)
    assert not report.healthy and "'nano'" in report.faults[0]


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
