"""Learned and fixed features of a position: sum of tri-planes, hash grid, frequencies.

Every encoding maps positions in the cube [-1, 1]^3 to `num_features` numbers and is a sum or a concatenation over
levels, coarse to fine. `active_levels` counts the levels in use; features of the others are zero, so that detail can
be unlocked as a run goes on. All are twice differentiable in positions and parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from maquette.errors import UserError


class Encoding(nn.Module):
    """Interface of encodings: features of positions, level by level."""

    num_features: int
    """Length of the feature vector."""
    num_levels: int
    """How many levels there are."""
    active_levels: int
    """How many of them are in use; part of the saved state."""

    def __init__(self, num_levels: int, num_features: int) -> None:
        super().__init__()
        self.num_levels = num_levels
        self.num_features = num_features
        self.active_levels = num_levels

    def unlock(self, fraction: float) -> None:
        """Use the coarsest `fraction` of the levels, at least one."""
        # The small term undoes roundings such as ceil(0.1 * 10 + 1e-16) = 2.
        self.active_levels = max(1, min(self.num_levels, math.ceil(fraction * self.num_levels - 1e-9)))

    def get_extra_state(self) -> Tensor:
        """The number of active levels, for `state_dict`."""
        return torch.tensor(self.active_levels)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the number of active levels."""
        self.active_levels = int(state)

    @property
    def cell(self) -> float:
        """Side of a cell of the finest level in use, scene units: how far apart two points must be to differ freely."""
        raise NotImplementedError

    def total_variation(self) -> Float[Tensor, ""]:
        """Mean squared difference of neighbouring parameters, summed over levels and directions.

        Raises UserError for encodings without a grid to smooth.
        """
        raise UserError(f"{type(self).__name__} has no planes to smooth; set the weight of total variation to 0")

    def forward(self, positions: Float[Tensor, "n 3"]) -> Float[Tensor, "n f"]:
        """Features of positions in [-1, 1]^3."""
        raise NotImplementedError


@dataclass(frozen=True)
class TriPlanesConfig:
    """Three axis-aligned feature planes per level, summed: the fastest encoding on a CPU."""

    resolutions: tuple[int, ...] = (64, 128)
    """Texels along the side of the cube, level by level."""
    features: int = 8
    """Feature channels of one level."""
    initial_scale: float = 0.1
    """Standard deviation of the initial features."""

    def __post_init__(self) -> None:
        if not self.resolutions or min(self.resolutions) < 2:
            raise UserError(f"tri-planes need resolutions of at least 2 texels, got {self.resolutions}")
        if self.features < 1 or self.initial_scale < 0:
            raise UserError(
                f"tri-planes need features >= 1 and initial_scale >= 0, got {self.features} and {self.initial_scale}"
            )


class TriPlanes(Encoding):
    """f(x, y, z) = concat over levels of P_xy(x, y) + P_xz(x, z) + P_yz(y, z), each bilinear in its plane.

    A sum keeps the cost at three 2D look-ups for any resolution and has no hash collisions; outside the cube the
    border's features continue. One `grid_sample` reads the three planes of a level as a batch: on a CPU each plane's
    gradient is then written by one thread only, so results do not depend on the order of threads.
    """

    def __init__(self, config: TriPlanesConfig) -> None:
        super().__init__(len(config.resolutions), config.features * len(config.resolutions))
        self.planes = nn.ParameterList(
            nn.Parameter(config.initial_scale * torch.randn(3, config.features, side, side))
            for side in config.resolutions
        )

    @property
    def cell(self) -> float:
        """2 / (texels - 1)."""
        return 2 / (self.planes[self.active_levels - 1].shape[-1] - 1)

    def forward(self, positions: Float[Tensor, "n 3"]) -> Float[Tensor, "n f"]:
        """Features of positions in [-1, 1]^3."""
        grid = torch.stack([positions[:, [0, 1]], positions[:, [0, 2]], positions[:, [1, 2]]])[:, None]  # [3, 1, n, 2]
        active = self.active_levels
        levels = []
        for level, plane in enumerate(self.planes):
            if level < active:
                read = F.grid_sample(plane, grid, align_corners=True, padding_mode="border")  # [3, c, 1, n]
                levels.append(read.sum(dim=0).squeeze(1))
            else:
                levels.append(plane.new_zeros(plane.shape[1], positions.shape[0]))
        return torch.cat(levels).t()

    def total_variation(self) -> Float[Tensor, ""]:
        """Mean squared difference of neighbouring texels, summed over levels and both directions."""
        total = self.planes[0].new_zeros(())
        for plane in self.planes:
            total = total + plane.diff(dim=2).square().mean() + plane.diff(dim=3).square().mean()
        return total


