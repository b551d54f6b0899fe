"""Weighing one objective of a fit against another by what each asks of its pictures.

A guidance's gradient is orders of magnitude above a mean over pixels, by factors that depend on resolution, codec and
guidance scale, so that a fixed weight means nothing from one setting to the next. What means something is the share

    weight = share(step) * mean |d L_against / d rgb| / mean |d L / d rgb|

of one gradient in the other, both taken at the rendered pictures, before they spread over the field.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from maquette.errors import UserError
from maquette.rendering.base import Rendering
from maquette.schedules import Constant, Linear, Piecewise


@dataclass(frozen=True)
class Balance:
    """How much one objective counts beside another."""

    share: Constant | Linear | Piecewise = Linear(0.3, 0.05, begin=0.3)
    """Size of its gradient as a share of the other's: 0.1 to 0.3 is weak. Less towards the end: colours are settled
    early, and details on which pictures disagree should not be averaged in."""
    every: int = 100
    """Steps between two measurements of the gradients."""
    memory: float = 0.9
    """Share of the running means that a new measurement leaves."""
    objective: str = "pseudo_views"
    """The objective that is weighed, by its name."""
    against: str = "distillation"
    """The one that it is weighed against, by its name; it comes before the other in the fit's list."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise UserError(f"a balance is measured every so many steps, at least 1, got {self.every}")
        if not 0 <= self.memory < 1:
            raise UserError(f"memory is a share in [0, 1), got {self.memory}")


class Balancer:
    """The running means of the two gradients; part of a fit's checkpoint."""

    def __init__(self, config: Balance, names: Sequence[str]) -> None:
        """ValueError unless both objectives are in the list of names, `against` first."""
        self.config = config
        self.means: dict[str, float] = {}
        pair = [name for name in names if name in (config.against, config.objective)]
        if pair != [config.against, config.objective]:
            raise ValueError(
                f"a balance of {config.objective!r} against {config.against!r} needs a fit with both, in that "
                f"order; this one has {', '.join(names)}"
            )

    def measure(self, name: str, loss: Float[Tensor, ""], rendering: Rendering, step: int) -> None:
        """Look at an objective's gradient on its rendering when it is due, without spending the graph."""
        config = self.config
        if name not in (config.objective, config.against) or (step % config.every and name in self.means):
            return
        (gradient,) = torch.autograd.grad(loss, rendering.rgb, retain_graph=True)
        norm = float(torch.linalg.vector_norm(gradient))
        # A rare step with NaN is skipped by the fit; it must not stay in the mean.
        if norm == norm and norm != float("inf"):
            self.means[name] = config.memory * self.means.get(name, norm) + (1 - config.memory) * norm

    def factor(self, name: str, step: int, total: int) -> float:
        """The weight of an objective at this step: 1 for all but the weighed one, 0 for that while it asks nothing."""
        if name != self.config.objective:
            return 1.0
        own, other = self.means.get(name, 0.0), self.means.get(self.config.against, 0.0)
        return self.config.share.at(step, total) * other / own if own > 0 else 0.0
