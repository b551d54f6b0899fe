"""USD's cameras: its frame, its sampler with an area that is one, and exported views that do not repeat."""

from __future__ import annotations

import pytest
import torch

from maquette.cameras import OrbitSampler, elevation_at, from_angles
from maquette.priors.usd_cameras import (
    DISTANCE,
    FOVY,
    export_cameras,
    from_released,
    input_camera,
    input_sampler,
    pose_difference,
    to_released,
    training_cameras,
)


def test_the_picture_stands_where_the_released_code_puts_it():
    camera = from_released(torch.tensor([[0.0, -15.0, 1.5]]))
    torch.testing.assert_close(camera.c2w, input_camera().c2w, atol=1e-6, rtol=0)
    assert float(camera.azimuth) == pytest.approx(90, abs=1e-4) and float(camera.elevation) == pytest.approx(15)


def test_poses_come_back(generator):
    low, high = torch.tensor([-180.0, -85.0, 0.5]), torch.tensor([180.0, 85.0, 3.0])
    pose = low + (high - low) * torch.rand(200, 3, generator=generator)
    torch.testing.assert_close(to_released(from_released(pose)), pose, atol=2e-3, rtol=1e-4)
    ends = to_released(from_released(torch.tensor([[180.0, 0.0, 1.0], [-180.0, 0.0, 1.0]])))
    torch.testing.assert_close(ends[:, 0].abs(), torch.full((2,), 180.0), atol=1e-3, rtol=0)


def test_spreads_cover_what_they_say():
    u, bounds = torch.linspace(0, 1, 1001), (-10.0, 45.0)
    ends = torch.tensor([0, -1])
    for spread in ("degrees", "area"):
        values = elevation_at(u, bounds, spread)
        torch.testing.assert_close(values[ends], torch.tensor(bounds), atol=1e-4, rtol=1e-5)
        assert bool((values.diff() > 0).all())
    degrees, area, released = (elevation_at(u, bounds, spread) for spread in ("degrees", "area", "released"))
    torch.testing.assert_close(degrees.diff(), torch.full((1000,), 0.055), atol=1e-4, rtol=0)
    sines = torch.deg2rad(area).sin().diff()
    torch.testing.assert_close(sines, sines.mean().expand(1000), atol=1e-6, rtol=0)
    assert float(released[0]) == pytest.approx(-6.38, abs=0.01) and float(released[-1]) == pytest.approx(30, abs=1e-3)


def test_training_views_are_single_fixed_and_reach_both_ends(generator):
    sampler = training_cameras()
    assert isinstance(sampler, OrbitSampler)
    cameras = sampler.sample(3000, 16, 16, generator)
    assert cameras.batch_shape == (3000, 1)
    torch.testing.assert_close(cameras.distance, torch.full((3000, 1), DISTANCE))
    torch.testing.assert_close(cameras.fovy, torch.full((3000, 1), FOVY))
    elevation = cameras.elevation
    assert -10.01 < float(elevation.min()) < -9.5 and 44.5 < float(elevation.max()) < 45.01
    assert float(cameras.azimuth.min()) < -175 and float(cameras.azimuth.max()) > 175


def test_the_picture_s_sampler_draws_one_camera(generator):
    drawn = input_sampler(elevation=25.0, azimuth=-40.0).sample(3, 64, 64, generator)
    torch.testing.assert_close(
        drawn.c2w[:, 0], input_camera(25.0, -40.0, size=64).c2w.expand(3, 4, 4), atol=1e-5, rtol=0
    )


def test_exported_views_never_repeat_an_azimuth_and_follow_their_seed():
    one, two = (export_cameras(torch.Generator().manual_seed(4), 12, size=8) for _ in range(2))
    assert torch.equal(one.c2w, two.c2w)
    gaps = (one.azimuth.roll(-1) - one.azimuth) % 360
    torch.testing.assert_close(gaps, torch.full((12,), 30.0), atol=1e-3, rtol=0)
    assert len(set(one.elevation.round(decimals=2).tolist())) == 12
    assert float(one.elevation.min()) >= -10 and float(one.elevation.max()) <= 45


def test_a_higher_camera_has_a_smaller_polar_angle():
    high = from_angles(*(torch.tensor([v]) for v in (120.0, 40.0, 1.5, FOVY)), height=8, width=8)
    torch.testing.assert_close(
        pose_difference(high, input_camera()), torch.tensor([[-25.0, 30.0, 0.0]]), atol=1e-4, rtol=0
    )
