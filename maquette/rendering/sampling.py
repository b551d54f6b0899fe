"""Where along its ray a scene is looked at: an occupancy grid that remembers where there is something, and a two-level
march.

Rays carry equidistant samples t = (k + u) step for integers k, with one offset u in [0, 1) for each ray, anchored at
the camera: which of them are kept depends on the grid, where they are does not. A march first asks, for runs of `RUN`
neighbouring samples at once, whether the grid holds anything near the run, and then asks for the samples of the runs
that remain.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from maquette.errors import UserError
from maquette.rendering.rays import Rays, intersect_box

RUN = 4
"""Samples that the first level of the march keeps or drops together."""
INVISIBLE = 1e-6
"""Opacity of one sample below which a cell is empty whatever the rest of the grid holds."""


@dataclass(frozen=True)
class OccupancyConfig:
    """A grid of remembered densities over the cube [-1, 1]^3."""

    resolution: int = 64
    """Cells along the side."""
    interval: int = 16
    """Steps between two updates."""
    warmup: int = 200
    """Steps during which an update visits every cell and forgets the past. Space empties quickly so."""
    decay: float = 0.95
    """Factor on a cell's remembered density in later updates, which keep the larger of old and new."""
    share: float = 0.25
    """Share of the cells, drawn at random, that later updates visit besides the occupied ones."""
    threshold: float = 0.01
    """Opacity of one sample (density times step) from which on its cell counts as occupied; the mean over the grid if
    that is smaller."""

    def __post_init__(self) -> None:
        if self.resolution < 4 or self.interval < 1 or self.warmup < 0:
            raise UserError(
                "an occupancy grid needs resolution >= 4, interval >= 1 and warmup >= 0, got "
                f"{self.resolution}, {self.interval}, {self.warmup}"
            )
        if not (0 <= self.decay < 1 and 0 < self.share <= 1 and self.threshold > 0):
            raise UserError(
                "an occupancy grid needs 0 <= decay < 1, 0 < share <= 1 and threshold > 0, got "
                f"{self.decay}, {self.share}, {self.threshold}"
            )


