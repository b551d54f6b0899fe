"""What a run leaves in its folder, and lists."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from finished_run import pawn

from maquette.asset import EXPORTS, Asset, load_mesh
from maquette.commands.outcome import FILES, save_object
from maquette.run.record import OWNED


def written(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_exports_follow_the_object(tmp_path):
    mesh = pawn(12, 16)
    save_object(Asset(mesh), tmp_path, ["obj", "ply"])
    first = written(tmp_path)
    assert set(first) == {"asset.glb", "asset.obj", "asset.mtl", "asset.png", "asset.ply"}
    assert np.allclose(load_mesh(tmp_path / "asset.obj").bounds, mesh.bounds)

    (tmp_path / "asset.png").unlink()
    (tmp_path / "asset.ply").write_bytes(b"a person's own")
    save_object(Asset(mesh), tmp_path, ["obj", "ply"])
    again = written(tmp_path)
    assert again.pop("asset.ply") == b"a person's own", "what is there is left alone"
    assert again == {name: data for name, data in first.items() if name != "asset.ply"}, "what lacks is made again"

    save_object(Asset(replace(mesh, vertices=mesh.vertices * 0.5)), tmp_path, [])
    other = written(tmp_path)
    assert set(other) == set(first)
    for name in ("asset.glb", "asset.obj", "asset.ply"):
        assert np.allclose(load_mesh(tmp_path / name).bounds, mesh.bounds / 2), "none is of an object that is gone"


def test_every_file_of_an_object_can_be_replaced_and_listed():
    files = {f"asset.{suffix}" for suffixes in EXPORTS.values() for suffix in suffixes}
    assert files <= set(OWNED)
    assert {f"asset.{name}" for name in EXPORTS} <= set(FILES)
