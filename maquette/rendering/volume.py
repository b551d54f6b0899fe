"""Volume rendering of packed samples, and its slow dense twin.

Samples i of one ray, front to back, with density sigma_i over intervals of length delta_i:

    alpha_i = 1 - exp(-sigma_i delta_i),   T_i = exp(-sum_{j<i} sigma_j delta_j),   w_i = T_i alpha_i,
    opacity = sum w_i,   depth = sum w_i t_i,   colour = sum w_i c_i + (1 - opacity) background.

*Packed* means: the samples of all rays in one list, ordered by ray and then by distance, with `ray_index` naming the
ray. All sums here give the same bits whatever the number of threads.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


def packed_weights(
    tau: Float[Tensor, "n"], ray_index: Int[Tensor, "n"], num_rays: int
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
    """Weights w_i and transmittances T_i from optical thicknesses tau_i = sigma_i delta_i."""
    trans = torch.exp(-exclusive_sum(tau, ray_index, num_rays))
    return -torch.expm1(-tau) * trans, trans


def exclusive_sum(values: Float[Tensor, "n"], ray_index: Int[Tensor, "n"], num_rays: int) -> Float[Tensor, "n"]:
    """For every sample the sum over the samples before it on its ray."""
    result: Tensor = _ExclusiveSum.apply(values, ray_starts(ray_index, num_rays), ray_index, False)
    return result


def sum_by_ray(values: Float[Tensor, "n c"], ray_index: Int[Tensor, "n"], num_rays: int) -> Float[Tensor, "r c"]:
    """Sums over the samples of each ray; zero for rays without samples."""
    result: Tensor = _SumByRay.apply(values, ray_index, num_rays)
    return result


def ray_starts(ray_index: Int[Tensor, "n"], num_rays: int) -> Int[Tensor, "r_plus_1"]:
    """Where each ray's samples begin in the list, and the list's length at the end."""
    counts = torch.bincount(ray_index, minlength=num_rays)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


class _ExclusiveSum(torch.autograd.Function):
    """Exclusive prefix (or, `reverse`, suffix) sums inside each ray; linear, and the one is the other's transpose."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, starts: Tensor, ray_index: Tensor, reverse: bool) -> Tensor:
        ctx.save_for_backward(starts, ray_index)
        ctx.reverse = reverse
        # One running sum over all rays, minus its value where the ray begins. Doubles keep what single precision would
        # lose in the difference; where a device has none (MPS), rays are laid out one a row instead.
        if values.device.type == "mps":
            rows = _to_rows(values, starts, ray_index)
            total = rows.flip(1).cumsum(1).flip(1) if reverse else rows.cumsum(1)
            return _from_rows(total - rows, starts, ray_index)
        wide = values.double()
        running = torch.cat([wide.new_zeros(1), wide.cumsum(0)])
        if reverse:
            result = running.index_select(0, starts[1:]).index_select(0, ray_index) - running[1:]
        else:
            result = running[:-1] - running.index_select(0, starts[:-1]).index_select(0, ray_index)
        return result.to(values.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        starts, ray_index = ctx.saved_tensors
        return _ExclusiveSum.apply(grads[0], starts, ray_index, not ctx.reverse), None, None, None


def _to_rows(values: Tensor, starts: Tensor, ray_index: Tensor) -> Tensor:
    """Packed values as a zero-padded matrix, one ray a row."""
    counts = starts.diff()
    rows = values.new_zeros(len(counts), max(1, int(counts.max())) if len(counts) else 1)
    rows[ray_index, torch.arange(len(values), device=values.device) - starts[ray_index]] = values
    return rows


def _from_rows(rows: Tensor, starts: Tensor, ray_index: Tensor) -> Tensor:
    return rows[ray_index, torch.arange(len(ray_index), device=rows.device) - starts[ray_index]]


class _SumByRay(torch.autograd.Function):
    """Sum of rows with the same index; its derivative takes rows by index, and the other way round."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, ray_index: Tensor, num_rays: int) -> Tensor:
        ctx.save_for_backward(ray_index)
        ctx.num_rays = num_rays
        # One 1-D index_add per channel: serial on a CPU, so that the order of additions never depends on threads.
        columns = [values.new_zeros(num_rays).index_add_(0, ray_index, column) for column in values.unbind(1)]
        return torch.stack(columns, dim=1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (ray_index,) = ctx.saved_tensors
        return _TakeByRay.apply(grads[0], ray_index, ctx.num_rays), None, None


class _TakeByRay(torch.autograd.Function):
    """The row of each sample's ray; the transpose of `_SumByRay`."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, ray_index: Tensor, num_rays: int) -> Tensor:
        ctx.save_for_backward(ray_index)
        ctx.num_rays = num_rays
        return rows.index_select(0, ray_index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (ray_index,) = ctx.saved_tensors
        return _SumByRay.apply(grads[0], ray_index, ctx.num_rays), None, None


def take_by_ray(rows: Float[Tensor, "r c"], ray_index: Int[Tensor, "n"]) -> Float[Tensor, "n c"]:
    """The row of each sample's ray, with a backward that does not depend on the order of threads."""
    result: Tensor = _TakeByRay.apply(rows, ray_index, rows.shape[0])
    return result


def composite(
    foreground: Float[Tensor, "*n c"], opacity: Float[Tensor, "*n 1"], background: Float[Tensor, "*n c"]
) -> Float[Tensor, "*n c"]:
    """foreground (already weighted) + (1 - opacity) background."""
    return foreground + (1 - opacity) * background


def dense_weights(
    density: Float[Tensor, "*r s"], delta: Float[Tensor, "*r s"]
) -> tuple[Float[Tensor, "*r s"], Float[Tensor, "*r s"]]:
    """Weights and transmittances of rays with equally many samples: the definition, written out."""
    return weights_from_alpha(1 - torch.exp(-density * delta))


def weights_from_alpha(alpha: Float[Tensor, "*r s"]) -> tuple[Float[Tensor, "*r s"], Float[Tensor, "*r s"]]:
    """w_i = alpha_i prod_{j<i} (1 - alpha_j), and the product, for dense rays."""
    passing = torch.cat([torch.ones_like(alpha[..., :1]), 1 - alpha[..., :-1]], dim=-1)
    trans = torch.cumprod(passing, dim=-1)
    return alpha * trans, trans


def packed_weights_from_alpha(
    alpha: Float[Tensor, "n"], ray_index: Int[Tensor, "n"], num_rays: int
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
    """The same for packed rays; an opaque sample (alpha = 1) counts as alpha = 1 - 1e-7, which keeps logarithms
    finite."""
    log_passing = torch.log1p(-alpha.clamp(max=1 - 1e-7))
    trans = torch.exp(exclusive_sum(log_passing, ray_index, num_rays))
    return alpha * trans, trans


def accumulate(weights: Float[Tensor, "*r s"], values: Float[Tensor, "*r s c"]) -> Float[Tensor, "*r c"]:
    """sum_i w_i value_i of dense rays."""
    return (weights[..., None] * values).sum(dim=-2)
