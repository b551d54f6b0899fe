"""The painted scene: the mesh that it shows, the colours that it learns, and its file."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from shapes import icosphere

from maquette.cameras import orbit
from maquette.errors import UserError
from maquette.fields import LearnedBackgroundConfig, RadianceConfig, TriPlanesConfig
from maquette.fields.material import shade
from maquette.rendering import (
    PaintedConfig,
    PaintedScene,
    PatchConfig,
    PatchScene,
    Scene,
    Shot,
    VolumeScene,
    render_mesh,
)
from maquette.rendering.painted import subdivided
from maquette.rendering.rays import cast_rays, pixel_centres
from maquette.rendering.views import render_views

RADIUS = 0.6
CONFIG = PaintedConfig(
    RadianceConfig(encoding=TriPlanesConfig(resolutions=(8, 16), features=4, initial_scale=0.5), hidden=8), samples=1
)
CAMERAS = orbit(2, elevation=20.0, height=24, width=24)
WHITE = torch.ones(3)


@pytest.fixture
def scene() -> PaintedScene:
    return PaintedScene(icosphere(RADIUS, subdivisions=5), CONFIG, seed=1)


def on_the_ball(cameras):
    """Where rays through pixel centres first meet a ball of that radius, in closed form, and which do."""
    rays = cast_rays(cameras)
    along = -(rays.rays_o * rays.rays_d).sum(-1)
    root = along.square() - rays.rays_o.square().sum(-1) + RADIUS**2
    distance = along - root.clamp(min=0).sqrt()
    return rays.rays_o + distance[..., None] * rays.rays_d, distance, root


def test_it_is_a_scene(scene):
    assert isinstance(scene, Scene)
    assert set(scene.parameter_groups()) == {"encoding", "networks"}, "white is not learned"


def test_a_ball_shows_the_field_s_colours_where_rays_meet_it(scene):
    where, distance, root = on_the_ball(CAMERAS)
    clear = root.abs() > 0.02  # the mesh's outline is that of its triangles
    hit = clear & (root > 0)
    seen = scene.render(Shot(CAMERAS, background=torch.tensor([0.2, 0.5, 0.9]), normals=True))
    torch.testing.assert_close(seen.opacity[..., 0][clear], (root > 0).float()[clear])
    torch.testing.assert_close(seen.depth[..., 0][hit], distance[hit], atol=2e-3, rtol=0)
    torch.testing.assert_close(seen.rgb[hit], scene.field.albedo(where[hit]), atol=5e-3, rtol=0)
    torch.testing.assert_close(seen.rgb[clear & ~hit], torch.tensor([0.2, 0.5, 0.9]).expand_as(seen.rgb[clear & ~hit]))
    assert seen.normal is not None and seen.samples is None
    torch.testing.assert_close(seen.normal[hit], where[hit] / RADIUS, atol=1e-2, rtol=0)


@pytest.mark.parametrize("shading", ["diffuse", "textureless"])
def test_light_falls_on_it(scene, shading):
    where, _, root = on_the_ball(CAMERAS)
    hit = root > 0.02
    light = torch.tensor([[2.0, 0.5, 1.0], [-1.0, 2.0, 0.0]])
    seen = scene.render(Shot(CAMERAS, background=WHITE, shading=shading, light=light, ambient=0.2))
    from_where = light[:, None, None].expand_as(where)[hit]
    expected = shade(shading, scene.field.albedo(where[hit]), where[hit] / RADIUS, where[hit], from_where, 0.2)
    torch.testing.assert_close(seen.rgb[hit], expected, atol=1e-2, rtol=0)


def test_outlines_are_antialiased_as_those_of_the_mesh_renderer_are(scene):
    fine = PaintedScene(scene.mesh, replace(CONFIG, samples=4))
    seen, truth = fine.render(Shot(CAMERAS)), render_mesh(scene.mesh, CAMERAS, samples=4)
    assert (seen.opacity - truth.opacity).abs().max() < 0.13 and (seen.opacity - truth.opacity).abs().mean() < 2e-3
    partly = (seen.opacity > 0) & (seen.opacity < 1)
    assert int(partly.sum()) > 20 and not bool(((scene.render(Shot(CAMERAS)).opacity * 2).frac() > 0).any())


def test_the_middles_of_a_pixel_s_parts():
    pixels = pixel_centres(2, 3, torch.zeros(1))[None]
    parts = subdivided(pixels, 2)
    assert parts.shape == (1, 2, 12, 2)
    assert parts[0, 1, 4:8].tolist() == [[1.25, 1.25], [1.75, 1.25], [1.25, 1.75], [1.75, 1.75]]
    assert torch.equal(subdivided(pixels, 1), pixels)


def test_colours_learn_and_the_shape_does_not(scene):
    before = {name: value.clone() for name, value in scene.state_dict().items()}
    optimizer = torch.optim.Adam([p for group in scene.parameter_groups().values() for p in group], lr=0.05)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        seen = scene.render(Shot(CAMERAS, background=WHITE))
        wanted = torch.where(seen.opacity > 0, torch.tensor([0.9, 0.1, 0.1]), WHITE)
        loss = (seen.rgb - wanted).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.15 * losses[0]
    assert all(torch.equal(scene.state_dict()[name], before[name]) for name in before if "density" in name)


def test_a_volume_s_mesh_begins_with_the_volume_s_colours_and_background():
    volume = VolumeScene(seed=3)
    painted = PaintedScene.over(icosphere(RADIUS), volume, samples=1)
    points = torch.rand(50, 3) - 0.5
    torch.testing.assert_close(painted.field.albedo(points), volume.field.albedo(points))
    assert isinstance(volume.config.background, LearnedBackgroundConfig) and "background" in painted.parameter_groups()
    directions = torch.nn.functional.normalize(points, dim=-1)
    torch.testing.assert_close(painted.background(directions), volume.background(directions))


def test_copies_and_files_show_the_same(scene, tmp_path):
    shot = Shot(CAMERAS, background=WHITE)
    seen = scene.render(shot)
    scene.save(tmp_path / "scene")
    for other in (copy.deepcopy(scene), PaintedScene.load(tmp_path / "scene")):
        torch.testing.assert_close(other.render(shot).rgb, seen.rgb)
        assert other.fingerprint() == scene.fingerprint()
    moved = PaintedScene(replace(scene.mesh, vertices=scene.mesh.vertices * 0.9), CONFIG, seed=1)
    assert moved.fingerprint() != scene.fingerprint()
    with pytest.raises(UserError, match="no saved scene"):
        PaintedScene.load(tmp_path / "elsewhere")


def test_it_is_rendered_in_patches_and_in_pieces(scene, generator):
    seen = PatchScene(scene, PatchConfig(size=8, factor=4)).render(Shot(CAMERAS), generator)
    assert seen.rgb.shape == (2, 24, 24, 3)
    whole = scene.render(Shot(CAMERAS))
    assert int((seen.rgb == whole.rgb).all(-1).sum()) >= 2 * 64, "the window is sharp"
    views = render_views(scene, CAMERAS, rays_at_once=100)
    assert views.masks is not None
    torch.testing.assert_close(views.masks[:, 0], whole.opacity[..., 0])


def test_a_view_past_the_mesh_is_background_alone(scene):
    away = orbit(1, elevation=20.0, height=6, width=6).turned(180.0)
    turned = replace(away, c2w=away.c2w @ torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0])))
    seen = scene.render(Shot(turned, background=torch.tensor([0.1, 0.2, 0.3])))
    assert float(seen.opacity.max()) == 0
    torch.testing.assert_close(seen.rgb, torch.tensor([0.1, 0.2, 0.3]).expand_as(seen.rgb))


def test_no_rays_are_refused():
    with pytest.raises(UserError, match="samples=0"):
        PaintedConfig(samples=0)
