"""The radiance field: what it answers, its blobs against recorded numbers, its normals against the truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from maquette.errors import UserError
from maquette.fields import (
    AnalyticNormals,
    Field,
    FiniteDifferenceNormals,
    FlatBias,
    FrequencyConfig,
    GaussianBlob,
    HashGridConfig,
    LinearBlob,
    RadianceConfig,
    RadianceField,
    TriPlanesConfig,
)
from maquette.fields.normals import central_differences, differentiate, normals_from_gradient
from maquette.fields.radiance import truncated_exp

CONFIG = RadianceConfig(encoding=TriPlanesConfig((8, 16), 4, initial_scale=0.5), hidden=8)
EVERYTHING = frozenset({"density", "rgb", "normal", "gradient"})
ENCODINGS = [CONFIG.encoding, HashGridConfig(4, 2, 8, initial_scale=0.5), FrequencyConfig(4)]


def cube(count: int, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(count, 3, generator=generator) * 1.8 - 0.9


@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("normals", [AnalyticNormals(), FiniteDifferenceNormals()], ids=lambda n: type(n).__name__)
class TestContract:
    """What every field keeps; a new encoding inherits it by one entry above."""

    def test_shapes_ranges_and_what_was_wanted(self, encoding, normals, generator):
        field = RadianceField(replace(CONFIG, encoding=encoding, normals=normals))
        assert isinstance(field, Field)
        where = cube(24, generator).reshape(2, 3, 4, 3)
        answer = field(where, want=EVERYTHING)
        assert answer.density.shape == (2, 3, 4, 1) and answer.sdf is None
        assert answer.rgb.shape == answer.normal.shape == answer.gradient.shape == (2, 3, 4, 3)
        assert (answer.density >= 0).all() and ((answer.rgb > 0) & (answer.rgb < 1)).all()
        torch.testing.assert_close(answer.normal.norm(dim=-1), torch.ones(2, 3, 4))
        density = field(where, want=frozenset({"density"}))
        assert density.rgb is None and density.normal is None
        torch.testing.assert_close(density.density, answer.density)
        torch.testing.assert_close(field.density(where), answer.density)
        torch.testing.assert_close(field.albedo(where), answer.rgb)
        torch.testing.assert_close(field(where, want=frozenset({"rgb"})).rgb, answer.rgb)

    def test_no_graph_without_gradients(self, encoding, normals, generator):
        field = RadianceField(replace(CONFIG, encoding=encoding, normals=normals))
        with torch.no_grad():
            quiet = field(cube(5, generator), want=EVERYTHING)
        loud = field(cube(5, torch.Generator().manual_seed(0)), want=EVERYTHING)
        for name in ("density", "rgb", "normal", "gradient"):
            assert not getattr(quiet, name).requires_grad and getattr(loud, name).requires_grad
            torch.testing.assert_close(getattr(quiet, name), getattr(loud, name))

    def test_normals_can_be_trained(self, encoding, normals, generator):
        field = RadianceField(replace(CONFIG, encoding=encoding, normals=normals))
        field(cube(30, generator), want=frozenset({"normal"})).normal[:, 2].sum().backward()
        assert field.density_network[0].weight.grad.abs().max() > 0
        assert all(p.grad is None for p in field.rgb_network.parameters())


def test_unknown_wishes_are_refused(generator):
    with pytest.raises(ValueError, match=r"got want=\['sdf'\]"):
        RadianceField(CONFIG)(cube(2, generator), want=frozenset({"sdf"}))


def test_recorded_blobs(goldens):
    data = np.load(goldens / "metrics/shading_orientation.npz")
    points = torch.from_numpy(data["blob_points"])
    gaussian = GaussianBlob(5.0, 0.2)(points)[:, 0]
    linear = LinearBlob(10.0, 0.5)(points)[:, 0]
    np.testing.assert_allclose(gaussian.numpy(), data["blob_gaussian_scale5_std0p2"], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(linear.numpy(), data["blob_linear_scale10_radius0p5"], rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "bias", "activation"),
    [
        ("blob_magic3d.softplus", LinearBlob(10.0, 0.5), "softplus"),
        ("blob_dreamfusion.exp", GaussianBlob(5.0, 0.2), "exp"),
        ("blob_dreamfusion.trunc_exp", GaussianBlob(5.0, 0.2), "exp"),
    ],
)
def test_recorded_densities(goldens, name, bias, activation):
    data = load_file(goldens / "usd/volume_render.safetensors")
    field = RadianceField(replace(CONFIG, bias=bias, activation=activation, hidden=1))
    field.density_network = torch.nn.Identity()  # the recorded network output takes the place of the features
    found = field._density(data["density.net_out"], data["density.points"])
    torch.testing.assert_close(found, data[f"density.{name}.density"], rtol=1e-4, atol=1e-5)


def test_recorded_normals_of_analytic_densities(goldens):
    data = {k: torch.from_numpy(v) for k, v in np.load(goldens / "metrics/shading_orientation.npz").items()}
    points, matrix = data["field_points"], data["field_matrix"]
    fields = {
        "field_normals_gaussian_blob": lambda x: torch.exp(-x.square().sum(-1, keepdim=True) / (2 * 0.2**2)),
        "field_normals_anisotropic": lambda x: torch.exp(1.5 - 0.5 * ((x @ matrix) * x).sum(-1, keepdim=True)),
    }
    for name, density in fields.items():
        _, gradient = differentiate(density, points)
        torch.testing.assert_close(normals_from_gradient(gradient), data[name], rtol=1e-9, atol=1e-12)
        differences = central_differences(density, points, 1e-5)
        torch.testing.assert_close(normals_from_gradient(differences), data[name], rtol=1e-6, atol=1e-7)
    values, _ = differentiate(fields["field_normals_anisotropic"], points)
    torch.testing.assert_close(values[:, 0], data["field_density_anisotropic"], rtol=1e-9, atol=0)


def test_the_two_kinds_of_normals_agree(generator):
    field = RadianceField(replace(CONFIG, normals=FiniteDifferenceNormals(1e-5))).double()
    exact = RadianceField(CONFIG).double()
    exact.load_state_dict(field.state_dict())
    where = cube(200, generator).double()
    ours, theirs = (f(where, want=frozenset({"gradient"})).gradient for f in (field, exact))
    off = (ours - theirs).norm(dim=-1) > 1e-4 * (1 + theirs.norm(dim=-1))
    assert off.float().mean() < 0.01, "they differ only where a difference straddles an edge"


def test_vanishing_gradients_give_no_normal_and_no_nan():
    gradient = torch.zeros(2, 3, requires_grad=True)
    normal = normals_from_gradient(gradient)
    assert not normal.any()
    normal.sum().backward()
    assert gradient.grad.isfinite().all()


def test_the_blob_alone_points_outwards(generator):
    flat = replace(CONFIG, encoding=TriPlanesConfig((4,), 2, initial_scale=0.0))
    where = cube(50, generator)
    outwards = torch.nn.functional.normalize(where, dim=-1)
    for bias in (LinearBlob(), GaussianBlob(5.0, 0.5)):
        normal = RadianceField(replace(flat, bias=bias))(where, want=frozenset({"normal"})).normal
        torch.testing.assert_close(normal, outwards, atol=2e-3, rtol=0)


def test_density_scale_and_flat_bias(generator):
    where = cube(10, generator)
    one = RadianceField(replace(CONFIG, bias=FlatBias(-1.0)))
    ten = RadianceField(replace(CONFIG, bias=FlatBias(-1.0), density_scale=10.0))
    ten.load_state_dict(one.state_dict())
    torch.testing.assert_close(ten.density(where), 10 * one.density(where))


def test_truncated_exponential():
    raw = torch.tensor([0.5, 14.0, 20.0], dtype=torch.float64, requires_grad=True)
    value = truncated_exp(raw)
    torch.testing.assert_close(value, raw.exp())
    value.sum().backward()
    torch.testing.assert_close(raw.grad, raw.detach().clamp(max=15).exp())
    inner = torch.tensor([0.3, -2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(truncated_exp, inner) and torch.autograd.gradgradcheck(truncated_exp, inner)


def test_impossible_settings_are_refused():
    for make in (lambda: RadianceConfig(hidden=0), lambda: LinearBlob(radius=0.0), lambda: GaussianBlob(std=0.0),
                 lambda: RadianceConfig(density_scale=0.0), lambda: RadianceConfig(radius=0.0),
                 lambda: FiniteDifferenceNormals(0.0)):  # fmt: skip
        with pytest.raises(UserError):
            make()


def test_beyond_its_radius_a_field_is_empty_and_within_it_is_as_without(generator):
    positions = torch.rand(200, 3, generator=generator) * 2 - 1
    torch.manual_seed(0)
    whole, bounded = RadianceField(CONFIG), RadianceField(replace(CONFIG, radius=0.7))
    bounded.load_state_dict(whole.state_dict())
    inside = positions.norm(dim=-1) <= 0.7
    assert 0 < int(inside.sum()) < 200
    want = frozenset({"density", "gradient"})
    free, held = whole(positions, want=want), bounded(positions, want=want)
    torch.testing.assert_close(held.density[inside], free.density[inside])
    torch.testing.assert_close(held.gradient[inside], free.gradient[inside])
    assert not held.density[~inside].any() and not held.gradient[~inside].any()
    torch.testing.assert_close(bounded.density(positions), held.density)
