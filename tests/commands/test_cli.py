"""The command line's contract: exit codes, one sentence for each mistake, help without waiting."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maquette import cli
from maquette.asset import load_mesh

REPOSITORY = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def sketch_command(monkeypatch):
    import sketch

    monkeypatch.setattr(cli, "COMMANDS", dict(cli.COMMANDS))
    monkeypatch.setitem(sys.modules, "maquette.report", None)
    monkeypatch.setitem(sys.modules, "sketch_command", None)
    sketch.install()


@pytest.fixture
def picture(tmp_path):
    """A red disc with alpha, on a white that is transparent."""
    y, x = np.mgrid[:64, :64] - 31.5
    rgba = np.zeros((64, 64, 4), np.uint8)
    disc = x**2 + y**2 < 20**2
    rgba[..., :3] = np.where(disc[..., None], (200, 0, 0), 255)
    rgba[..., 3] = np.where(disc, 255, 0)
    path = tmp_path / "Red Disc.png"
    Image.fromarray(rgba).save(path)
    return path


@pytest.fixture
def maquette(capsys, tmp_path, monkeypatch):
    """Run a command in this process: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def call(*words):
        code = cli.main([str(word) for word in words])
        out, error = capsys.readouterr()
        assert "Traceback" not in error
        return code, out, error

    return call


def refused(result, *parts, code=2):
    """The one sentence on standard error, which has all the parts."""
    assert result[0] == code, result
    lines = [line for line in result[2].splitlines() if line.startswith("maquette: ")]
    assert len(lines) == 1, result[2]
    for part in parts:
        assert part in lines[0]
    return True


def test_a_run_writes_what_its_folder_should_hold(maquette, picture, tmp_path):
    code, out, error = maquette("sketch", picture, "--caption", "a red disc")
    assert code == 0, error
    folder = tmp_path / "runs" / "sketch-red-disc"
    for name in ("asset.glb", "report.html", "views.png", "prompt.png", "config.json", "provenance.json", "log.jsonl"):
        assert (folder / name).stat().st_size > 0, name
    assert sorted(p.name for p in (folder / "views").iterdir())[:2] == ["000.png", "001.png"]
    assert (folder / "views" / "transforms.json").exists()
    assert {p.name for p in (folder / "stages").iterdir()} == {"views", "fit"}
    config = json.loads((folder / "config.json").read_text())
    assert config["inputs"]["image"] == "Red Disc.png" and config["inputs"]["caption"] == "a red disc"
    assert config["config"]["fit"]["steps"] == 20
    assert str(tmp_path) not in (folder / "provenance.json").read_text()
    assert "asset.glb" in out and "time: views" in out and "nano is a small prior" in out
    assert "about 20 s on two CPU cores" in error and "views: " in error


def test_folders_are_named_after_pictures_of_any_script():
    from maquette.commands.method import slug

    assert slug("Red  Disc_2 (copy)") == "red-disc-2-copy"
    assert slug("赤い円") == "赤い円" and slug("Bär") == "bär"  # or every such picture would share one folder
    assert slug("…\udce9") == "image" and len(slug("漢" * 300).encode()) < 200


def test_the_same_command_again_reuses_everything_and_keeps_the_bytes(maquette, picture, tmp_path):
    assert maquette("sketch", picture, "--out", "a")[0] == 0
    first = (tmp_path / "a" / "asset.glb").read_bytes()
    code, out, _ = maquette("sketch", picture, "--out", "a")
    assert code == 0 and "(kept)" in out
    assert (tmp_path / "a" / "asset.glb").read_bytes() == first
    assert maquette("sketch", picture, "--out", "b")[0] == 0
    assert (tmp_path / "b" / "asset.glb").read_bytes() == first  # the folder's name is no part of it


def config_of(folder):
    return json.loads((folder / "config.json").read_text())["config"]


