"""Surfaces, point distances and solids against closed forms and recorded values."""

from __future__ import annotations

import json

import numpy as np
import pytest

from maquette.evaluation import geometry, voxels


def box(low, high):
    bounds = (low, high)
    corners = np.array(
        [[bounds[i][0], bounds[j][1], bounds[k][2]] for i in (0, 1) for j in (0, 1) for k in (0, 1)], float
    )
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    return corners, np.array([face for a, b, c, d in quads for face in ((a, b, c), (a, c, d))])


def sphere(radius, subdivisions=4):
    import trimesh

    mesh = trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius)
    return np.asarray(mesh.vertices), np.asarray(mesh.faces)


def joined(*meshes):
    offsets = np.cumsum([0] + [len(v) for v, _ in meshes[:-1]])
    faces = [f + o for (_, f), o in zip(meshes, offsets, strict=True)]
    return np.concatenate([v for v, _ in meshes]), np.concatenate(faces)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_box_has_its_area_and_volume():
    vertices, faces = box((0, 0, 0), (1, 2, 3))
    assert geometry.surface_area(vertices, faces) == pytest.approx(22)
    assert geometry.enclosed_volume(vertices, faces) == pytest.approx(6)
    assert geometry.enclosed_volume(vertices + 100, faces[:, ::-1]) == pytest.approx(-6)


def test_samples_lie_on_their_faces_and_follow_the_area(rng):
    vertices, faces = box((0, 0, 0), (1, 2, 3))
    points, face = geometry.sample_surface(vertices, faces, 40_000, rng)
    a = vertices[faces[face, 0]]
    offset = np.einsum("ij,ij->i", points - a, geometry.face_normals(vertices, faces)[face])
    assert np.abs(offset).max() < 1e-12
    share = np.bincount(face, minlength=12) / len(face)
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2
    # Five standard deviations of a binomial share.
    assert (np.abs(share - area / area.sum()) < 5 * np.sqrt(area / area.sum() / len(face))).all()


def test_sampling_floor_is_what_theory_says(rng):
    mesh = sphere(0.5)
    p, q = (geometry.sample_surface(*mesh, 30_000, rng)[0] for _ in range(2))
    floor = np.sqrt(geometry.surface_area(*mesh) / 30_000) / 2
    assert geometry.PointDistances.between(p, q).cd_l1 == pytest.approx(floor, rel=0.03)


@pytest.mark.parametrize("normalise", [geometry.longest_side, geometry.half_diagonal, geometry.bounding_sphere])
def test_normalisations_undo_any_shift_and_scale(normalise, rng):
    points = rng.normal(size=(100, 3))
    placed = normalise(points)(points)
    moved = points * 37 + [1, -200, 3]
    np.testing.assert_allclose(normalise(moved)(moved), placed, atol=1e-12)
    np.testing.assert_allclose(normalise(moved).inverse()(placed), moved, atol=1e-9)
    np.testing.assert_allclose(placed.min(0) + placed.max(0), 0, atol=1e-12)
    size = {
        geometry.longest_side: np.ptp(placed, axis=0).max(),
        geometry.half_diagonal: np.linalg.norm(np.ptp(placed, axis=0)) / 2,
        geometry.bounding_sphere: np.linalg.norm(placed, axis=1).max(),
    }[normalise]
    assert size == pytest.approx(1)


def test_hidden_surfaces_are_never_sampled(rng):
    outer, inner = box((-1, -1, -1), (1, 1, 1)), box((-0.5, -0.5, -0.5), (0.5, 0.5, 0.5))
    vertices, faces = joined(outer, inner)
    _, face = geometry.sample_visible_surface(vertices, faces, 5000, rng)
    assert face.max() < len(outer[1]) and len(face) == 5000


def test_the_inside_of_an_open_box_is_visible(rng):
    vertices, faces = box((-1, -1, -1), (1, 1, 1))
    lid = (vertices[faces][:, :, 2] == 1).all(axis=1)
    inner = box((-0.2, -0.2, -0.2), (0.2, 0.2, 0.2))
    vertices, faces = joined((vertices, faces[~lid]), inner)
    _, face = geometry.sample_visible_surface(vertices, faces, 5000, rng)
    # The small box's lower face looks at the floor 0.8 below and sees the sky past the floor's edge no more.
    assert (face >= 10).mean() > 0.02


def test_distances_of_known_points():
    p, q = np.array([[0.0, 0, 0], [1, 0, 0]]), np.array([[0.0, 0, 0], [0, 3, 0]])
    d = geometry.PointDistances.between(p, q)
    assert (d.cd_l1, d.cd_l1_sum, d.cd_l2, d.cd_l2_half, d.hausdorff) == (1.0, 2.0, 5.0, 2.5, 3.0)
    assert d.fscore(1.0) == 0.5 and d.fscore(1.0 + 1e-9) == pytest.approx(2 * 1 * 0.5 / 1.5)
    assert d.fscore(1e-3) == 0.5 and d.precision(0.0) == 0.0 and d.fscore(0.0) == 0.0


def test_normal_consistency_forgives_flipped_faces(rng):
    vertices, faces = sphere(1.0)
    p, face = geometry.sample_surface(vertices, faces, 2000, rng)
    normals = geometry.face_normals(vertices, faces)[face]
    same = geometry.PointDistances.between(p, p)
    assert same.normal_consistency(normals, -normals) == pytest.approx(1)
    scrambled = rng.normal(size=normals.shape)
    scrambled /= np.linalg.norm(scrambled, axis=1, keepdims=True)
    assert same.normal_consistency(normals, scrambled) == pytest.approx(0.5, abs=0.03)


