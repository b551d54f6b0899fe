"""The twins differ in what their names say, and their training goes on where it was."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from packed_bars import pack_bars

from maquette.priors.hub import load_prior

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def twins():
    for name in ("denoising", "twins"):
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules["twins"]


def test_a_twin_differs_in_what_its_name_says(twins):
    plain, relative, bare = (twins.recipe_of(name, 40, 0.5).prior for name in twins.TWINS)
    assert replace(relative, relative_cameras=False) == plain and relative.relative_cameras
    assert bare.unet.image_prompt.resample is False and plain.unet.image_prompt.resample is True
    assert replace(bare, unet=plain.unet) == plain
    assert plain.steps == 40 and plain.front_prompts == 0.5


def test_twins_are_trained_once_and_measured(twins, tmp_path, monkeypatch):
    packed, out = pack_bars(tmp_path), tmp_path / "twins"
    for name in ("relative cameras", "no resampler"):
        twins.train(name, packed, out, 1, 0.5)
    before = (twins.folder_of(out, "no resampler") / "package" / "card.json").stat().st_mtime_ns
    twins.train("no resampler", packed, out, 1, 0.5)
    assert (twins.folder_of(out, "no resampler") / "package" / "card.json").stat().st_mtime_ns == before
    shipped, prior = load_prior("nano"), load_prior("nano", twins.folder_of(out, "no resampler") / "package")
    ours, theirs = (dict(one.image_encoder.named_parameters()) for one in (prior, shipped))
    assert all((ours[name] - theirs[name]).abs().max() < 1e-3 for name in theirs), "the shipped encoders"
    table = twins.denoising_table(["relative cameras", "no resampler"], packed, out, 4).splitlines()
    assert [line.split(" | ")[0] for line in table[2:]] == ["| relative cameras", "| no resampler"]
    assert all(float(cell) > 0 for line in table[2:] for cell in line.strip("|").split("|")[1:])
