"""The volume scene against its slow twin, forward and backward, and its laws: blob, emptiness, round trip."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from rendering_twin import render_densely

from maquette.cameras import orbit
from maquette.errors import UserError
from maquette.fields.background import FlatBackgroundConfig, LearnedBackgroundConfig
from maquette.fields.encodings import FrequencyConfig, HashGridConfig, TriPlanesConfig
from maquette.fields.normals import FiniteDifferenceNormals
from maquette.fields.radiance import FlatBias, LinearBlob, RadianceConfig
from maquette.rendering.base import Rendering, Shot
from maquette.rendering.rays import pixel_centres
from maquette.rendering.sampling import OccupancyConfig
from maquette.rendering.scene import VolumeConfig, VolumeScene
from maquette.schedules import Constant, Linear

SMALL = VolumeConfig(
    field=RadianceConfig(encoding=TriPlanesConfig(resolutions=(8, 16), features=4, initial_scale=0.5), hidden=8),
    occupancy=OccupancyConfig(resolution=16),
    samples=Constant(48),
    termination=0.0,
)
CAMERAS = orbit(2, elevation=20.0, height=12, width=12)
WHITE = torch.ones(3)


def shots():
    light = CAMERAS.position + torch.tensor([0.2, -0.3, 0.8])
    return {
        "albedo": Shot(CAMERAS, background=torch.tensor([0.2, 0.5, 0.9])),
        "own background": Shot(CAMERAS),
        "textureless": Shot(CAMERAS, shading="textureless", light=light, ambient=0.3),
        "diffuse": Shot(CAMERAS, background=WHITE, shading="diffuse", light=light, ambient=0.1),
        "normals": Shot(CAMERAS, background=WHITE, normals=True),
    }


def gradients(scene: VolumeScene, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    named = dict(scene.named_parameters())
    grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(named.items(), grads, strict=True)}


@pytest.mark.parametrize("name", shots())
@pytest.mark.parametrize("normals", ["analytic", "finite differences"])
def test_without_skipping_the_renderer_is_its_twin(name, normals, generator):
    config = SMALL
    if normals == "finite differences":
        config = replace(SMALL, field=replace(SMALL.field, normals=FiniteDifferenceNormals(0.02)))
    scene = VolumeScene(config, seed=1).double()
    shot = replace(shots()[name], cameras=CAMERAS.to(torch.float64))
    if shot.light is not None:
        shot = replace(shot, light=shot.light.double())
    ours = scene.render(shot, torch.Generator().manual_seed(7))
    twin = render_densely(scene, shot, torch.Generator().manual_seed(7))
    upstream = {key: torch.randn(value.shape, generator=generator, dtype=torch.float64) for key, value in twin.items()}
    for key, value in twin.items():
        torch.testing.assert_close(getattr(ours, key), value, rtol=1e-7, atol=1e-9)
    ours_grad = gradients(scene, sum((getattr(ours, key) * u).sum() for key, u in upstream.items()))
    twin_grad = gradients(scene, sum((twin[key] * u).sum() for key, u in upstream.items()))
    assert any(grad.abs().max() > 0 for grad in ours_grad.values())
    for key, grad in twin_grad.items():
        torch.testing.assert_close(ours_grad[key], grad, rtol=1e-6, atol=1e-8, msg=lambda m, key=key: f"{key}: {m}")


def solid_scene() -> VolumeScene:
    """An opaque lumpy ball with a hard edge, as a fitted scene is: what skipping and early ends are for."""
    config = replace(
        SMALL,
        field=replace(SMALL.field, bias=LinearBlob(60.0, 0.5), density_scale=3.0),
        occupancy=OccupancyConfig(resolution=32),
        samples=Constant(128),
    )
    scene = VolumeScene(config, seed=2)
    scene.occupancy.sweep(scene.step_length, scene.field.density)
    return scene


def test_skipping_and_terminating_change_little():
    """Tolerance: 0.02 in any pixel, 0.002 on average, 8 % of any parameter's gradient."""
    scene = solid_scene()
    scene.config = replace(scene.config, termination=1e-4)
    shot = Shot(CAMERAS, background=WHITE)
    ours, twin = scene.render(shot), render_densely(scene, shot)
    total = int(5.0 / scene.step_length) * 2 * 144
    assert len(ours.samples.t_mid) < 0.05 * total, "this scene must be one where skipping matters"
    assert twin["opacity"].max() > 0.999 and twin["opacity"].min() < 1e-3
    for key in ("rgb", "opacity"):
        error = (getattr(ours, key) - twin[key]).abs()
        assert error.max() < 0.02 and error.mean() < 0.002
    target = torch.rand(twin["rgb"].shape, generator=torch.Generator().manual_seed(0))
    ours_grad = gradients(scene, (ours.rgb - target).square().mean())
    twin_grad = gradients(scene, (twin["rgb"] - target).square().mean())
    for key, grad in twin_grad.items():
        if grad.norm() > 0:
            assert (ours_grad[key] - grad).norm() < 0.08 * grad.norm(), key


