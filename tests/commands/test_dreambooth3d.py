"""`maquette dreambooth3d` from photos to an object with a tiny prior: mistakes, and a run broken off in each stage."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maquette import cli
from maquette.commands.dreambooth3d import check_words, read_options
from maquette.errors import UserError
from maquette.methods.dreambooth3d import nano, paper
from maquette.priors.adapters import Lora
from maquette.priors.hub import save_prior
from maquette.priors.placement import Placement, current_placement
from maquette.run import Stage
from maquette.run import run as run_module
from tests.priors.tiny import tiny_config, tiny_prior
from tests.support.killing import assert_same_asset, kill_at, lines_of

REPOSITORY = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
PHOTOS = 3
QUICK = (
    "--quality draft --steps 2 --first-views none "
    "--personal.steps 2 --personal.keep 1 --personal.batch 1 --multiview.personal.steps 1 "
    "--multiview.personal.batch 1 --class-pictures.count 2 --sampling.steps 2 --samples 1 "
    "--class-pictures.sampling.steps 2 --pseudo-views.count 3 --pseudo-views.size 16 --scene.samples.value 24 "
    "--pseudo-views.translate.sampling.steps 2 --pseudo-views.translate.retries 0 "
    "--pseudo-views.translate.min-mask-iou 0 "
    "--mesh.resolution 16 --mesh.texture-size 64 --mesh.unwrap-seconds 0 "
    "--distillation.resolution.value 16 --reconstruction.resolution.value 16 --personal.checkpoint-seconds 0 "
    "--multiview.personal.checkpoint-seconds 0 --initial-fit.checkpoint-seconds 0 --fit.checkpoint-seconds 0"
).split()
STAGES = ["photos", "class_pictures", "dreambooth", "subject", "samples", "initial_field", "renderings",
          "pseudo_views", "multiview_model", "final_field", "mesh"]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with photos of a kite and the weights of a tiny prior."""
    folder = tmp_path_factory.mktemp("place")
    save_prior(folder / "weights", tiny_prior(), tiny_config(), {"name": "nano", "licence": "Apache-2.0"})
    (folder / "kite").mkdir()
    y, x = np.mgrid[:64, :64] - 31.5
    for number in range(PHOTOS):
        rgba = np.zeros((64, 64, 4), np.uint8)
        rgba[..., :3] = np.stack([200 + 0 * x, 100 + 2 * x, (60 * number + 2 * y) % 256], axis=-1)
        rgba[..., 3] = np.where(abs(x) + abs(y + 3 * number) < 20 + 2 * number, 255, 0)
        Image.fromarray(rgba).save(folder / "kite" / f"{number}.png")
    return folder


