"""Training views keep to their ranges and belong to their object alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from maquette.cameras import orbit
from maquette.errors import UserError
from maquette.rendering.lighting import Light, Lighting
from maquette.training.viewpoints import Circle, Scatter, Viewpoints, object_generator


def rng(name: str = "chair", seed: int = 0) -> np.random.Generator:
    return object_generator(seed, name, "free")


def test_the_canonical_circle_is_an_orbit():
    viewpoints = Circle(6, elevation=((5.0, 5.0),)).draw(rng())
    expected = orbit(6, elevation=5.0, height=32, width=32)
    assert torch.equal(viewpoints.cameras(32).c2w, expected.c2w) and torch.equal(
        viewpoints.cameras(32).fovy, expected.fovy
    )
    assert viewpoints.lighting == (None,) * 6


def test_a_circle_shares_its_drawn_elevation_and_offset():
    for name in "abcdefgh":
        viewpoints = Circle(4, elevation=((0.0, 5.0), (50.0, 60.0)), azimuth=(10.0, 20.0)).draw(rng(name))
        assert len(set(viewpoints.elevation)) == 1
        assert 0 <= viewpoints.elevation[0] <= 5 or 50 <= viewpoints.elevation[0] <= 60
        assert 10 <= viewpoints.azimuth[0] <= 20 and np.allclose(np.diff(viewpoints.azimuth), 90)


def test_scattered_views_keep_to_their_ranges():
    config = Scatter(
        400, azimuth=(-90.0, 90.0), elevation=((-5.0, 15.0), (15.0, 60.0)), fovy=(25.0, 55.0), fill=(0.7, 0.95)
    )
    viewpoints = config.draw(rng())
    assert viewpoints.azimuth.min() >= -90 and viewpoints.azimuth.max() <= 90 and np.ptp(viewpoints.azimuth) > 170
    assert viewpoints.fovy.min() >= 25 and viewpoints.fovy.max() <= 55
    low = ((viewpoints.elevation >= -5) & (viewpoints.elevation <= 15)).mean()
    assert 0.4 < low < 0.6 and viewpoints.elevation.max() > 50
    # tan of the half angle under which the bounding sphere appears, over that of the picture
    fill = np.tan(np.arcsin(0.75 / viewpoints.distance)) / np.tan(np.radians(viewpoints.fovy) / 2)
    assert fill.min() >= 0.7 - 1e-9 and fill.max() <= 0.95 + 1e-9


@pytest.mark.parametrize(
    ("lit", "views", "expected"), [(0.0, 4, ""), (0.5, 6, "135"), (1.0, 3, "012"), (0.25, 8, "37")]
)
def test_lit_views_are_spread_evenly(lit, views, expected):
    lighting = Scatter(views, lit=lit).draw(rng()).lighting
    assert "".join(str(k) for k, light in enumerate(lighting) if light is not None) == expected


def test_lit_views_have_several_lights():
    counts = {len(light.lights) for light in Scatter(60, lit=1.0).draw(rng()).lighting}
    assert counts == {1, 2, 3}


def test_an_object_has_its_own_stream():
    config = Scatter(8, lit=0.5)
    again, other, seeded = config.draw(rng()), config.draw(rng("table")), config.draw(rng(seed=1))
    assert np.array_equal(config.draw(rng()).poses(), again.poses()) and config.draw(rng()).lighting == again.lighting
    assert not np.array_equal(again.poses(), other.poses()) and not np.array_equal(again.poses(), seeded.poses())
    # The number of views does not move the ones before.
    assert np.array_equal(Scatter(3, lit=0.5).draw(rng()).poses(), again.poses()[:3])


def test_poses_hold_angles_and_the_first_light():
    lighting = (None, Lighting(lights=(Light(90.0, 30.0),)), Lighting(lights=()))
    values = np.arange(3.0)
    poses = Viewpoints(values, values + 10, values + 20, values + 30, lighting).poses()
    assert poses.dtype == np.float32 and np.array_equal(poses[:, :4].T, np.stack([values + 10 * k for k in range(4)]))
    assert poses[:, 4].tolist() == [0, 1, 1] and not poses[[0, 2], 5:].any()
    assert np.allclose(poses[1, 5:], [0, math.cos(math.radians(30)), 0.5], atol=1e-6)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Circle(-1), "number of views"),
        (lambda: Circle(elevation=()), "elevation"),
        (lambda: Circle(elevation=((5.0, 95.0),)), "elevation"),
        (lambda: Scatter(fovy=(0.0, 40.0)), "fovy"),
        (lambda: Scatter(fill=(0.0, 0.5)), "fill"),
        (lambda: Scatter(lit=1.5), "lit"),
        (lambda: Scatter(lights=(3, 1)), "lights"),
        (lambda: Scatter(ambient=(0.2, 1.2)), "ambient"),
    ],
)
def test_impossible_settings_are_refused(make, complaint):
    with pytest.raises(UserError, match=complaint):
        make()