def test_early_termination_changes_less_than_it_says():
    scene = solid_scene()
    shot = Shot(CAMERAS, background=WHITE)
    whole = scene.render(shot)
    scene.config = replace(scene.config, termination=1e-3)
    ended = scene.render(shot)
    assert len(ended.samples.t_mid) < 0.7 * len(whole.samples.t_mid)
    assert (ended.rgb - whole.rgb).abs().max() < 1e-3
    assert 0 < (ended.opacity - whole.opacity).abs().max() < 1e-3


def test_gradients_of_the_renderer_against_finite_differences():
    config = replace(
        SMALL,
        field=replace(SMALL.field, encoding=TriPlanesConfig(resolutions=(3,), features=2, initial_scale=0.5), hidden=4),
        background=LearnedBackgroundConfig(hidden=3, layers=1),
        samples=Constant(16),
    )
    scene = VolumeScene(config, seed=3).double()
    cameras = orbit(1, elevation=10.0, height=2, width=2).to(torch.float64)
    named = dict(scene.named_parameters())
    for shading in ("albedo", "diffuse"):
        shot = Shot(cameras, shading=shading, light=cameras.position + 0.3, ambient=0.2)

        def pictures(*values, shot=shot):
            parameters = dict(zip(named, values, strict=True))
            found = torch.func.functional_call(_Rendered(scene), {f"scene.{k}": v for k, v in parameters.items()}, shot)
            return found.rgb, found.opacity, found.depth

        # Kinks of ReLU and of bilinear cells are everywhere; steps small enough meet none with this seed.
        assert torch.autograd.gradcheck(pictures, tuple(named.values()), eps=1e-7, atol=1e-5, rtol=1e-3)


class _Rendered(torch.nn.Module):
    def __init__(self, scene):
        super().__init__()
        self.scene = scene

    def forward(self, shot) -> Rendering:
        return self.scene.render(shot)


def test_the_blob_is_a_ball():
    config = replace(SMALL, field=replace(SMALL.field, encoding=TriPlanesConfig((8,), 4, initial_scale=0.0),
                                          bias=LinearBlob(40.0, 0.5)), samples=Constant(256))  # fmt: skip
    scene = VolumeScene(config)
    cameras = orbit(3, elevation=30.0, height=33, width=33)
    seen = scene.render(Shot(cameras, background=WHITE, normals=True))
    centre, corner = seen.opacity[:, 16, 16], seen.opacity[:, 0, 0]
    assert (centre > 0.99).all() and (corner < 1e-3).all()
    torch.testing.assert_close(seen.opacity[0], seen.opacity[1], atol=2e-3, rtol=0)
    torch.testing.assert_close(seen.opacity[0], seen.opacity[0].flip(0), atol=2e-3, rtol=0)
    # The normal in the middle looks back at the camera, and the light ends not far inside the radius, 0.5.
    towards = torch.nn.functional.normalize(cameras.position, dim=-1)
    torch.testing.assert_close(seen.normal[:, 16, 16], towards, atol=0.02, rtol=0)
    depth = seen.mean_depth[:, 16, 16, 0]
    assert ((cameras.distance - depth - 0.4).abs() < 0.1).all()
    assert (seen.mean_depth[:, 0, 0] == 0).all() or (seen.opacity[:, 0, 0] > 0).all()


def test_empty_scene_shows_the_background():
    empty = replace(SMALL.field, bias=FlatBias(-50.0))
    config = replace(SMALL, field=empty, background=FlatBackgroundConfig((0.1, 0.2, 0.3)))
    scene = VolumeScene(config)
    scene.occupancy.sweep(scene.step_length, scene.field.density)
    seen = scene.render(Shot(CAMERAS, normals=True))
    torch.testing.assert_close(seen.rgb, torch.tensor([0.1, 0.2, 0.3]).expand(2, 12, 12, 3))
    assert not seen.opacity.any() and not seen.normal.any() and not seen.mean_depth.any()
    seen.rgb.sum().backward()