@dataclass(frozen=True)
class HashGridConfig:
    """Multi-resolution hash grid of instant-ngp (arXiv:2201.05989); defaults are ImageDream's."""

    levels: int = 16
    """Number of grids."""
    features: int = 2
    """Feature channels of one level."""
    table_size_log2: int = 19
    """Logarithm of the entries of one level's table; coarser grids that fit are stored densely."""
    base_resolution: int = 16
    """Cells along the side of the cube at the coarsest level."""
    growth: float = 1.447269237440378
    """Factor between the resolutions of neighbouring levels; this one ends at 4096."""
    initial_scale: float = 1e-4
    """Initial entries are uniform in +- this."""

    def __post_init__(self) -> None:
        if min(self.levels, self.features, self.base_resolution) < 1 or not 1 <= self.table_size_log2 <= 30:
            raise UserError(
                "a hash grid needs levels, features, base_resolution >= 1 and 1 <= table_size_log2 <= 30, got "
                f"{self.levels}, {self.features}, {self.base_resolution}, {self.table_size_log2}"
            )
        if self.growth < 1:
            raise UserError(f"a hash grid's resolutions grow, got growth={self.growth}")


class HashGrid(Encoding):
    """Trilinear look-ups in one table per level, cells of fine levels hashed into it (arXiv:2201.05989, section 3).

    Level l has N_l = floor(base growth^l) cells a side. Where all (N_l + 1)^3 vertices fit the table they get an entry
    each, otherwise vertex v gets entry (v_x xor 2654435761 v_y xor 805459861 v_z) mod 2^table_size_log2.
    """

    # As 32-bit integers, whose products wrap around: the bits that the mask keeps are the same.
    PRIMES = (2654435761 - 2**32, 805459861)

    def __init__(self, config: HashGridConfig) -> None:
        super().__init__(config.levels, config.levels * config.features)
        self.config = config
        self.resolutions = tuple(int(config.base_resolution * config.growth**level) for level in range(config.levels))
        limit = 2**config.table_size_log2
        self.hashed = tuple((side + 1) ** 3 > limit for side in self.resolutions)
        self.sizes = tuple(min((side + 1) ** 3, limit) for side in self.resolutions)
        self.tables = nn.ParameterList(
            nn.Parameter(torch.empty(size, config.features).uniform_(-1, 1) * config.initial_scale)
            for size in self.sizes
        )

    @property
    def cell(self) -> float:
        """2 / (base growth^(active levels - 1)), the resolution not rounded, as progressive normals want it."""
        return 2 / (self.config.base_resolution * self.config.growth ** (self.active_levels - 1))

    def forward(self, positions: Float[Tensor, "n 3"]) -> Float[Tensor, "n f"]:
        """Features of positions in [-1, 1]^3; positions outside are moved to the border."""
        # Coordinates stand in rows, and numbers in 32 bits: on a CPU this is twice as fast as the obvious layout.
        unit = ((positions.t() + 1) / 2).clamp(0, 1).contiguous()  # [3, n]
        read = []
        for level, table in enumerate(self.tables[: self.active_levels]):
            index, weight = self._vertices(unit, level)
            read.append(interpolate_rows(table, index, weight))
        features = torch.cat(read, dim=1)
        return F.pad(features, (0, self.num_features - features.shape[1]))

    def _vertices(self, unit: Float[Tensor, "3 n"], level: int) -> tuple[Int[Tensor, "n 8"], Float[Tensor, "n 8"]]:
        """Table entries and trilinear weights of the eight vertices around positions in [0, 1]^3, x slowest."""
        side, size = self.resolutions[level], self.sizes[level]
        scaled = unit * side
        # The last vertex belongs to the last cell, so that unit = 1 reads weights (0, 1) there.
        cell = scaled.detach().floor().clamp_(max=side - 1)
        upper = scaled - cell
        x, y, z = cell.to(torch.int32).unbind()
        strides = (1, *self.PRIMES) if self.hashed[level] else ((side + 1) ** 2, side + 1, 1)
        combine = torch.bitwise_xor if self.hashed[level] else torch.add
        in_x, in_y, in_z = ((c * stride, (c + 1) * stride) for c, stride in zip((x, y, z), strides, strict=True))
        pairs = [combine(i, j) for i in in_x for j in in_y]
        index = torch.stack([combine(pair, k) for pair in pairs for k in in_z], dim=1)
        if self.hashed[level]:
            index = index & (size - 1)
        by_x, by_y, by_z = zip(1 - upper, upper, strict=True)
        areas = [i * j for i in by_x for j in by_y]
        return index, torch.stack([area * k for area in areas for k in by_z], dim=1)


