"""Shape without colour: a prior looks at a scene's normals, drawn as a picture.

The second stage of Fantasia3D (arXiv:2303.13873) and of USD's text-to-3D: whatever the prior asks for, only the surface
can give it, for there is no paint that would do instead.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from maquette.rendering.base import Rendering, Shot
from maquette.rendering.volume import composite
from maquette.stages.objectives import Distillation, Metrics
from maquette.stages.regularizers import Ramp


@dataclass(frozen=True)
class NormalDistillation:
    """A distillation that is shown normals, n -> (n + 1) / 2 as red, green and blue of the world's x, y and z."""

    inner: Distillation
    """Who judges, from where, and how; penalties are those of the rendering."""
    name: str = "normals"
    """Name in the log."""

    @property
    def weight(self) -> Ramp:
        """Factor on the loss over the run."""
        return self.inner.weight

    @property
    def every(self) -> int:
        """Steps between two turns."""
        return self.inner.every

    def to(self, device: torch.device) -> NormalDistillation:
        """The same on a device."""
        return replace(self, inner=self.inner.to(device))

    def shot(self, step: int, total: int, generator: torch.Generator, device: torch.device) -> Shot:
        """That of the distillation, with normals."""
        return replace(self.inner.shot(step, total, generator, device), normals=True)

    def loss(
        self, rendering: Rendering, shot: Shot, step: int, total: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, ""], Metrics]:
        """The distillation's, of the picture of the normals."""
        return self.inner.loss(picture_normals(rendering), shot, step, total, generator)


def picture_normals(rendering: Rendering) -> Rendering:
    """The rendering with its normals for colours, on the background that it has."""
    if rendering.normal is None:
        raise ValueError("a picture of normals needs normals; render with Shot(normals=True)")
    coloured = rendering.opacity * (rendering.normal + 1) / 2
    return replace(rendering, rgb=composite(coloured, rendering.opacity, rendering.background))
