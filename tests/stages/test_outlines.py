"""Opposite outlines: cut to what both sides cover, and true views are left nearly as they are."""

from __future__ import annotations

import pytest
import torch

from maquette.cameras import Cameras, orbit
from maquette.errors import UserError
from maquette.images import Views
from maquette.rendering.raster import render_mesh
from maquette.stages.outlines import OutlineConfig, agreed_outlines
from tests.stages.test_locate import chair


def ring(first: float = 0.0) -> Cameras:
    return orbit(4, elevation=5.0, azimuth=first, fovy=40.0, height=32, width=32)


def blocks(*columns: tuple[int, int], first: float = 0.0) -> Views:
    """Views whose masks are columns [from, to) of pixels."""
    masks = torch.zeros(4, 1, 32, 32)
    for mask, (begin, end) in zip(masks, columns, strict=True):
        mask[:, 8:24, begin:end] = 1.0
    return Views(torch.rand(4, 3, 32, 32), masks, ring(first))


def test_sides_keep_what_both_cover() -> None:
    views = blocks((4, 28), (10, 20), (4, 28), (8, 18))  # the last one mirrored: 14 to 24
    cut = agreed_outlines(views, OutlineConfig())
    assert torch.nonzero(cut.masks[1, 0, 10])[[0, -1], 0].tolist() == [14, 19]
    assert torch.equal(cut.masks[3].flip(-1), cut.masks[1])
    assert torch.equal(cut.images, views.images) and torch.equal(cut.cameras.c2w, views.cameras.c2w)


def test_the_back_is_cut_to_the_front_with_a_pixel_of_slack_and_the_front_stays() -> None:
    views = blocks((10, 20), (4, 28), (2, 30), (4, 28))  # the front mirrored: 12 to 22
    cut = agreed_outlines(views, OutlineConfig())
    assert torch.nonzero(cut.masks[2, 0, 10])[[0, -1], 0].tolist() == [11, 22]
    assert torch.equal(cut.masks[0], views.masks[0])
    narrow = blocks((2, 30), (4, 28), (10, 20), (4, 28))
    assert torch.equal(agreed_outlines(narrow, OutlineConfig()).masks[0], narrow.masks[0])
    mutual = agreed_outlines(narrow, OutlineConfig(trust_front=False))
    assert torch.nonzero(mutual.masks[0, 0, 10])[[0, -1], 0].tolist() == [11, 22]


def test_a_ring_between_the_sides_has_slack_everywhere() -> None:
    views = blocks((10, 20), (10, 20), (10, 20), (10, 20), first=45.0)
    cut = agreed_outlines(views, OutlineConfig())
    assert [int(mask[0, 10].sum()) for mask in cut.masks] == [10 - 1] * 4  # mirrored: 12 to 22, and a pixel


def test_true_views_are_left_nearly_as_they_are() -> None:
    views = render_mesh(chair(), ring(), samples=4).views()
    cut = agreed_outlines(views, OutlineConfig(sides=1))
    lost = (views.masks - cut.masks).flatten(1).sum(1) / views.masks.flatten(1).sum(1)
    assert float(lost.max()) < 0.1, lost


def test_what_has_no_opposite_or_no_mask_stays() -> None:
    views = blocks((10, 20), (4, 28), (2, 30), (4, 28))
    three = views[[0, 1, 2]]
    assert torch.equal(agreed_outlines(three, OutlineConfig()).masks[1], three.masks[1])
    bare = Views(views.images, None, views.cameras)
    assert agreed_outlines(bare, OutlineConfig()) is bare


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(UserError, match="0 pixels or more"):
        OutlineConfig(sides=-1)
