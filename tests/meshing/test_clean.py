"""Cleaning keeps the surface and does what it says: floaters, holes, smoothing, simplification, winding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from shapes import icosphere, signed_volume, sphere_sdf, torus_sdf, union

from maquette.asset import Mesh
from maquette.cameras import orbit
from maquette.meshing.clean import drop_floaters, fill_holes, mend, simplify, smooth, weld, wind_outwards
from maquette.meshing.extract import extract_mesh
from maquette.meshing.quality import MeshQuality, measure_mesh
from maquette.meshing.raycast import RayCaster, pixel_rays


def moved(mesh: Mesh, by: tuple[float, float, float], scale: float = 1.0) -> Mesh:
    return Mesh(mesh.vertices * scale + np.array(by), mesh.faces)


def joined(*meshes: Mesh) -> Mesh:
    offsets = np.cumsum([0] + [len(mesh.vertices) for mesh in meshes])
    faces = [mesh.faces + offset for mesh, offset in zip(meshes, offsets, strict=False)]
    return Mesh(np.concatenate([mesh.vertices for mesh in meshes]), np.concatenate(faces))


def silhouettes(mesh: Mesh) -> np.ndarray:
    caster = RayCaster(mesh)
    views = [caster.first_hits(*pixel_rays(c)).face >= 0 for c in orbit(6, elevation=20.0, height=96, width=96)]
    return np.stack(views)


def triangles(mesh: Mesh) -> set:
    """The faces as cycles of positions that start at the smallest."""
    points = [[tuple(corner) for corner in face] for face in mesh.vertices[mesh.faces].tolist()]
    return {tuple(face[(face.index(min(face)) + k) % 3] for k in range(3)) for face in points}


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_welding_closes_a_soup_and_drops_collapsed_and_doubled_faces():
    ball = icosphere()
    soup = Mesh(ball.vertices[ball.faces].reshape(-1, 3), np.arange(3 * len(ball.faces)).reshape(-1, 3))
    welded = weld(soup)
    assert len(welded.vertices) == len(ball.vertices) and len(welded.faces) == len(ball.faces)
    doubled = Mesh(ball.vertices, np.concatenate([ball.faces, ball.faces[:5, [1, 2, 0]], [[0, 0, 1]]]))
    assert len(weld(doubled).faces) == len(ball.faces)
    shaken = Mesh(soup.vertices + np.random.default_rng(0).uniform(-1e-6, 1e-6, soup.vertices.shape), soup.faces)
    assert weld(shaken, tolerance=1e-3).is_watertight


def test_floaters_go_and_are_counted_with_their_share():
    big, small, tiny = icosphere(0.6), moved(icosphere(0.06), (0.8, 0, 0)), moved(icosphere(0.03), (0, 0.9, 0))
    middle = moved(icosphere(0.3), (0, 0, 0.95))
    mesh, report = drop_floaters(joined(small, big, middle, tiny), min_share=0.02)
    assert report.count == 2
    volume = {r: r**3 for r in (0.6, 0.3, 0.06, 0.03)}
    area = {r: r**2 for r in (0.6, 0.3, 0.06, 0.03)}
    assert report.volume_share == pytest.approx((volume[0.06] + volume[0.03]) / sum(volume.values()), rel=1e-3)
    assert report.area_share == pytest.approx((area[0.06] + area[0.03]) / sum(area.values()), rel=1e-3)
    assert len(mesh.faces) == len(big.faces) + len(middle.faces) and mesh.is_watertight
    assert measure_mesh(mesh, floaters=report).components == 2
    kept, none = drop_floaters(joined(big, tiny), min_share=0.0)
    assert none.count == 0 and len(kept.faces) == len(big.faces) + len(tiny.faces)


def test_small_holes_close_and_large_ones_stay():
    ball = icosphere(0.6, 3)
    rng = np.random.default_rng(0)
    # Holes of one to five faces around a vertex, away from each other.
    gone: list[int] = []
    for vertex in (3, 50, 100, 200, 300, 400, 500):
        around = np.flatnonzero((ball.faces == vertex).any(1))
        gone += rng.permutation(around)[: 1 + vertex % 5].tolist() if vertex % 2 else around.tolist()
    pierced = Mesh(ball.vertices, np.delete(ball.faces, gone, axis=0))
    assert not pierced.is_watertight
    closed = fill_holes(pierced)
    assert closed.is_watertight
    assert signed_volume(closed) == pytest.approx(signed_volume(ball), rel=0.01)
    bowl = Mesh(ball.vertices, ball.faces[ball.vertices[ball.faces].mean(1)[:, 2] < 0.1])
    assert len(fill_holes(bowl, max_edges=16).faces) == len(bowl.faces)
    assert fill_holes(bowl, max_edges=200).is_watertight


def test_smoothing_removes_grain_and_keeps_the_volume():
    ball = icosphere(0.6, 4)
    rng = np.random.default_rng(0)
    rough = Mesh(ball.vertices * (1 + rng.normal(0, 0.01, (len(ball.vertices), 1))), ball.faces)
    result = smooth(rough, 10)
    grain = [np.linalg.norm(mesh.vertices, axis=1).std() for mesh in (rough, result)]
    assert grain[1] < grain[0] / 2
    assert signed_volume(result) == pytest.approx(signed_volume(ball), rel=0.005)
    assert np.array_equal(smooth(rough, 0).vertices, rough.vertices)


def test_simplification_meets_its_budget_and_keeps_silhouettes_and_closedness():
    mesh, _ = extract_mesh(union(torus_sdf(), sphere_sdf(0.3, (0, 0, 0.4))), 80, inside="below")
    mesh = weld(mesh)
    small = simplify(mesh, 2000)
    assert len(mesh.faces) > 15000 and 1500 < len(small.faces) <= 2000
    assert small.is_watertight
    assert iou(silhouettes(mesh), silhouettes(small)) > 0.99
    assert simplify(small, 5000) is small
    again = simplify(mesh, 2000)
    assert np.array_equal(again.vertices, small.vertices) and np.array_equal(again.faces, small.faces)
    with pytest.raises(ValueError, match="at least 4"):
        simplify(mesh, 2)


def sponge(seed: int) -> Mesh:
    """A noisy surface with many handles, on which collapsing edges folds and pinches faces."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.nn.functional.interpolate(
        torch.randn(1, 1, 16, 16, 16, generator=generator), size=48, mode="trilinear"
    )

    def field(points: torch.Tensor) -> torch.Tensor:
        read = torch.nn.functional.grid_sample(noise, points.flip(-1)[None, None, None], align_corners=True)
        return read[0, 0, 0, 0] + 3.6 * (0.6 - points.norm(dim=-1))

    return drop_floaters(weld(extract_mesh(field, 48, 0.0)[0]), 0.02)[0]


