"""Surfaces of known fields: volume, area, closedness, levels, hollows, accuracy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from shapes import density_of_sdf, opacity_of, signed_volume, sphere_sdf, torus_sdf, union

from maquette.errors import RunFailed
from maquette.meshing.extract import choose_level, extract_mesh, fill_hollows, sample_grid


def test_grid_nodes_stand_where_they_should_and_chunks_do_not_matter():
    def field(points):
        return points @ torch.tensor([1.0, 10.0, 100.0])

    values = sample_grid(field, 8, chunk=50)
    axis = np.linspace(-1, 1, 9)
    expected = axis[:, None, None] + 10 * axis[None, :, None] + 100 * axis[None, None]
    assert np.allclose(values, expected, atol=1e-4)
    assert np.array_equal(values, sample_grid(field, 8))


@pytest.mark.parametrize("inside", ["below", "above"])
def test_a_sphere_is_closed_outward_and_of_the_right_size(inside):
    sdf = sphere_sdf(0.6)
    field = sdf if inside == "below" else (lambda points: -sdf(points))
    mesh, level = extract_mesh(field, 48, 0.0, inside=inside)
    assert mesh.is_watertight
    assert signed_volume(mesh) == pytest.approx(4 / 3 * math.pi * 0.6**3, rel=0.004)
    assert mesh.face_areas().sum() == pytest.approx(4 * math.pi * 0.6**2, rel=0.002)
    assert level.silhouette_iou is None
    # Every vertex lies on the level of the field itself, far closer than the grid's linear interpolation.
    assert np.abs(np.linalg.norm(mesh.vertices, axis=1) - 0.6).max() < 2e-6


def test_bisection_beats_interpolation_on_a_curved_density():
    density = density_of_sdf(sphere_sdf(0.6), sharpness=30)
    level = 10.0
    radius = 0.6 - math.log(level / (60 - level)) / 30
    errors = [
        np.abs(np.linalg.norm(extract_mesh(density, 24, level, bisections=n)[0].vertices, axis=1) - radius).max()
        for n in (0, 2, 4, 6)
    ]
    assert errors[0] > 2e-3 > 1e-4 > errors[2] >= errors[3]


@pytest.mark.parametrize("inside", ["below", "above"])
def test_a_blur_takes_what_is_thin_and_leaves_the_rest_where_it_was(inside):
    ball, needle = sphere_sdf(0.5), lambda points: (points[:, :2].norm(dim=-1) - 0.03).maximum(points[:, 2] - 0.8)

    def sdf(points):
        return torch.minimum(ball(points), needle(points))

    field = sdf if inside == "below" else (lambda points: 500.0 * torch.sigmoid(-80 * sdf(points)))
    sharp, _ = extract_mesh(field, 64, 0.0 if inside == "below" else 250.0, inside=inside)
    soft, _ = extract_mesh(field, 64, 0.0 if inside == "below" else 250.0, inside=inside, blur=0.06)
    assert sharp.vertices[:, 2].max() == pytest.approx(0.8, abs=0.06)
    assert soft.vertices[:, 2].max() < 0.6
    assert soft.is_watertight
    assert signed_volume(soft) == pytest.approx(4 / 3 * math.pi * 0.5**3, rel=0.06)


def test_a_blur_that_leaves_nothing_says_so():
    with pytest.raises(RunFailed, match="nothing of the surface is left by a blur of 0.5"):
        extract_mesh(lambda points: 20.0 * (points.norm(dim=-1) < 0.1), 32, 10.0, blur=0.5)


def test_a_torus_keeps_its_hole():
    mesh, _ = extract_mesh(torus_sdf(), 64, inside="below")
    edges = len(mesh.faces) * 3 // 2
    assert len(mesh.vertices) - edges + len(mesh.faces) == 0  # Euler characteristic of genus 1
    assert signed_volume(mesh) == pytest.approx(2 * math.pi**2 * 0.5 * 0.18**2, rel=0.01)


def test_a_solid_that_reaches_the_border_is_closed_there():
    mesh, _ = extract_mesh(lambda points: torch.full_like(points[:, 0], 5.0), 8, 1.0)
    assert mesh.is_watertight
    assert mesh.bounds.tolist() == [[-1, -1, -1], [1, 1, 1]]
    assert signed_volume(mesh) == pytest.approx(8, rel=1e-6)


def test_hollows_that_nothing_reaches_are_filled_and_open_ones_stay():
    shell = union(sphere_sdf(0.6))

    def hollow(points):
        return torch.maximum(shell(points), 0.4 - points.norm(dim=-1))

    def pierced(points):  # a bore along +x joins the hollow with the outside
        bore = torch.maximum(points[..., 1:].norm(dim=-1) - 0.15, -points[..., 0])
        return torch.maximum(hollow(points), -bore)

    solid = 4 / 3 * math.pi * 0.6**3
    inner = 4 / 3 * math.pi * 0.4**3
    filled, _ = extract_mesh(hollow, 48, inside="below")
    assert signed_volume(filled) == pytest.approx(solid, rel=0.005)
    kept, _ = extract_mesh(hollow, 48, inside="below", fill_cavities=False)
    assert signed_volume(kept) == pytest.approx(solid - inner, rel=0.01)
    open_, _ = extract_mesh(pierced, 48, inside="below")
    assert signed_volume(open_) < solid - inner
    heights = np.full((5, 5, 5), -1.0, np.float32)
    heights[1:4, 1:4, 1:4] = 1
    heights[2, 2, 2] = -1
    assert (fill_hollows(heights)[1:4, 1:4, 1:4] > 0).all()


def test_pits_that_are_open_to_the_sky_alone_are_filled_where_asked():
    sphere = sphere_sdf(0.6)

    def along(axis):  # a bore from the middle outwards, along one axis
        def field(points):
            others = points[:, [k for k in range(3) if k != axis]]
            bore = torch.maximum(others.norm(dim=-1) - 0.15, -points[:, axis])
            return torch.maximum(sphere(points), -bore)

        return field

    whole = signed_volume(extract_mesh(sphere, 48, inside="below")[0])
    pit, cave = along(2), along(0)
    assert signed_volume(extract_mesh(pit, 48, inside="below")[0]) < 0.97 * whole
    assert signed_volume(extract_mesh(pit, 48, inside="below", fill_pits=True)[0]) > 0.99 * whole
    assert signed_volume(extract_mesh(cave, 48, inside="below", fill_pits=True)[0]) < 0.97 * whole


def test_the_automatic_level_reproduces_the_silhouettes_of_the_volume():
    sdf = union(sphere_sdf(0.45, (0, 0, 0.2)), torus_sdf(0.6, 0.08))
    density = density_of_sdf(sdf, peak=80, sharpness=40)
    mesh, level = extract_mesh(density, 64, silhouettes=opacity_of(density))
    assert level.silhouette_iou > 0.9
    values = sample_grid(density, 64)
    fixed = [score_of(values, density, value) for value in (0.05, level.value, 70.0)]
    assert fixed[1] > fixed[0] + 0.03 and fixed[1] > fixed[2] + 0.03
    assert mesh.is_watertight


def score_of(values, density, value: float) -> float:
    """The score of one level by the definition, one view and ray at a time."""
    from maquette.cameras import Cameras, orbit
    from maquette.meshing.rays import largest_along_rays

    cameras = Cameras.cat([orbit(6, elevation=25.0), orbit(6, elevation=-15.0, azimuth=15.0)])
    opacity = opacity_of(density)(cameras).reshape(12, -1).numpy()
    inside = largest_along_rays(values, cameras) > value
    scores = [o[i].sum() / (i.sum() + o[~i].sum()) for o, i in zip(opacity, inside, strict=True)]
    return float(np.mean(scores))


def test_the_reported_score_is_the_score_of_the_chosen_level():
    density = density_of_sdf(sphere_sdf(0.6), peak=5, sharpness=15)
    values = sample_grid(density, 48)
    level = choose_level(values, opacity_of(density))
    assert level.silhouette_iou == pytest.approx(score_of(values, density, level.value), abs=0.01)


def test_a_thin_fog_does_not_become_the_surface():
    body = density_of_sdf(sphere_sdf(0.5), peak=60, sharpness=200)
    mesh, level = extract_mesh(
        lambda p: body(p) + 0.05, 48, silhouettes=opacity_of(lambda p: body(p) + 0.05 * (p.norm(dim=-1) < 1))
    )
    assert level.value > 1
    assert np.linalg.norm(mesh.vertices, axis=1).max() < 0.55


@pytest.mark.parametrize(
    ("field", "threshold", "says"),
    [
        (lambda p: p.norm(dim=-1) * 0, 1.0, "no surface at level 1"),
        (lambda p: p.norm(dim=-1) * float("nan"), 1.0, "not finite"),
    ],
)
def test_a_field_without_a_surface_fails_in_a_sentence(field, threshold, says):
    with pytest.raises(RunFailed, match=says):
        extract_mesh(field, 16, threshold)


def test_a_transparent_volume_fails_in_a_sentence():
    with pytest.raises(RunFailed, match="transparent"):
        extract_mesh(lambda p: p[:, 0] * 0 + 1e-6, 16, silhouettes=lambda cameras: torch.zeros(len(cameras), 64, 64))


def test_wrong_callers_are_told_what_to_pass():
    with pytest.raises(ValueError, match="pass `silhouettes`"):
        extract_mesh(lambda p: p[:, 0], 16)
    with pytest.raises(ValueError, match="one number per point"):
        extract_mesh(lambda p: p, 16, 0.0)
    with pytest.raises(ValueError, match="opacity"):
        extract_mesh(lambda p: p[:, 0], 16, silhouettes=lambda cameras: torch.zeros(3, 4))
    with pytest.raises(ValueError, match="at least 2"):
        sample_grid(lambda p: p[:, 0], 1)
