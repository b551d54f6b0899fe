"""glTF files are read as the format says, and broken ones refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cubes import TRIANGLE, cube, textured_cube
from gltf_files import GltfFile

from maquette.asset import Asset, from_world, linear_to_srgb, load_mesh, to_world
from maquette.asset_export import glb_bytes
from maquette.errors import UserError

THIRD = np.full((1, 3), 1 / 3, np.float32)


def test_the_front_of_a_gltf_file_faces_plus_x_and_its_up_is_plus_z(tmp_path):
    document = GltfFile()
    path = document.write(tmp_path / "a.glb", document.primitive([[0, 0, 1], [1, 0, 0], [0, 1, 0]]))
    mesh = load_mesh(path)
    assert mesh.vertices.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]  # +Z -> +x, +X -> +y, +Y -> +z
    assert load_mesh(path, up="z").vertices.tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]]
    points = np.random.default_rng(0).normal(size=(5, 3))
    assert np.array_equal(to_world(from_world(points)), points)
    assert np.linalg.det(to_world(np.eye(3))) == pytest.approx(1)  # a rotation, no mirror


def test_node_transforms_nest_and_mirrors_keep_the_outside_outside(tmp_path):
    document = GltfFile()
    half = np.sqrt(0.5)
    document.document["nodes"] = [
        {"translation": [1, 2, 3], "children": [1]},
        {"rotation": [0, half, 0, half], "scale": [-2, 1, 1], "children": [2]},
        {"matrix": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0.5, 1], "mesh": 0},
    ]
    normals = [[0, 0, 1]] * 3
    path = document.write(tmp_path / "a.glb", document.primitive(TRIANGLE, NORMAL=normals))
    mesh = load_mesh(path, up="z")
    # Inner: z + 0.5; then x * -2; then a quarter turn about +Y, (x, y, z) -> (z, y, -x); then the translation.
    expected = [[z + 0.5 + 1, y + 2, 2 * x + 3] for x, y, z in TRIANGLE]
    assert np.allclose(mesh.vertices, expected, atol=1e-6)
    assert np.allclose(mesh.normals, [[1, 0, 0]] * 3, atol=1e-6) or np.allclose(
        mesh.normals, [[-1, 0, 0]] * 3, atol=1e-6
    )
    assert np.allclose(mesh.face_normals(), mesh.normals[:1], atol=1e-6)


@pytest.mark.parametrize("suffix", [".glb", ".gltf"])
def test_several_materials_render_as_the_file_says(tmp_path, suffix):
    document = GltfFile()
    texture = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]], np.uint8)
    wrapped = document.material(texture=document.texture(texture, wrapS=10497, wrapT=10497))
    halved = document.material(factor=(0.5, 0.25, 0, 1))
    shift = [5, 0, 0]
    path = document.write(
        tmp_path / f"a{suffix}",
        document.primitive(TRIANGLE, TEXCOORD_0=[[2.25, -0.75]] * 3, material=wrapped),
        document.primitive(np.add(TRIANGLE, shift), [0, 1, 2], material=halved),
        document.primitive(np.subtract(TRIANGLE, shift), material=halved, COLOR_0=[[0.5, 1, 1]] * 3),
    )
    mesh = load_mesh(path)
    colors = mesh.sample_color(np.arange(3), np.repeat(THIRD, 3, axis=0))
    assert np.allclose(colors[0], [1, 0, 0, 1], atol=1e-3)  # (2.25, -0.75) is the first texel's centre, wrapped
    assert np.allclose(colors[1, :3], linear_to_srgb(np.array([0.5, 0.25, 0])), atol=0.003)
    assert np.allclose(colors[2, :3], linear_to_srgb(np.array([0.25, 0.25, 0])), atol=0.005)


def test_strips_fans_and_unindexed_triangles(tmp_path):
    document = GltfFile()
    square = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]]
    path = document.write(tmp_path / "a.glb", document.primitive(square, mode=5))
    assert load_mesh(path).face_areas().sum() == pytest.approx(1)
    assert np.allclose(load_mesh(path).face_normals(), [1, 0, 0])
    document = GltfFile()
    path = document.write(tmp_path / "b.glb", document.primitive([square[i] for i in (0, 1, 3, 2)], mode=6))
    assert np.allclose(load_mesh(path).face_normals(), [1, 0, 0])
    assert len(load_mesh(path).faces) == 2


def test_a_skinned_mesh_is_placed_by_its_joints_not_by_its_node(tmp_path):
    document = GltfFile()
    bind = np.eye(4)
    bind[3, :3] = [-1, 0, 0]  # column-major: moves by -1 along x
    document.document["nodes"] = [
        {"mesh": 0, "skin": 0, "translation": [100, 0, 0], "children": []},
        {"translation": [1, 0, 7], "scale": [2, 2, 2]},
    ]
    document.document["scenes"] = [{"nodes": [0, 1]}]
    document.document["skins"] = [{"joints": [1], "inverseBindMatrices": document.accessor(bind.reshape(1, 16))}]
    joints = document.accessor(np.zeros((3, 4)), "u1")
    primitive = document.primitive(TRIANGLE, JOINTS_0=joints, WEIGHTS_0=[[1, 0, 0, 0]] * 3)
    mesh = load_mesh(document.write(tmp_path / "a.glb", primitive), up="z")
    assert np.allclose(mesh.vertices, np.array(TRIANGLE) * 2 - [2, 0, 0] + [1, 0, 7])


def test_normalised_integers_sparse_values_texture_transforms_and_masks(tmp_path):
    document = GltfFile()
    texture = np.zeros((2, 2, 4), np.uint8)
    texture[0, 1] = [10, 20, 30, 255]
    turned = {"extensions": {"KHR_texture_transform": {"rotation": np.pi / 2, "offset": [0.5, 1.0], "scale": [0.5, 1]}}}
    material = document.material(texture=document.texture(texture), reference=turned, alphaMode="MASK", alphaCutoff=0.4)
    uv = document.accessor(np.full((3, 2), 32768), "u2", normalized=True)
    third = document.view(np.array([2], "<u2").tobytes())
    sparse = {"count": 1, "indices": {"bufferView": third, "componentType": 5123},
              "values": {"bufferView": document.view(np.array([9, 9, 9], "<f4").tobytes())}}  # fmt: skip
    primitive = document.primitive(TRIANGLE, TEXCOORD_0=uv, material=material)
    document.document["accessors"][primitive["attributes"]["POSITION"]]["sparse"] = sparse
    mesh = load_mesh(document.write(tmp_path / "a.glb", primitive), up="z")
    assert mesh.vertices[2].tolist() == [9, 9, 9]
    # Scaled to (0.25, 0.5), turned a quarter about the origin (u, v) -> (v, -u): (0.5, -0.25), moved: (1.0, 0.75).
    assert np.allclose(mesh.uv, [[1.0, 0.75]] * 3, atol=1e-4)
    assert mesh.has_alpha
    # Row 1 is transparent; halfway to row 0 a quarter is opaque (columns wrap), at its centre half of it.
    for v, alpha in ((0.75, 0.0), (0.625, 0.0), (0.25, 1.0)):
        moved = replace(mesh, uv=np.tile([[1.0, v]], (3, 1)))
        assert moved.sample_color(np.zeros(1, int), THIRD)[0, 3] == alpha


def test_vertices_that_no_face_uses_do_not_widen_the_mesh(tmp_path):
    document = GltfFile()
    path = document.write(tmp_path / "a.glb", document.primitive([*TRIANGLE, [50, 50, 50]], [0, 1, 2]))
    assert load_mesh(path).bounds.max() == 1


def _broken(kind: str, folder: Path) -> Path:
    path = folder / f"broken-{kind}.glb"
    whole = glb_bytes(textured_cube(), {})
    document = GltfFile()
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("this is not a model")
    elif kind == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "short":
        path.write_bytes(whole[:16])
    elif kind == "index":
        document.write(path, document.primitive(TRIANGLE, [0, 1, 7]))
    elif kind == "draco":
        document.document["extensionsRequired"] = ["KHR_draco_mesh_compression"]
        document.write(path, document.primitive(TRIANGLE))
    elif kind == "nothing":
        document.write(path, document.primitive(TRIANGLE, mode=1))
    elif kind == "nan":
        document.write(path, document.primitive([[np.nan, 0, 0], [1, 0, 0], [0, 1, 0]]))
    elif kind == "accessor":
        primitive = document.primitive(TRIANGLE)
        document.document["accessors"][0]["count"] = 99
        document.write(path, primitive)
    elif kind == "image":
        view = document.view(b"no image at all")
        image = document.add("images", {"bufferView": view, "mimeType": "image/png"})
        material = document.material(texture=document.add("textures", {"source": image}))
        document.write(path, document.primitive(TRIANGLE, TEXCOORD_0=[[0, 0]] * 3, material=material))
    elif kind == "escape":
        document.add("images", {"uri": "../../secret.png"})
        material = document.material(texture=document.add("textures", {"source": 0}))
        document.write(path, document.primitive(TRIANGLE, TEXCOORD_0=[[0, 0]] * 3, material=material))
    elif kind == "cycle":
        document.document["nodes"] = [{"mesh": 0, "children": [0]}]
        document.write(path, document.primitive(TRIANGLE))
    return path


@pytest.mark.parametrize(
    ("kind", "says"),
    [("empty", "not a glTF"), ("text", "not a glTF"), ("truncated", "truncated"), ("short", "truncated"),
     ("index", "points beyond"), ("draco", "KHR_draco_mesh_compression"), ("nothing", "no triangles"),
     ("nan", "not finite"), ("accessor", "reaches beyond"), ("image", "cannot be decoded"),
     ("escape", "outside its own folder"), ("cycle", "reached twice")],
)  # fmt: skip
def test_broken_files_are_refused_by_name_in_one_sentence(tmp_path, kind, says):
    path = _broken(kind, tmp_path)
    with pytest.raises(UserError, match=says) as caught:
        load_mesh(path)
    assert str(path) in str(caught.value)


def test_other_suffixes_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"\.fbx"):
        load_mesh(tmp_path / "a.fbx")
    with pytest.raises(UserError, match=r"\.glb, \.obj"):
        Asset(cube()).save(tmp_path / "a.fbx")


def test_objects_of_the_data_pack_read_as_an_independent_reader_reads_them(objects_val):
    import trimesh

    for path in sorted(objects_val.glob("*.glb"))[::10]:
        ours = load_mesh(path)
        (theirs,) = trimesh.load_scene(str(path), process=False).geometry.values()
        assert np.allclose(from_world(ours.vertices), theirs.vertices, atol=1e-6)
        assert np.array_equal(ours.faces, theirs.faces)
        assert np.allclose(from_world(ours.normals), theirs.vertex_normals, atol=1e-5)
        image = np.asarray(theirs.visual.material.baseColorTexture.convert("RGB"))
        assert np.array_equal(ours.texture, image)
        assert np.allclose(ours.uv * [1, -1] + [0, 1], theirs.visual.uv, atol=1e-6)
