"""Rays and cameras agree, and boxes are crossed where they are."""

from __future__ import annotations

import pytest
import torch

from maquette.cameras import Cameras, look_at, orbit
from maquette.rendering.rays import Rays, cast_rays, intersect_box, pixel_centres

BOX = torch.tensor([-1.0, -1.0, -1.0]), torch.tensor([1.0, 1.0, 1.0])


def test_central_ray_hits_the_look_at_point(generator):
    position = torch.randn(8, 3, generator=generator) * 3
    target = torch.randn(8, 3, generator=generator)
    cameras = Cameras(look_at(position, target), torch.full((8,), 50.0), 7, 7)
    rays = cast_rays(cameras)
    centre = rays.rays_d[:, 3, 3]
    distance = (target - position).norm(dim=-1, keepdim=True)
    torch.testing.assert_close(rays.rays_o[:, 3, 3] + distance * centre, target, atol=2e-6, rtol=1e-5)


def test_rays_invert_project(generator):
    cameras = orbit(3, elevation=20.0, height=12, width=20)
    rays = cast_rays(cameras)
    distance = torch.rand(3, 12, 20, 1, generator=generator) * 3 + 1
    points = (rays.rays_o + distance * rays.rays_d).reshape(3, -1, 3)
    pixels, depth = cameras.project(points)
    expected = pixel_centres(12, 20, pixels).reshape(1, -1, 2).expand(3, -1, 2)
    torch.testing.assert_close(pixels, expected, atol=2e-4, rtol=0)
    assert (depth > 0).all()
    torch.testing.assert_close(rays.rays_d.norm(dim=-1), torch.ones(3, 12, 20))


def test_chosen_pixels_are_those_of_the_whole_image():
    cameras = orbit(2, height=16, width=16).reshape(1, 2)
    whole = cast_rays(cameras)
    crop = pixel_centres(16, 16, whole.rays_d)[4:9, 2:12].expand(1, 2, 5, 10, 2)
    torch.testing.assert_close(cast_rays(cameras, crop).rays_d, whole.rays_d[:, :, 4:9, 2:12])


def test_pixels_of_another_batch_are_refused():
    with pytest.raises(ValueError, match=r"\[\*b, h, w, 2\]"):
        cast_rays(orbit(2), torch.zeros(3, 4, 4, 2))


def test_box_crossings(generator):
    origins = torch.tensor([[-3.0, 0, 0], [0, 0, 0], [-3, 2, 0], [3, 0, 0], [-3, 0.5, -0.5]])
    directions = torch.tensor([[1.0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 0], [1, 0, 0]])
    enter, leave = intersect_box(Rays(origins, directions), *BOX)
    assert (enter < leave).tolist() == [True, True, False, False, True]
    torch.testing.assert_close(enter[[0, 1, 4]], torch.tensor([2.0, 0.0, 2.0]))
    torch.testing.assert_close(leave[[0, 1, 4]], torch.tensor([4.0, 1.0, 4.0]))


def test_box_crossings_match_a_dense_search(generator):
    origins = torch.randn(400, 3, generator=generator) * 2
    directions = torch.nn.functional.normalize(torch.randn(400, 3, generator=generator), dim=-1)
    enter, leave = intersect_box(Rays(origins, directions), *BOX)
    t = torch.linspace(0, 12, 6001)
    inside = ((origins[:, None] + t[:, None] * directions[:, None]).abs() <= 1).all(-1)
    hit = inside.any(1)
    assert 20 < hit.sum() < 300
    assert (enter < leave)[hit].all()
    first = t[inside.float().argmax(1)][hit]
    last = t[len(t) - 1 - inside.flip(1).float().argmax(1)][hit]
    torch.testing.assert_close(enter[hit], first, atol=0.0021, rtol=0)
    torch.testing.assert_close(leave[hit], last, atol=0.0021, rtol=0)
