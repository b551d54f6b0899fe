"""OBJ, PLY and STL files are read, and broken ones refused by name."""

from __future__ import annotations

import numpy as np
import pytest

from maquette.asset import load_mesh
from maquette.errors import UserError

THIRD = np.full((1, 3), 1 / 3, np.float32)


def test_obj_reads_polygons_negative_indices_and_materials(tmp_path):
    from PIL import Image

    texture = np.array([[[200, 10, 10], [10, 200, 10]], [[10, 10, 200], [99, 99, 99]]], np.uint8)
    Image.fromarray(texture).save(tmp_path / "skin map.png")
    (tmp_path / "m.mtl").write_text("newmtl skin\nKd 1 1 1\nmap_Kd skin map.png\nnewmtl flat one\nKd 0.2 0.4 0.6\n")
    (tmp_path / "m.obj").write_text(
        "# comment\nmtllib m.mtl\nv 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nvt 0.25 0.75\nvt 0.75 0.25\n"
        "usemtl skin\nf 1/1 2/1 3/1 4/1\nusemtl flat one\nf -4/2 -3/2 -2/2\n"
    )
    mesh = load_mesh(tmp_path / "m.obj", up="z")
    assert len(mesh.faces) == 3 and mesh.face_areas().sum() == pytest.approx(1.5)
    colors = mesh.sample_color(np.arange(3), np.repeat(THIRD, 3, axis=0))[:, :3]
    # OBJ's v grows upwards: (0.25, 0.75) is the upper left texel.
    assert np.allclose(colors[:2], np.array([200, 10, 10]) / 255, atol=1e-5)
    assert np.allclose(colors[2], [0.2, 0.4, 0.6], atol=0.002)


@pytest.mark.parametrize(
    ("text", "says"),
    [("v 0 0\nf 1 2 3\n", "2"), ("v 0 0 0\nf 1 2 3\n", "refers to entry 2"), ("mtllib gone.mtl\n", "gone.mtl"),
     ("v 0 0 x\n", "cannot read")],
)  # fmt: skip
def test_broken_obj_files_name_the_file(tmp_path, text, says):
    path = tmp_path / "a.obj"
    path.write_text(text)
    with pytest.raises(UserError, match=says) as caught:
        load_mesh(path)
    assert "a.obj" in str(caught.value)


@pytest.mark.parametrize("suffix", [".ply", ".stl"])
def test_broken_ply_and_stl_files_name_the_file(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"not a mesh at all, though long enough to look like a header" * 3)
    with pytest.raises(UserError, match=f"a{suffix}"):
        load_mesh(path)
