"""Penalties: recorded numbers, extremes, and where their gradients go."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from maquette.cameras import orbit
from maquette.fields import (
    FiniteDifferenceNormals,
    LinearBlob,
    RadianceConfig,
    SurfaceFieldConfig,
    TriPlanesConfig,
)
from maquette.rendering import OccupancyConfig, Shot, SurfaceConfig, SurfaceScene, VolumeConfig, VolumeScene
from maquette.schedules import Constant, Linear
from maquette.stages.regularizers import (
    Regularizers,
    binary_entropy,
    crowding,
    eikonal,
    mask_entropy,
    normal_smoothness,
    orientation_terms,
    sparsity,
    z_variance,
)

CLOSE = {"rtol": 1e-9, "atol": 1e-12}


@pytest.fixture
def recorded(goldens):
    arrays = np.load(goldens / "metrics/shading_orientation.npz")
    numbers = json.loads((goldens / "metrics/shading_orientation.json").read_text())
    return {key: torch.from_numpy(value) for key, value in arrays.items()}, numbers


def test_recorded_orientation(recorded):
    data, numbers = recorded
    normals = data["normals"].clone().requires_grad_()
    weights = data["weights"].clone().requires_grad_()
    per_ray = orientation_terms(weights, normals, data["ray_dirs"][:, None].expand(3, 4, 3)).sum(-1)
    torch.testing.assert_close(per_ray, data["orientation_per_ray"], **CLOSE)
    assert per_ray.sum().item() == pytest.approx(numbers["orientation_sum"], rel=1e-9)
    assert per_ray.mean().item() == pytest.approx(numbers["orientation_mean_over_rays"], rel=1e-9)
    hits = int((data["opacity"] > 0).sum())
    assert per_ray.sum().item() / hits == pytest.approx(numbers["orientation_sum_over_rays_with_opacity"], rel=1e-9)
    gradient, through_weights = torch.autograd.grad(per_ray.sum(), (normals, weights), allow_unused=True)
    torch.testing.assert_close(gradient, data["orientation_sum_grad_wrt_normals"], **CLOSE)
    assert through_weights is None


def test_recorded_opacity_penalties(recorded):
    data, numbers = recorded
    opacity = data["opacity"]
    torch.testing.assert_close(sparsity(opacity), torch.tensor(numbers["opacity_loss_per_ray"], dtype=torch.float64))
    assert sparsity(opacity).mean().item() == pytest.approx(numbers["opacity_loss_mean"], rel=1e-9)
    entropy = binary_entropy(opacity, numbers["opaque_clamp"]).mean().item()
    assert entropy == pytest.approx(numbers["opaque_binary_entropy_mean"], rel=1e-9)


def test_recorded_z_variance(recorded):
    data, numbers = recorded
    index = torch.arange(3).repeat_interleave(4)
    found = z_variance(data["weights"].flatten(), data["t_mid"].flatten(), index, 3)
    expected = numbers["z_variance_per_ray"]
    assert found[:2].tolist() == pytest.approx(expected[:2], rel=1e-9)
    assert expected[2] is None and found[2] == 0


def test_recorded_losses_of_another_renderer(goldens):
    data = load_file(goldens / "usd/volume_render.safetensors")
    weights, opacity = data["d_weights"], data["d_opacity"]
    rays, count = weights.shape
    assert sparsity(opacity).mean().item() == pytest.approx(data["loss_sparsity"].item(), rel=1e-4)
    assert binary_entropy(opacity).mean().item() == pytest.approx(data["loss_opaque"].item(), rel=1e-4)
    terms = orientation_terms(weights, data["normal"], data["t_dirs"])
    hits = int((opacity > 0).sum())
    assert (terms.sum() / hits).item() == pytest.approx(data["loss_orient"].item(), rel=1e-4)
    assert normal_smoothness(data["normal_smooth_in"]).item() == pytest.approx(
        data["loss_normal_smooth"].item(), rel=1e-4
    )
    t_mid = (data["t_starts"] + data["t_ends"]) / 2
    index = torch.arange(rays).repeat_interleave(count)
    variance = z_variance(weights.flatten(), t_mid.flatten(), index, rays)
    torch.testing.assert_close(variance, data["z_variance"][:, 0], rtol=1e-4, atol=1e-6)
    valid = variance[opacity[:, 0] > 0.5].mean().item()
    assert valid == pytest.approx(data["loss_z_variance_valid_mean"].item(), rel=1e-4)


def test_extremes():
    opacity = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    entropy = binary_entropy(opacity)
    assert entropy[1].item() == pytest.approx(math.log(2))
    assert entropy[0].item() == pytest.approx(entropy[2].item()) and entropy[0] < 0.01
    directions = torch.tensor([[0.0, 0.0, -1.0], [0.0, 0.0, -1.0]])
    facing = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]])
    assert orientation_terms(torch.ones(2), facing, directions).tolist() == [0.0, 1.0]
    unit = torch.nn.functional.normalize(
        torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    torch.testing.assert_close(eikonal(unit), torch.zeros(5, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(eikonal(3 * unit), torch.full((5,), 4.0, dtype=torch.float64))


def test_gradient_of_z_variance(generator):
    index = torch.tensor([0, 0, 0, 2, 2])
    weights = (torch.rand(5, generator=generator, dtype=torch.float64) * 0.3 + 0.01).requires_grad_()
    t_mid = torch.rand(5, generator=generator, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda w, t: z_variance(w, t, index, 3), (weights, t_mid))


def make_rendering(**shot):
    scene = VolumeScene(
        VolumeConfig(
            field=RadianceConfig(
                encoding=TriPlanesConfig((8,), 4, initial_scale=0.5), bias=LinearBlob(30.0, 0.5), hidden=8
            ),
            occupancy=OccupancyConfig(resolution=16),
            samples=Constant(48),
        )
    )
    scene.occupancy.sweep(scene.step_length, scene.field.density)
    return scene, scene.render(Shot(orbit(2, height=10, width=10), background=torch.ones(3), **shot))


def test_the_sum_is_that_of_its_parts():
    scene, rendering = make_rendering(normals=True)
    weights = {
        "orientation": 2.0,
        "sparsity": 0.5,
        "opaque": 0.25,
        "z_variance": 3.0,
        "smoothness": 0.1,
        "eikonal": 1e-4,
    }
    together, metrics = Regularizers(**{name: Constant(w) for name, w in weights.items()})(rendering, 0, 10)
    assert set(metrics) == set(weights)
    assert together.item() == pytest.approx(sum(weights[name] * metrics[name].item() for name in weights), rel=1e-5)
    together.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in scene.field.density_network.parameters())


def test_orientation_is_divided_as_asked():
    _, rendering = make_rendering(normals=True)
    per_ray, _ = Regularizers(orientation=Constant(1.0))(rendering, 0, 1)
    per_hit, _ = Regularizers(orientation=Constant(1.0), orientation_per="hits")(rendering, 0, 1)
    hits = (rendering.opacity > 0).sum().item()
    assert 0 < hits < 200
    assert (per_hit * hits).item() == pytest.approx((per_ray * 200).item(), rel=1e-5)


def test_schedules_switch_penalties_on():
    _, rendering = make_rendering(normals=True)
    penalties = Regularizers(orientation=Linear(0.0, 1.0), sparsity=Constant(1.0))
    assert not penalties.need_normals(0, 10) and penalties.need_normals(1, 10)
    assert set(penalties(rendering, 0, 10)[1]) == {"sparsity"}
    assert set(penalties(rendering, 5, 10)[1]) == {"sparsity", "orientation"}
    nothing, metrics = Regularizers()(rendering, 0, 1)
    assert nothing.item() == 0 and not metrics


@pytest.mark.parametrize("name", ["orientation", "smoothness", "eikonal"])
def test_missing_normals_are_named(name):
    _, rendering = make_rendering()
    with pytest.raises(ValueError, match=r"Shot\(normals=True\)"):
        Regularizers(**{name: Constant(1.0)})(rendering, 0, 1)


def test_mask_entropy_is_least_where_opacity_is_the_mask():
    mask = torch.tensor([0.0, 1.0, 0.25])
    best = torch.tensor([0.001, 0.999, 0.25])
    assert (mask_entropy(best, mask) <= mask_entropy(best + 0.01, mask)).all()
    assert (mask_entropy(best, mask) <= mask_entropy(best - 0.01, mask)).all()
    assert mask_entropy(torch.zeros(1), torch.ones(1)).item() == pytest.approx(-math.log(0.001))
    torch.testing.assert_close(mask_entropy(best, best), binary_entropy(best))


def test_crowding_is_worst_on_a_surface():
    assert crowding(torch.tensor([0.0, -0.1, 0.1]), 10.0).tolist() == pytest.approx([1.0, math.exp(-1), math.exp(-1)])


def test_penalties_of_a_surface():
    field = SurfaceFieldConfig(
        encoding=TriPlanesConfig((8,), 2), hidden=16, features=3, normals=FiniteDifferenceNormals(0.02)
    )
    config = SurfaceConfig(field=field, occupancy=OccupancyConfig(resolution=16), samples=Constant(48))
    penalties = Regularizers(eikonal=Constant(0.1), curvature=Constant(0.2), crowding=Constant(0.3), crowding_scale=2.0)
    assert penalties.need_normals(0, 1) and not Regularizers(crowding=Constant(1.0)).need_normals(0, 1)
    cameras = orbit(1, height=6, width=6)
    rendering = SurfaceScene(config).render(Shot(cameras, normals=True))
    loss, metrics = penalties(rendering, 0, 1)
    samples = rendering.samples
    assert float(metrics["curvature"]) == pytest.approx(float(samples.laplacian.detach().abs().mean()))
    assert float(metrics["crowding"]) == pytest.approx(float((-2 * samples.sdf.detach().abs()).exp().mean()))
    expected = 0.1 * metrics["eikonal"] + 0.2 * metrics["curvature"] + 0.3 * metrics["crowding"]
    torch.testing.assert_close(loss.detach(), expected)
    volume = VolumeScene(VolumeConfig(occupancy=OccupancyConfig(resolution=16), samples=Constant(24)))
    seen = volume.render(Shot(cameras, normals=True))
    with pytest.raises(ValueError, match="Laplacians"):
        Regularizers(curvature=Constant(1.0))(seen, 0, 1)
    with pytest.raises(ValueError, match="signed distances"):
        Regularizers(crowding=Constant(1.0))(seen, 0, 1)