def interpolate_rows(
    table: Float[Tensor, "rows f"], index: Int[Tensor, "m k"], weight: Float[Tensor, "m k"]
) -> Float[Tensor, "m f"]:
    """out_m = sum over k of weight_mk table[index_mk], with a fast backward that needs no order of threads."""
    result: Tensor = _InterpolateRows.apply(table, index, weight)
    return result


class _InterpolateRows(torch.autograd.Function):
    """`embedding_bag` forwards; its own gradient for the table is slow on a CPU, so scatter it here."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(table, index, weight)
        return F.embedding_bag(index, table, mode="sum", per_sample_weights=weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        table, index, weight = ctx.saved_tensors
        flat = index.flatten().long()
        columns = grads[0].unbind(1)
        grad_table = grad_weight = None
        if ctx.needs_input_grad[0]:
            added = [_Add.apply((weight * column[:, None]).flatten(), flat, len(table)) for column in columns]
            grad_table = torch.stack(added, dim=1)
        if ctx.needs_input_grad[2]:
            grad_weight = torch.zeros_like(weight)
            for values, column in zip(table.unbind(1), columns, strict=True):
                grad_weight = grad_weight + _Take.apply(values, flat).view_as(weight) * column[:, None]
        return grad_table, None, grad_weight


class _Take(torch.autograd.Function):
    """values[index] of one axis; its derivative is `_Add`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.size = len(values)
        return values.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return _Add.apply(grads[0], index, ctx.size), None


class _Add(torch.autograd.Function):
    """Values summed at their indices; serial, hence deterministic, on a CPU. Its derivative is `_Take`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(index)
        return values.new_zeros(size).scatter_add_(0, index, values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        return _Take.apply(grads[0], index), None, None


@dataclass(frozen=True)
class FrequencyConfig:
    """Sines and cosines of the position at octave frequencies (NeRF, arXiv:2003.08934, equation 4)."""

    levels: int = 8
    """Number of octaves, beginning with sin(pi x)."""
    include_input: bool = True
    """Put the position itself in front."""
    phase: Literal["pi x", "unit cube"] = "pi x"
    """What the sines are of: pi 2^k x as in NeRF, or 2^k u with u = (x + 1) / 2 as in instant-nsr-pl."""

    def __post_init__(self) -> None:
        if self.levels < 1:
            raise UserError(f"a frequency encoding needs at least one octave, got levels={self.levels}")
        if self.phase not in ("pi x", "unit cube"):
            raise UserError(f"a frequency encoding's phase is 'pi x' or 'unit cube', got {self.phase!r}")


class Frequency(Encoding):
    """(x, sin(pi 2^0 x), cos(pi 2^0 x), ..., sin(pi 2^(L-1) x), cos(pi 2^(L-1) x)); nothing to learn."""

    def __init__(self, config: FrequencyConfig) -> None:
        super().__init__(config.levels, 6 * config.levels + 3 * config.include_input)
        self.include_input = config.include_input
        self.phase = config.phase

    @property
    def cell(self) -> float:
        """A quarter of the shortest wave in use."""
        wave = 2.0 if self.phase == "pi x" else 4 * math.pi
        return wave / 4 / 2 ** (self.active_levels - 1)

    def forward(self, positions: Float[Tensor, "n 3"]) -> Float[Tensor, "n f"]:
        """Features of positions in [-1, 1]^3."""
        octaves = torch.arange(self.num_levels, device=positions.device)
        first = math.pi * positions if self.phase == "pi x" else (positions + 1) / 2
        phases = first[:, None, :] * (2.0**octaves).to(positions)[:, None]  # [n, levels, 3]
        waves = torch.stack([phases.sin(), phases.cos()], dim=2)
        waves = waves * (octaves < self.active_levels)[:, None, None].to(waves)
        features = waves.flatten(1)
        return torch.cat([positions, features], dim=1) if self.include_input else features


EncodingConfig = TriPlanesConfig | HashGridConfig | FrequencyConfig
"""The choice of an encoding is the type of its configuration."""


def build_encoding(config: EncodingConfig) -> Encoding:
    """The encoding that `config` describes, with fresh parameters from torch's global generator."""
    if isinstance(config, TriPlanesConfig):
        return TriPlanes(config)
    if isinstance(config, HashGridConfig):
        return HashGrid(config)
    return Frequency(config)
