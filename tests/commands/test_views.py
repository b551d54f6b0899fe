"""`maquette views`: contact sheets, words without a picture, and one sentence for each mistake."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from maquette import cli
from maquette.commands.pictures import labelled_rows
from maquette.images import Views
from maquette.priors.hub import save_prior
from tests.priors.tiny import tiny_config, tiny_prior

QUICK = ("--sampling.steps", "2", "--sampling.spacing", "exact")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a picture and a tiny prior's weights, which is the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MAQUETTE_WEIGHTS", str(tmp_path / "none"))
    save_prior(tmp_path / "weights", tiny_prior(), tiny_config(), {"name": "nano", "licence": "Apache-2.0"})
    rgba = np.zeros((64, 64, 4), np.uint8)
    rgba[16:48, 16:48] = (200, 40, 40, 255)
    Image.fromarray(rgba).save(tmp_path / "box.png")
    return tmp_path


def maquette(capsys, *words):
    code = cli.main(["views", *words])
    out, error = capsys.readouterr()
    assert "Traceback" not in error
    return code, out, error


def test_a_sheet_to_pick_from(place, capsys):
    words = ("box.png", *QUICK, "--weights", "weights", "--views", "front", "left")
    code, _, error = maquette(capsys, *words, "--seeds", "3", "--out", "several")
    assert code == 0, error
    assert "views: 000 front, 001 left" in error and "--sampling.pick K" in error
    assert (place / "several" / "candidates.png").is_file()
    assert maquette(capsys, *words, "--sampling.pick", "2", "--out", "alone")[0] == 0
    stage = place / "several" / "stages" / "views"
    third = Views.load(next(path.parent for path in sorted(stage.rglob("transforms.json")) if path.parent.name == "2"))
    assert torch.equal(third.images[[0, 1]], Views.load(place / "alone" / "views").images)


def test_words_without_a_picture(place, capsys):
    code, _, error = maquette(capsys, "--caption", "a red car", *QUICK, "--weights", "weights")
    assert code == 0, error
    folder = place / "runs" / "views-a-red-car"
    assert json.loads((folder / "config.json").read_text())["inputs"]["caption"] == "a red car"
    assert (folder / "report.html").is_file() and (folder / "views.png").is_file()


def test_pictures_are_no_object_to_export(place, capsys):
    code, _, error = maquette(capsys, "box.png", *QUICK, "--weights", "weights", "--export", "obj")
    assert code == 2 and "no object to write" in error and not (place / "runs").exists()


def test_words_alone_are_not_cut_out(place, capsys):
    code, _, error = maquette(capsys, "--caption", "a red car", "--matting", "photo", "--weights", "weights")
    assert code == 2 and "IMAGE is missing" in error and not (place / "runs").exists()
    code, _, error = maquette(capsys, "box.png", *QUICK, "--matting", "photo", "--weights", "weights", "--out", "run")
    assert code == 0, error
    assert json.loads((place / "run" / "config.json").read_text())["inputs"]["matting"] == "photo"


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ["IMAGE is missing", "--caption"]),
        (["box.png", "--seeds", "0"], ["seeds is the number of candidates, at least 1; got 0"]),
        (["box.png", "--views", "fornt"], ["no view 'fornt'"]),
        (["box.png", "--strength", "2"], ["strength", "got 2"]),
        (["box.png", "--init", "missing"], ["missing"]),
        (["box.png", "--prior", "mvdream"], ["mvdream reads words alone", "--caption"]),
        (["box.png", "--prior", "imagedream"], ["maquette models fetch imagedream"]),
        (["box.png", "--prior", "zero123"], ["maquette models fetch zero123"]),
        (["box.png", "--prior", "sd"], ["makes single images of words"]),
        (["box.png", "--sampling.sampler", "euler", "--sampling.eta", "1"], ["eta is a setting of ddim"]),
        (["--caption", "xqzzt"], ["knows none of the words"]),
        (["missing.png"], ["missing.png"]),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_2(place, capsys, words, parts):
    code, _, error = maquette(capsys, *words)
    lines = [line for line in error.splitlines() if line.startswith("maquette: ")]
    assert code == 2 and len(lines) == 1, error
    for part in parts:
        assert part in lines[0]


def test_the_estimate_needs_no_picture(place, capsys):
    code, out, _ = maquette(capsys, "--estimate")
    assert code == 0 and "time: about" in out
    code, out, _ = maquette(capsys, "--estimate", "--prior", "imagedream", "--device", "cpu")
    assert code == 0 and "views (4 views)" in out and "50 x" in out
    assert not (place / "runs").exists()


def test_rows_and_columns_have_names():
    rows = [torch.full((2, 3, 16, 16), value) for value in (0.2, 0.8)]
    page = labelled_rows(rows, ["pick 0", "pick 1"], ["front", "left"])
    assert page.shape == (3, 20 + 2 * 132, 72 + 2 * 132)
    assert float(page[:, 20 + 64, 72 + 64].mean()) == pytest.approx(0.2, abs=0.01)
    assert float(page[:, 20 + 132 + 64, 72 + 132 + 64].mean()) == pytest.approx(0.8, abs=0.01)
    assert float(page[:, :20].min()) < 0.5 and float(page[:, :, :72].min()) < 0.5, "there are names"
