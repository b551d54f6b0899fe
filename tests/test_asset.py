"""Meshes and assets: conventions, colours, exact round trips."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cubes import TRIANGLE, cube, textured_cube
from gltf_files import read_glb

from maquette.asset import Asset, Mesh, Tile, linear_to_srgb, load_mesh, srgb_to_linear
from maquette.asset_export import portable
from maquette.run import fingerprint


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
