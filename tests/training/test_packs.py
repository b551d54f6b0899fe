"""Packed renders: the arrays that training reads."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from object_files import contents, write_garden, write_index
from PIL import Image

from maquette.errors import RunFailed, UserError
from maquette.training.data import PackedObjects
from maquette.training.packs import PackConfig, pack_objects
from maquette.training.renders import RenderConfig, render_objects
from maquette.training.viewpoints import Circle, Scatter

CONFIG = PackConfig(
    size=16,
    canonical=Circle(4),
    ring=Circle(4, elevation=((0.0, 15.0), (-10.0, 40.0)), azimuth=(0.0, 90.0)),
    prompt=(Scatter(2, azimuth=(-90.0, 90.0), lit=0.5), Scatter(1, lit=1.0)),
    free=Scatter(3),
    samples=2,
    workers=1,
)


@pytest.fixture(scope="module")
def garden(tmp_path_factory) -> Path:
    folder = write_garden(tmp_path_factory.mktemp("garden") / "objects")
    write_index(
        folder,
        {
            "id": "cube",
            "file": "cube.glb",
            "caption": "a coloured cube",
            "has_canonical_front": True,
            "family": "boxes",
        },
        {"id": "torn", "file": "torn.glb", "caption": "a torn file"},
        {"id": "ball", "file": "ball.stl"},
    )
    return folder


@pytest.fixture(scope="module")
def packed(garden, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("packs") / "out"
    summary = pack_objects([garden], out, replace(CONFIG, workers=2))
    assert (summary.rendered, sorted(summary.broken), summary.views) == (2, ["torn"], 28)
    return out


def test_rows_follow_the_index_and_leave_broken_objects_out(packed):
    meta = [json.loads(line) for line in (packed / "meta.jsonl").read_text().splitlines()]
    assert [row["id"] for row in meta] == ["cube", "ball"]
    assert meta[0]["caption"] == "a coloured cube" and meta[0]["has_canonical_front"] is True
    unknown = {"caption": "", "category": "", "family": "ball", "has_canonical_front": False, "kind": "", "licence": ""}
    assert meta[1] == unknown | {"id": "ball"}
    pack = json.loads((packed / "pack.json").read_text())
    assert pack["rows"] == 2 and [entry["id"] for entry in pack["objects"]] == ["cube", "torn", "ball"]
    assert "torn.glb" in pack["objects"][1]["reason"] and pack["objects"][1]["sha256"] is None
    assert not (packed / ".rows").exists()


def test_arrays_have_their_shapes_and_the_trainer_reads_them(packed):
    data = PackedObjects.open(packed)
    assert len(data) == 2 and data.size == 16
    for name, views in (("canonical", 4), ("ring", 4), ("prompt", 3), ("free", 3)):
        array, poses = np.load(packed / f"{name}.npy"), np.load(packed / f"{name}_poses.npy")
        assert (array.shape, array.dtype) == ((2, views, 16, 16, 4), np.uint8)
        assert (poses.shape, poses.dtype) == ((2, views, 8), np.float32)
    assert np.array_equal(data.ring, np.load(packed / "ring.npy"))


def test_poses_say_how_each_picture_was_taken(packed):
    canonical, ring, prompt, free = (
        np.load(packed / f"{n}_poses.npy") for n in ("canonical", "ring", "prompt", "free")
    )
    assert np.allclose(canonical[..., 0], [0, 90, 180, 270]) and np.allclose(canonical[..., 1], 5)
    assert np.allclose(np.diff(ring[..., 0]), 90) and ring[0, 0, 0] != ring[1, 0, 0]
    assert prompt[..., 4].tolist() == [[0, 1, 1]] * 2 and not free[..., 4:].any()
    assert np.abs(prompt[:, :2, 0]).max() <= 90
    assert np.allclose(np.linalg.norm(prompt[:, 1:, 5:], axis=-1), 1, atol=1e-6)


def test_a_pack_shows_what_the_folder_of_pictures_shows(packed, garden, tmp_path):
    config = RenderConfig(size=16, canonical=Circle(4), free=Scatter(0), samples=2, workers=1)
    render_objects([garden], tmp_path / "out", config)
    pictures = []
    for k in range(4):
        with Image.open(tmp_path / "out" / "cube" / f"{k:03d}.png") as picture:
            pictures.append(np.asarray(picture))
    assert np.array_equal(np.load(packed / "canonical.npy")[0], np.stack(pictures))


def test_a_pack_is_the_same_with_one_worker_and_after_an_interruption(packed, garden, tmp_path):
    def stop(done, total, outcome):
        if done == 2:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        pack_objects([garden], out, CONFIG, report=stop)
    assert (out / ".rows" / "cube.npz").exists() and not (out / "pack.json").exists()
    summary = pack_objects([garden], out, CONFIG)
    assert (summary.rendered, summary.reused) == (1, 1)
    assert contents(out) == contents(packed)


def test_a_finished_pack_stays_as_it_is(packed, garden, tmp_path):
    copied = tmp_path / "out"
    shutil.copytree(packed, copied)
    summary = pack_objects([garden], copied, CONFIG)
    assert (summary.rendered, summary.reused, sorted(summary.broken), summary.views) == (0, 2, ["torn"], 0)
    with pytest.raises(UserError, match="finished pack of other objects"):
        pack_objects([garden / "cube.glb"], copied, CONFIG)
    with pytest.raises(UserError, match="size = 16"):
        pack_objects([garden], copied, replace(CONFIG, size=8))
    assert contents(copied) == contents(packed)
    pack_objects([garden / "cube.glb"], copied, replace(CONFIG, size=8, samples=1, workers=1), overwrite=True)
    assert np.load(copied / "free.npy").shape == (1, 3, 8, 8, 4)


def test_a_pack_of_nothing_is_a_failure(garden, tmp_path):
    with pytest.raises(RunFailed, match="None of the 1 objects"):
        pack_objects([garden / "torn.glb"], tmp_path / "out", CONFIG)
    with pytest.raises(UserError, match="at least one view"):
        PackConfig(free=Scatter(0))
