"""Pictures of the mesh for the page."""

from __future__ import annotations

import pytest
import torch
from finished_run import pawn
from shapes import icosphere

from maquette.cameras import orbit
from maquette.report.pictures import look_at_sides, paint_normals


def test_normals_are_colours_in_the_camera_s_frame():
    sides = look_at_sides(icosphere(0.6), orbit(4, elevation=20.0), size=64)
    assert sides.colour.shape == sides.normals.shape == (4, 64, 64, 4)
    for picture in sides.normals:
        centre, right, top = picture[32, 32], picture[32, 50], picture[14, 32]
        assert centre[:3].tolist() == pytest.approx([0.5, 0.5, 1.0], abs=0.06)
        assert right[0] > 0.75 and top[1] > 0.75
        assert picture[0, 0, 3] == 0 and centre[3] == 1
    assert torch.allclose(sides.normals[0], sides.normals[2], atol=0.15)  # a ball looks alike from all sides


def test_where_nothing_is_seen_there_is_no_colour():
    cameras = orbit(1, height=4, width=4)
    painted = paint_normals(torch.zeros(1, 4, 4, 3), cameras)
    assert (painted == 0).all()
    towards = cameras.c2w[0, :3, 2].expand(1, 4, 4, 3)
    assert torch.allclose(paint_normals(towards, cameras)[0, 0, 0], torch.tensor([0.5, 0.5, 1.0, 1.0]), atol=1e-6)


def test_colours_stay_close_to_the_texture():
    sides = look_at_sides(pawn(), orbit(1), size=64)
    assert sides.colour[0, 32, 32, :3].tolist() == pytest.approx([196 / 255, 98 / 255, 62 / 255], abs=0.12)
