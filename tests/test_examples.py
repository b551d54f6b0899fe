"""The numbered examples run as a person would run them."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pages import ROOT, save_package

from maquette.commands.dreambooth3d import read_options as read_subject_options
from maquette.images import Views, read_image
from maquette.wording import require_subject
from tests.priors.tiny import tiny_stable_diffusion, tiny_zero123

EXAMPLES = sorted((ROOT / "examples").glob("[0-9]*.py"))


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    return save_package(tmp_path_factory.mktemp("package"))


def example(number: str, *words: object) -> subprocess.CompletedProcess[str]:
    """Run an example as a person would, without a network."""
    (path,) = [path for path in EXAMPLES if path.name.startswith(number)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(path), *map(str, words)], capture_output=True, text=True, env=environment, cwd=ROOT
    )


def test_examples_are_numbered_and_say_what_they_are():
    assert [path.name[:2] for path in EXAMPLES] == [f"{number + 1:02d}" for number in range(len(EXAMPLES))]
    for path in EXAMPLES:
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert text is not None and text.startswith(f"{path.name[:2]}. ") and f"python examples/{path.name}" in text
        assert f"(../examples/{path.name})" in (ROOT / "docs" / "index.md").read_text()


def test_example_01_places_cameras(tmp_path):
    done = example("01", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "pixel (100.5, 30.5)" in done.stdout and "left: azimuth   90.0" in done.stdout
    views = Views.load(tmp_path / "views")
    # Seen from the front the robot's own left, blue, is on the right; its back carries the yellow pack.
    front, _, back, _ = views.images * (views.masks > 0.5)
    blue, yellow = torch.tensor([0.20, 0.36, 0.78]), torch.tensor([0.95, 0.80, 0.24])

    def where(image: torch.Tensor, colour: torch.Tensor) -> torch.Tensor:
        return ((image - colour[:, None, None]).abs().amax(dim=0) < 0.05).nonzero()[:, 1].float()

    assert where(front, blue).mean() > 64 > where(back, blue).mean()
    assert len(where(front, yellow)) == 0 and len(where(back, yellow)) > 100


def test_example_02_cuts_out(tmp_path):
    done = example("02", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"cut out by (\w+)", done.stdout) == ["alpha", "plain", "photo"]
    overlaps = [float(line.split()[-1]) for line in done.stdout.splitlines() if "overlap" in line]
    assert overlaps[0] > 0.999 and overlaps[1] > 0.99 and overlaps[2] > 0.95
    own = example("02", tmp_path / "wall.png", "--out", tmp_path / "own")
    assert own.returncode == 0 and (tmp_path / "own" / "wall-prompt.png").is_file()


def test_example_03_samples_views(package, tmp_path):
    done = example("03", "--weights", package, "--steps", 2, "--out", tmp_path / "views")
    assert done.returncode == 0, done.stderr
    assert "front, left, back, right, prompt" in done.stdout
    assert len(Views.load(tmp_path / "views" / "views")) == 4
    (tmp_path / "empty").mkdir()
    without = example("03", "--weights", tmp_path / "empty", "--out", tmp_path / "none")
    assert without.returncode == 1 and without.stderr.startswith("This example needs the weights of the nano prior")
    assert len(without.stderr.splitlines()) == 1


def test_example_04_fits_a_field(tmp_path):
    done = example("04", "--steps", 60, "--size", 40, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    likeness = float(re.search(r"shown: ([\d.]+) dB", done.stdout)[1])
    assert likeness > 18, "a white picture has about 11 dB"
    assert (tmp_path / "robot.glb").read_bytes()[:4] == b"glTF" and (tmp_path / "unseen.png").is_file()


def test_example_05_tells_nulls_apart(package, tmp_path):
    done = example("05", "--view", "nano", "--view-weights", package, "--draws", 3, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers.keys() == {"views", "pictures"} and numbers["views"]["t"] == [50, 100, 200, 300]
    # A network that was never trained is biased, with cameras otherwise than without.
    assert min(numbers["views"]["bias"] + numbers["pictures"]["bias"]) > 0.01
    assert numbers["views"]["psnr"] != numbers["pictures"]["psnr"]
    assert (
        f"null of views    t = 300: mean of (predicted - added) noise {numbers['views']['bias'][3]:.4f}" in done.stdout
    )
    assert read_image(tmp_path / "nulls.png").shape == (3, 2 * 128 + 4, 6 * 128 + 5 * 4)
    without = example("05", "--view", "nano", "--view-weights", tmp_path / "none", "--out", tmp_path)
    assert without.returncode == 1 and without.stderr.startswith("This example needs the weights of two priors")


def test_example_05_takes_any_pair(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    (path,) = [path for path in EXAMPLES if path.name.startswith("05")]
    spec = importlib.util.spec_from_file_location("example_05", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pair = {"view": tiny_zero123(), "free": tiny_stable_diffusion()}
    monkeypatch.setattr(module, "load_any", lambda name, weights: pair[name])
    options = {"view": "view", "free": "free", "view_weights": None, "free_weights": None, "draws": 2, "out": tmp_path}
    biases = {}
    for null in ("zeros", "projected"):
        module.main(argparse.Namespace(**options, null=null))
        biases[null] = json.loads((tmp_path / "numbers.json").read_text())
    assert biases["zeros"]["views"]["bias"] != biases["projected"]["views"]["bias"]
    assert biases["zeros"]["pictures"] == biases["projected"]["pictures"]


def test_example_06_prints_commands_that_are_understood():
    done = example("06", "--photos", "my dogs", "--subject", "dog")
    assert done.returncode == 0, done.stderr
    commands = [shlex.split(line) for line in done.stdout.splitlines() if line.startswith("maquette ")]
    assert len(commands) == 24 and "does not know" not in done.stdout
    first, second = (read_subject_options(words[2:])[0] for words in commands[:2])
    assert first.folder == Path("my dogs") and first.preset == "paper" and "[v] dog" in first.caption
    assert second.folder is None and second.subject_from == first.out and second.caption == "a [v] dog in the snow"
    for words in commands:
        assert words[:2] == ["maquette", "dreambooth3d"]
        require_subject(read_subject_options(words[2:])[0].caption)