@pytest.mark.parametrize("seed", [0, 1])
def test_simplifying_a_rough_surface_leaves_it_closed(seed):
    rough = sponge(seed)
    assert rough.is_watertight
    for budget in (4000, 2000):
        small = simplify(rough, budget)
        quality = measure_mesh(small)
        assert quality.watertight and quality.border_edges == 0
        assert 0.8 * budget < quality.faces <= budget
        assert signed_volume(small) == pytest.approx(signed_volume(rough), rel=0.05)


def test_mending_closes_folds_and_pinches_and_leaves_whole_meshes_alone():
    ball = icosphere(0.5, 2)
    assert mend(ball) is ball
    a, b, c = ball.faces[10]
    folded = Mesh(ball.vertices, np.concatenate([ball.faces, [[a, b, c], [b, a, c]]]))  # a flap of no thickness
    assert triangles(mend(folded)) == triangles(ball)
    # Two tetrahedra that share an edge: four faces around it.
    points = np.array([[0, 0, 0], [0, 0, 1], [1, 0, 0.5], [0.5, 0.8, 0.5], [-1, 0, 0.5], [-0.5, -0.8, 0.5]])
    tetrahedron = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    pinched = Mesh(points, np.concatenate([tetrahedron, np.array([0, 1, 4, 5])[tetrahedron]]))
    assert measure_mesh(pinched).non_manifold_edges == 1
    mended = mend(pinched)
    assert mended.is_watertight and measure_mesh(mended).border_edges == 0


def test_winding_becomes_consistent_and_outward_also_for_open_and_nested_pieces():
    rng = np.random.default_rng(0)
    ball, shell = icosphere(0.3), moved(icosphere(0.2, 2), (0.6, 0, 0))
    bowl = Mesh(ball.vertices, ball.faces[ball.vertices[ball.faces].mean(1)[:, 2] < 0.2])
    mesh = joined(moved(bowl, (-0.5, 0, 0)), shell)
    expected = mesh.faces.copy()
    flipped = mesh.faces.copy()
    chosen = rng.random(len(flipped)) < 0.5
    flipped[chosen] = flipped[chosen][:, ::-1]
    result = wind_outwards(Mesh(mesh.vertices, flipped))
    centres = np.repeat([[-0.5, 0, 0], [0.6, 0, 0]], [len(bowl.faces), len(shell.faces)], axis=0)
    outward = result.vertices[result.faces].mean(1) - centres
    assert ((result.face_normals() * outward).sum(1) > 0).all()
    assert np.array_equal(np.sort(result.faces, axis=1), np.sort(expected, axis=1))


def test_quality_numbers_of_damaged_meshes_and_their_files(tmp_path):
    ball = icosphere(0.6, 2)
    whole = measure_mesh(ball)
    assert (whole.components, whole.watertight, whole.border_edges, whole.non_manifold_edges) == (1, True, 0, 0)
    assert whole.volume == pytest.approx(signed_volume(ball)) and whole.uv_coverage == 0
    assert measure_mesh(Mesh(ball.vertices, ball.faces[1:])).border_edges == 3
    fin = Mesh(
        np.concatenate([ball.vertices, [[2, 2, 2]]]),
        np.concatenate([ball.faces, [[*ball.faces[0, :2], len(ball.vertices)]]]),
    )
    assert measure_mesh(fin).non_manifold_edges == 1
    flat = Mesh(np.concatenate([ball.vertices, [[1, 0, 0], [1, 0, 1e-9], [1, 0, 2e-9]]]),
                np.concatenate([ball.faces, [len(ball.vertices) + np.arange(3)]]))  # fmt: skip
    assert measure_mesh(flat).degenerate_faces == 1
    whole.save(tmp_path)
    assert MeshQuality.load(tmp_path) == whole
