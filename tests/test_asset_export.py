"""GLB files for other programs: independent readers and a validator accept them."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cubes import TRIANGLE, cube, textured_cube
from gltf_files import read_glb

from maquette.asset import Asset, Mesh, Tile, from_world

ASSETS = {
    "textured": textured_cube,
    "tiles": lambda: replace(
        textured_cube(), tiles=(Tile(0, 0, 16, 32), Tile(16, 0, 16, 32, "clamp")), face_tile=np.arange(12) // 6
    ),
    "colours": lambda: cube(vertex_colors=np.random.default_rng(0).random((8, 3))),
    "plain and open": lambda: replace(cube(), faces=cube().faces[2:]),
    "collapsed faces": lambda: Mesh(np.array([*TRIANGLE, [2, 2, 2]], float), np.array([[0, 1, 2], [3, 3, 3]])),
}


@pytest.mark.parametrize("name", ASSETS)
def test_glb_obeys_the_specification(tmp_path, name):
    mesh = ASSETS[name]()
    Asset(mesh, provenance={"seed": 1}).save(tmp_path / "a.glb")
    document, binary = read_glb(tmp_path / "a.glb")
    assert document["buffers"] == [{"byteLength": len(binary)}]
    ends = []
    for view in document["bufferViews"]:
        assert view["byteOffset"] % 4 == 0 and view["byteOffset"] + view["byteLength"] <= len(binary)
        ends.append((view["byteOffset"], view["byteOffset"] + view["byteLength"]))
    assert all(end <= start for (_, end), (start, _) in zip(sorted(ends), sorted(ends)[1:], strict=False))
    width = {"SCALAR": 1, "VEC2": 2, "VEC3": 3}
    kinds = {5126: "<f4", 5123: "<u2", 5125: "<u4"}

    def values(number: int) -> np.ndarray:
        accessor = document["accessors"][number]
        view = document["bufferViews"][accessor["bufferView"]]
        array = np.frombuffer(binary, kinds[accessor["componentType"]], accessor["count"] * width[accessor["type"]],
                              view["byteOffset"])  # fmt: skip
        assert array.nbytes == view["byteLength"]
        return array.reshape(-1, width[accessor["type"]])

    (node,) = document["nodes"]
    assert set(node) == {"mesh", "name"} and document["scenes"][document["scene"]] == {"nodes": [0]}
    faces = 0
    for primitive in document["meshes"][0]["primitives"]:
        attributes = {key: values(number) for key, number in primitive["attributes"].items()}
        position = document["accessors"][primitive["attributes"]["POSITION"]]
        assert position["min"] == attributes["POSITION"].min(0).tolist()
        assert position["max"] == attributes["POSITION"].max(0).tolist()
        assert len({len(array) for array in attributes.values()}) == 1
        assert all(np.isfinite(array).all() for array in attributes.values())
        assert np.allclose(np.linalg.norm(attributes["NORMAL"].astype(float), axis=1), 1, atol=1e-5)
        indices = values(primitive["indices"])
        assert indices.max() < len(attributes["POSITION"]) and len(indices) % 3 == 0
        faces += len(indices) // 3
        material = document["materials"][primitive["material"]]
        assert material["pbrMetallicRoughness"]["metallicFactor"] == 0
        assert material["doubleSided"] is (not mesh.is_watertight)
        assert ("baseColorTexture" in material["pbrMetallicRoughness"]) is (mesh.texture is not None)
    assert faces == len(mesh.faces)
    for image in document.get("images", []):
        view = document["bufferViews"][image["bufferView"]]
        assert binary[view["byteOffset"] :][:8] == b"\x89PNG\r\n\x1a\n" and image["mimeType"] == "image/png"
    assert "extensionsUsed" not in document


@pytest.mark.parametrize("name", ASSETS)
def test_glb_is_read_by_independent_libraries(tmp_path, name):
    import pygltflib
    import trimesh

    mesh = ASSETS[name]()
    Asset(mesh).save(tmp_path / "a.glb")
    parsed = pygltflib.GLTF2().load(str(tmp_path / "a.glb"))
    assert parsed.asset.version == "2.0"
    assert sum(parsed.accessors[p.indices].count for p in parsed.meshes[0].primitives) == 3 * len(mesh.faces)
    loaded = trimesh.load(str(tmp_path / "a.glb"), force="mesh", process=False)
    assert np.allclose(loaded.bounds, from_world(mesh.bounds), atol=1e-6)


def test_the_front_faces_plus_z_and_it_stands_on_y_for_an_independent_reader(tmp_path):
    import trimesh

    # A tall post with a nose towards the front (+x in the world) and a lower ear on the left of the viewer (-y).
    post = np.array([[0, 0, 0], [0.1, 0, 0], [0, 0.1, 0], [0, 0, 2], [0.5, 0, 1], [0, -0.4, 0.5]], float)
    mesh = Mesh(post, np.array([[0, 1, 3], [0, 2, 3], [0, 4, 3], [0, 5, 3]]))
    Asset(mesh).save(tmp_path / "a.glb")
    loaded = np.asarray(trimesh.load(str(tmp_path / "a.glb"), force="mesh", process=False).vertices)
    assert loaded[:, 1].max() == pytest.approx(2) and loaded[:, 1].argmax() == 3
    assert loaded[:, 2].argmax() == 4
    # A camera on +Z looking along -Z has +X on its right: the ear at world -y appears on the left.
    assert loaded[:, 0].argmin() == 5


@pytest.mark.parametrize("name", ASSETS)
def test_glb_passes_the_khronos_validator(tmp_path, name):
    """The reference validator, where node and the npm package gltf-validator are installed."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node; install it, and the npm package gltf-validator")
    Asset(ASSETS[name](), provenance={"seed": 1}).save(tmp_path / "a.glb")
    script = Path(__file__).with_name("support") / "validate_gltf.cjs"
    done = subprocess.run(
        [node, str(script), str(tmp_path / "a.glb")], capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode == 3:
        pytest.skip(
            "needs the npm package gltf-validator; `npm install gltf-validator` in the repository, or set NODE_PATH"
        )
    assert done.returncode == 0, done.stderr
    issues = json.loads(done.stdout)["issues"]
    assert (issues["numErrors"], issues["numWarnings"]) == (0, 0), issues["messages"]
