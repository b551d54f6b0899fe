"""The weak reconstruction: nothing outside the mask, the median of what disagrees, exactly the views' cameras."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from maquette.cameras import orbit
from maquette.errors import UserError
from maquette.images import Views
from maquette.rendering.base import Rendering
from maquette.schedules import Constant
from maquette.stages.translate import TranslateConfig, Translated
from maquette.stages.weak import LowPass, Moments, Pixels, WeakConfig, WeakReconstruction, distance

COMPARISONS = [Pixels(1), Pixels(2), LowPass(4), LowPass(4, 2), Moments()]


def pseudo(count: int = 3, size: int = 16) -> Translated:
    """Random pictures over a square outline."""
    images = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(count, 1, size, size)
    masks[..., 4:12, 4:12] = 1
    views = Views(images, masks, orbit(count, elevation=20.0, height=size, width=size))
    return Translated(views, tuple(range(count)), (), torch.zeros(0, 3, size, size, dtype=torch.uint8),
                      TranslateConfig(background=(0.5, 0.25, 1.0)))  # fmt: skip


def rendered(objective: WeakReconstruction, size: int) -> tuple[Rendering, object]:
    shot = objective.shot(0, 10, torch.Generator().manual_seed(1), torch.device("cpu"))
    generator = torch.Generator().manual_seed(2)
    count = len(shot.cameras)
    rgb = torch.rand(count, size, size, 3, generator=generator).requires_grad_()
    opacity = torch.rand(count, size, size, 1, generator=generator).requires_grad_()
    return Rendering(rgb, opacity, opacity, torch.ones(count, size, size, 3)), shot


@pytest.mark.parametrize("compare", COMPARISONS, ids=repr)
@pytest.mark.parametrize("size", [16, 32])
def test_no_gradient_outside_the_mask(compare, size):
    objective = WeakReconstruction.of(pseudo(), WeakConfig(compare, Constant(float(size)), dilate=0.0))
    rendering, shot = rendered(objective, size)
    loss, _ = objective.loss(rendering, shot, 0, 10, torch.Generator())
    loss.backward()
    inside = objective.inside[:1, 0].repeat_interleave(size // 16, 1).repeat_interleave(size // 16, 2) > 0
    assert rendering.rgb.grad[~inside].abs().max() == 0 < rendering.rgb.grad[inside].abs().max()
    assert rendering.opacity.grad is None


@pytest.mark.parametrize("compare", COMPARISONS, ids=repr)
def test_what_looks_like_the_picture_costs_nothing(compare):
    images, mask = pseudo().views.images, pseudo().views.masks
    assert float(distance(images, images, mask, compare)) == pytest.approx(0, abs=1e-6)
    assert float(distance(1 - images, images, mask, compare)) > 0.01


def test_views_that_disagree_leave_the_median_or_the_mean():
    values = torch.tensor([0.1, 0.2, 0.9])
    theirs = values[:, None, None, None].expand(3, 3, 4, 4)
    mask = torch.ones(3, 1, 4, 4)

    def best(norm):
        grid = torch.linspace(0, 1, 101)
        costs = [distance(torch.full((3, 3, 4, 4), float(c)), theirs, mask, Pixels(norm)) for c in grid]
        return float(grid[int(torch.stack(costs).argmin())])

    assert best(1) == pytest.approx(0.2, abs=0.011) and best(2) == pytest.approx(0.4, abs=0.011)


def test_colours_alone_do_not_see_where_they_are():
    views = pseudo().views
    inner = views.images[:, :, 4:12, 4:12]
    moved = views.images.clone()
    moved[:, :, 4:12, 4:12] = inner.flip(-1)
    assert float(distance(moved, views.images, views.masks, Moments())) == pytest.approx(0, abs=1e-6)
    assert float(distance(moved, views.images, views.masks, Pixels())) > 0.1
    # A cell of the coarse grid holds 4 x 4 pixels; their order in it is not seen.
    swapped = views.images.unflatten(3, (4, 4)).flip(4).flatten(3)
    assert float(distance(swapped, views.images, torch.ones_like(views.masks), LowPass(4))) < 1e-6


def test_a_shot_stands_where_the_pseudo_view_was_taken():
    objective = WeakReconstruction.of(pseudo(), WeakConfig(resolution=Constant(24), count=2))
    shot = objective.shot(3, 10, torch.Generator().manual_seed(0), torch.device("cpu"))
    assert len(set(shot.index.tolist())) == 2 and shot.shading == "albedo" and shot.pixels is None
    assert torch.equal(shot.cameras.c2w, objective.views.cameras.c2w[shot.index])
    assert (shot.cameras.height, shot.cameras.width) == (24, 24)
    assert shot.background.tolist() == [0.5, 0.25, 1.0]


def test_the_outline_counts_only_where_it_is_asked_for():
    settings = WeakConfig(resolution=Constant(16))
    with_mask = replace(settings, mask=Constant(0.5))
    losses = []
    for config in (settings, with_mask):
        objective = WeakReconstruction.of(pseudo(), config)
        rendering, shot = rendered(objective, 16)
        loss, metrics = objective.loss(rendering, shot, 0, 10, torch.Generator())
        losses.append(float(loss.detach()))
    outline = (rendering.masks() - objective.views.masks[:1]).square().mean().detach()
    assert losses[1] - losses[0] == pytest.approx(0.5 * float(outline), rel=1e-4)


def test_what_makes_no_sense_is_refused():
    for wrong in ({"count": 0}, {"every": 0}, {"dilate": 0.7}):
        with pytest.raises(UserError):
            WeakConfig(**wrong)
    with pytest.raises(UserError):
        LowPass(0)
