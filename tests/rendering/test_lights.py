"""Lights of training views."""

from __future__ import annotations

import pytest
import torch

from maquette.cameras import orbit
from maquette.errors import UserError
from maquette.rendering.lights import LightSampler, place_lights


def test_without_sway_the_light_is_behind_the_camera():
    cameras = orbit(4, distance=2.0).reshape(1, 4)
    lights = place_lights(cameras.position, torch.zeros(1, 3), torch.tensor([0.9]))
    torch.testing.assert_close(lights, cameras.position / 2.0 * 0.9)


def test_one_draw_per_scene_within_the_range(generator):
    cameras = orbit(4, distance=2.0).reshape(1, 4)[torch.zeros(50, dtype=torch.int64)]
    lights = LightSampler(distance=(0.8, 1.5)).sample(cameras, generator)
    distance = lights.norm(dim=-1)
    assert lights.shape == (50, 4, 3)
    assert 0.8 <= float(distance.min()) < 0.9
    assert 1.4 < float(distance.max()) <= 1.5 + 1e-5
    torch.testing.assert_close(distance, distance[:, :1].expand(50, 4))
    # The views of a scene share the offset: two of them determine it, and it explains the others.
    offset = LightSampler(distance=(1.0, 1.0), sway=0.0).sample(cameras, generator) * 2.0 - cameras.position
    torch.testing.assert_close(offset, torch.zeros_like(offset), atol=1e-6, rtol=0)


def test_the_same_generator_gives_the_same_lights():
    cameras = orbit(4).reshape(1, 4)
    draws = [LightSampler().sample(cameras, torch.Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(*draws)
    assert not torch.equal(draws[0], LightSampler().sample(cameras, torch.Generator().manual_seed(6)))


@pytest.mark.parametrize("settings", [{"distance": (0.0, 1.0)}, {"distance": (2.0, 1.0)}, {"sway": -1.0}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(UserError, match="LightSampler"):
        LightSampler(**settings)


def test_a_single_camera_has_no_scene():
    with pytest.raises(ValueError, match="axis of views"):
        LightSampler().sample(orbit(1)[0])
