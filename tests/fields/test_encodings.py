"""Every encoding: derivatives, levels, and a slow twin that looks up one corner at a time."""

from __future__ import annotations

import math

import pytest
import torch

from maquette.errors import UserError
from maquette.fields.encodings import (
    FrequencyConfig,
    HashGrid,
    HashGridConfig,
    TriPlanesConfig,
    build_encoding,
    interpolate_rows,
)

SMALL = {
    "tri-planes": TriPlanesConfig((4, 7), 2, initial_scale=0.5),
    "hash grid, dense": HashGridConfig(2, 2, 12, base_resolution=2, growth=1.5, initial_scale=0.5),
    "hash grid, hashed": HashGridConfig(3, 2, 4, base_resolution=3, growth=2.0, initial_scale=0.5),
    "frequency": FrequencyConfig(3),
}


def positions(count: int, generator: torch.Generator, dtype=torch.float64) -> torch.Tensor:
    return torch.rand(count, 3, generator=generator, dtype=dtype) * 1.9 - 0.95


@pytest.mark.parametrize("name", SMALL)
def test_derivatives_against_finite_differences(name, generator):
    torch.manual_seed(0)
    encoding = build_encoding(SMALL[name]).double()
    where = positions(5, generator).requires_grad_()
    values = tuple(encoding.parameters())
    names = [key for key, _ in encoding.named_parameters()]

    def features(where, *values):
        return torch.func.functional_call(encoding, dict(zip(names, values, strict=True)), where)

    assert torch.autograd.gradcheck(features, (where, *values), eps=1e-6, atol=1e-6)
    # The second derivative is that of analytic normals; positions lie inside cells, where it exists.
    assert torch.autograd.gradgradcheck(lambda *a: features(*a).square(), (where, *values), eps=1e-6, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_shapes_and_levels(name, generator):
    encoding = build_encoding(SMALL[name])
    where = positions(9, generator, torch.float32)
    full = encoding(where)
    assert full.shape == (9, encoding.num_features)
    assert encoding(where[:0]).shape == (0, encoding.num_features)
    assert encoding.active_levels == encoding.num_levels
    encoding.unlock(1e-6)
    assert encoding.active_levels == 1
    coarse = encoding(where)
    kept = coarse != 0
    assert kept.any() and not kept.all()
    torch.testing.assert_close(coarse[kept], full[kept])
    again = build_encoding(SMALL[name])
    again.load_state_dict(encoding.state_dict())
    assert again.active_levels == 1 and torch.equal(again(where), coarse)
    encoding.unlock(1.0)
    torch.testing.assert_close(encoding(where), full)


def test_fractions_of_levels():
    encoding = build_encoding(FrequencyConfig(10))
    counts = []
    for fraction in (0.0, 0.1, 0.11, 0.3, 0.95, 1.0, 2.0):
        encoding.unlock(fraction)
        counts.append(encoding.active_levels)
    assert counts == [1, 1, 2, 3, 10, 10, 10]


def test_tri_planes_are_bilinear_sums(generator):
    torch.manual_seed(1)
    encoding = build_encoding(SMALL["tri-planes"]).double()
    where = positions(20, generator)
    expected = []
    for plane in encoding.planes:
        side = plane.shape[-1]
        total = torch.zeros(20, plane.shape[1], dtype=torch.float64)
        for which, (first, second) in enumerate(((0, 1), (0, 2), (1, 2))):
            u = (where[:, first] + 1) / 2 * (side - 1)
            v = (where[:, second] + 1) / 2 * (side - 1)
            for du in (0, 1):
                for dv in (0, 1):
                    i, j = u.floor().long() + du, v.floor().long() + dv
                    weight = (1 - (u - i).abs()) * (1 - (v - j).abs())
                    total += weight[:, None] * plane[which][:, j, i].t()
        expected.append(total)
    torch.testing.assert_close(encoding(where), torch.cat(expected, dim=1))


def test_hash_grid_is_trilinear(generator):
    torch.manual_seed(2)
    config = SMALL["hash grid, hashed"]
    encoding = build_encoding(config).double()
    assert isinstance(encoding, HashGrid)
    assert encoding.resolutions == (3, 6, 12) and encoding.hashed == (True, True, True)
    where = positions(20, generator)
    features = []
    for side, table in zip(encoding.resolutions, encoding.tables, strict=True):
        scaled = (where + 1) / 2 * side
        total = torch.zeros(20, 2, dtype=torch.float64)
        for corner in range(8):
            step = torch.tensor([corner >> 2 & 1, corner >> 1 & 1, corner & 1])
            vertex = scaled.floor().long() + step
            weight = (1 - (scaled - vertex).abs()).prod(-1, keepdim=True)
            for row in range(20):
                x, y, z = vertex[row].tolist()
                total[row] += weight[row] * table[(x ^ (y * 2654435761) ^ (z * 805459861)) % len(table)]
        features.append(total)
    torch.testing.assert_close(encoding(where), torch.cat(features, dim=1))


def test_dense_levels_give_every_vertex_its_own_entry():
    encoding = build_encoding(HashGridConfig(1, 1, 12, base_resolution=4))
    corner = torch.linspace(-1, 1, 5)
    vertices = torch.stack(torch.meshgrid(corner, corner, corner, indexing="ij"), -1).reshape(-1, 3)
    with torch.no_grad():
        encoding.tables[0].copy_(torch.arange(125.0)[:, None])
    torch.testing.assert_close(encoding(vertices)[:, 0], torch.arange(125.0), atol=1e-4, rtol=0)


def test_imagedream_hash_grid_ends_at_4096():
    resolutions = HashGrid(HashGridConfig(table_size_log2=4)).resolutions
    assert resolutions[0] == 16 and abs(resolutions[-1] - 4096) <= 1 and len(resolutions) == 16


@pytest.mark.parametrize("name", ["tri-planes", "hash grid, dense"])
def test_outside_the_cube_the_border_continues(name):
    encoding = build_encoding(SMALL[name])
    inside, outside = torch.tensor([[1.0, 0.3, -0.2]]), torch.tensor([[1.7, 0.3, -0.2]])
    torch.testing.assert_close(encoding(inside), encoding(outside))


def test_frequencies_are_octaves():
    where = torch.tensor([[0.1, 0.2, 0.3]])
    features = build_encoding(FrequencyConfig(2))(where)[0]
    waves = [where[0]] + [f(math.pi * 2**k * where[0]) for k in (0, 1) for f in (torch.sin, torch.cos)]
    torch.testing.assert_close(features, torch.cat(waves))
    assert build_encoding(FrequencyConfig(2, include_input=False)).num_features == 12


def test_rows_are_interpolated_whatever_the_threads(generator):
    table = torch.randn(50, 4, generator=generator, requires_grad=True)
    index = torch.randint(50, (4000, 8), generator=generator)
    weight = torch.rand(4000, 8, generator=generator, requires_grad=True)
    expected = (table[index] * weight[..., None]).sum(1)
    torch.testing.assert_close(interpolate_rows(table, index, weight), expected)
    upstream = torch.randn(expected.shape, generator=generator)
    slow = torch.autograd.grad(expected, (table, weight), upstream)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 4):
            torch.set_num_threads(count)
            found.append(torch.autograd.grad(interpolate_rows(table, index, weight), (table, weight), upstream))
    finally:
        torch.set_num_threads(threads)
    for ours, again, theirs in zip(*found, slow, strict=True):
        assert torch.equal(ours, again)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_total_variation():
    encoding = build_encoding(TriPlanesConfig((3,), 1))
    with torch.no_grad():
        encoding.planes[0].copy_(torch.arange(3.0)[None, None, None].expand(3, 1, 3, 3))
    assert encoding.total_variation().item() == pytest.approx(1.0)
    with torch.no_grad():
        encoding.planes[0].fill_(5.0)
    assert encoding.total_variation().item() == 0
    with pytest.raises(UserError, match="no planes to smooth"):
        build_encoding(FrequencyConfig()).total_variation()


