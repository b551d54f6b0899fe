"""Texels know their surface points; baked colours come back through a file; seams do not bleed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from shapes import density_of_sdf, icosphere, position_color, sphere_sdf

from maquette.asset import Asset, Mesh, load_mesh
from maquette.meshing.bake import bake_texture, color_through, nearest_texel, texture_of
from maquette.meshing.texels import covering_pairs, rasterize_uv
from maquette.meshing.unwrap import box_unwrap, unwrap_mesh


def slow_raster(corners: np.ndarray, height: int, width: int) -> np.ndarray:
    """Lowest face over each texel centre, one texel and face at a time; -1 where there is none."""
    owner = np.full((height, width), -1)
    for number in range(len(corners) - 1, -1, -1):
        (ax, ay), (bx, by), (cx, cy) = corners[number]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        for row in range(height):
            for column in range(width):
                x, y = column + 0.5, row + 0.5
                u = ((bx - x) * (cy - y) - (by - y) * (cx - x)) / area
                v = ((cx - x) * (ay - y) - (cy - y) * (ax - x)) / area
                if u >= 0 and v >= 0 and u + v <= 1:
                    owner[row, column] = number
    return owner


def test_the_raster_agrees_with_a_slow_one_and_its_weights_with_the_texel_centres():
    rng = np.random.default_rng(0)
    uv = rng.uniform(-0.1, 1.1, (36, 2))
    mesh = Mesh(rng.normal(size=(36, 3)), np.arange(36).reshape(12, 3), uv=uv)
    texels = rasterize_uv(mesh, 20, 24)
    owner = np.full((20, 24), -1)
    at = texels.inside
    owner[texels.row[at], texels.column[at]] = texels.face[at]
    assert np.array_equal(owner, slow_raster(mesh.uv[mesh.faces].astype(float) * (24, 20), 20, 24))
    found = texels.interpolate(mesh.uv * [24, 20], mesh)
    centres = np.stack([texels.column + 0.5, texels.row + 0.5], axis=-1)
    assert np.allclose(found[at], centres[at], atol=1e-3)
    assert (np.linalg.norm(found[~at] - centres[~at], axis=1) <= 1.5 + 1e-3).all()
    assert (texels.barycentric >= -1e-6).all() and np.allclose(texels.barycentric.sum(1), 1, atol=1e-6)


def test_texels_near_a_triangle_show_its_nearest_point():
    mesh = Mesh(np.eye(3), np.array([[0, 1, 2]]), uv=np.array([[0.25, 0.25], [0.75, 0.25], [0.25, 0.75]]))
    texels = rasterize_uv(mesh, 16, 16)
    at = np.flatnonzero(
        (texels.row == 3) & (texels.column == 6)
    )  # centre (6.5, 3.5), half a texel above the edge y = 4
    assert not texels.inside[at[0]]
    assert np.allclose(texels.interpolate(mesh.uv * 16, mesh)[at[0]], [6.5, 4], atol=1e-6)


def test_overlapping_faces_are_all_listed():
    corners = np.array([[[1, 1], [9, 1], [1, 9]], [[1, 1], [9, 1], [1, 9]]], float)
    texel, face = covering_pairs(corners, 10, 10)
    assert np.array_equal(np.sort(texel[face == 0]), np.sort(texel[face == 1])) and (face == 0).sum() > 20


@pytest.mark.parametrize("way", ["xatlas", "box"])
def test_baked_positions_come_back_through_a_glb_within_a_hundredth(tmp_path, way):
    mesh = icosphere(0.7, 4)
    flat = unwrap_mesh(mesh, texture_size=512).mesh if way == "xatlas" else box_unwrap(mesh, texture_size=512)
    baked = bake_texture(flat, position_color, size=512)
    Asset(baked).save(tmp_path / "a.glb")
    again = load_mesh(tmp_path / "a.glb")
    rng = np.random.default_rng(0)
    face = rng.integers(0, len(again.faces), 20000)
    # Corners and edges as well, where seams would show.
    weights = np.concatenate([rng.dirichlet([1, 1, 1], 10000), rng.dirichlet([0.05] * 3, 10000)])
    points = np.einsum("nk,nkc->nc", weights, again.vertices[again.faces[face]])
    error = np.abs(again.sample_color(face, weights)[:, :3] - (points + 1) / 2)
    assert error.max() < 0.01 and error.mean() < 0.002


def test_everything_outside_the_charts_repeats_the_nearest_texel():
    mesh = box_unwrap(icosphere(0.7, 2), texture_size=64)
    texels = rasterize_uv(mesh, 64, 64)
    baked = bake_texture(mesh, lambda p: torch.ones_like(p) * 0.6, size=64)
    assert (baked.texture == round(0.6 * 255)).all()
    nearest = nearest_texel(texels)
    covered = np.zeros((64, 64), bool)
    covered[texels.row, texels.column] = True
    for row, column in np.argwhere(~covered)[::37]:
        distance = np.hypot(texels.row - row, texels.column - column)
        assert distance[nearest[row, column]] == distance.min()
    values = np.random.default_rng(0).random((len(texels), 3))
    image = texture_of(values, texels)
    assert np.array_equal(image[texels.row, texels.column], np.round(values * 255).astype(np.uint8))


def test_colour_is_read_where_the_weight_of_the_volume_is():
    # Red fog outside, a green skin, blue inside: a camera sees the skin, the surface level lies a little outside of it.
    density = density_of_sdf(sphere_sdf(0.6), peak=400, sharpness=200)

    def color(points):
        radius = points.norm(dim=-1, keepdim=True)
        red, green = (radius > 0.61).float(), ((radius <= 0.61) & (radius > 0.58)).float()
        return torch.cat([red, green, 1 - red - green], dim=-1)

    mesh = box_unwrap(icosphere(0.612, 3), texture_size=64)
    plain = bake_texture(mesh, color, size=64)
    through = bake_texture(mesh, color, size=64, density=density, depth=0.04, samples=16)
    assert plain.texture[..., 0].mean() > 200
    assert through.texture[..., 1].mean() > 200


def test_the_quadrature_agrees_with_a_slow_one():
    generator = torch.Generator().manual_seed(0)
    positions = torch.rand(5, 3, generator=generator, dtype=torch.float64)
    inward = torch.nn.functional.normalize(torch.rand(5, 3, generator=generator, dtype=torch.float64), dim=-1)
    density, color = (lambda p: (p**2).sum(-1) * 20), (lambda p: torch.sin(p * 5) / 2 + 0.5)
    result = color_through(density, color, positions, inward, 0.3, 7)
    for number in range(5):
        light, weights, colors = 1.0, [], []
        for step in range(7):
            point = positions[number] + ((step + 0.5) * 0.6 / 7 - 0.3) * inward[number]
            alpha = 1 - float(torch.exp(-density(point) * 0.6 / 7))
            weights.append(light * alpha)
            colors.append(color(point))
            light *= 1 - alpha
        seen = [w if w > 1e-3 * sum(weights) else 0.0 for w in weights]
        expected = sum(w * c for w, c in zip(seen, colors, strict=True)) / sum(seen)
        assert torch.allclose(result[number], expected, atol=1e-10)
    empty = color_through(lambda p: p[..., 0] * 0, color, positions, inward, 0.3, 7)
    assert torch.allclose(empty, color(positions))


def test_wrong_colour_functions_are_told():
    mesh = box_unwrap(icosphere(0.5, 1), texture_size=32)
    with pytest.raises(ValueError, match="not finite"):
        bake_texture(mesh, lambda p: p * float("nan"), size=32)
    with pytest.raises(ValueError, match="rgb"):
        bake_texture(mesh, lambda p: p[:, :2], size=32)
    with pytest.raises(ValueError, match="unwrap it first"):
        rasterize_uv(icosphere(), 8, 8)