def test_bad_points_and_meshes_are_refused(rng):
    with pytest.raises(ValueError, match="finite points"):
        geometry.PointDistances.between(np.array([[np.nan, 0, 0]]), np.zeros((1, 3)))
    with pytest.raises(ValueError, match="degenerate"):
        geometry.sample_surface(np.zeros((3, 3)), np.array([[0, 1, 2]]), 10, rng)
    with pytest.raises(ValueError, match="normalise"):
        geometry.longest_side(np.zeros((4, 3)))


def test_winding_occupancy_of_boxes_is_exact_and_ignores_overlaps():
    grid = voxels.Grid(32)
    first, second = box((-0.5, -0.25, -0.75), (0.5, 0.5, 0.25)), box((0.0, 0.0, -0.75), (0.75, 0.75, 0.25))
    a, b = (voxels.winding_occupancy(*mesh, grid) for mesh in (first, second))
    assert a.sum() == 16 * 12 * 16 and b.sum() == 12 * 12 * 16
    np.testing.assert_array_equal(voxels.winding_occupancy(*joined(first, second), grid), a | b)
    assert voxels.voxel_iou(a, b) == pytest.approx((8 * 8 * 16) / (16 * 12 * 16 + 12 * 12 * 16 - 8 * 8 * 16))


def test_winding_occupancy_where_rays_meet_edges_and_vertices():
    """Faces, edges and vertices lie exactly on cell centres: shifted by (e, e^2), one side of each pair counts."""
    grid = voxels.Grid(4, half_side=2.0)  # centres at -1.5, -0.5, 0.5, 1.5
    a = voxels.winding_occupancy(*box((-0.5, -0.5, -1), (1.5, 1.5, 1)), grid)
    assert a.sum() == 2 * 2 * 2
    # An octahedron whose tip and edges stand above the centre column.
    tips = np.array([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]]) * 1.2 + 0.5
    faces = np.array([[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4], [2, 0, 5], [1, 2, 5], [3, 1, 5], [0, 3, 5]])
    b = voxels.winding_occupancy(tips, faces, grid)
    assert b.sum() == 7  # the centre cell and its six neighbours


def test_enclosed_occupancy_fills_what_cannot_be_reached():
    grid = voxels.Grid(64)
    shell = sphere(0.6)
    solid = voxels.enclosed_occupancy(*shell, grid)
    centres = (np.arange(64) + 0.5) / 32 - 1
    radius = np.sqrt(sum(axis**2 for axis in np.meshgrid(centres, centres, centres, indexing="ij")))
    assert solid[radius < 0.58].all() and not solid[radius > 0.6 + 2 * grid.cell].any()
    # A solid and the same solid with a void inside cannot be told apart from outside.
    np.testing.assert_array_equal(voxels.enclosed_occupancy(*joined(shell, sphere(0.3)), grid), solid)
    # With one of its caps open, only the walls remain.
    vertices, faces = shell
    opened = voxels.enclosed_occupancy(vertices, faces[vertices[faces][:, :, 2].min(axis=1) < 0.4], grid)
    assert opened.sum() < 0.5 * solid.sum()


def test_surface_cells_do_not_leak_for_tilted_planes(rng):
    """A tilted closed box keeps its inside, whatever its pose: the lattice leaves no hole to walk through."""
    for _ in range(20):
        rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        vertices, faces = box((-0.5, -0.4, -0.3), (0.5, 0.4, 0.3))
        solid = voxels.enclosed_occupancy(vertices @ rotation.T + rng.uniform(-0.1, 0.1, 3), faces, voxels.Grid(40))
        assert solid.sum() * voxels.Grid(40).cell ** 3 > 0.48


def test_stray_volume_counts_only_parts_that_miss_the_truth():
    truth, result = np.zeros((2, 20, 20, 20), bool)
    truth[5:15, 5:15, 5:15] = True
    result[4:16, 4:16, 4:16] = True  # too fat, but all of one piece
    assert voxels.stray_volume(result, truth) == 0
    result[0:2, 0:2, 0:2] = True
    assert voxels.stray_volume(result, truth) == pytest.approx(8 / 1000)
    result[2, 2, 2] = result[3, 3, 3] = True  # a bridge over corners makes it part of the object
    assert voxels.stray_volume(result, truth) == 0
    with pytest.raises(ValueError, match="empty"):
        voxels.stray_volume(result, np.zeros_like(truth))


def test_objects_that_touch_the_border_are_not_filled_from_it():
    grid = voxels.Grid(16)
    solid = voxels.enclosed_occupancy(*box((-1, -1, -1), (0, 1, 1)), grid)
    assert solid[:9].all() and not solid[9:].any()


def test_recorded_points_and_solids(goldens):
    arrays = np.load(goldens / "metrics" / "geometry.npz")
    expected = json.loads((goldens / "metrics" / "geometry_metrics.json").read_text())
    d, e = geometry.PointDistances.between(arrays["P"], arrays["Q"]), expected["pointclouds_PQ"]
    assert d.cd_l1 == pytest.approx(e["cd_l1_half_sum"], rel=1e-9)
    assert d.hausdorff == pytest.approx(e["hausdorff_symmetric"], rel=1e-9)
    assert d.fscore(0.1) == pytest.approx(e["fscore_0.1"], rel=1e-9)
    grid = voxels.Grid(64)
    a, b = (voxels.winding_occupancy(arrays[f"{n}_v"], arrays[f"{n}_f"], grid) for n in ("sphere1", "sphere2"))
    e = expected["iou_sphere1_sphere2"]
    assert (a.sum(), b.sum(), (a & b).sum()) == (e["voxel64_count_1"], e["voxel64_count_2"], e["voxel64_intersection"])
