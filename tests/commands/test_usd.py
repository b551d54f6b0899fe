"""`maquette usd` itself, with tiny random priors: what a folder holds, kills, options, and refusals in one sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maquette import cli
from maquette.priors.hub import save_prior
from tests.priors.tiny import tiny_config, tiny_prior, tiny_view_config, tiny_view_prior
from tests.support.killing import assert_same_asset, kill_at

REPOSITORY = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
SETTINGS = (
    "--quality draft --steps 3 --elevation 20 --novel.count 3 --novel.sampling.steps 2 --renderings.count 2 "
    "--renderings.size 20 --distillation.every 1 --refinement.specialize.class-images.count 2 "
    "--refinement.specialize.class-images.sampling.steps 2 --refinement.specialize.first.steps 2 "
    "--refinement.specialize.first.batch 1 --refinement.specialize.second.steps 1 "
    "--refinement.specialize.second.batch 1 --refinement.translate.sampling.steps 4 --recovery.mesh.resolution 16 "
    "--recovery.mesh.texture-size 64 --recovery.mesh.unwrap-seconds 0 --recovery.scene.field.hidden 8 "
    "--recovery.scene.occupancy.resolution 16 --recovery.scene.samples.value 24 --recovery.scene.variance 0.6 "
    "--scene.occupancy.resolution 16 --scene.samples.value 24 --scene.field.hidden 8 --fit.checkpoint-seconds 0 "
    "--recovery.fit.checkpoint-seconds 0"
).split()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a picture and the weights of both priors."""
    folder = tmp_path_factory.mktemp("place")
    save_prior(folder / "view", tiny_view_prior(), tiny_view_config(), {"name": "nano-zero123", "licence": "CC0-1.0"})
    save_prior(folder / "free", tiny_prior(), tiny_config(), {"name": "nano", "licence": "Apache-2.0"})
    y, x = np.mgrid[:64, :64] - 31.5
    rgba = np.zeros((64, 64, 4), np.uint8)
    rgba[..., :3] = np.stack([200 + 0 * x, 100 + 2 * x, 100 + 2 * y], axis=-1)
    rgba[..., 3] = np.where(abs(x) + abs(y) < 28, 255, 0)
    Image.fromarray(rgba).save(folder / "kite.png")
    return folder


def words(place: Path, out: Path, *more: str) -> list[str]:
    weights = ["--weights", str(place / "view"), "--free-weights", str(place / "free")]
    return ["usd", str(place / "kite.png"), "--out", str(out), *weights, *SETTINGS, *more]


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_killed_it_ends_with_the_same_bytes_and_everything_that_a_folder_holds(tmp_path, place):
    def start(folder: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "maquette", *words(place, folder)]
        return subprocess.Popen(command, env=ENVIRONMENT, text=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE)

    whole = start(tmp_path / "whole")
    folder, log = tmp_path / "broken", tmp_path / "broken" / "log.jsonl"
    # By then the warm start or the field is learning; `test_faults.py` kills again and again.
    kill_at(start(folder), log, 9)
    assert_same_asset(start(folder), whole, (folder, tmp_path / "whole"))
    names = ("report.html", "turntable.webp", "views.png", "prompt.png", "config.json", "provenance.json")
    assert [name for name in names if not (folder / name).exists()] == []
    page = (folder / "report.html").read_text(encoding="utf-8")
    for row in ("Imagined", "Cloud", "Cleaned", "Finished", "Shape"):
        assert f'<p class="row">{row} ' in page
    inputs = json.loads((folder / "config.json").read_text())["inputs"]
    assert inputs["elevation"] == 20 and inputs["image"] == "kite.png"


def refused(capsys, arguments: list[str], *parts: str) -> None:
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    (line,) = [line for line in error.splitlines() if line.startswith("maquette: ")]
    assert all(part in line for part in parts), line


def test_wrong_inputs_are_one_sentence(tmp_path, place, capsys):
    """Those of this method; `test_cli.py` has what all share."""
    out = tmp_path / "run"
    refused(capsys, words(place, out, "--guidance.omega", "-1"), "omega")
    refused(capsys, words(place, out, "--renderings.size", "2"), "size >= 8")
    refused(capsys, words(place, out, "--weights", str(place / "free")), "nano", "nano-zero123")


def test_what_a_run_costs_is_said_without_loading_anything(capsys):
    assert cli.main(["usd", "--estimate", "--quality", "draft"]) == 0
    draft = capsys.readouterr().out
    assert "time: about" in draft and "memory: about" in draft
    assert cli.main(["usd", "--estimate", "--preset", "paper"]) == 0
    assert "not measured" in capsys.readouterr().out
