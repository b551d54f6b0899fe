"""How hard a surface looks: opacity from signed distance, and the one number s that sharpens it.

NeuS (arXiv:2106.10689, equation 13) with Phi the logistic function of s f: over an interval of length delta whose
middle has the distance f and whose ray meets the surface at the cosine c = n . d,

    alpha = clamp((Phi(before) - Phi(after) + 1e-5) / (Phi(before) + 1e-5), 0, 1),  before, after = f -+ c delta / 2.

A ray that leaves the surface (c > 0) would be transparent and teach nothing; so c is min(c, 0) only after annealing by
a = 0 .. 1: c = -(relu(1/2 - c/2) (1 - a) + relu(-c) a). These are instant-nsr-pl's formulas.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from maquette.errors import UserError
from maquette.schedules import Unit

TINY = 1e-5
LOWEST, HIGHEST = 1e-6, 1e6
"""Range of s."""
VOLSDF_HIGHEST = 80.0


def neus_alpha(
    sdf: Float[Tensor, "*n"],
    cosine: Float[Tensor, "*n"],
    delta: float | Float[Tensor, "*n"],
    s: Float[Tensor, ""],
    annealed: float = 1.0,
) -> Float[Tensor, "*n"]:
    """Opacity of intervals of length `delta`, with `cosine` between outward normal and ray, `annealed` = a."""
    slope = -(F.relu(0.5 - 0.5 * cosine) * (1 - annealed) + F.relu(-cosine) * annealed)
    half = slope * delta * 0.5
    before, after = ((sdf - half) * s).sigmoid(), ((sdf + half) * s).sigmoid()
    return ((before - after + TINY) / (before + TINY)).clamp(0, 1)


def volsdf_density(sdf: Float[Tensor, "*n"], s: Float[Tensor, ""] | float) -> Float[Tensor, "*n"]:
    """s times the Laplace distribution function of -sdf with scale 1 / s (VolSDF, arXiv:2106.12052, equation 2).

    s is limited to `VOLSDF_HIGHEST`, as in threestudio.
    """
    s = torch.as_tensor(s, dtype=sdf.dtype, device=sdf.device).clamp(max=VOLSDF_HIGHEST)
    return s * (0.5 + 0.5 * sdf.sign() * torch.expm1(-sdf.abs() * s))


@dataclass(frozen=True)
class Cap:
    """A limit of s that rises from what s was at `start` towards `highest` (instant-nsr-pl's modulation).

    From after `start` on, s <= min(p / reach (highest - s_start) + s_start, highest), with p the position: a jump at
    `start`, then a straight line that ends at `reach`.
    """

    highest: float
    """s is no larger than this."""
    start: float = 0.1
    """Position after which s is limited at all."""
    reach: float = 0.5
    """Position at which the limit is `highest`."""
    unit: Unit = "fraction"
    """Whether positions are steps or fractions of the run."""

    def __post_init__(self) -> None:
        if not (self.highest > 0 and self.start >= 0 and self.reach > 0):
            raise UserError(
                f"a cap needs highest, reach > 0 and start >= 0, got {self.highest}, {self.reach}, {self.start}"
            )
        if self.unit not in ("step", "fraction"):
            raise UserError(f"a cap's unit is 'step' or 'fraction', got {self.unit!r}")


class Sharpness(nn.Module):
    """s = exp(10 v) with one learned v, limited by a `Cap` if there is one; larger is harder.

    The surface's blur is about 4 / s wide (scene units).
    """

    def __init__(self, initial: float = 0.3, cap: Cap | None = None) -> None:
        super().__init__()
        self.variance = nn.Parameter(torch.tensor(float(initial)))
        self.cap = cap
        self.before = self._uncapped()
        """s when the cap was last off."""
        self.limit = math.inf

    def forward(self) -> Float[Tensor, ""]:
        """s, differentiable where the cap does not hold."""
        s = torch.exp(10 * self.variance).clamp(LOWEST, HIGHEST)
        return s.clamp(max=self.limit)

    def update(self, step: int, total: int) -> None:
        """Set the cap for a step."""
        if self.cap is None:
            return
        position = step if self.cap.unit == "step" else step / total
        if position <= self.cap.start:
            self.before, self.limit = self._uncapped(), math.inf
            return
        risen = position / self.cap.reach * (self.cap.highest - self.before) + self.before
        self.limit = min(risen, self.cap.highest)

    def _uncapped(self) -> float:
        return min(max(math.exp(10 * float(self.variance.detach())), LOWEST), HIGHEST)

    def get_extra_state(self) -> Tensor:
        """What the cap remembers."""
        return torch.tensor([self.before, self.limit], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore what the cap remembers."""
        self.before, self.limit = state.tolist()
