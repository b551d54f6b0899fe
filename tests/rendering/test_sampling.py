"""The occupancy grid and the two-level march: the kept samples are exactly those in occupied cells."""

from __future__ import annotations

import pytest
import torch

from maquette.cameras import orbit
from maquette.errors import UserError
from maquette.rendering.rays import cast_rays
from maquette.rendering.sampling import OccupancyConfig, OccupancyGrid, draw_offsets, march

STEP = 0.03


def ball(radius: float, density: float = 50.0):
    return lambda x: density * (x.norm(dim=-1, keepdim=True) < radius).to(x.dtype)


def all_samples(rays, offsets, step):
    """Every sample of every ray out to distance 6, as (ray, k) and positions."""
    k = torch.arange(int(6 / step))
    t = (k + offsets[:, None]) * step
    return t, rays.rays_o[:, None] + t[..., None] * rays.rays_d[:, None]


def occupied_at(grid: OccupancyGrid, positions):
    side = grid.config.resolution
    cell = ((positions + 1) * side / 2).floor().long()
    inside = ((cell >= 0) & (cell < side)).all(-1)
    cell = cell.clamp(0, side - 1)
    return inside & grid.occupied[1:-1, 1:-1, 1:-1][cell[..., 0], cell[..., 1], cell[..., 2]]


@pytest.mark.parametrize("step", [0.008, 0.03, 0.11])
@pytest.mark.parametrize("resolution", [16, 64])
def test_march_keeps_exactly_the_samples_in_occupied_cells(step, resolution, generator):
    grid = OccupancyGrid(OccupancyConfig(resolution=resolution))
    # Rings and specks: neither level of the march gets an easy, convex shape.
    grid.sweep(step, lambda x: 40 * (torch.sin(9 * x).prod(-1, keepdim=True) > 0.5).to(x.dtype))
    assert 0.001 < grid.occupied.float().mean() < 0.3
    rays = cast_rays(orbit(3, elevation=25.0, height=14, width=14)).flatten()
    offsets = draw_offsets(rays, generator)
    found = march(rays, grid, step, offsets)
    t, positions = all_samples(rays, offsets, step)
    expected = occupied_at(grid, positions)
    # Positions are computed in another order of operations: cell borders may differ by a rounding in a few samples.
    assert abs(len(found) - int(expected.sum())) <= 2e-4 * len(found) + 1
    k = (found.t_mid / step - offsets[found.ray_index]).round().long()
    assert expected[found.ray_index, k].float().mean() > 0.9997
    torch.testing.assert_close(found.positions, positions[found.ray_index, k], atol=3e-6, rtol=0)


def test_march_is_ordered_by_ray_and_distance(generator):
    grid = OccupancyGrid(OccupancyConfig(resolution=16))
    grid.sweep(STEP, ball(0.6))
    rays = cast_rays(orbit(2, height=10, width=10)).flatten()
    found = march(rays, grid, STEP, draw_offsets(rays, generator))
    assert (found.ray_index.diff() >= 0).all()
    same = found.ray_index.diff() == 0
    apart = found.t_mid.diff()[same] / STEP
    torch.testing.assert_close(apart, apart.round(), atol=1e-4, rtol=0)
    assert apart.min() > 0.5


def test_camera_inside_the_cube_sees_only_what_is_in_front():
    grid = OccupancyGrid(OccupancyConfig(resolution=16))
    rays = cast_rays(orbit(1, distance=0.3, height=5, width=5)).flatten()
    found = march(rays, grid, STEP, draw_offsets(rays, None))
    assert len(found) and (found.t_mid > 0).all()
    assert (found.positions.abs() <= 1).all()


def test_empty_space_yields_no_samples():
    grid = OccupancyGrid(OccupancyConfig(resolution=16))
    grid.sweep(STEP, lambda x: torch.zeros_like(x[:, :1]))
    rays = cast_rays(orbit(2)).flatten()
    assert len(march(rays, grid, STEP, draw_offsets(rays, None))) == 0
    assert not grid.occupied.any()


