"""The surface field: a sphere at first, derivatives that agree with each other, and a texture head."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from maquette.errors import UserError
from maquette.fields import (
    AnalyticNormals,
    FiniteDifferenceNormals,
    FrequencyConfig,
    HashGridConfig,
    ProgressiveNormals,
    SurfaceField,
    SurfaceFieldConfig,
    TextureConfig,
    TriPlanesConfig,
)

ENCODINGS = {
    "tri-planes": TriPlanesConfig((5, 9), 3, initial_scale=0.3),
    "hash grid": HashGridConfig(3, 2, 8, base_resolution=4, growth=1.6, initial_scale=0.3),
    "frequency": FrequencyConfig(3),
    "frequency alone": FrequencyConfig(3, include_input=False),
}
CONFIG = SurfaceFieldConfig(encoding=ENCODINGS["tri-planes"], hidden=16, layers=2, features=5)


def make(config: SurfaceFieldConfig, learned: bool = False) -> SurfaceField:
    """A field; `learned` moves every weight away from its initial value."""
    torch.manual_seed(0)
    field = SurfaceField(config).double()
    if learned:
        with torch.no_grad():
            for parameter in field.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, dtype=torch.float64)
    return field


def places(count: int, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(count, 3, generator=generator, dtype=torch.float64) * 1.6 - 0.8


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("layers", [1, 2])
def test_it_begins_as_a_sphere(encoding, layers, generator):
    config = SurfaceFieldConfig(encoding=ENCODINGS[encoding], hidden=256, layers=layers, sphere=0.4)
    where = places(500, generator)
    answer = make(config)(where, want=frozenset({"sdf", "normal", "gradient"}))
    distance = where.norm(dim=-1, keepdim=True)
    # Random layers of a few hundred units: a sphere up to some dents.
    assert (answer.sdf - (distance - 0.4)).abs().mean() < 0.1
    outward = (answer.normal * where / distance).sum(-1)
    assert outward[distance[:, 0] > 0.2].min() > 0.8
    assert (answer.gradient.norm(dim=-1) - 1).abs().mean() < 0.15


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_analytic_normals_agree_with_finite_differences(encoding, generator):
    config = replace(CONFIG, encoding=ENCODINGS[encoding])
    exact, close = make(config, learned=True), make(replace(config, normals=FiniteDifferenceNormals(1e-6)), True)
    where = places(40, generator)
    want = frozenset({"sdf", "gradient", "normal"})
    torch.testing.assert_close(close(where, want=want).gradient, exact(where, want=want).gradient, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(close(where, want=want).sdf, exact.sdf(where))


def test_the_laplacian_is_the_divergence_of_the_gradient(generator):
    field = make(
        replace(CONFIG, encoding=FrequencyConfig(1), sharpness=3.0, normals=FiniteDifferenceNormals(1e-3)), True
    )
    where = places(6, generator)
    answer = field(where, want=frozenset({"laplacian"}))
    hessian = torch.autograd.functional.hessian
    exact = torch.stack([hessian(lambda p: field.sdf(p[None])[0, 0], one).trace() for one in where])
    torch.testing.assert_close(answer.laplacian[:, 0], exact, rtol=1e-4, atol=1e-4)


def test_a_laplacian_of_analytic_normals_is_refused(generator):
    with pytest.raises(ValueError, match="finite differences"):
        make(CONFIG)(places(2, generator), want=frozenset({"laplacian"}))


def test_progressive_normals_follow_the_finest_level_in_use():
    field = make(replace(CONFIG, normals=ProgressiveNormals()))
    assert field.epsilon == pytest.approx(2 / 8)
    field.encoding.unlock(0.5)
    assert field.epsilon == pytest.approx(2 / 4)
    assert make(CONFIG).epsilon == 0


def test_the_eikonal_loss_reaches_every_weight_of_the_distance(generator):
    field = make(CONFIG, learned=True)
    gradient = field(places(30, generator), want=frozenset({"gradient"})).gradient
    (gradient.norm(dim=-1) - 1).square().mean().backward()
    for name, parameter in field.named_parameters():
        if name.startswith("distance_network") and not name.endswith("layers.2.bias"):
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    assert all(plane.grad.abs().max() > 0 for plane in field.encoding.planes)


def test_asked_without_a_direction_a_point_is_seen_along_its_normal(generator):
    field, where = make(CONFIG, learned=True), places(9, generator)
    normal = field(where, want=frozenset({"normal"})).normal
    alone = field(where, want=frozenset({"rgb"})).rgb
    torch.testing.assert_close(field(where, -normal, want=frozenset({"rgb"})).rgb, alone)
    assert (field(where, normal, want=frozenset({"rgb"})).rgb - alone).abs().max() > 1e-3


@pytest.mark.parametrize("texture", [TextureConfig(8, 1, False, False, True), TextureConfig(8, 1, False, True, False)])
def test_a_texture_head_reads_what_it_is_told(texture, generator):
    field, where = make(replace(CONFIG, texture=texture), learned=True), places(9, generator)
    one, other = torch.eye(3, dtype=torch.float64)[:2].unsqueeze(1).expand(2, 9, 3)
    rgb = [field(where, along, want=frozenset({"sdf", "rgb"})).rgb for along in (one, other)]
    assert (bool((rgb[0] == rgb[1]).all())) != texture.directions
    assert rgb[0].min() >= 0 and rgb[0].max() <= 1


def test_leading_axes_stay_and_gradients_may_be_off(generator):
    field, where = make(CONFIG, learned=True), places(12, generator).reshape(3, 4, 3)
    with torch.no_grad():
        answer = field(where, want=frozenset({"sdf", "rgb", "normal", "gradient"}))
    assert answer.sdf.shape == (3, 4, 1) and answer.rgb.shape == answer.normal.shape == (3, 4, 3)
    assert not answer.gradient.requires_grad and not answer.rgb.requires_grad
    torch.testing.assert_close(field.sdf(where), answer.sdf)
    assert isinstance(field.config.normals, AnalyticNormals)


@pytest.mark.parametrize("wrong", [{"layers": 0}, {"sphere": 0.0}, {"sharpness": -1.0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(UserError):
        replace(CONFIG, **wrong)
    with pytest.raises(ValueError, match="density"):
        make(CONFIG)(torch.zeros(1, 3, dtype=torch.float64), want=frozenset({"density"}))
