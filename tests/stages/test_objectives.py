"""Objectives: they look where they say, compare with the right pixels, and hand the guidance what it expects."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from maquette.cameras import OrbitSampler, orbit
from maquette.errors import UserError
from maquette.fields import FlatBackgroundConfig, LinearBlob, RadianceConfig, TriPlanesConfig
from maquette.guidance.base import GuidanceLoss
from maquette.images import Views
from maquette.rendering import OccupancyConfig, Shot, VolumeConfig, VolumeScene, render_pictures, render_views
from maquette.schedules import Constant, Piecewise
from maquette.stages.objectives import (
    Distillation,
    DistillationConfig,
    Photometric,
    PhotometricConfig,
    RandomCrops,
    RandomRays,
    ShadingConfig,
    WholeImages,
    take_pixels,
)
from maquette.stages.regularizers import Regularizers

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def scene():
    return VolumeScene(
        VolumeConfig(
            field=RadianceConfig(
                encoding=TriPlanesConfig((8,), 4, initial_scale=1.0), bias=LinearBlob(30.0, 0.5), hidden=8
            ),
            background=FlatBackgroundConfig(),
            occupancy=OccupancyConfig(resolution=16),
            samples=Constant(64),
        ),
        seed=1,
    )


@pytest.fixture(scope="module")
def views(scene):
    return render_views(scene, orbit(3, elevation=10.0, height=16, width=20))


@pytest.mark.parametrize("pixels", [RandomRays(300), RandomCrops(4, 8), WholeImages(2), WholeImages(9)])
def test_the_scene_that_made_the_views_has_no_loss(scene, views, pixels, generator):
    objective = Photometric(views, PhotometricConfig(pixels=pixels, mask=Constant(1.0)))
    shot = objective.shot(0, 1, generator, CPU)
    loss, metrics = objective.loss(scene.render(shot), shot, 0, 1, generator)
    assert loss.item() < 1e-3 and metrics["psnr"].item() > 40
    wrong = replace(objective, views=replace(views, images=1 - views.images, masks=1 - views.masks))
    worse, _ = wrong.loss(scene.render(shot), shot, 0, 1, generator)
    assert worse.item() > 0.02


def test_picked_pixels_are_spread_over_views_and_places(views, generator):
    shot = Photometric(views, PhotometricConfig(pixels=RandomRays(2000))).shot(0, 1, generator, CPU)
    assert shot.pixels.shape == (2000, 1, 1, 2) and shot.cameras.batch_shape == (2000,)
    assert torch.bincount(shot.index, minlength=3).min() > 500
    assert shot.pixels[..., 0].min() == 0.5 and shot.pixels[..., 0].max() == 19.5
    assert shot.pixels[..., 1].min() == 0.5 and shot.pixels[..., 1].max() == 15.5
    torch.testing.assert_close(shot.cameras.c2w, views.cameras.c2w[shot.index])
    crops = Photometric(views, PhotometricConfig(pixels=RandomCrops(200, 8))).shot(0, 1, generator, CPU)
    corners = crops.pixels[:, 0, 0]
    assert corners.amin(0).tolist() == [0.5, 0.5] and corners.amax(0).tolist() == [12.5, 8.5]
    whole = Photometric(views, PhotometricConfig(pixels=WholeImages(2))).shot(0, 1, generator, CPU)
    assert whole.pixels is None and len(set(whole.index.tolist())) == 2


def test_take_pixels_takes_rows_and_columns(generator):
    images = torch.rand(2, 3, 5, 7, generator=generator)
    pixels = torch.tensor([[[[6.5, 0.5]]], [[[0.5, 4.5]]]])
    taken = take_pixels(images, torch.tensor([1, 0]), pixels)
    assert torch.equal(taken[0, 0, 0], images[1, :, 0, 6])
    assert torch.equal(taken[1, 0, 0], images[0, :, 4, 0])
    assert torch.equal(take_pixels(images, torch.tensor([1]), None)[0], images[1].permute(1, 2, 0))


def test_rays_between_centres_go_anywhere_through_their_pixels(scene, views, generator):
    objective = Photometric(views, PhotometricConfig(pixels=RandomRays(2000), between=True, mask=Constant(1.0)))
    shot = objective.shot(0, 1, generator, CPU)
    assert shot.pixels.shape == (2000, 1, 1, 2) and torch.bincount(shot.index, minlength=3).min() > 500
    off = (shot.pixels - shot.pixels.floor() - 0.5).abs()
    assert off.max() > 0.45 and off.mean() == pytest.approx(0.25, abs=0.02), "places within a pixel are uniform"
    assert shot.pixels.min() >= 0 and (shot.pixels < torch.tensor([20.0, 16.0])).all()
    loss, metrics = objective.loss(scene.render(shot), shot, 0, 1, generator)
    assert torch.isfinite(loss) and metrics["psnr"].item() > 20, "a smooth scene's pixels look alike all over"
    column, row = shot.pixels[:, 0, 0].long().unbind(-1)
    seen = take_pixels(views.images, shot.index, shot.pixels)[:, 0, 0]
    torch.testing.assert_close(seen, views.images.movedim(1, -1)[shot.index, row, column])


def test_views_without_masks_show_the_scenes_own_background(scene, generator):
    seen = render_pictures(scene, Shot(orbit(2, height=8, width=8)))
    objective = Photometric(Views(seen.images(), None, orbit(2, height=8, width=8)))
    shot = objective.shot(0, 1, generator, CPU)
    assert shot.background is None
    loss, metrics = objective.loss(scene.render(shot), shot, 0, 1, generator)
    assert loss.item() < 1e-3 and "mask" not in metrics


def test_weights_of_views_and_of_terms(scene, views, generator):
    dark = replace(views, images=torch.zeros_like(views.images))
    config = PhotometricConfig(pixels=WholeImages(3), mask=Constant(0.0))
    objective = Photometric(dark, config)
    shot = objective.shot(0, 1, generator, CPU)
    rendering = scene.render(shot)
    full, _ = objective.loss(rendering, shot, 0, 1, generator)
    one_by_one = [
        replace(objective, view_weights=tuple(float(k == view) for k in range(3))).loss(
            rendering, shot, 0, 1, generator
        )[0]
        for view in range(3)
    ]
    assert sum(one_by_one).item() / 3 == pytest.approx(full.item(), rel=1e-5)
    halved, _ = replace(objective, config=replace(config, rgb=Constant(0.5))).loss(rendering, shot, 0, 1, generator)
    assert halved.item() == pytest.approx(full.item() / 2, rel=1e-5)


@pytest.mark.parametrize(("measure", "expected"), [("l1", 0.5), ("l2", 0.25), ("huber", 0.45)])
def test_measures(scene, measure, expected, generator):
    black = Views(torch.zeros(1, 3, 4, 4), torch.ones(1, 1, 4, 4), orbit(1, height=4, width=4))
    objective = Photometric(black, PhotometricConfig(pixels=WholeImages(1), measure=measure, mask=Constant(0.0)))
    shot = objective.shot(0, 1, generator, CPU)
    rendering = scene.render(shot)
    grey = replace(rendering, rgb=torch.full_like(rendering.rgb, 0.5))
    assert objective.loss(grey, shot, 0, 1, generator)[0].item() == pytest.approx(expected, rel=1e-6)


def test_opacity_may_be_measured_by_its_entropy(scene, views, generator):
    objective = Photometric(views, PhotometricConfig(pixels=WholeImages(2), mask_measure="entropy"))
    shot = objective.shot(0, 1, generator, torch.device("cpu"))
    rendering = scene.render(shot)
    _, metrics = objective.loss(rendering, shot, 0, 1, generator)
    mask, opacity = take_pixels(views.masks, shot.index, None), rendering.opacity.clamp(0.001, 0.999)
    expected = torch.nn.functional.binary_cross_entropy(opacity, mask)
    torch.testing.assert_close(metrics["mask"], expected.detach())


def test_impossible_objectives_are_refused(views):
    with pytest.raises(ValueError, match="one weight a view"):
        Photometric(views, view_weights=(1.0,))
    with pytest.raises(ValueError, match="not all 0"):
        Photometric(views, view_weights=(0.0, 0.0, 0.0))
    with pytest.raises(ValueError, match="do not fit"):
        Photometric(views, PhotometricConfig(pixels=RandomCrops(1, 17)))
    with pytest.raises(UserError, match="at least 1"):
        RandomRays(0)
    with pytest.raises(UserError, match="every"):
        DistillationConfig(every=0)
    with pytest.raises(UserError, match="between pixels"):
        PhotometricConfig(pixels=WholeImages(1), between=True)


class Recorder:
    """A guidance that wants brighter pictures and remembers what it was shown."""

    def __init__(self):
        self.calls = []

    def __call__(self, images, cameras, background, noise_range, generator=None):
        self.calls.append(
            (images.detach(), cameras, background, noise_range, torch.rand(1, generator=generator).item())
        )
        return GuidanceLoss(-images.mean(), {"grad_norm": 1.0})


def test_distillation_hands_the_guidance_whole_pictures(scene, generator):
    guidance = Recorder()
    config = DistillationConfig(resolution=Piecewise((8, 16), (0.5,)), scenes=Piecewise((2, 1), (0.5,)),
                                random_background=1.0, regularizers=Regularizers(sparsity=Constant(0.1)))  # fmt: skip
    objective = Distillation(guidance, OrbitSampler(), config)
    for step, (scenes, size) in ((0, (2, 8)), (5, (1, 16))):
        shot = objective.shot(step, 10, generator, CPU)
        loss, metrics = objective.loss(scene.render(shot, generator), shot, step, 10, generator)
        images, cameras, background, noise_range, _ = guidance.calls[-1]
        assert images.shape == (scenes, 4, 3, size, size) and cameras.batch_shape == (scenes, 4)
        torch.testing.assert_close(background, shot.background)
        assert noise_range == config.noise_range.at(step, 10)
        assert {"guidance", "grad_norm", "sparsity", "opacity"} <= set(metrics)
        assert loss.item() == pytest.approx(-images.mean().item() + 0.1 * metrics["sparsity"].item(), rel=1e-5)
        (gradient,) = torch.autograd.grad(loss, scene.field.encoding.planes[0])
        assert gradient.abs().max() > 0


def test_the_guidance_hears_of_the_scenes_own_background(generator):
    config = VolumeConfig(occupancy=OccupancyConfig(resolution=16), samples=Constant(32))
    scene, guidance = VolumeScene(config, seed=3), Recorder()
    settings = DistillationConfig(resolution=Constant(8), random_background=0.0, regularizers=Regularizers())
    objective = Distillation(guidance, OrbitSampler(), settings)
    shot = objective.shot(0, 10, generator, CPU)
    rendering = scene.render(shot, generator)
    objective.loss(rendering, shot, 0, 10, generator)
    torch.testing.assert_close(guidance.calls[0][2], rendering.background.reshape(-1, 3).mean(0).detach())


def test_backgrounds_are_random_as_often_as_asked(generator):
    config = DistillationConfig(resolution=Constant(4), random_background=0.3, regularizers=Regularizers())
    objective = Distillation(Recorder(), OrbitSampler(), config)
    drawn = [objective.shot(0, 10, generator, CPU).background is not None for _ in range(400)]
    assert abs(sum(drawn) / 400 - 0.3) < 3 * math.sqrt(0.3 * 0.7 / 400)


def test_shading_follows_the_paper(generator):
    shading = ShadingConfig()
    assert all(shading.draw(step, 100, generator)[0] == "albedo" for step in range(40))
    drawn = [shading.draw(60, 100, generator) for _ in range(2000)]
    share = {kind: sum(d[0] == kind for d in drawn) / 2000 for kind in ("albedo", "textureless", "diffuse")}
    assert share == pytest.approx({"albedo": 0.25, "textureless": 0.375, "diffuse": 0.375}, abs=0.04)
    ambient = torch.tensor([d[1] for d in drawn if d[0] != "albedo"])
    assert ambient.min() < 0.02 and ambient.max() > 0.98 and abs(ambient.mean() - 0.5) < 0.03
    assert {
        d[1] for d in (ShadingConfig(soft=False).draw(60, 100, generator) for _ in range(50)) if d[0] != "albedo"
    } == {0.1}


def test_lit_shots_carry_a_light_per_view(scene, generator):
    config = DistillationConfig(
        resolution=Constant(8), shading=ShadingConfig(begin=0.0, albedo=0.0), scenes=Constant(2)
    )
    objective = Distillation(Recorder(), OrbitSampler(), config)
    shot = objective.shot(5, 10, generator, CPU)
    assert shot.shading in ("textureless", "diffuse") and shot.light.shape == (2, 4, 3)
    rendering = scene.render(shot, generator)
    assert rendering.normal is not None and rendering.rgb.isfinite().all()
    loss, metrics = objective.loss(rendering, shot, 5, 10, generator)
    assert "orientation" in metrics and loss.isfinite()