def test_fitting_an_empty_picture_empties_the_space():
    scene = VolumeScene(replace(SMALL, background=FlatBackgroundConfig()), seed=0)
    optimizer = torch.optim.Adam(scene.parameters(), lr=0.03)
    generator = torch.Generator().manual_seed(0)
    before = float(scene.field.density(torch.zeros(1, 3)).detach())
    for step in range(80):
        scene.update(step, 80, generator)
        background = torch.rand(3, generator=generator)
        seen = scene.render(Shot(CAMERAS, background=background), generator)
        loss = (seen.rgb - background).square().mean() + 0.1 * seen.opacity.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    scene.occupancy.sweep(scene.step_length, scene.field.density)
    grid = torch.linspace(-0.9, 0.9, 9)
    points = torch.stack(torch.meshgrid(grid, grid, grid, indexing="ij"), -1).reshape(-1, 3)
    assert before > 5
    with torch.no_grad():
        assert float(scene.field.density(points).mean()) < 0.1
        assert float(scene.render(Shot(CAMERAS, background=WHITE)).opacity.max()) < 0.05


@pytest.mark.parametrize("encoding", [TriPlanesConfig((8, 16), 4), HashGridConfig(4, 2, 8), FrequencyConfig(3)])
def test_round_trip_renders_the_same(encoding, tmp_path):
    config = replace(
        SMALL, field=replace(SMALL.field, encoding=encoding), levels=Linear(0.25, 1.0), samples=Linear(32, 64)
    )
    scene = VolumeScene(config, seed=4)
    scene.update(0, 10, torch.Generator().manual_seed(0))
    scene.update(5, 10, torch.Generator().manual_seed(0))
    scene.save(tmp_path / "scene")
    again = VolumeScene.load(tmp_path / "scene")
    assert again.config == config and again.step_length == scene.step_length
    for shot in shots().values():
        assert torch.equal(scene.render(shot).rgb, again.render(shot).rgb)
    assert again.fingerprint() == scene.fingerprint()
    with torch.no_grad():
        next(again.parameters()).add_(1e-6)
    assert again.fingerprint() != scene.fingerprint()


def test_damaged_or_foreign_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="no saved scene"):
        VolumeScene.load(tmp_path)
    VolumeScene(SMALL).save(tmp_path)
    path = tmp_path / "scene.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged"):
        VolumeScene.load(tmp_path)
    path.write_bytes(whole.replace(b"maquette.rendering.scene:VolumeConfig", b"subprocessses_thatisevil:VolumeConfig"))
    with pytest.raises(UserError, match="not part of maquette"):
        VolumeScene.load(tmp_path)


def test_the_same_seed_is_the_same_scene_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second, other = VolumeScene(SMALL, seed=1), VolumeScene(SMALL, seed=1), VolumeScene(SMALL, seed=2)
    assert torch.equal(torch.rand(3), expected)
    assert first.fingerprint() == second.fingerprint() != other.fingerprint()


def test_batches_and_chosen_pixels_are_parts_of_the_whole():
    scene = VolumeScene(SMALL, seed=1)
    whole = scene.render(Shot(CAMERAS, normals=True))
    nested = scene.render(Shot(CAMERAS.reshape(1, 2), normals=True))
    assert nested.rgb.shape == (1, 2, 12, 12, 3) and nested.images().shape == (1, 2, 3, 12, 12)
    torch.testing.assert_close(nested.rgb[0], whole.rgb)
    crop = pixel_centres(12, 12, whole.rgb)[3:7, 5:12].expand(2, 4, 7, 2)
    part = scene.render(Shot(CAMERAS, normals=True, pixels=crop))
    torch.testing.assert_close(part.rgb, whole.rgb[:, 3:7, 5:12], atol=1e-5, rtol=0)
    torch.testing.assert_close(part.normal, whole.normal[:, 3:7, 5:12], atol=1e-4, rtol=0)


def test_jitter_needs_a_generator_and_follows_it():
    scene = VolumeScene(SMALL, seed=1)
    shot = Shot(CAMERAS)
    assert torch.equal(scene.render(shot).rgb, scene.render(shot).rgb)
    one = scene.render(shot, torch.Generator().manual_seed(1)).rgb
    assert torch.equal(one, scene.render(shot, torch.Generator().manual_seed(1)).rgb)
    assert not torch.equal(one, scene.render(shot, torch.Generator().manual_seed(2)).rgb)


def test_shading_without_a_light_is_refused():
    with pytest.raises(ValueError, match="needs normal, positions and light"):
        VolumeScene(SMALL).render(Shot(CAMERAS, shading="diffuse"))


def test_milestones_move_samples_and_levels():
    config = replace(SMALL, samples=Linear(32, 64), levels=Linear(0.5, 1.0))
    scene = VolumeScene(config)
    lengths, levels = [], []
    for step in (0, 5, 10):
        scene.update(step, 10, torch.Generator().manual_seed(0))
        lengths.append(scene.step_length)
        levels.append(scene.field.encoding.active_levels)
    assert lengths[0] == 2 * lengths[2] and lengths[0] > lengths[1] > lengths[2]
    assert levels == [1, 2, 2]