def test_a_constant_field_is_occupied_everywhere():
    grid = OccupancyGrid(OccupancyConfig(resolution=8))
    grid.sweep(STEP, lambda x: torch.full_like(x[:, :1], 0.01))
    assert grid.occupied[1:-1, 1:-1, 1:-1].all()
    assert torch.equal(grid.box, torch.tensor([[-1.0] * 3, [1.0] * 3]))


def test_the_box_fits_what_is_occupied():
    grid = OccupancyGrid(OccupancyConfig(resolution=32))
    grid.sweep(
        STEP, lambda x: 50 * ((x - torch.tensor([0.3, -0.2, 0.1])).abs() < 0.25).all(-1, keepdim=True).to(x.dtype)
    )
    # From 0.05 to 0.55, -0.45 to 0.05, -0.15 to 0.35, in cells of 1/16 whose octants' middles lie at 1/64 and 3/64.
    torch.testing.assert_close(grid.box, torch.tensor([[0.0625, -0.4375, -0.1875], [0.5625, 0.0625, 0.375]]))


def test_warmup_forgets_and_later_updates_remember(generator):
    grid = OccupancyGrid(OccupancyConfig(resolution=8, interval=4, warmup=8, decay=0.5, share=1.0))
    grid.update(0, STEP, ball(2.0, 60.0), generator)
    assert torch.equal(grid.density, torch.full_like(grid.density, 60.0))
    grid.update(2, STEP, ball(2.0, 1.0), generator)
    assert torch.equal(grid.density, torch.full_like(grid.density, 60.0)), "not due"
    grid.update(4, STEP, ball(2.0, 10.0), generator)
    assert torch.equal(grid.density, torch.full_like(grid.density, 10.0)), "warm-up overwrites"
    grid.update(8, STEP, ball(2.0, 2.0), generator)
    drawn = grid.density.unique()
    assert set(drawn.tolist()) == {5.0}, "afterwards the larger of decayed and new stays"
    grid.update(12, STEP, ball(2.0, 40.0), generator)
    assert set(grid.density.unique().tolist()) == {40.0}


def test_a_sweep_finds_what_a_look_at_the_middle_misses():
    """A thin sheet beside the middles of its cells."""
    sheet = lambda x: 100 * ((x[:, :1] - 0.036).abs() < 0.012).to(x.dtype)  # noqa: E731
    for octants, found in (((0,), False), (tuple(range(8)), True)):
        grid = OccupancyGrid(OccupancyConfig(resolution=16))
        grid.sweep(STEP, lambda x: sheet(x - 0.06), octants=octants)
        assert bool(grid.occupied.any()) == found


def test_updates_visit_every_occupied_cell_and_a_share_of_the_others(generator):
    grid = OccupancyGrid(OccupancyConfig(resolution=16, interval=1, warmup=1, share=0.1))
    grid.update(0, STEP, ball(0.5), generator)
    visited = []

    def density(x):
        visited.append(len(x))
        return ball(0.5)(x)

    occupied = int(grid.occupied.sum())
    grid.update(1, STEP, density, generator)
    assert occupied < visited[0] <= occupied + 0.1 * 16**3


def test_offsets():
    rays = cast_rays(orbit(1, height=8, width=8)).flatten()
    assert torch.equal(draw_offsets(rays, None), torch.full((64,), 0.5))
    one = draw_offsets(rays, torch.Generator().manual_seed(3))
    assert torch.equal(one, draw_offsets(rays, torch.Generator().manual_seed(3)))
    assert one.min() >= 0 and one.max() < 1 and one.std() > 0.2


def test_impossible_settings_are_refused():
    for wrong in ({"resolution": 2}, {"interval": 0}, {"decay": 1.0}, {"share": 0.0}, {"threshold": 0.0}):
        with pytest.raises(UserError, match="occupancy grid needs"):
            OccupancyConfig(**wrong)
