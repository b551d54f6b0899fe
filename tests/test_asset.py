"""Meshes and files: conventions, colours, exact round trips, and GLB files that independent readers accept."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gltf_files import GltfFile

from maquette.asset import Asset, Mesh, Tile, from_world, linear_to_srgb, load_mesh, srgb_to_linear, to_world
from maquette.asset_export import glb_bytes, portable
from maquette.errors import UserError
from maquette.run import fingerprint

TRIANGLE = [[0, 0, 0], [1, 0, 0], [0, 1, 0]]
THIRD = np.full((1, 3), 1 / 3, np.float32)


def cube(half: float = 0.5, **fields) -> Mesh:
    """A closed cube around the origin, outward, 12 faces, 8 vertices."""
    corners = np.stack(np.meshgrid([-half, half], [-half, half], [-half, half], indexing="ij"), -1).reshape(8, 3)
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = [triangle for a, b, c, d in quads for triangle in ((a, b, c), (a, c, d))]
    return Mesh(corners, np.array(faces), **fields)


def textured_cube(size: int = 32, seed: int = 0) -> Mesh:
    """A cube whose every face has its own patch of a noisy texture."""
    plain = cube()
    texture = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    uv = []
    for number in range(len(plain.faces)):
        x, y = number % 4 / 4, number // 4 / 4
        uv += [[x + 0.02, y + 0.02], [x + 0.22, y + 0.03], [x + 0.05, y + 0.21]]
    return Mesh(
        plain.vertices[plain.faces].reshape(-1, 3), np.arange(36).reshape(12, 3), uv=np.array(uv), texture=texture
    )


def surface_points(mesh: Mesh, count: int = 500, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, len(mesh.faces), count), rng.dirichlet([1, 1, 1], count).astype(np.float32)


# Mesh


def test_a_mesh_checks_what_it_is_made_of():
    faces = np.array([[0, 1, 2]])
    with pytest.raises(ValueError, match=r"0\.\.3, but there are 3 vertices"):
        Mesh(np.array(TRIANGLE, float), faces + [0, 0, 1])
    with pytest.raises(ValueError, match="needs Mesh.uv"):
        Mesh(np.array(TRIANGLE, float), faces, texture=np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(ValueError, match="needs face_tile"):
        Mesh(np.array(TRIANGLE, float), faces, tiles=(Tile(0, 0, 1, 1), Tile(1, 0, 1, 1)))


def test_normals_areas_and_closedness_of_a_cube():
    mesh = cube()
    assert mesh.is_watertight
    assert mesh.face_areas().sum() == pytest.approx(6)
    middles = mesh.vertices[mesh.faces].mean(1)
    assert (np.einsum("ij,ij->i", middles, mesh.face_normals()) > 0.3).all()
    assert np.allclose(np.linalg.norm(mesh.vertex_normals(), axis=1), 1, atol=1e-6)
    assert not replace(mesh, faces=mesh.faces[1:]).is_watertight
    turned = mesh.faces.copy()
    turned[0] = turned[0, ::-1]
    assert not replace(mesh, faces=turned).is_watertight


def test_vertices_split_along_seams_neither_open_the_surface_nor_bend_its_normals():
    whole = cube()
    split = Mesh(whole.vertices[whole.faces].reshape(-1, 3), np.arange(36).reshape(12, 3))
    assert split.is_watertight
    assert np.allclose(split.vertex_normals(), whole.vertex_normals()[whole.faces].reshape(-1, 3), atol=1e-6)


def test_normalized_puts_the_box_at_the_origin_and_the_farthest_vertex_at_the_radius():
    mesh = cube(3.0)
    moved = replace(mesh, vertices=mesh.vertices * [1, 2, 0.5] + [5, -2, 9])
    result = moved.normalized(0.75)
    assert np.allclose(result.bounds.sum(0), 0, atol=1e-6)
    assert np.linalg.norm(result.vertices, axis=1).max() == pytest.approx(0.75, abs=1e-6)
    with pytest.raises(ValueError, match="coincide"):
        Mesh(np.ones((3, 3)), np.array([[0, 1, 2]])).normalized()


def test_saved_meshes_come_back_equal(tmp_path):
    mesh = replace(textured_cube(), tiles=(Tile(0, 0, 16, 32), Tile(16, 0, 16, 32, "clamp", "mirror", "mask", 0.3)),
                   face_tile=np.arange(12) % 2)  # fmt: skip
    mesh.save(tmp_path)
    again = Mesh.load(tmp_path)
    assert fingerprint(again) == fingerprint(mesh)
    assert again.tiles == mesh.tiles
    assert fingerprint(replace(mesh, vertices=mesh.vertices + 1e-6)) != fingerprint(mesh)


def test_colour_curves_invert_each_other_and_meet_known_values():
    display = np.linspace(0, 1, 1001)
    assert np.allclose(linear_to_srgb(srgb_to_linear(display)), display, atol=1e-6)
    assert srgb_to_linear(np.array([0.5]))[0] == pytest.approx(0.21404114, abs=1e-7)


@pytest.mark.parametrize("wrap", ["repeat", "clamp", "mirror"])
def test_textures_are_read_bilinearly_and_wrap_inside_their_tile(wrap):
    rng = np.random.default_rng(1)
    texture = rng.integers(0, 256, (8, 12, 3), dtype=np.uint8)
    tile = Tile(5, 2, 4, 3, wrap, wrap)
    uv = rng.uniform(-2.5, 2.5, (200, 2))
    corners = np.repeat(uv, 3, axis=0)
    mesh = Mesh(np.zeros((600, 3)), np.arange(600).reshape(200, 3), uv=corners, texture=texture, tiles=(tile,))
    result = mesh.sample_color(np.arange(200), np.tile([[0.2, 0.3, 0.5]], (200, 1)))

    def pixel(x: int, y: int) -> np.ndarray:
        def fold(i: int, n: int) -> int:
            if wrap == "repeat":
                return i % n
            if wrap == "clamp":
                return min(max(i, 0), n - 1)
            return i % (2 * n) if i % (2 * n) < n else 2 * n - 1 - i % (2 * n)

        return texture[2 + fold(y, 3), 5 + fold(x, 4)].astype(float) / 255

    for (u, v), color in zip(mesh.uv[::3].astype(float), result, strict=True):
        x, y = u * 4 - 0.5, v * 3 - 0.5
        i, j = int(np.floor(x)), int(np.floor(y))
        a, b = x - i, y - j
        expected = (1 - a) * (1 - b) * pixel(i, j) + a * (1 - b) * pixel(i + 1, j)
        expected += (1 - a) * b * pixel(i, j + 1) + a * b * pixel(i + 1, j + 1)
        assert np.allclose(color[:3], expected, atol=2e-5)
        assert color[3] == 1


# Reading glTF


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


# Round trips


@pytest.mark.parametrize("suffix", [".glb", ".obj"])
def test_textured_files_bring_back_geometry_and_colour_exactly(tmp_path, suffix):
    mesh = textured_cube()
    written = Asset(mesh).save(tmp_path / f"a{suffix}")
    assert all(path.is_file() for path in written)
    again = load_mesh(tmp_path / f"a{suffix}")
    assert np.array_equal(again.vertices[again.faces], mesh.vertices[mesh.faces])
    face, weights = surface_points(mesh)
    assert np.allclose(again.sample_color(face, weights), mesh.sample_color(face, weights), atol=1e-5)
    assert again.is_watertight


@pytest.mark.parametrize("suffix", [".glb", ".obj"])
def test_several_tiles_survive_a_round_trip(tmp_path, suffix):
    mesh = textured_cube()
    alpha = np.concatenate([mesh.texture, np.full((32, 32, 1), 200, np.uint8)], axis=-1)
    tiles = (Tile(0, 0, 16, 32), Tile(16, 0, 16, 32, "repeat", "repeat"))
    mesh = replace(mesh, texture=alpha, tiles=tiles, face_tile=np.arange(12) // 6)
    Asset(mesh).save(tmp_path / f"a{suffix}")
    again = load_mesh(tmp_path / f"a{suffix}")
    face, weights = surface_points(mesh)
    assert np.allclose(again.sample_color(face, weights)[:, :3], mesh.sample_color(face, weights)[:, :3], atol=1e-5)


@pytest.mark.parametrize("suffix", [".glb", ".obj", ".ply"])
def test_vertex_colours_survive_a_round_trip(tmp_path, suffix):
    colors = np.random.default_rng(0).random((8, 3))
    mesh = cube(vertex_colors=colors)
    Asset(mesh).save(tmp_path / f"a{suffix}")
    again = load_mesh(tmp_path / f"a{suffix}")
    assert np.allclose(again.vertices[again.faces], mesh.vertices[mesh.faces])
    assert np.allclose(again.vertex_colors[again.faces], colors[mesh.faces], atol=0.002)


@pytest.mark.parametrize("suffix", [".ply", ".stl"])
def test_ply_and_stl_keep_world_coordinates(tmp_path, suffix):
    mesh = replace(textured_cube(), vertices=textured_cube().vertices * [1, 2, 3])
    Asset(mesh).save(tmp_path / f"a{suffix}")
    again = load_mesh(tmp_path / f"a{suffix}")
    assert np.allclose(again.bounds, mesh.bounds)
    assert np.allclose(np.sort(again.vertices[again.faces].reshape(-1)), np.sort(mesh.vertices[mesh.faces].reshape(-1)))
    assert again.is_watertight
    if suffix == ".ply":
        face, corner = np.arange(12), np.eye(3)[np.zeros(12, int)]
        assert np.allclose(again.sample_color(face, corner), mesh.sample_color(face, corner), atol=0.003)
        assert np.allclose(again.normals, mesh.vertex_normals(), atol=1e-6)


def test_equal_assets_give_equal_bytes_wherever_they_are_written(tmp_path):
    provenance = {"seed": 3, "licences": ["CC0-1.0"], "seconds": 1.5, "out": str(tmp_path)}
    other = {**provenance, "seconds": 99.0, "out": "/elsewhere"}
    for suffix in (".glb", ".obj", ".ply", ".stl"):
        (tmp_path / "one").mkdir(exist_ok=True)
        (tmp_path / "two").mkdir(exist_ok=True)
        first = Asset(textured_cube(), provenance=provenance).save(tmp_path / "one" / f"a{suffix}")
        second = Asset(textured_cube(), provenance=other).save(tmp_path / "two" / f"a{suffix}")
        assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
        assert str(tmp_path).encode() not in first[0].read_bytes()


def test_provenance_travels_in_extras_without_times_and_places(tmp_path):
    provenance = {
        "method": "imagedream",
        "seed": 7,
        "settings": {"weights": "/home/someone/models/prior.safetensors", "out": "runs/x", "rate": float("inf")},
        "stages": [{"name": "fit", "seconds": 12.5}],
        "citations": ["arXiv:2312.02201"],
        "folder": Path("/home/someone/run"),
    }
    clean = portable(provenance)
    assert clean["settings"] == {"weights": "prior.safetensors", "rate": "inf"}
    assert clean["stages"] == [{"name": "fit"}]
    assert "folder" not in clean
    Asset(cube(), provenance=provenance).save(tmp_path / "a.glb")
    document, _ = read_glb(tmp_path / "a.glb")
    assert document["asset"]["extras"] == json.loads(json.dumps(clean))


# GLB for other programs


def read_glb(path: Path) -> tuple[dict, bytes]:
    data = path.read_bytes()
    magic, version, length = struct.unpack_from("<4sII", data)
    assert (magic, version, length) == (b"glTF", 2, len(data))
    size, kind = struct.unpack_from("<I4s", data, 12)
    assert kind == b"JSON" and size % 4 == 0
    document = json.loads(data[20 : 20 + size])
    binary, kind = struct.unpack_from("<I4s", data, 20 + size)
    assert kind == b"BIN\0" and binary % 4 == 0 and 28 + size + binary == len(data)
    return document, data[28 + size :]


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


# OBJ


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
