"""The surface scene against its slow twin, forward and backward; occupancy, ends of rays, levels, and its file."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from maquette.cameras import orbit
from maquette.errors import UserError
from maquette.fields import (
    FiniteDifferenceNormals,
    LearnedBackgroundConfig,
    ProgressiveNormals,
    SurfaceFieldConfig,
    TextureConfig,
    TriPlanesConfig,
)
from maquette.fields.material import shade
from maquette.rendering import OccupancyConfig, ProgressiveLevels, Rendering, Scene, Shot, SurfaceConfig, SurfaceScene
from maquette.rendering.rays import cast_rays
from maquette.rendering.sampling import draw_offsets
from maquette.rendering.sharpness import Cap, neus_alpha, volsdf_density
from maquette.rendering.volume import accumulate, composite, weights_from_alpha
from maquette.schedules import Constant, Linear

SMALL = SurfaceConfig(
    field=SurfaceFieldConfig(
        encoding=TriPlanesConfig((8, 16), 4, initial_scale=0.05), hidden=16, features=5, texture=TextureConfig(8, 1)
    ),
    variance=0.35,
    anneal=Constant(1.0),
    occupancy=OccupancyConfig(resolution=32, interval=4, warmup=20, threshold=1e-3),
    samples=Constant(96),
    termination=0.0,
)
CAMERAS = orbit(2, elevation=20.0, height=10, width=10)
WHITE = torch.ones(3)


def shots():
    light = CAMERAS.position + torch.tensor([0.2, -0.3, 0.8])
    return {
        "albedo": Shot(CAMERAS, background=torch.tensor([0.2, 0.5, 0.9])),
        "own background": Shot(CAMERAS),
        "textureless": Shot(CAMERAS, shading="textureless", light=light, ambient=0.3),
        "normals": Shot(CAMERAS, background=WHITE, normals=True),
    }


def render_densely(scene: SurfaceScene, shot: Shot, generator=None, reach: float = 5.0) -> dict[str, torch.Tensor]:
    """Every sample of every ray inside the cube."""
    rays = cast_rays(shot.cameras, shot.pixels)
    shape, flat, step = rays.rays_d.shape[:-1], rays.flatten(), scene.step_length
    t = (torch.arange(int(reach / step)) + draw_offsets(flat, generator)[:, None]) * step
    where = flat.rays_o[:, None] + t[..., None] * flat.rays_d[:, None]
    inside = (where.abs() <= 1).all(-1)
    along = flat.rays_d[:, None].expand_as(where)
    answer = scene.field(where, along, want=frozenset({"sdf", "rgb", "normal"}))
    sdf, s = answer.sdf[..., 0], scene.sharpness()
    if scene.config.opacity == "volsdf":
        alpha = 1 - torch.exp(-volsdf_density(sdf, s) * step)
    else:
        alpha = neus_alpha(sdf, (answer.normal * along).sum(-1), step, s, scene.annealed)
    weights, _ = weights_from_alpha(alpha * inside)
    light = None
    if shot.light is not None:
        per_camera = len(flat.rays_o) // shot.cameras.fovy.numel()
        light = shot.light.reshape(-1, 1, 1, 3).expand(-1, per_camera, 1, 3).reshape(-1, 1, 3)
    rgb = shade(shot.shading, answer.rgb, answer.normal, where, light, shot.ambient)
    opacity = weights.sum(-1, keepdim=True)
    background = scene.background(flat.rays_d) if shot.background is None else shot.background.expand(len(t), 3)
    out = {
        "rgb": composite(accumulate(weights, rgb), opacity, background).reshape(*shape, 3),
        "opacity": opacity.reshape(*shape, 1),
        "depth": accumulate(weights, t[..., None]).reshape(*shape, 1),
    }
    if shot.needs_normals:
        normal = torch.nn.functional.normalize(accumulate(weights, answer.normal), dim=-1)
        out["normal"] = normal.reshape(*shape, 3)
    return out


def gradients(scene: SurfaceScene, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    named = dict(scene.named_parameters())
    grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(named.items(), grads, strict=True)}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("albedo", {}),
        ("normals", {"normals": FiniteDifferenceNormals(0.02)}),
        ("textureless", {}),
        ("own background", {"opacity": "volsdf"}),
    ],
)
def test_without_skipping_the_renderer_is_its_twin(name, change, generator):
    config = replace(SMALL, background=LearnedBackgroundConfig(hidden=3, layers=1))
    if "normals" in change:
        config = replace(config, field=replace(SMALL.field, **change))
    else:
        config = replace(config, anneal=Constant(0.4), **change)
    scene = SurfaceScene(config, seed=1).double()
    shot = replace(shots()[name], cameras=CAMERAS.to(torch.float64))
    if shot.light is not None:
        shot = replace(shot, light=shot.light.double())
    ours = scene.render(shot, torch.Generator().manual_seed(7))
    twin = render_densely(scene, shot, torch.Generator().manual_seed(7))
    upstream = {key: torch.randn(value.shape, generator=generator, dtype=torch.float64) for key, value in twin.items()}
    for key, value in twin.items():
        torch.testing.assert_close(
            getattr(ours, key), value, rtol=1e-7, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}"
        )
    ours_grad = gradients(scene, sum((getattr(ours, key) * u).sum() for key, u in upstream.items()))
    twin_grad = gradients(scene, sum((twin[key] * u).sum() for key, u in upstream.items()))
    assert ours_grad["sharpness.variance"].abs() > 0
    for key, grad in twin_grad.items():
        # An opacity of exactly 1 counts as 1 - 1e-7 in packed rays.
        torch.testing.assert_close(ours_grad[key], grad, rtol=1e-3, atol=1e-4, msg=lambda m, key=key: f"{key}: {m}")


def test_skipping_and_terminating_change_little():
    """Tolerance: 0.01 in any pixel, 0.001 on average, 15 % of a gradient."""
    config = replace(SMALL, variance=0.45, termination=1e-4, occupancy=replace(SMALL.occupancy, threshold=1e-4))
    scene = SurfaceScene(replace(config, field=replace(SMALL.field, hidden=128)), seed=2)
    scene.occupancy.sweep(scene.step_length, scene.visibility)
    shot = Shot(CAMERAS, background=WHITE)
    ours, twin = scene.render(shot), render_densely(scene, shot)
    assert len(ours.samples.t_mid) < 0.1 * 5.0 / scene.step_length * 200, "this scene must be one where it matters"
    assert twin["opacity"].max() > 0.99 and twin["opacity"].min() < 0.01
    for key in ("rgb", "opacity"):
        error = (getattr(ours, key) - twin[key]).abs()
        assert error.max() < 0.01 and error.mean() < 0.001
    target = torch.rand(twin["rgb"].shape, generator=torch.Generator().manual_seed(0))
    ours_grad = gradients(scene, (ours.rgb - target).square().mean())
    twin_grad = gradients(scene, (twin["rgb"] - target).square().mean())
    for key, grad in twin_grad.items():
        assert (ours_grad[key] - grad).norm() <= 0.15 * grad.norm() + 1e-7, key


def test_the_grid_keeps_the_shell_and_nothing_else():
    scene = SurfaceScene(replace(SMALL, variance=0.55, termination=1e-4), seed=0)
    scene.occupancy.sweep(scene.step_length, scene.visibility)
    cells = scene.occupancy.occupied[1:-1, 1:-1, 1:-1].nonzero()
    distance = scene.field.sdf((cells + 0.5) * (2 / 32) - 1)[:, 0]
    # A sample shows from log(1 / threshold) / s away on; cells add their half diagonal and the slack.
    assert 0 < len(cells) < 0.35 * 32**3 and distance.abs().max() < 0.25
    axis = (torch.arange(32) + 0.5) * (2 / 32) - 1
    centres = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).reshape(-1, 3)
    on_it = scene.field.sdf(centres)[:, 0].abs() < 1 / 32
    assert scene.occupancy.occupied[1:-1, 1:-1, 1:-1].reshape(-1)[on_it].all()


def test_samples_know_distance_gradient_and_curvature():
    scene = SurfaceScene(replace(SMALL, field=replace(SMALL.field, normals=ProgressiveNormals())))
    samples = scene.render(Shot(CAMERAS, normals=True)).samples
    torch.testing.assert_close(samples.sdf, scene.field.sdf(samples.positions)[:, 0])
    assert samples.laplacian.shape == samples.sdf.shape and samples.gradient.shape == samples.positions.shape
    # The density is that whose opacity is alpha.
    assert samples.density.min() >= 0 and torch.isfinite(samples.density).all()
    assert scene.render(Shot(CAMERAS)).normal is None and isinstance(scene, Scene)


def test_milestones_move_with_the_run():
    levels = ProgressiveLevels(1, 0.5, "fraction")
    config = replace(
        SMALL, anneal=Linear(0.0, 1.0, 0.5), samples=Linear(48, 96), levels=levels, cap=Cap(100.0, 0.2, 0.8)
    )
    scene, generator = SurfaceScene(config), torch.Generator().manual_seed(0)
    assert scene.field.encoding.active_levels == 1 and scene.annealed == 0
    coarse = scene.step_length
    scene.update(5, 10, generator)
    assert scene.field.encoding.active_levels == 2 and scene.annealed == 1 and scene.step_length < coarse
    assert scene.sharpness.limit < 100
    assert [ProgressiveLevels(4, 1000).at(step, 1, 16) for step in (0, 999, 1000, 11_999, 99_999)] == [4, 4, 5, 15, 16]


def test_unfolded_it_begins_another_fit_as_it_ended_the_first(generator):
    config = replace(SMALL, anneal=Linear(0.0, 1.0), levels=ProgressiveLevels(1, 0.5, "fraction"))
    scene = SurfaceScene(config, seed=1)
    scene.update(10, 10, generator)
    whole = scene.render(Shot(CAMERAS))
    other = scene.unfolded()
    other.update(0, 10, generator)
    assert other.annealed == 1.0 and other.field.encoding.active_levels == other.field.encoding.num_levels
    torch.testing.assert_close(other.render(Shot(CAMERAS)).rgb, whole.rgb, atol=1e-3, rtol=0)
    scene.update(0, 10, generator)
    assert scene.annealed == 0.0 and scene.field.encoding.active_levels == 1


def test_it_is_kept_whole(tmp_path):
    config = replace(
        SMALL, anneal=Linear(0.0, 1.0), levels=ProgressiveLevels(1, 0.5, "fraction"), cap=Cap(60.0, 0.1, 0.9)
    )
    scene = SurfaceScene(config, seed=3)
    scene.update(4, 10, torch.Generator().manual_seed(0))
    scene.save(tmp_path)
    again = SurfaceScene.load(tmp_path)
    assert again.fingerprint() == scene.fingerprint() and again.annealed == scene.annealed
    shot = Shot(CAMERAS, background=WHITE)
    first, second = scene.render(shot), again.render(shot)
    assert isinstance(first, Rendering) and torch.equal(first.rgb, second.rgb)
    assert SurfaceScene(config, seed=4).fingerprint() != scene.fingerprint()
    (tmp_path / "scene.safetensors").write_bytes(b"no scene")
    with pytest.raises(UserError):
        SurfaceScene.load(tmp_path)


@pytest.mark.parametrize("wrong", [{"termination": 1.0}, {"slack": -1.0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(UserError):
        replace(SMALL, **wrong)
    with pytest.raises(UserError):
        ProgressiveLevels(0)
