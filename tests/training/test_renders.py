"""Posed renders: what they show, what is written, and that neither faults nor interruptions change it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from object_files import contents, write_garden, write_index
from PIL import Image

from maquette.cameras import read_transforms
from maquette.errors import UserError
from maquette.training.renders import RenderConfig, render_objects
from maquette.training.viewpoints import Circle, Scatter

CONFIG = RenderConfig(
    size=24, canonical=Circle(4), free=Scatter(3, lit=0.5), depth=True, normal=True, samples=2, workers=1, timeout=120
)
SOUND = ["ball", "cone", "cube", "leaf", "more__plank"]
BROKEN = ["flat", "nothing", "torn"]


@pytest.fixture(scope="module")
def garden(tmp_path_factory) -> Path:
    return write_garden(tmp_path_factory.mktemp("garden") / "objects")


@pytest.fixture(scope="module")
def rendered(garden, tmp_path_factory):
    """(summary, folder, reports) of one complete run with two workers."""
    out = tmp_path_factory.mktemp("renders") / "out"
    reports: list = []
    summary = render_objects([garden], out, replace(CONFIG, workers=2), report=lambda *args: reports.append(args))
    return summary, out, reports


def index_of(folder: Path) -> dict[str, dict]:
    rows = [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)
    return {row["id"]: row for row in rows}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_broken_objects_are_reported_and_skipped(rendered, garden):
    summary, out, reports = rendered
    assert (summary.rendered, summary.reused, summary.views) == (5, 0, 35) and sorted(summary.broken) == BROKEN
    rows = index_of(out)
    assert [name for name, row in rows.items() if row["status"] == "ok"] == SOUND
    assert [name for name, row in rows.items() if row["status"] == "broken"] == BROKEN
    for name in BROKEN:
        assert rows[name]["reason"] == summary.broken[name] and "\n" not in rows[name]["reason"]
        assert not (out / name).exists()
    assert "no triangles" in rows["nothing"]["reason"] and "torn.glb" in rows["torn"]["reason"]
    assert rows["cube"]["views"] == 7 and rows["cube"]["file"] == (garden / "cube.glb").as_posix()
    assert [done for done, _, _ in reports] == list(range(1, 9)) and all(total == 8 for _, total, _ in reports)
    assert sorted(outcome.item.name for _, _, outcome in reports) == sorted(SOUND + BROKEN)


def test_an_object_has_its_pictures_cameras_and_description(rendered):
    _, out, _ = rendered
    names = sorted(path.name for path in (out / "cube").iterdir())
    views = [f"{k:03d}" for k in range(7)]
    endings = [".depth.npy", ".normal.png", ".png"]
    assert names == sorted([view + ending for view in views for ending in endings] + ["object.json", "transforms.json"])
    with Image.open(out / "cube" / "000.png") as picture:
        assert (picture.mode, picture.size) == ("RGBA", (24, 24))
    cameras, files = read_transforms(out / "cube" / "transforms.json")
    described = json.loads((out / "cube" / "object.json").read_text())
    assert files == [f"{view}.png" for view in views] == [view["file"] for view in described["views"]]
    azimuth = torch.tensor([view["azimuth"] for view in described["views"]])
    assert torch.allclose((cameras.azimuth - azimuth + 180) % 360, torch.tensor(180.0), atol=1e-2)
    assert [view["kind"] for view in described["views"]] == ["canonical"] * 4 + ["free"] * 3
    assert [view["lighting"] is not None for view in described["views"]] == [False] * 5 + [True, False]
    assert described["centre"] == pytest.approx([-3.0, 5.0, 1.0]) and described["scale"] == pytest.approx(0.75 / 3**0.5)
    assert (described["faces"], len(described["sha256"])) == (12, 64)


def test_the_front_is_seen_first_then_the_objects_left(rendered):
    _, out, _ = rendered
    colors = [pixels(out / "cube" / f"{k:03d}.png")[12, 12].tolist() for k in range(4)]
    assert colors == [[255, 0, 0, 255], [0, 255, 0, 255], [0, 0, 255, 255], [255, 255, 0, 255]]
    plank = [pixels(out / "more__plank" / f"{k:03d}.png")[..., 3] > 127 for k in (0, 1)]
    assert plank[1].sum() > 2 * plank[0].sum()  # thin from the front, broad from the side
    rows = plank[1].any(1).nonzero()[0]
    assert np.ptp(rows) > 2 * np.ptp(plank[1].any(0).nonzero()[0])  # and upright


def test_depth_and_normals_belong_to_the_pictures(rendered):
    _, out, _ = rendered
    described = json.loads((out / "ball" / "object.json").read_text())["views"][4]
    depth = np.load(out / "ball" / "004.depth.npy")
    assert depth.shape == (24, 24) and depth.dtype == np.float32
    assert depth[12, 12] == pytest.approx(described["distance"] - 0.75, abs=0.03) and depth[0, 0] == 0
    with Image.open(out / "ball" / "004.normal.png") as picture:
        normals = np.asarray(picture)
        assert picture.mode == "RGB" and normals[0, 0].tolist() == [128, 128, 128]
    a, e = np.radians(described["azimuth"]), np.radians(described["elevation"])
    towards = np.array([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)])
    assert (normals[12, 12] / 127.5 - 1) @ towards > 0.9


def test_results_do_not_depend_on_the_number_of_workers_nor_on_the_other_objects(rendered, garden, tmp_path):
    _, out, _ = rendered
    alone = tmp_path / "alone"
    summary = render_objects([garden / "more", garden / "cube.glb"], alone, CONFIG)
    assert summary.rendered == 2
    assert contents(alone / "cube") == contents(out / "cube")
    assert contents(alone / "plank")["000.png"] == contents(out / "more__plank")["000.png"]
    everything = tmp_path / "everything"
    render_objects([garden], everything, replace(CONFIG, timeout=60.0))
    assert contents(everything) == contents(out)


def test_a_second_run_takes_what_is_there_and_repairs_what_is_not(rendered, garden, tmp_path):
    _, out, _ = rendered
    copied, objects = tmp_path / "out", tmp_path / "objects"
    shutil.copytree(out, copied)
    shutil.copytree(garden, objects)
    before = contents(copied)
    shutil.rmtree(copied / "cone")
    (copied / "leaf" / "object.json").unlink()
    (copied / ".ball.123.tmp").mkdir()
    (copied / ".ball.123.tmp" / "000.png").write_bytes(b"half")
    kept = (copied / "cube" / "000.png").stat().st_mtime_ns
    summary = render_objects([garden], copied, CONFIG)
    assert (summary.rendered, summary.reused, len(summary.broken)) == (2, 3, 3)
    assert contents(copied) == before and not (copied / ".ball.123.tmp").exists()
    assert (copied / "cube" / "000.png").stat().st_mtime_ns == kept

    shutil.copy(objects / "more" / "plank.glb", objects / "cube.glb")  # another object under the same name
    shutil.copy(objects / "more" / "plank.glb", objects / "torn.glb")  # repaired
    summary = render_objects([objects], copied, CONFIG)
    assert (summary.rendered, summary.reused, sorted(summary.broken)) == (2, 4, ["flat", "nothing"])
    assert contents(copied)["cube/000.png"] == before["more__plank/000.png"] != before["cube/000.png"]
    assert index_of(copied)["torn"]["status"] == "ok"


def test_other_settings_and_strange_folders_are_refused(rendered, garden, tmp_path):
    _, out, _ = rendered
    with pytest.raises(UserError, match=r"renders with free.num_views = 3, and now it is 5"):
        render_objects([garden], out, replace(CONFIG, free=Scatter(5, lit=0.5)))
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="holds other things"):
        render_objects([garden], tmp_path, CONFIG, overwrite=True)
    assert (tmp_path / "letter.txt").exists()
    with pytest.raises(UserError, match="nothing to render"):
        RenderConfig(canonical=Circle(0), free=Scatter(0))
    for bad in ({"size": 0}, {"samples": 0}, {"workers": -1}, {"timeout": 0.0}):
        with pytest.raises(UserError, match=next(iter(bad))):
            RenderConfig(**bad)


def test_overwrite_replaces_renders_with_other_settings(garden, tmp_path):
    small = RenderConfig(size=8, canonical=Circle(1), free=Scatter(0), samples=1, workers=1)
    render_objects([garden / "cube.glb"], tmp_path / "out", small)
    (tmp_path / "out" / "cube" / "note.txt").write_text("of the old settings")
    render_objects([garden / "leaf.obj"], tmp_path / "out", replace(small, size=9), overwrite=True)
    assert sorted(index_of(tmp_path / "out")) == ["leaf"] and not (tmp_path / "out" / "cube").exists()
    assert pixels(tmp_path / "out" / "leaf" / "000.png").shape == (9, 9, 4)
    # Without it, further objects join those that are there.
    render_objects([garden / "cube.glb"], tmp_path / "out", replace(small, size=9))
    assert sorted(index_of(tmp_path / "out")) == ["cube", "leaf"]


def test_an_interrupted_run_keeps_its_account_and_goes_on(rendered, garden, tmp_path):
    def stop(done, total, outcome):
        if done == 3:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        render_objects([garden], out, CONFIG, report=stop)
    assert len(index_of(out)) == 3
    summary = render_objects([garden], out, CONFIG)
    assert summary.rendered + summary.reused == 5 and summary.reused >= 1
    assert contents(out) == contents(rendered[1])


def test_a_killed_run_goes_on_to_the_same_bytes(rendered, garden, tmp_path):
    out, script = tmp_path / "out", tmp_path / "run.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from maquette.training.renders import RenderConfig, render_objects\n"
        "from maquette.training.viewpoints import Circle, Scatter\n"
        "if __name__ == '__main__':\n"
        "    config = RenderConfig(size=24, canonical=Circle(4), free=Scatter(3, lit=0.5), depth=True, normal=True,\n"
        "                          samples=2, workers=1)\n"
        "    render_objects([Path(sys.argv[1])], Path(sys.argv[2]), config)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    child = subprocess.Popen([sys.executable, script, garden, out], env=environment)
    deadline = time.monotonic() + 240
    while not list(out.glob("*/object.json")) and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    finished = len(list(out.glob("*/object.json")))
    assert 1 <= finished <= 5
    summary = render_objects([garden], out, CONFIG)
    assert summary.reused >= finished - 1
    assert contents(out) == contents(rendered[1])


def test_objects_of_the_data_pack_render_with_their_captions(objects_val, tmp_path):
    rows = [json.loads(line) for line in (objects_val / "index.jsonl").read_text().splitlines()]
    chosen = [row for row in rows if row["has_canonical_front"]][:2]
    (tmp_path / "objects").mkdir()
    for row in chosen:
        shutil.copy(objects_val / row["file"], tmp_path / "objects")
    write_index(tmp_path / "objects", *chosen)
    summary = render_objects(
        [tmp_path / "objects"],
        tmp_path / "out",
        RenderConfig(size=32, canonical=Circle(2), free=Scatter(1), samples=2, workers=1),
    )
    assert summary.rendered == 2 and not summary.broken
    index = index_of(tmp_path / "out")
    for row in chosen:
        assert index[row["id"]]["caption"] == row["caption"] and index[row["id"]]["licence"] == row["licence"]
        alpha = pixels(tmp_path / "out" / row["id"] / "000.png")[..., 3]
        assert 0.02 < (alpha > 127).mean() < 0.7 and not alpha[0].any() and not alpha[:, 0].any()