@pytest.fixture
def maquette(capsys, tmp_path, monkeypatch, place):
    """Run the command in this process: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def call(*words, quick=True):
        weights = ["--weights", str(place / "weights")] if quick else []
        code = cli.main(["dreambooth3d", *map(str, words), *(QUICK if quick else []), *weights])
        out, error = capsys.readouterr()
        assert "Traceback" not in error, error
        return code, out, error

    return call


WISH = ("--subject", "kite", "--caption", "a [v] kite in the snow")


class Killed(BaseException):
    """What no part of the program expects."""


def test_broken_off_in_every_stage_the_object_has_the_same_bytes(maquette, place, tmp_path, monkeypatch):
    code, out, error = maquette(place / "kite", *WISH, "--out", "whole")
    assert code == 0, error
    whole = tmp_path / "whole"
    for name in ("asset.glb", "report.html", "views.png", "prompt.png", "config.json", "provenance.json"):
        assert (whole / name).stat().st_size > 0, name
    assert sorted(path.name for path in (whole / "stages").iterdir()) == sorted(STAGES)
    assert "about" in error and "the object, for any 3D viewer" in out
    sides = json.loads((whole / "stages" / "photos" / "result" / "photos.json").read_text())["sides"]
    assert ("seem to show" in error) == (len(set(sides)) == 1)
    attempts = json.loads((whole / "stages" / "pseudo_views" / "result" / "attempts.json").read_text())["attempts"]
    assert [entry["caption"] for entry in attempts if entry["accepted"]][0] == "a [v] kite in the snow, front view"
    assert all(entry["reason"] for entry in attempts)

    deaths: list[str] = []
    save, save_result = Stage.save_checkpoint, run_module.save_result

    def die_at(place):
        if place not in deaths:
            deaths.append(place)
            raise Killed

    def dying(stage, step, state):
        save(stage, step, state)
        die_at(f"in {stage.name}")

    def dying_late(result, folder):
        """After all work of a stage, in the middle of writing it down."""
        described = save_result(result, folder)
        die_at(f"at the end of {folder.parent.name}")
        return described

    monkeypatch.setattr(Stage, "save_checkpoint", dying)
    monkeypatch.setattr(run_module, "save_result", dying_late)
    monkeypatch.setattr("maquette.report.write_live", lambda folder, *_, **__: folder / "report.html")
    monkeypatch.setattr("maquette.report.write_report", lambda folder: folder)  # a page costs more than a stage here
    for _ in range(2 * len(STAGES) + 1):
        try:
            code, _, error = maquette(place / "kite", *WISH, "--out", "broken")
        except Killed:
            continue
        break
    assert code == 0, error
    assert {f"at the end of {stage}" for stage in STAGES} <= set(deaths)
    assert {f"in {stage}" for stage in ("dreambooth", "initial_field", "multiview_model", "final_field")} <= set(deaths)
    assert (tmp_path / "broken" / "asset.glb").read_bytes() == (whole / "asset.glb").read_bytes()

    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    # Another caption of the same subject learns nothing anew.
    code, _, error = maquette("--subject-from", "whole", "--caption", "a red [v] kite", "--out", "red")
    assert code == 0, error
    made = {path.name for path in (tmp_path / "red" / "stages").iterdir()}
    assert made == set(STAGES) - {"photos", "class_pictures", "dreambooth"}
    assert (tmp_path / "red" / "asset.glb").read_bytes() != (whole / "asset.glb").read_bytes()
    code, _, error = maquette("--subject-from", "whole", "--subject", "boat", "--caption", "a red [v] boat")
    assert code == 2 and "is a kite, not a boat" in error


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_killed_twice_by_the_system_it_ends_with_the_same_bytes(place, tmp_path):
    def start(folder):
        command = [sys.executable, "-m", "maquette", "dreambooth3d", str(place / "kite"), *WISH, *QUICK]
        command += ["--weights", str(place / "weights"), "--out", str(folder)]
        return subprocess.Popen(command, env=ENVIRONMENT, text=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE)

    whole, dice = start(tmp_path / "whole"), random.Random(2)
    folder, log = tmp_path / "broken", tmp_path / "broken" / "log.jsonl"
    for _ in range(2):
        kill_at(start(folder), log, lines_of(log) + dice.randint(3, 20))
    assert_same_asset(start(folder), whole, (folder, tmp_path / "whole"))


def test_a_video_is_as_good_as_photos(maquette, place, tmp_path):
    cv2 = pytest.importorskip("cv2")
    writer = cv2.VideoWriter(str(tmp_path / "walk.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (96, 96))
    if not writer.isOpened():
        pytest.skip("needs an OpenCV that can write MJPG videos")
    y, x = np.mgrid[:96, :96] - 47.5
    for number in range(12):
        frame = np.full((96, 96, 3), 230, np.uint8)
        frame[np.hypot(x - 2 * number + 12, y) < 24] = (20 * number, 60, 220 - 10 * number)
        writer.write(frame)
    writer.release()
    code, _, error = maquette(tmp_path / "walk.avi", *WISH, "--variant", "initial", "--samples", "0", "--out", "run")
    assert code == 0, error
    kept = json.loads((tmp_path / "run" / "stages" / "photos" / "result" / "photos.json").read_text())
    assert len(kept["names"]) == 6 and all(name.startswith("frame ") for name in kept["names"])
    assert "6 frames were taken from walk.avi" in error


def test_memory_options_reach_the_loader(maquette, place, monkeypatch):
    """nano is small and stays as it is; published priors are loaded in the precision that is asked for."""
    seen = []

    def load(*_):
        seen.append(current_placement())
        raise UserError("far enough")

    monkeypatch.setattr("maquette.methods.dreambooth3d.load_free_prior", load)
    code, _, error = maquette(place / "kite", *WISH, "--low-memory", "--precision", "bfloat16", "--out", "run")
    assert code == 2 and "far enough" in error
    assert seen == [Placement("bfloat16", low_memory=True)]


MISTAKES = [
    (["FOLDER", "--caption", "a [v] kite"], ["--subject is missing"]),
    (["FOLDER", "--subject", "kite"], ["--caption is missing", "[v] kite asleep"]),
    (["FOLDER", "--subject", "kite", "--caption", "a kite"], ["does not say where the subject is", "[v]"]),
    (["--subject", "kite", "--caption", "a [v] kite"], ["FOLDER is missing", "--subject-from"]),
    (["nowhere", "--subject", "kite", "--caption", "a [v] kite"], ["nowhere", "3-6 photos"]),
    (["FEW", "--subject", "kite", "--caption", "a [v] kite"], ["holds 1 photos", "at least 3"]),
    (["TWINS", "--subject", "kite", "--caption", "a [v] kite"], ["the same photo"]),
    (["BROKEN", "--subject", "kite", "--caption", "a [v] kite"], ["cannot be used", "torn.png"]),
    (["FOLDER", *WISH, "--steps", "0"], ["--steps", "at least 1, got 0"]),
    (["FOLDER", *WISH, "--variant", "two"], ["--variant", "one-stage"]),
    (["FOLDER", *WISH, "--quality", "best"], ["--quality", "draft"]),
    (["FOLDER", *WISH, "--device", "cpu", "--precision", "float16"], ["--precision float16 is for a GPU"]),
    (["FOLDER", *WISH, "--guidance", "perp"], ["--guidance", "perp-neg"]),
    (["FOLDER", *WISH, "--variant", "latent-nerf", "--guidance", "recon"], ["latent-nerf", "view-text"]),
    (["FOLDER", *WISH, "--reconstruction", "som"], ["--reconstruction", "none"]),
    (["FOLDER", *WISH, "--encoder", "nowhere"], ["there is no folder nowhere"]),
    (["FOLDER", *WISH, "--personal.keep", "9", "--personal.steps", "3"], ["keep names steps from 0 to 3"]),
    (["FOLDER", *WISH, "--balance.share.firs", "1"], ["--balance.share.firs", "did you mean"]),
    (["--subject-from", "FOLDER", "--caption", "a [v] kite"], ["holds no subject that was learned"]),
    (["FOLDER", "--subject-from", "FOLDER", "--caption", "a [v] kite"], ["leave FOLDER, --masks and --matting out"]),
]


@pytest.mark.parametrize(("words", "parts"), MISTAKES, ids=lambda value: " ".join(value)[:60])
def test_a_mistake_is_one_sentence_and_exit_2(maquette, place, tmp_path, words, parts):
    photo = (place / "kite" / "0.png").read_bytes()
    for folder, files in {"FEW": {}, "TWINS": {"again.png": photo}, "BROKEN": {"torn.png": photo[:99]}}.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0.png").write_bytes(photo)
        for name, data in files.items():
            (tmp_path / folder / name).write_bytes(data)
        if folder != "FEW":
            for number in (1, 2):
                (tmp_path / folder / f"{number}.png").write_bytes((place / "kite" / f"{number}.png").read_bytes())
    code, _, error = maquette(*[place / "kite" if word == "FOLDER" else word for word in words], quick=False)
    assert code == 2, error
    (line,) = [line for line in error.splitlines() if line.startswith("maquette: ")]
    for part in parts:
        assert part in line


def test_low_rank_updates_are_one_choice():
    """The multi-view model goes on with what the partial one is, whatever the order of the words."""
    rank = ["--personal.adapter", "lora", "--personal.adapter.rank", "16"]
    for words in (rank, [*rank, "--multiview.personal.adapter", "lora", "--multiview.personal.adapter.rank", "16"]):
        _, config = read_options(["photos", *WISH, "--preset", "paper", *words])
        assert config.personal.adapter == Lora(rank=16)
    with pytest.raises(UserError, match="leave it to personal.adapter"):
        read_options(["photos", *WISH, "--multiview.personal.adapter", "lora"])


def test_matting_is_short_for_how_the_photos_are_cut_out():
    for preset, before in (("nano", "auto"), ("paper", "given")):
        words = ["photos", *WISH, "--preset", preset]
        assert read_options(words)[1].photos.cut_out == before
        assert read_options([*words, "--matting", "plain"])[1].photos.cut_out == "plain"


def test_rembg_is_announced_and_missed(maquette, place, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rembg", None)
    for number in range(PHOTOS):
        photo = Image.open(place / "kite" / f"{number}.png").convert("RGB")
        (tmp_path / "opaque").mkdir(exist_ok=True)
        photo.save(tmp_path / "opaque" / f"{number}.png")
    code, _, error = maquette(tmp_path / "opaque", *WISH, "--matting", "rembg", "--out", "run")
    assert code == 2 and "pip install 'maquette[matting]'" in error and "176 MB" in error


def test_an_estimate_needs_no_photos(maquette):
    code, out, _ = maquette("--estimate", quick=False)
    assert code == 0 and "time: about" in out and "memory: about" in out
    code, out, _ = maquette("--estimate", "--preset", "paper", quick=False)
    assert code == 0 and "not measured" in out


def test_words_that_nano_was_never_taught_are_named(capsys):
    check_words("a flibbertigibbet [v] kite in the snow", "kite", nano())
    check_words("a flibbertigibbet [v] kite", "kite", paper())
    assert capsys.readouterr().err == "note: nano does not know flibbertigibbet, and passes over it\n"