def test_options_reach_the_config(maquette, picture, tmp_path):
    words = ("sketch", picture, "--out", "a", "--preset=paper", "--quality", "draft", "--fit.learning-rate", "0.5")
    assert maquette(*words, "--shape.radius", "0.25", "--prior", "other")[0] == 0
    config = config_of(tmp_path / "a")
    assert config["fit"] == {"steps": 50, "learning_rate": 0.5}
    assert config["shape"] == {"kind": "Round", "radius": 0.25}
    assert config["prior"] == "other"
    assert maquette("sketch", picture, "--out", "b", "--steps", "7")[0] == 0
    assert config_of(tmp_path / "b")["fit"]["steps"] == 7


def test_components_are_chosen_by_name(maquette, picture, tmp_path):
    words = ("sketch", picture, "--shape", "square", "--shape.side", "0.5", "--spin=turn", "--spin.speed", "3")
    assert maquette(*words, "--out", "a")[0] == 0
    assert config_of(tmp_path / "a")["shape"] == {"kind": "Square", "side": 0.5}
    assert config_of(tmp_path / "a")["spin"]["speed"] == 3
    assert maquette("sketch", picture, "--out", "b", "--spin", "none")[0] == 0
    assert config_of(tmp_path / "b")["spin"] is None


def test_the_commands_at_the_end_can_be_typed_as_they_are(maquette, picture, tmp_path):
    _, out, _ = maquette("sketch", picture, "--seed", "4", "--out=a", "--fit.learning-rate", "0.5")
    lines = [line.split("#")[0].split() for line in out.splitlines() if line.startswith("  maquette sketch")]
    assert len(lines) == 2
    for line in lines:
        words = shlex.split(" ".join(line))
        assert maquette(*words[1:])[0] == 0
    assert json.loads((tmp_path / "a-seed5" / "config.json").read_text())["seed"] == 5
    assert config_of(tmp_path / "a-high")["fit"] == {"steps": 60, "learning_rate": 0.5}


def test_other_settings_need_another_folder_or_overwrite(maquette, picture, tmp_path):
    assert maquette("sketch", picture, "--out", "a")[0] == 0
    again = ("sketch", picture, "--out", "a", "--seed", "1")
    assert refused(maquette(*again), "seed = 0, and this one has 1", "--overwrite")
    assert maquette(*again, "--overwrite")[0] == 0
    assert json.loads((tmp_path / "a" / "config.json").read_text())["seed"] == 1
    assert refused(maquette("sketch", picture, "--out", "a", "--seed", "1", "--caption", "a disc"), "inputs.caption")


def test_more_formats_are_written_beside_the_glb(maquette, picture, tmp_path):
    """The sketch has no texture, so its OBJ is one file."""
    code, out, _ = maquette("sketch", picture, "--out", "a", "--export", "obj", "stl")
    assert code == 0 and "asset.obj" in out and "asset.stl" in out and "asset.ply" not in out
    folder = tmp_path / "a"
    bounds = [load_mesh(folder / f"asset.{suffix}").bounds for suffix in ("glb", "obj", "stl")]
    assert np.allclose(bounds[0], bounds[1]) and np.allclose(bounds[0], bounds[2])
    kept = {path: path.stat().st_mtime_ns for path in (folder / "asset.stl", *folder.glob("stages/*/stage.json"))}
    assert len(kept) == 3
    code, out, _ = maquette("sketch", picture, "--out", "a", "--export", "ply", "stl")
    assert code == 0 and out.count("(kept)") == 2
    assert all(name in out for name in ("asset.obj", "asset.stl", "asset.ply"))
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert np.allclose(load_mesh(folder / "asset.ply").bounds, bounds[0])
    plain = maquette("sketch", picture, "--out", "b")
    assert plain[0] == 0 and (tmp_path / "b" / "asset.glb").read_bytes() == (folder / "asset.glb").read_bytes()
    assert maquette("sketch", picture, "--out", "a", "--seed", "1", "--overwrite")[0] == 0
    assert [path.name for path in folder.glob("asset.*")] == ["asset.glb"]


