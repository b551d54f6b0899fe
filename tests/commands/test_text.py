"""`maquette text`: its run folder, its recipes, and one sentence for each mistake."""

from __future__ import annotations

import json

import pytest
import torch

from maquette import cli
from maquette.commands.text import check_vocabulary
from maquette.priors.hub import save_prior
from tests.priors.tiny import tiny_config, tiny_prior

QUICK = (
    "--quality draft --first-views.sampling.steps 2 --steps 2 --scene.samples.value 24 --scene.occupancy.resolution 16 "
    "--distillation.resolution.value 16 --mesh.resolution 16 --mesh.texture-size 64 --mesh.unwrap-seconds 0"
).split()

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    save_prior(folder / "nano", tiny_prior(), tiny_config(), {"name": "nano", "licence": "Apache-2.0"})
    return folder / "nano"


@pytest.fixture
def maquette(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*words):
        code = cli.main([str(word) for word in words])
        out, error = capsys.readouterr()
        assert "Traceback" not in error
        return code, out, error

    return call


def test_words_make_a_run_folder_and_the_same_command_keeps_it(maquette, weights, tmp_path):
    words = ("text", "A wooden  barrel", *QUICK, "--weights", weights)
    code, out, error = maquette(*words)
    assert code == 0, error
    folder = tmp_path / "runs" / "text-a-wooden-barrel"
    for name in ("asset.glb", "report.html", "turntable.webp", "views.png", "config.json", "provenance.json"):
        assert (folder / name).stat().st_size > 0, name
    assert json.loads((folder / "config.json").read_text())["inputs"]["caption"] == "A wooden barrel"
    assert (
        "A wooden barrel" in (folder / "report.html").read_text()
        and "from words" in out + (folder / "report.html").read_text()
    )
    asset = (folder / "asset.glb").read_bytes()
    code, out, _ = maquette(*words)
    assert code == 0 and "(kept)" in out and (folder / "asset.glb").read_bytes() == asset
    code, _, error = maquette("text", "a metal barrel", *QUICK, "--weights", weights, "--out", folder)
    assert code == 2 and "inputs.caption" in error


def test_usd_s_stages_run_with_the_embedded_prior_and_the_page_shows_them(maquette, weights, tmp_path):
    small = "--geometry.renderings.count 2 --geometry.renderings.size 20 --geometry.recovery.mesh.resolution 16 "
    small += "--geometry.recovery.mesh.texture-size 64 --geometry.recovery.mesh.unwrap-seconds 0 "
    small += "--geometry.recovery.scene.field.hidden 8 --texture.distillation.resolution.value 16"
    words = ("a barrel", *QUICK, *small.split(), "--weights", weights, "--preset", "usd", "--prior", "nano")
    code, _, error = maquette("text", *words)
    assert code == 0, error
    folder = tmp_path / "runs" / "text-a-barrel"
    page = (folder / "report.html").read_text(encoding="utf-8")
    for row in ("Imagined", "Cloud", "Unpainted", "Finished", "Shape"):
        assert f'<p class="row">{row} ' in page
    for stage in ("geometry", "texture", "painted"):
        assert f"<code>{stage}</code>" in page
    assert (folder / "asset.glb").stat().st_size > 0


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ["TEXT is missing"]),
        (["  "], ["TEXT is empty", "a wooden barrel"]),
        (["a barrel", "more"], ["unexpected argument 'more'"]),
        (["xqzzt of qwrrt"], ["knows none of the words", "a wooden barrel"]),
        (["a barrel", "--preset", "papr"], ["--preset", "nano, paper, dreamfusion, usd", "'papr'"]),
        (["a barrel", "--preset", "nano", "--prior", "sd"], ["cannot judge views together", "--guidance view-text"]),
        (["a barrel", "--prior", "mvdraem"], ["there is no prior 'mvdraem'"]),
        (["a barrel", "--prior", "mvdream"], ["maquette models fetch mvdream"]),
        (["a barrel", "--prior", "sd"], ["maquette models fetch stable-diffusion-2.1-base"]),
        pytest.param(["a barrel", "--device", "cuda"], ["this PyTorch finds no GPU"], marks=NO_GPU),
        (["a barrel", "--device", "cpu", "--precision", "float16"], ["float16 is for a GPU"]),
        (["a barrel", "--steps", "0"], ["--steps", "at least 1, got 0"]),
        (["a barrel", "--cameras.fovyy", "1"], ["no option --cameras.fovyy", "--cameras.fovy"]),
        (["a barrel", "--warm-start", "none", "--keep-views", "none", "--first-views", "nono"], ["--first-views"]),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_2(maquette, words, parts, tmp_path, monkeypatch):
    monkeypatch.setenv("MAQUETTE_WEIGHTS", str(tmp_path / "none"))
    code, _, error = maquette("text", *words)
    lines = [line for line in error.splitlines() if line.startswith("maquette: ")]
    assert code == 2 and len(lines) == 1, error
    for part in parts:
        assert part in lines[0]


def test_unknown_words_are_named(capsys):
    check_vocabulary("a wooden qwrrt")
    assert capsys.readouterr().err == "note: the nano prior does not know qwrrt\n"


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ["time: about", "on two CPU cores", "memory: about"]),
        (["--prior", "mvdream"], ["prior mvdream", "distillation (8 views, 64 px)", "5000 x", "not measured"]),
        (["--prior", "mvdream", "--precision", "bfloat16"], ["prior mvdream in bfloat16"]),
        (["--preset", "paper"], ["prior mvdream", "distillation (4 views, 256 px)"]),
        (["--prior", "sd"], ["prior sd", "distillation (4 views, 64 px)", "15000 x"]),
        (["--preset", "usd"], ["distillation (1 views, 512 px)", "25000 x"]),
        (["--preset", "usd", "--prior", "nano"], ["time: about", "memory: about"]),
    ],
)
def test_the_estimate_loads_and_writes_nothing(maquette, words, parts, tmp_path):
    code, out, error = maquette("text", "--estimate", "--device", "cpu", *words)
    assert code == 0, error
    for part in parts:
        assert part in out
    assert list(tmp_path.iterdir()) == []
