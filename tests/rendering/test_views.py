"""Pictures in pieces are the whole picture, and views are straight colours with masks."""

from __future__ import annotations

import pytest
import torch

from maquette.cameras import orbit
from maquette.fields import LinearBlob, RadianceConfig, TriPlanesConfig
from maquette.rendering import OccupancyConfig, Shot, VolumeConfig, VolumeScene, render_pictures, render_views
from maquette.schedules import Constant


@pytest.fixture(scope="module")
def scene() -> VolumeScene:
    field = RadianceConfig(encoding=TriPlanesConfig((8,), 4, initial_scale=0.5), bias=LinearBlob(40.0, 0.4), hidden=8)
    scene = VolumeScene(VolumeConfig(field=field, occupancy=OccupancyConfig(resolution=16), samples=Constant(48)))
    scene.occupancy.sweep(scene.step_length, scene.field.density)
    return scene


@pytest.mark.parametrize("rays_at_once", [1, 40, 150, 500, 100_000])
def test_pieces_make_the_whole(scene, rays_at_once):
    cameras = orbit(4, elevation=20.0, height=11, width=13).reshape(2, 2)
    shot = Shot(cameras, shading="diffuse", light=cameras.position + 0.2)
    with torch.no_grad():
        whole = scene.render(shot)
    pieces = render_pictures(scene, shot, rays_at_once)
    assert pieces.samples is None and pieces.rgb.shape == (2, 2, 11, 13, 3) and not pieces.rgb.requires_grad
    # Matrix products of other sizes round otherwise; normals are gradients, and light multiplies them.
    for name in ("rgb", "opacity", "depth", "background", "normal"):
        torch.testing.assert_close(getattr(pieces, name), getattr(whole, name), atol=2e-4, rtol=0)


def test_views_composite_to_pictures(scene):
    cameras = orbit(2, height=24, width=24)
    views = render_views(scene, cameras)
    for background in (torch.ones(3), torch.tensor([0.9, 0.2, 0.4])):
        pictures = render_pictures(scene, Shot(cameras, background=background))
        torch.testing.assert_close(views.composite(background), pictures.images(), atol=0.005, rtol=0)
    assert views.masks.max() > 0.99 and views.masks.min() < 1e-3
    # Colours go on beyond the outline, so that nothing black bleeds into a later resize.
    assert (views.images.amax(1)[views.masks[:, 0] == 0] > 0.05).all()


def test_views_need_one_axis_of_cameras(scene):
    with pytest.raises(ValueError, match="flatten"):
        render_views(scene, orbit(4).reshape(2, 2))