def test_how_the_object_is_cut_out_is_a_setting(maquette, picture, tmp_path):
    def inputs(folder):
        return json.loads((tmp_path / folder / "config.json").read_text())["inputs"]

    assert maquette("sketch", picture, "--out", "a")[0] == 0
    assert inputs("a")["matting"] == "auto"
    again = ("sketch", picture, "--matting", "photo")
    assert refused(maquette(*again, "--out", "a"), 'inputs.matting = "auto", and this one has "photo"', "--overwrite")
    assert maquette(*again, "--out", "b")[0] == 0
    assert inputs("b")["matting"] == "photo"
    log = (tmp_path / "b" / "log.jsonl").read_text()
    assert '"event": "cutout", "method": "photo"' in log
    assert maquette("sketch", picture, "--mask", picture, "--out", "c")[0] == 0
    assert "matting" not in inputs("c") and inputs("c")["mask"] == picture.name
    both = maquette("sketch", picture, "--mask", picture, "--matting", "plain", "--out", "d")
    assert refused(both, "leave --matting plain out, or the mask")


def test_rembg_is_announced_and_missed(maquette, picture, monkeypatch):
    monkeypatch.setitem(sys.modules, "rembg", None)
    result = maquette("sketch", picture, "--matting", "rembg")
    assert refused(result, "pip install 'maquette[matting]'") and "176 MB" in result[2]
    broken = types.ModuleType("rembg")
    broken.new_session = lambda name: {}["offline"]
    monkeypatch.setitem(sys.modules, "rembg", broken)
    assert refused(maquette("sketch", picture, "--matting", "rembg"), "cannot load its network u2net", code=1)