def test_impossible_settings_are_refused():
    for make in (
        lambda: TriPlanesConfig(()),
        lambda: TriPlanesConfig((1,)),
        lambda: TriPlanesConfig(features=0),
        lambda: HashGridConfig(levels=0),
        lambda: HashGridConfig(growth=0.5),
        lambda: FrequencyConfig(0),
    ):
        with pytest.raises(UserError):
            make()


def test_a_cell_is_that_of_the_finest_level_in_use(generator):
    """Along an axis features are linear inside a cell and not across it (a wave: a quarter of its shortest length)."""
    planes, grid = build_encoding(TriPlanesConfig((5, 9), 2)), build_encoding(HashGridConfig(3, 2, 12, 4, growth=2.0))
    assert (planes.cell, grid.cell) == (pytest.approx(2 / 8), pytest.approx(2 / 16))
    for encoding in (planes, grid):
        encoding.unlock(1e-6)
        assert encoding.cell == pytest.approx(2 / 4)
    waves = build_encoding(FrequencyConfig(3, include_input=False))
    assert waves.cell == pytest.approx(1 / 8)
    zero = torch.zeros(1, 3)
    moved = waves(torch.tensor([[waves.cell, 0.0, 0.0]])).reshape(3, 2, 3)[-1, :, 0]
    assert waves(zero).reshape(3, 2, 3)[-1, :, 0].tolist() == [0.0, 1.0]
    assert moved.tolist() == pytest.approx([1.0, 0.0], abs=1e-6)


def test_waves_of_the_unit_cube(generator):
    encoding = build_encoding(FrequencyConfig(3, include_input=False, phase="unit cube"))
    where = positions(4, generator, torch.float32)
    unit = (where + 1) / 2
    expected = [f(2.0**k * unit) for k in range(3) for f in (torch.sin, torch.cos)]
    torch.testing.assert_close(encoding(where), torch.cat(expected, dim=1))
    assert encoding.cell == pytest.approx(math.pi / 4)
