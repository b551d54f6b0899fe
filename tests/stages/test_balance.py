"""The balance of two objectives: the weight is a share of a gradient, whatever the scale of the losses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from maquette.errors import UserError
from maquette.images import Views
from maquette.rendering import VolumeScene
from maquette.rendering.base import Rendering
from maquette.run import Run
from maquette.schedules import Constant, Linear
from maquette.stages.balance import Balance, Balancer
from maquette.stages.fit import fit
from maquette.stages.objectives import Photometric, PhotometricConfig, RandomRays
from tests.stages.test_fit import FAST, SMALL, views  # noqa: F401 (a fixture)

PAIR = ("distillation", "pseudo_views")


def picture(value: float = 0.5) -> Rendering:
    rgb = torch.full((2, 4, 4, 3), value, requires_grad=True)
    one = torch.ones(2, 4, 4, 1)
    return Rendering(rgb, one, one, torch.ones(2, 4, 4, 3))


def test_the_weighted_gradient_is_the_share_of_the_other():
    balancer = Balancer(Balance(share=Linear(0.3, 0.1)), PAIR)
    strong, weak = picture(), picture(0.2)
    balancer.measure("distillation", 1e4 * strong.rgb.square().sum(), strong, 0)
    loss = weak.rgb.square().mean()
    balancer.measure("pseudo_views", loss, weak, 0)
    for step, share in ((0, 0.3), (10, 0.2)):
        weight = balancer.factor("pseudo_views", step, 20)
        (own,) = torch.autograd.grad(weight * loss, weak.rgb, retain_graph=True)
        (other,) = torch.autograd.grad(1e4 * strong.rgb.square().sum(), strong.rgb, retain_graph=True)
        assert float(own.norm() / other.norm()) == pytest.approx(share, rel=1e-5)
    assert balancer.factor("distillation", 0, 20) == 1.0


def test_means_run_between_measurements_and_pass_over_what_is_not_finite():
    balancer = Balancer(Balance(every=10, memory=0.5), PAIR)
    for step, scale in ((0, 1.0), (5, 100.0), (10, 3.0), (20, float("nan"))):
        seen = picture()
        balancer.measure("distillation", scale * seen.rgb.sum(), seen, step)
    assert balancer.means["distillation"] == pytest.approx(2.0 * 96**0.5)


def test_nothing_is_asked_before_both_were_measured():
    balancer = Balancer(Balance(), PAIR)
    assert balancer.factor("pseudo_views", 0, 10) == 0.0


def test_what_cannot_be_balanced_is_refused():
    with pytest.raises(ValueError, match="in that order"):
        Balancer(Balance(), ("pseudo_views", "distillation"))
    with pytest.raises(UserError, match="at least 1"):
        Balance(every=0)
    with pytest.raises(UserError, match="memory"):
        Balance(memory=1.0)


def objectives(views: Views, weight: float = 1.0) -> list[Photometric]:  # noqa: F811
    settings = PhotometricConfig(pixels=RandomRays(64))
    grey = Views(torch.full_like(views.images, 0.5), views.masks, views.cameras)
    return [
        Photometric(views, settings, name="distillation"),
        Photometric(grey, replace(settings, weight=Constant(weight)), name="pseudo_views"),
    ]


def fitted(tmp_path, views, balance, weight=1.0, only=2) -> VolumeScene:  # noqa: F811
    with Run.open(tmp_path / f"{weight} {only}", seed=1, device="cpu", quiet=True) as run:
        return run.stage("fit", fit, VolumeScene(SMALL), objectives(views, weight)[:only], FAST, balance)


def colours(scene: VolumeScene) -> torch.Tensor:
    return torch.cat([parameter.flatten() for parameter in scene.field.parameters()])


def test_a_fit_does_not_see_the_scale_of_what_is_balanced(tmp_path, views):  # noqa: F811
    every = Balance(share=Constant(0.3), every=1)
    plain, scaled = (fitted(tmp_path, views, every, weight) for weight in (1.0, 1024.0))
    torch.testing.assert_close(colours(plain), colours(scaled), rtol=1e-3, atol=1e-4)


def test_no_share_is_no_reconstruction(tmp_path, views):  # noqa: F811
    """Stage 3 without its reconstruction is plain score distillation on the same random stream."""
    without = fitted(tmp_path, views, None, only=1)
    nothing = fitted(tmp_path, views, Balance(share=Constant(0.0)))
    some = fitted(tmp_path, views, Balance(share=Constant(0.3)), weight=2.0)
    torch.testing.assert_close(colours(nothing), colours(without), rtol=0, atol=0)
    assert not torch.allclose(colours(some), colours(without))