class OccupancyGrid(nn.Module):
    """Remembered density per cell, from it which cells are occupied, and a box around those; all of it saved with the
    scene.

    `occupied` and `near` carry a ring of one more cell around the cube, which stands for all space outside and is never
    occupied; positions need no other test.
    """

    density: Tensor
    occupied: Tensor
    near: Tensor
    box: Tensor

    def __init__(self, config: OccupancyConfig) -> None:
        super().__init__()
        self.config = config
        side = config.resolution
        self.register_buffer("density", torch.zeros(side, side, side))
        everywhere = F.pad(torch.ones(side, side, side, dtype=torch.bool), (1, 1, 1, 1, 1, 1))
        self.register_buffer("occupied", everywhere)
        self.register_buffer("near", torch.ones_like(everywhere))
        self.register_buffer("box", torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]))

    @torch.no_grad()
    def update(
        self,
        step: int,
        sample_step: float,
        density: Callable[[Tensor], Tensor],
        generator: torch.Generator | None,
    ) -> None:
        """Look at the field again if it is time to: every `interval` steps, everywhere during the warm-up.

        `density` maps positions [n, 3] to [n, 1]; `sample_step` is the length of a sample's interval.
        """
        if step % self.config.interval:
            return
        if step < self.config.warmup:
            # Two opposite octants of every cell, other ones each time.
            octant = step // self.config.interval % 4
            self.sweep(sample_step, density, generator, octants=(octant, 7 - octant))
            return
        total = self.density.numel()
        count = max(1, int(self.config.share * total))
        drawn = torch.randint(total, (count,), generator=generator, device=self.density.device)
        visited = self.occupied[1:-1, 1:-1, 1:-1].flatten()
        visited[drawn] = True
        cells = visited.nonzero().squeeze(1)
        found = density(self._positions(cells, generator)).squeeze(-1).to(self.density.dtype)
        remembered = self.density.view(-1)
        remembered.mul_(self.config.decay)
        remembered[cells] = torch.maximum(remembered[cells], found)
        self._refresh(sample_step)

    @torch.no_grad()
    def sweep(
        self,
        sample_step: float,
        density: Callable[[Tensor], Tensor],
        generator: torch.Generator | None = None,
        octants: tuple[int, ...] = tuple(range(8)),
    ) -> None:
        """Visit the given octants (0 to 7) of every cell, each at a random place (without a generator at its middle),
        and forget the past: the largest density found counts.

        One look a cell loses cells that a surface only cuts: 2 dB on a fitted knight, 1 with two looks, none with
        eight.
        """
        cells = torch.arange(self.density.numel(), device=self.density.device)
        self.density.zero_()
        remembered = self.density.view(-1)
        for octant in octants:
            for part in cells.split(65536):
                found = density(self._positions(part, generator, octant)).squeeze(-1).to(remembered.dtype)
                remembered[part] = torch.maximum(remembered[part], found)
        self._refresh(sample_step)

    def recall(self, positions: Float[Tensor, "n 3"]) -> Float[Tensor, "n"]:
        """The remembered density of the cells that hold `positions`, which lie in the cube."""
        side = self.config.resolution
        cell = ((positions + 1) * (side / 2)).clamp_(0, side - 1).to(torch.int32)
        return self.density.view(-1).index_select(0, (cell[:, 0] * side + cell[:, 1]) * side + cell[:, 2])

    def _positions(
        self, cells: Int[Tensor, "n"], generator: torch.Generator | None, octant: int | None = None
    ) -> Float[Tensor, "n 3"]:
        """A place in each cell, or in one octant of each cell, world frame: random, without a generator the middle."""
        side = self.config.resolution
        corner = torch.stack([cells // side**2, cells // side % side, cells % side], dim=-1).to(self.box.dtype)
        if generator is None:
            inside = torch.full_like(corner, 0.5)
        else:
            inside = torch.rand(corner.shape, generator=generator, dtype=corner.dtype, device=corner.device)
        if octant is not None:
            inside = (inside + inside.new_tensor([octant >> 2 & 1, octant >> 1 & 1, octant & 1])) / 2
        return (corner + inside) * (2 / side) - 1

    def _refresh(self, sample_step: float) -> None:
        """Occupied cells, their neighbourhood and their box, from the remembered densities."""
        side = self.config.resolution
        thickness = self.density * sample_step
        # The mean lets the thin fog live that a field may begin as (a constant one must not lie below its own mean);
        # what no pixel would show counts as empty even so.
        threshold = (0.99 * thickness.mean()).clamp(INVISIBLE, self.config.threshold)
        self.occupied[1:-1, 1:-1, 1:-1] = thickness >= threshold
        # Samples of a run are at most (RUN - 1) / 2 steps from its middle.
        self.near.copy_(_dilate(self.occupied, math.ceil(0.5 * (RUN - 1) * sample_step / (2 / side))))
        self.box.zero_()
        for axis, filled in enumerate(_profiles(self.occupied)):
            cells = filled.nonzero().squeeze(1)
            if len(cells):
                self.box[0, axis] = (cells[0] - 1) * (2 / side) - 1
                self.box[1, axis] = cells[-1] * (2 / side) - 1


def _profiles(grid: Bool[Tensor, "x y z"]) -> tuple[Tensor, Tensor, Tensor]:
    """Which slices along x, y and z hold anything."""
    over_x = grid.any(0)
    return grid.flatten(1).any(1), over_x.any(1), over_x.any(0)


def _dilate(grid: Bool[Tensor, "x y z"], reach: int) -> Bool[Tensor, "x y z"]:
    """The cells within `reach` cells of a set one, along each axis."""
    for axis in range(3):
        side = grid.shape[axis]
        grown = grid.clone()
        for shift in range(1, min(reach, side - 1) + 1):
            for before, after in ((0, shift), (shift, 0)):
                grown.narrow(axis, after, side - shift).logical_or_(grid.narrow(axis, before, side - shift))
        grid = grown
    return grid


@dataclass(frozen=True)
class March:
    """Kept samples of all rays, ordered by ray and then by distance."""

    ray_index: Int[Tensor, "n"]
    """Which ray each sample lies on."""
    t_mid: Float[Tensor, "n"]
    """Distance along it."""
    positions: Float[Tensor, "n 3"]
    """Place in the world."""

    def __len__(self) -> int:
        return self.ray_index.shape[0]

    def select(self, index: Int[Tensor, "m"]) -> March:
        """Some of the samples, in the order of `index`."""
        return March(*(values.index_select(0, index) for values in (self.ray_index, self.t_mid, self.positions)))


def draw_offsets(rays: Rays, generator: torch.Generator | None) -> Float[Tensor, "r"]:
    """One offset in [0, 1) a ray: random with a generator, else 1/2."""
    count = rays.rays_o.shape[0]
    if generator is None:
        return rays.rays_o.new_full((count,), 0.5)
    drawn = torch.rand(count, generator=generator, device=generator.device, dtype=rays.rays_o.dtype)
    return drawn.to(rays.rays_o.device)


@torch.no_grad()
def march(rays: Rays, occupancy: OccupancyGrid, step: float, offsets: Float[Tensor, "r"]) -> March:
    """The samples of flat rays [r] that lie in occupied cells."""
    enter, leave = intersect_box(rays, occupancy.box[0].to(rays.rays_o), occupancy.box[1].to(rays.rays_o))
    # Runs r hold the samples k = r RUN .. r RUN + RUN - 1 at t = (k + offset) step; all that touch [enter, leave].
    length = RUN * step
    first = torch.floor(enter / length - (RUN - 1 + offsets) / RUN).clamp(min=-1) + 1
    last = torch.floor(leave / length - offsets / RUN)
    counts = torch.where(enter < leave, last - first + 1, 0).clamp(min=0).long()
    ray = torch.repeat_interleave(counts)
    ordinal = torch.arange(ray.shape[0], device=ray.device) - (counts.cumsum(0) - counts).index_select(0, ray)
    begin = first * length + offsets * step
    # Coordinates stand in rows from here on: [3, m] is several times faster than [m, 3] on a CPU.
    lines = torch.cat([rays.rays_o.t(), rays.rays_d.t(), begin[None]]).index_select(1, ray)  # [7, m]
    start = ordinal.to(begin.dtype) * length + lines[6]
    middle = torch.addcmul(lines[0:3], lines[3:6], start + 0.5 * (RUN - 1) * step)
    kept = occupancy.near.view(-1).index_select(0, _cells(middle, occupancy.config.resolution)).nonzero().squeeze(1)
    ray, start, lines = ray.index_select(0, kept), start.index_select(0, kept), lines.index_select(1, kept)

    t_mid = start + torch.arange(RUN, dtype=start.dtype, device=ray.device)[:, None] * step  # [RUN, m]
    positions = torch.addcmul(lines[0:3, None], lines[3:6, None], t_mid)  # [3, RUN, m]
    hit = occupancy.occupied.view(-1).index_select(0, _cells(positions.flatten(1), occupancy.config.resolution))
    run, k = hit.view(RUN, -1).t().contiguous().nonzero().unbind(1)
    place = k * ray.shape[0] + run
    return March(
        ray.index_select(0, run),
        t_mid.view(-1).index_select(0, place),
        positions.flatten(1).index_select(1, place).t().contiguous(),
    )


def _cells(positions: Float[Tensor, "3 n"], side: int) -> Int[Tensor, "n"]:
    """Flat index, in a grid with a ring, of the cell that holds each position."""
    cell = (positions * (side / 2)).add_(1 + side / 2).clamp_(0, side + 1).to(torch.int32)
    return (cell[0] * (side + 2) + cell[1]).mul_(side + 2).add_(cell[2])