MISTAKES = [
    (["skech"], ["no command 'skech'", "'sketch'"]),
    (["sketch"], ["IMAGE is missing"]),
    (["sketch", "IMAGE", "--fit.learning-rte", "1"], ["--fit.learning-rte", "did you mean --fit.learning-rate?"]),
    (["sketch", "IMAGE", "--learning-rate", "1"], ["--learning-rate", "did you mean --fit.learning-rate?"]),
    (["sketch", "IMAGE", "--fit.learning_rate_=1"], ["did you mean --fit.learning-rate?"]),
    (["sketch", "IMAGE", "--sed", "1"], ["--sed", "did you mean --seed?"]),
    (["sketch", "IMAGE", "--xyzzy"], ["no option --xyzzy", "--help"]),
    (["sketch", "IMAGE", "more.png"], ["unexpected argument 'more.png'"]),
    (["sketch", "IMAGE", "--fit.steps", "many"], ["--fit.steps: expected a whole number, got 'many'"]),
    (["sketch", "IMAGE", "--fit.learning-rate", "fast"], ["--fit.learning-rate: expected a number, got 'fast'"]),
    (["sketch", "IMAGE", "--fit.learning-rate", "-1"], ["fit.learning_rate must be positive, got -1"]),
    (["sketch", "IMAGE", "--device", "gpu"], ["--device: expected one of", "'auto', 'cpu', 'cuda'", "'gpu'"]),
    (["sketch", "IMAGE", "--preset", "nanu"], ["--preset: expected one of nano, paper, got 'nanu'", "'nano'"]),
    (["sketch", "IMAGE", "--quality"], ["--quality: expected one of draft, default, high"]),
    (["sketch", "IMAGE", "--seed"], ["--seed: a value is missing"]),
    (["sketch", "IMAGE", "--seed", "-1"], ["--seed: expected a whole number from 0 to 2^63 - 1, got -1"]),
    (["sketch", "IMAGE", "--seed", str(1 << 63)], ["--seed: expected a whole number from 0 to 2^63 - 1"]),
    (["sketch", "IMAGE", "--steps", "0"], ["--steps", "at least 1, got 0"]),
    (["sketch", "IMAGE", "--elevation", "100"], ["--elevation", "-90 to 90, got 100"]),
    (["sketch", "IMAGE", "--export", "fbx"], ["--export: expected one of", "'obj', 'ply', 'stl'", "'fbx'"]),
    (["sketch", "IMAGE", "--shape.side", "1"], ["no option --shape.side"]),
    (["sketch", "IMAGE", "--shape", "squre"], ["--shape: expected one of round, square", "did you mean 'square'?"]),
    (["sketch", "IMAGE", "--shape"], ["--shape: a value is missing"]),
    (["sketch", "IMAGE", "--shape", "square", "--shape.radius", "1"], ["no option --shape.radius"]),
    (["sketch", "IMAGE", "--spin.speed", "1"], ["no option --spin.speed"]),
    (["sketch", "IMAGE", "--spn", "turn"], ["no option --spn", "did you mean --spin?"]),
    (["sketch", "IMAGE", "--SEED", "1"], ["no option --SEED", "did you mean --seed?"]),
    (["sketch", "IMAGE", "fit.steps=1"], ["unexpected argument 'fit.steps=1'", "two dashes, as --fit.steps"]),
    (["sketch", "IMAGE", "--steps", "nan"], ["--steps: expected a whole number or None, got 'nan'"]),
    (["sketch", "IMAGE", "--fit.learning-rate", "nan"], ["--fit.learning-rate: expected a finite number, got nan"]),
    (["sketch", "IMAGE", "--shape.radius", "inf"], ["--shape.radius: expected a finite number, got inf"]),
    (["sketch", "IMAGE", "--elevation", "nan"], ["--elevation: expected a finite number, got nan"]),
    (["sketch", "missing.png"], ["missing.png"]),
    (["sketch", "IMAGE", "--mask", "missing.png"], ["missing.png"]),
    (["sketch", "IMAGE", "--matting", "none"], ["--matting: expected one of", "'plain', 'photo', 'rembg'", "'none'"]),
    (["sketch", "IMAGE", "--out", "IMAGE"], ["Cannot write to", "--out"]),
]


@pytest.mark.parametrize(("words", "parts"), MISTAKES, ids=lambda value: " ".join(value) if "sketch" in value else "")
def test_a_mistake_is_one_sentence_and_exit_2(maquette, picture, words, parts):
    assert refused(maquette(*[picture if word == "IMAGE" else word for word in words]), *parts)


def test_names_that_are_no_utf_8_are_kept_out_of_the_files(maquette, picture, tmp_path, monkeypatch):
    """Linux takes any bytes for a name; Python holds them as lone surrogates, which no file of ours may have."""
    strange = tmp_path / os.fsdecode(b"latin\xe9.png")
    try:
        strange.write_bytes(picture.read_bytes())
    except OSError:
        pytest.skip("this file system has no such names")
    code, _, error = maquette("sketch", strange, "--caption", "a \udce9 disc", "--out", "a")
    assert code == 0, error
    for name in ("config.json", "log.jsonl", "provenance.json"):
        assert (tmp_path / "a" / name).read_bytes().decode("utf-8")
    assert json.loads((tmp_path / "a" / "config.json").read_text("utf-8"))["inputs"]["image"] == "latin\ufffd.png"


