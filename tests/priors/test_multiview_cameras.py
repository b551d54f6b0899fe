"""Camera vectors of MVDream and ImageDream: what the network is told, and the released helper's conventions."""

from __future__ import annotations

import pytest
import torch

from maquette.cameras import orbit
from maquette.priors.multiview_cameras import (
    append_prompt_camera,
    from_helper_frame,
    mvdream_camera_condition,
    released_helper_cameras,
    to_helper_frame,
)


def test_the_example_of_the_specification():
    camera = mvdream_camera_condition(released_helper_cameras(1, elevation=0.0, azimuth_start=90.0))
    expected = torch.tensor([[0.0, 0, 1, 1, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1]])
    torch.testing.assert_close(camera, expected, atol=1e-6, rtol=0)


def test_only_the_direction_counts():
    near = orbit(4, elevation=20.0, distance=0.7, fovy=60.0)
    far = orbit(4, elevation=20.0, distance=9.0, fovy=20.0)
    torch.testing.assert_close(mvdream_camera_condition(near), mvdream_camera_condition(far), atol=1e-6, rtol=0)
    lengths = mvdream_camera_condition(near).unflatten(-1, (4, 4))[..., :3, 3].norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones(4))


@pytest.mark.parametrize(("start", "front"), [(0.0, 1), (90.0, 0)])
def test_which_view_of_the_helper_is_the_front(start, front):
    azimuth = released_helper_cameras(4, azimuth_start=start).azimuth
    torch.testing.assert_close(azimuth[front], torch.tensor(0.0), atol=1e-4, rtol=0)
    assert int(azimuth.abs().argmin()) == front


def test_helper_frame_is_a_rotation_and_back():
    c2w = orbit(5, elevation=30.0, azimuth=13.0).c2w
    turned = to_helper_frame(c2w)
    torch.testing.assert_close(from_helper_frame(turned), c2w)
    assert float(torch.linalg.det(turned[0, :3, :3])) == pytest.approx(1.0, abs=1e-6)
    # Up is y there, and helper azimuth 0 looks from +z.
    torch.testing.assert_close(turned[:, 1, 3], c2w[:, 2, 3])
    position = to_helper_frame(released_helper_cameras(1, elevation=0.0, azimuth_start=0.0).c2w)[0, :3, 3]
    torch.testing.assert_close(position, torch.tensor([0.0, 0.0, 1.0]), atol=1e-6, rtol=0)


def test_the_prompt_s_camera_is_sixteen_zeros_at_the_end():
    camera = mvdream_camera_condition(orbit(4)).expand(2, 4, 16)
    more = append_prompt_camera(camera)
    assert more.shape == (2, 5, 16)
    assert torch.equal(more[:, :4], camera)
    assert (more[:, 4] == 0).all()
