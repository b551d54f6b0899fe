"""Views in patches: sharp inside the window, coarse outside, and otherwise the scene inside."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from maquette.cameras import orbit
from maquette.errors import UserError
from maquette.fields.encodings import TriPlanesConfig
from maquette.fields.radiance import RadianceConfig
from maquette.rendering.base import Scene, Shot
from maquette.rendering.patch import PatchConfig, PatchScene, enlarge, paste
from maquette.rendering.rays import pixel_centres
from maquette.rendering.sampling import OccupancyConfig
from maquette.rendering.scene import VolumeConfig, VolumeScene
from maquette.schedules import Constant

VOLUME = VolumeConfig(
    field=RadianceConfig(encoding=TriPlanesConfig(resolutions=(8, 16), features=4, initial_scale=0.5), hidden=8),
    occupancy=OccupancyConfig(resolution=16),
    samples=Constant(32),
    termination=0.0,
)
SHOT = Shot(orbit(2, elevation=20.0, height=24, width=32), background=torch.ones(3))
PICTURES = ("rgb", "opacity", "depth", "background")


@pytest.fixture
def scene() -> PatchScene:
    return PatchScene(VolumeScene(VOLUME, seed=1), PatchConfig(size=8, factor=4))


def test_it_is_a_scene(scene):
    assert isinstance(scene, Scene)
    assert scene.parameter_groups().keys() == scene.scene.parameter_groups().keys()


def test_the_window_is_the_whole_view_s_and_the_rest_comes_from_few_rays(scene):
    top, left = 3, 17
    found, whole = scene.render_patch(SHOT, top, left), scene.scene.render(SHOT)
    inside = (slice(None), slice(top, top + 8), slice(left, left + 8))
    # The centre of a coarse pixel is the corner that its four central pixels share.
    coarse = scene.scene.render(replace(SHOT, pixels=(pixel_centres(6, 8, SHOT.cameras.c2w) * 4).expand(2, -1, -1, -1)))
    for name in PICTURES:
        ours, expected = getattr(found, name), getattr(coarse, name)
        torch.testing.assert_close(ours[inside], getattr(whole, name)[inside], rtol=1e-4, atol=1e-5)
        grown = F.interpolate(expected.permute(0, 3, 1, 2), (24, 32), mode="bilinear").permute(0, 2, 3, 1)
        outside = torch.ones(24, 32, dtype=torch.bool)
        outside[inside[1:]] = False
        torch.testing.assert_close(ours[:, outside], grown[:, outside])
        assert ours.shape == getattr(whole, name).shape
    assert found.samples is None
    assert float((found.rgb - whole.rgb).detach().abs().max()) > 1e-3, "a coarse view is not a sharp one"


def test_gradients_flow_through_both_parts(scene, generator):
    found = scene.render_patch(SHOT, 0, 0)
    networks = scene.parameter_groups()["networks"]
    window = found.rgb[:, :8, :8].sum()
    around = found.rgb.sum() - window
    grads = [torch.autograd.grad(part, networks, retain_graph=True) for part in (window, around)]
    assert all(any(float(g.abs().max()) > 0 for g in grad) for grad in grads)


def test_training_renders_draw_the_window_and_others_are_whole(scene):
    found = scene.render(SHOT, torch.Generator().manual_seed(3))
    again = scene.render(SHOT, torch.Generator().manual_seed(3))
    assert found.samples is None and torch.equal(found.rgb, again.rgb)
    whole = scene.render(SHOT)
    assert whole.samples is not None and torch.equal(whole.rgb, scene.scene.render(SHOT).rgb)
    pixels = torch.full((2, 1, 1, 2), 12.0)
    assert scene.render(replace(SHOT, pixels=pixels), torch.Generator()).rgb.shape == (2, 1, 1, 3)
    small = replace(SHOT, cameras=SHOT.cameras.with_size(8, 8))
    assert scene.render(small, torch.Generator()).samples is not None


def test_windows_reach_every_border(scene):
    places = []
    whole = scene.scene.render(SHOT)
    scene.render_patch = lambda shot, top, left, generator: places.append((top, left)) or whole
    generator = torch.Generator().manual_seed(0)
    for _ in range(600):
        scene.render(SHOT, generator)
    tops, lefts = (set(column) for column in zip(*places, strict=True))
    assert tops == set(range(17)) and lefts == set(range(25))


def test_normals_stay_of_unit_length(scene):
    normal = scene.render_patch(replace(SHOT, normals=True), 8, 8).normal
    length = normal.norm(dim=-1)
    assert bool(((length - 1).abs().lt(1e-4) | length.lt(1e-4)).all())


def test_enlarging_keeps_planes_and_pasting_keeps_its_arguments(generator):
    plane = (pixel_centres(4, 6, torch.zeros(())) * 4).expand(2, -1, -1, -1)
    inner = enlarge(plane, 16, 24)[:, 2:-2, 2:-2]
    torch.testing.assert_close(inner, pixel_centres(16, 24, torch.zeros(()))[None, 2:-2, 2:-2].expand(2, -1, -1, -1))
    image, window = torch.rand(1, 5, 5, 3, generator=generator), torch.rand(1, 2, 3, 3, generator=generator)
    before = image.clone()
    pasted = paste(image, window, 1, 2)
    assert torch.equal(image, before) and torch.equal(pasted[:, 1:3, 2:5], window)
    assert int((pasted != image).any(-1).sum()) == 6


def test_saving_brings_back_the_same_scene(scene, tmp_path):
    scene.save(tmp_path / "patches")
    again = PatchScene.load(tmp_path / "patches")
    assert again.config == scene.config and again.fingerprint() == scene.fingerprint()
    assert torch.equal(again.render_patch(SHOT, 2, 5).rgb, scene.render_patch(SHOT, 2, 5).rgb)
    assert PatchScene(scene.scene, PatchConfig(8, 2)).fingerprint() != scene.fingerprint()


def test_impossible_windows_are_refused(scene):
    with pytest.raises(ValueError, match=r"window of 8 px at \(20, 0\) leaves the view of 24x32 px"):
        scene.render_patch(SHOT, 20, 0)
    with pytest.raises(UserError, match="at least 1"):
        PatchConfig(size=0)