@pytest.mark.parametrize("encoding", ["ascii", "ascii:strict", "latin-1"])
def test_terminals_of_few_characters_are_no_trouble(tmp_path, encoding):
    environment = ENVIRONMENT | {"PYTHONIOENCODING": encoding, "LC_ALL": "C"}
    command = [sys.executable, "-m", "maquette", "bär", "\U0001f43b.png"]
    done = subprocess.run(command, env=environment, capture_output=True, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith(b"maquette: there is no command")
    script = f"import sys; from maquette import cli; cli._print_anything(); print({'🐻'!r})"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.strip() == b"\\U0001f43b", done.stderr


def test_what_cannot_finish_is_one_sentence_and_exit_1(maquette, picture, tmp_path):
    assert refused(maquette("sketch", picture, "--trouble", "nan"), "NaN at step 3", code=1)
    assert refused(maquette("sketch", picture, "--trouble", "memory", "--out", "m"), "ran out of memory", code=1)
    assert (tmp_path / "m" / "stages" / "views" / "stage.json").exists()


def test_a_bug_shows_where_it_is(capsys, picture, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["sketch", str(picture), "--trouble", "bug"]) == 1
    error = capsys.readouterr().err
    assert "KeyError: 'missing'" in error and "this is a bug in maquette" in error


LOADED = """
import sys
from maquette import cli
try:
    code = cli.main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code or 0
print(code, *sorted({name.split(".")[0] for name in sys.modules}))
"""

SLOW_TO_IMPORT = {"torch", "numpy", "PIL", "tyro", "rich", "scipy", "skimage", "trimesh", "cv2", "diffusers", "peft"}


def loaded_by(words, cwd=None):
    """(exit code, packages imported by `maquette WORDS`): what makes a command late, on every machine alike."""
    command = [sys.executable, "-c", LOADED, *words]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, cwd=cwd)
    code, *packages = done.stdout.splitlines()[-1].split()
    return int(code), set(packages), done


def test_help_imports_nothing_heavy():
    code, packages, done = loaded_by(["--help"])
    assert code == 0 and done.stdout.startswith("usage: maquette")
    assert not packages & SLOW_TO_IMPORT


@pytest.mark.parametrize("command", [name for name in cli.COMMANDS if name != "sketch"])
def test_help_of_commands_imports_no_more_than_options_need(command):
    """Options are dataclasses of stages that import PyTorch; what only a run needs waits for the run."""
    code, packages, done = loaded_by([command, "--help"])
    assert code == 0 and done.stdout.startswith("usage: maquette")
    assert not packages & (SLOW_TO_IMPORT - {"torch", "numpy", "PIL", "tyro", "rich"})


def test_help_lists_every_field_with_its_doc(maquette, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["sketch", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for words in (
        "--fit.learning-rate FLOAT",
        "Step size.",
        "--shape.radius",
        "--out FOLDER",
        "--steps N",
        "IMAGE",
        "--spin {turn,none}",
    ):
        assert words in text


def test_version_and_no_command(maquette):
    assert maquette("--version")[1].startswith("maquette 0.")
    code, out, _ = maquette()
    assert code == 0 and all(name in out for name in cli.COMMANDS if name != "sketch")


def test_doctor_as_json(maquette):
    code, out, _ = maquette("doctor", "--json")
    report = json.loads(out)
    assert report["healthy"] == (code == 0) == (report["faults"] == [])
    assert report["versions"]["torch"] and report["torch"]["device"] in ("cpu", "cuda")
    assert "nano" in report["weights"]


def test_models(maquette):
    code, out, _ = maquette("models", "list")
    assert code == 0 and out.startswith("nano") and "imagedream" in out
    assert refused(maquette("models", "chekc"), "did you mean 'check'?")
    assert refused(maquette("models", "check", "nowhere"), "nowhere")


def test_a_huge_picture_is_refused_before_anything_heavy_is_imported(tmp_path):
    from tests.test_images import huge_png

    huge_png(tmp_path / "huge.png", 20_000, 20_000)
    code, packages, done = loaded_by(["imagedream", "huge.png", "--out", "run"], cwd=tmp_path)
    assert code == 2 and not (tmp_path / "run").exists()
    assert done.stderr.startswith("maquette: huge.png has 20000x20000 px") and done.stderr.count("\n") == 1
    assert not packages & (SLOW_TO_IMPORT - {"PIL"})
