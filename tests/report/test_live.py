"""The page while the run works: it is there at once, follows, stops following, and becomes the report."""

from __future__ import annotations

import re

import pytest
import torch
from finished_run import CARD, imagine, make_run, pawn

from maquette.commands.outcome import LiveFolder
from maquette.errors import RunFailed
from maquette.methods.imagedream import nano
from maquette.rendering.scene import VolumeConfig, VolumeScene
from maquette.rendering.views import render_turn
from maquette.report import write_live, write_report
from maquette.run import Run
from maquette.schedules import Constant

COARSE = VolumeConfig(samples=Constant(8))
REFRESH = re.compile(r'<meta http-equiv="refresh" content="(\d+)">')


def text_of(folder):
    return (folder / "report.html").read_text(encoding="utf-8")


def test_it_follows_the_run_from_its_first_moment(tmp_path, capsys):
    with Run.open(tmp_path, config=nano("draft"), method="imagedream", device="cpu", quiet=True) as run:
        with LiveFolder(run) as live:
            run.watch(live)
            assert "Getting ready" in text_of(tmp_path) and REFRESH.search(text_of(tmp_path))
            assert capsys.readouterr().err.count(str(tmp_path / "report.html")) == 1
            run.record_prior(CARD)
            run.stage("views", imagine, pawn(), 0.0)
            page = text_of(tmp_path)
            assert page.count('alt="the object from its') == 4 and "will turn here" in page
            assert (tmp_path / "views.png").exists()
            run.stage("warm_start", work, tmp_path)
            assert "A first shape: done" in text_of(tmp_path)
        assert REFRESH.search(text_of(tmp_path))  # the report itself comes later
    assert str(tmp_path / "report.html") not in capsys.readouterr().err  # said once


def work(folder, run):
    scene = VolumeScene(COARSE, seed=0)
    for step in range(30):
        run.log(step, psnr=10.0 + step, loss=1.0)
        run.preview(step, lambda: render_turn(scene, frames=4, size=16))
    page = text_of(folder)
    assert "A first shape, step 1 of 150" in re.sub(r"of \d+", "of 150", page)  # shown at the first preview
    assert "data:image/webp" in page and (folder / "preview.webp").exists()
    return scene


def test_a_finished_scene_is_shown_turning(tmp_path):
    from PIL import Image

    with Run.open(tmp_path, config={}, device="cpu", quiet=True) as run, LiveFolder(run) as live:
        live("radiance_field", None, VolumeScene(COARSE, seed=0))
    with Image.open(tmp_path / "preview.webp") as file:
        assert file.size == (80, 80) and file.n_frames > 1


@pytest.mark.parametrize(
    "error, reason",
    [(RunFailed("the disk is <full>"), "Stopped: the disk is &lt;full&gt;"), (KeyboardInterrupt(), "interrupted.")],
)
def test_a_failed_run_says_so_and_reloads_no_more(tmp_path, error, reason):
    with pytest.raises(type(error)):
        with Run.open(tmp_path, config={}, device="cpu", quiet=True) as run, LiveFolder(run):
            run.log(stage="mesh", event="started")
            run.log(stage="mesh", step=4, loss=1.0)
            raise error
    page = text_of(tmp_path)
    assert reason in page and "stopped, step 5" in page and "The same command goes on from here" in page
    assert not REFRESH.search(page) and "<script" not in page


def test_the_report_takes_its_place(tmp_path):
    folder = make_run(tmp_path / "run", steps=4)
    turn = imagine(pawn(), 0.0, None)
    assert write_live(folder, turn) == folder / "report.html" == write_report(folder)
    assert not REFRESH.search(text_of(folder)) and not (folder / "preview.webp").exists()


def test_previews_may_have_no_masks(tmp_path):
    from dataclasses import replace

    from PIL import Image

    folder = make_run(tmp_path / "run", finish=False)
    turn = replace(imagine(pawn(), 0.0, None), masks=None)
    write_live(folder, replace(turn, images=torch.rand_like(turn.images)))
    with Image.open(folder / "preview.webp") as file:
        assert file.n_frames == 4 and file.mode == "RGB"
