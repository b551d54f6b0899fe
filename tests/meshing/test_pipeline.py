"""A field becomes an asset: quality numbers, floaters, colours, determinism, every file format."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from shapes import density_of_sdf, opacity_of, position_color, signed_volume, sphere_sdf, torus_sdf, union

from maquette.asset import Asset, load_mesh
from maquette.fields.base import DENSITY, RGB, FieldSample
from maquette.meshing.pipeline import MeshConfig, color_of, density_of, mesh_from_field

SMALL = MeshConfig(resolution=64, max_faces=4000, texture_size=256)


def body(points: torch.Tensor) -> torch.Tensor:
    """A ball on a ring, and a far crumb."""
    return union(sphere_sdf(0.45, (0, 0, 0.1)), torus_sdf(0.5, 0.12), sphere_sdf(0.04, (0.6, 0.6, 0.6)))(points)


@pytest.fixture(scope="module")
def result():
    density = density_of_sdf(body)
    return mesh_from_field(density, position_color, SMALL, silhouettes=opacity_of(density))


def test_a_density_becomes_a_clean_textured_mesh_with_its_numbers(result):
    mesh, quality = result
    assert quality.watertight and mesh.is_watertight
    assert quality.components == 1 and quality.floaters_removed == 1
    assert 0 < quality.floater_volume_share < 0.02
    assert quality.faces == len(mesh.faces) <= 4000
    assert quality.non_manifold_edges == quality.border_edges == 0
    assert quality.uv_coverage > 0.3 and quality.unwrap == "xatlas" and quality.notes == ()
    assert quality.threshold > 0 and quality.silhouette_iou > 0.9
    assert quality.volume == pytest.approx(signed_volume(mesh)) and quality.volume > 0
    assert mesh.texture.shape == (256, 256, 3)
    rng = np.random.default_rng(0)
    face, weights = rng.integers(0, len(mesh.faces), 2000), rng.dirichlet([1, 1, 1], 2000)
    points = np.einsum("nk,nkc->nc", weights, mesh.vertices[mesh.faces[face]])
    # The baked colour is that of a skin `bake_depth` thick, so it may lie that far from the surface.
    assert np.abs(mesh.sample_color(face, weights)[:, :3] - (points + 1) / 2).max() < 0.03


def test_the_same_field_gives_the_same_bytes(result, tmp_path):
    density = density_of_sdf(body)
    mesh, quality = mesh_from_field(density, position_color, SMALL, silhouettes=opacity_of(density))
    assert quality == result[1]
    for number, one in enumerate((mesh, result[0])):
        Asset(one, provenance={"seed": 0}).save(tmp_path / f"{number}.glb")
    assert (tmp_path / "0.glb").read_bytes() == (tmp_path / "1.glb").read_bytes()


@pytest.mark.parametrize("suffix", [".glb", ".obj", ".ply", ".stl"])
def test_every_format_can_be_read_back(result, tmp_path, suffix):
    mesh, _ = result
    Asset(mesh).save(tmp_path / f"asset{suffix}")
    again = load_mesh(tmp_path / f"asset{suffix}")
    assert len(again.faces) == len(mesh.faces) and again.is_watertight
    assert np.allclose(again.bounds, mesh.bounds, atol=1e-6)


def test_a_signed_distance_becomes_a_mesh_too():
    config = MeshConfig(resolution=48, max_faces=2000, texture_size=128, smoothing=0, unwrap_seconds=0)
    mesh, quality = mesh_from_field(torus_sdf(), position_color, config, inside="below")
    assert quality.threshold == 0 and quality.silhouette_iou is None
    assert quality.unwrap == "box" and len(quality.notes) == 1
    assert quality.volume == pytest.approx(2 * np.pi**2 * 0.5 * 0.18**2, rel=0.03)


def test_fields_answer_as_functions_of_position():
    class Field:
        def __call__(self, positions, directions=None, want=DENSITY | RGB) -> FieldSample:
            density = positions.norm(dim=-1, keepdim=True) if "density" in want else None
            return FieldSample(density=density, rgb=positions.abs() if "rgb" in want else None)

    points = torch.rand(7, 3)
    assert torch.equal(density_of(Field())(points), points.norm(dim=-1, keepdim=True))
    assert torch.equal(color_of(Field())(points), points)


@pytest.mark.parametrize(
    "wrong", [{"resolution": 2}, {"max_faces": 1}, {"min_component": 1.0}, {"unwrap_seconds": -1}, {"texture_size": 4}]
)
def test_impossible_settings_are_refused_where_they_are_made(wrong):
    with pytest.raises(ValueError, match=f"MeshConfig.{next(iter(wrong))}"):
        MeshConfig(**wrong)
