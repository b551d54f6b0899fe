"""Texture coordinates: no overlaps, no loss, bounded time, and the second way says that it was taken."""

from __future__ import annotations

import sys
import time

import numpy as np
import pytest
from shapes import icosphere, torus_sdf

import maquette.meshing.unwrap as unwrap_module
from maquette.asset import Mesh
from maquette.meshing.clean import simplify, weld
from maquette.meshing.extract import extract_mesh
from maquette.meshing.texels import covering_pairs, rasterize_uv
from maquette.meshing.unwrap import box_unwrap, unwrap_mesh


@pytest.fixture(scope="module")
def torus() -> Mesh:
    return simplify(weld(extract_mesh(torus_sdf(), 48, inside="below")[0]), 3000)


def check_uv(before: Mesh, after: Mesh, size: int = 512) -> None:
    assert after.uv is not None and after.uv.min() >= 0 and after.uv.max() <= 1
    assert len(after.faces) == len(before.faces)
    assert after.is_watertight == before.is_watertight
    assert np.allclose(np.sort(after.face_areas()), np.sort(before.face_areas()))
    texel, _ = covering_pairs(after.uv[after.faces].astype(float) * size, size, size)
    assert len(texel) == len(np.unique(texel)), "faces overlap in the texture"
    corners = after.uv[after.faces].astype(float)
    ab, ac = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    assert np.abs(ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0]).sum() / 2 > 0.25


def test_xatlas_unwraps_without_overlaps(torus):
    result = unwrap_mesh(torus, texture_size=512)
    assert (result.method, result.note) == ("xatlas", "")
    check_uv(torus, result.mesh)
    again = unwrap_mesh(torus, texture_size=512)
    assert np.array_equal(again.mesh.uv, result.mesh.uv) and np.array_equal(again.mesh.faces, result.mesh.faces)


def test_the_box_projection_unwraps_without_overlaps_and_says_so(torus):
    result = unwrap_mesh(torus, texture_size=512, seconds=0)
    assert result.method == "box" and "box projection was used" in result.note
    check_uv(torus, result.mesh)


def test_a_chart_that_would_cover_itself_is_dealt_out():
    # A spiral ramp of three turns: every part looks upwards, all of it lies above itself.
    steps = 240
    angle = np.linspace(0, 6 * np.pi, steps)
    rim = [np.stack([r * np.cos(angle), r * np.sin(angle), angle / 20], axis=-1) for r in (0.2, 0.6)]
    vertices = np.concatenate(rim)
    a, b = np.arange(steps - 1), np.arange(steps - 1) + steps
    ramp = Mesh(vertices, np.concatenate([np.stack([a, b, a + 1], -1), np.stack([a + 1, b, b + 1], -1)]))
    result = box_unwrap(ramp, texture_size=512)
    check_uv(ramp, result)


def test_charts_keep_their_distance(torus):
    padding = 4
    mesh = box_unwrap(torus, texture_size=512, padding=padding)
    texels = rasterize_uv(mesh, 512, 512, margin=0.0)
    # Faces of different charts (no shared uv vertex) may not come closer than the padding.
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    a, b = mesh.faces.reshape(-1), np.roll(mesh.faces, 1, axis=1).reshape(-1)
    _, label = connected_components(coo_matrix((np.ones(len(a)), (a, b)), shape=(len(mesh.uv),) * 2), directed=False)
    image = np.full((512, 512), -1)
    image[texels.row, texels.column] = label[mesh.faces[texels.face, 0]]
    for shift in range(1, padding):
        for axis in (0, 1):
            one, two = np.split(image, [512 - shift], axis=axis)[0], np.split(image, [shift], axis=axis)[1]
            touching = (one >= 0) & (two >= 0) & (one != two)
            assert not touching.any()


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX limits on processor time")
def test_time_is_bounded_and_running_out_of_it_is_reported(torus, tmp_path, monkeypatch):
    worker = tmp_path / "endless.py"
    worker.write_text(
        "import resource, sys\nresource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[5]),) * 2)\nwhile True: pass\n"
    )
    monkeypatch.setattr(unwrap_module, "WORKER", worker)
    start = time.monotonic()
    result = unwrap_mesh(torus, texture_size=256, seconds=1)
    assert time.monotonic() - start < 60
    assert result.method == "box" and "processor time" in result.note
    check_uv(torus, result.mesh, 256)


def test_a_failing_unwrapper_is_reported_with_its_message(torus, tmp_path, monkeypatch):
    worker = tmp_path / "failing.py"
    worker.write_text("raise SystemExit('no atlas today')\n")
    monkeypatch.setattr(unwrap_module, "WORKER", worker)
    result = unwrap_mesh(torus, texture_size=256)
    assert result.method == "box" and "no atlas today" in result.note


def test_too_many_charts_for_the_texture_is_an_error():
    triangles = np.random.default_rng(0).normal(size=(400, 3, 3))
    soup = Mesh(triangles.reshape(-1, 3), np.arange(1200).reshape(400, 3))
    with pytest.raises(ValueError, match="larger texture"):
        box_unwrap(soup, texture_size=32, padding=4)
    with pytest.raises(ValueError, match="without faces"):
        unwrap_mesh(Mesh(np.zeros((0, 3)), np.zeros((0, 3), int)))


def test_a_mesh_of_one_face_unwraps_both_ways():
    one = Mesh(np.eye(3) * 0.5, np.array([[0, 1, 2]]))
    for seconds in (30, 0):
        assert unwrap_mesh(one, texture_size=64, seconds=seconds).mesh.uv is not None
    assert len(icosphere().faces) == len(unwrap_mesh(icosphere(), seconds=0).mesh.faces)
