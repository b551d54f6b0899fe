"""What the object benchmark shows and how it measures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from maquette.asset import Mesh
from maquette.cameras import fit_distance, orbit
from maquette.evaluation.truth import Protocol, Truth, silhouettes
from maquette.images import Views
from maquette.rendering.raster import render_mesh
from tests.evaluation.conftest import OBJECTS, box_mesh


@pytest.fixture(scope="module")
def truth():
    protocol = Protocol(prompt_size=96, view_size=40, num_azimuths=4, num_points=4000, resolution=48, samples=2)
    return Truth.of(OBJECTS["tower"], protocol, seed=0, id="tower")


def test_the_default_prompt_is_the_contract():
    camera = Protocol().prompt_camera()
    assert (camera.height, camera.width) == (256, 256) and float(camera.fovy[0]) == 40
    assert float(camera.azimuth[0]) == pytest.approx(0) and float(camera.elevation[0]) == pytest.approx(5)
    # The sphere of the normalised object fills 80 % of the height.
    assert float(camera.distance[0]) == pytest.approx(fit_distance(40.0, radius=0.75, fill=0.8))


@pytest.mark.parametrize(("elevation", "left"), [(5.0, 23), (30.0, 23), (20.0, 24)])
def test_only_the_prompts_own_view_is_left_out(elevation, left):
    cameras = Protocol(elevation=elevation).view_cameras()
    assert len(cameras) == left
    at_front = cameras.azimuth.abs() < 1e-3
    assert not bool((at_front & ((cameras.elevation - elevation).abs() < 1e-3)).any())
    assert {round(float(e)) for e in cameras.elevation} == {5, 30}


def test_the_prompt_shows_the_front(truth):
    assert truth.prompt.image.shape == (3, 96, 96)
    inside = truth.prompt.mask[0] > 0.99
    torch.testing.assert_close(truth.prompt.image[:, inside].mean(1), torch.tensor([0.8, 0.2, 0.1]), atol=0.01, rtol=0)
    rows, columns = (torch.nonzero(inside.any(dim=axis)).numel() for axis in (1, 0))
    assert rows > 2.5 * columns  # a tower 2 high and 0.5 wide, seen from its front


def test_the_truth_itself_is_perfect_up_to_sampling(truth):
    figures = truth.score(truth.mesh)
    floor = np.sqrt(2 * (0.3 * 0.25 + 0.3 * 1.0 + 0.25 * 1.0) / 4000) / 2
    assert figures["chamfer"] == pytest.approx(floor, rel=0.1)
    for name in ("volume_iou", "volume_iou_unnormalised", "ssim", "silhouette_iou"):
        assert figures[name] == pytest.approx(1)
    assert figures["psnr"] == 100 and figures["perceptual"] == 0
    assert figures["fscore_0.05"] == 1 and figures["floater_volume"] == 0


def test_size_and_place_only_change_the_unnormalised_figures(truth):
    exact = truth.score(truth.mesh)
    moved = truth.score(replace(truth.mesh, vertices=truth.mesh.vertices * 1.3 + np.float32([0.1, 0.0, -0.2])))
    for name in ("chamfer", "volume_iou", "silhouette_iou"):
        assert moved[name] == pytest.approx(exact[name], rel=0.02, abs=1e-3)
        assert abs(moved[f"{name}_unnormalised"] - exact[f"{name}_unnormalised"]) > 0.02
    # Units are longest sides of the object: a pure shift by 0.1 of it along x has a Chamfer distance near that of a
    # box.
    side = float(np.ptp(truth.mesh.vertices, axis=0).max())
    shifted = truth.score(replace(truth.mesh, vertices=truth.mesh.vertices + np.float32([0, 0, 0.5 * side])))
    assert shifted["volume_iou_unnormalised"] == pytest.approx(1 / 3, abs=0.05)


def test_a_wrong_shape_is_worse(truth):
    figures = truth.score(box_mesh((1.0, 0.5, 1.0), (0.8, 0.2, 0.1)))
    assert figures["volume_iou"] < 0.6 and figures["chamfer"] > 0.05 and figures["silhouette_iou"] < 0.8


def test_stray_vertices_do_not_move_the_box(truth):
    mesh = truth.mesh
    stray = Mesh(
        np.concatenate([mesh.vertices, [[9.0, 9.0, 9.0]]]), mesh.faces,
        vertex_colors=np.concatenate([mesh.vertex_colors, [[0, 0, 0]]]),
    )  # fmt: skip
    assert truth.score(stray)["chamfer"] == pytest.approx(truth.score(mesh)["chamfer"])


def test_what_is_measured_is_repeatable_and_seeded(truth):
    again = Truth.of(OBJECTS["tower"], truth.protocol, seed=0, id="tower")
    assert again.score(OBJECTS["plank"].normalized()) == truth.score(OBJECTS["plank"].normalized())
    other = Truth.of(OBJECTS["tower"], truth.protocol, seed=1, id="tower")
    assert (
        other.score(OBJECTS["plank"].normalized())["chamfer"] != truth.score(OBJECTS["plank"].normalized())["chamfer"]
    )


def test_views_are_compared_without_the_prompts_own(truth):
    cameras = orbit(4, elevation=5.0, height=40, width=40)
    perfect = render_mesh(truth.mesh, cameras, samples=truth.protocol.samples).views()
    figures, single = truth.score_views(perfect)
    assert figures["psnr"] == 100 and [round(view["azimuth"]) for view in single] == [0, 90, 180, 270]
    images = perfect.images.clone()
    images[0] = 0.0  # the prompt's own view may be anything
    assert truth.score_views(Views(images, perfect.masks, cameras))[0] == figures
    images[1] = 0.0
    assert truth.score_views(Views(images, perfect.masks, cameras))[0]["psnr"] < 100
    with pytest.raises(ValueError, match="nothing is left"):
        truth.score_views(perfect[0:1])


def test_views_without_masks_get_them_from_their_border():
    mesh = OBJECTS["drum"].normalized()
    views = render_mesh(mesh, orbit(4, height=48, width=48)).views()
    plain = Views(views.composite(torch.tensor([0.9, 0.7, 0.9])), None, views.cameras)
    found = silhouettes(plain) > 0.5
    assert ((found & (views.masks > 0.5)).sum() / (found | (views.masks > 0.5)).sum()) > 0.9


def test_impossible_protocols_are_refused():
    for wrong in ({"fill": 1.2}, {"num_points": 0}, {"grid_side": 1.0}, {"elevation": 100.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Protocol(**wrong)
