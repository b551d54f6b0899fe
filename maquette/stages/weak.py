"""A weak reconstruction: the scene resembles pictures that may be wrong (DreamBooth3D, arXiv:2303.13508, stage 3).

Pseudo views come from a prior, each for itself: they disagree in detail, and beyond the object they show whatever the
prior liked. So only what lies inside the object's (widened) outline is compared, by a norm that takes the middle of
what disagrees rather than its mean, or by its colours alone; the weight comes from a `Balance`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from maquette.errors import UserError
from maquette.images import Views
from maquette.rendering.base import Rendering, Shot
from maquette.schedules import Constant, Piecewise
from maquette.stages.objectives import Metrics
from maquette.stages.regularizers import Ramp
from maquette.stages.translate import Translated


@dataclass(frozen=True)
class Pixels:
    """Pixel by pixel: |c - c_pseudo|^p, averaged inside the mask."""

    norm: Literal[1, 2] = 1
    """p; 1 takes the median of views that disagree, 2 their mean, which blurs more."""


@dataclass(frozen=True)
class LowPass:
    """Colours of a coarse grid only: pulls saturation back and leaves the detail to the prior. Not in the paper."""

    cells: int = 16
    """Cells along the side of the picture."""
    norm: Literal[1, 2] = 1
    """p."""

    def __post_init__(self) -> None:
        if self.cells < 1:
            raise UserError(f"a coarse grid has at least one cell, got {self.cells}")


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of each colour channel inside the mask, and nothing of where they are. Not in the
    paper."""


@dataclass(frozen=True)
class WeakConfig:
    """How pseudo views are compared with the scene."""

    compare: Pixels | LowPass | Moments = Pixels()
    """What of the colours counts."""
    resolution: Ramp = Piecewise((64, 128), (0.5,))
    """Pixels along the side of the rendering over the run; the smaller of it and the picture is compared."""
    count: int = 1
    """Views of a step."""
    dilate: float = 0.03
    """How far the outline of the rendering is widened, as a share of the side."""
    mask: Ramp = Constant(0.0)
    """Weight of the squared difference of opacity and outline; small, since the outline is stage 1's."""
    weight: Ramp = Constant(1.0)
    """Factor on the whole; the fixed weight of the paper's equation where nothing is balanced."""
    every: int = 1
    """Steps between two turns."""

    def __post_init__(self) -> None:
        if min(self.count, self.every) < 1:
            raise UserError(f"count and every are at least 1, got {self.count} and {self.every}")
        if not 0 <= self.dilate < 0.5:
            raise UserError(f"dilate is a share of the picture's side in [0, 0.5), got {self.dilate}")


@dataclass(frozen=True)
class WeakReconstruction:
    """L_recon = |render(F, P_v) - I_v|_p inside the mask, for random pseudo views v at exactly their cameras."""

    views: Views
    """Pictures as they were painted; masks are the outlines of the renderings that they were painted over."""
    inside: Float[Tensor, "v 1 h w"]
    """Where the pictures are believed."""
    background: tuple[float, float, float]
    """The flat colour that the renderings stood on."""
    config: WeakConfig = WeakConfig()
    """How they are compared."""
    name: str = "pseudo_views"
    """Name in the log."""

    @classmethod
    def of(cls, pseudo: Translated, config: WeakConfig) -> WeakReconstruction:
        """The objective of a set of pseudo views."""
        return cls(pseudo.views, pseudo.loss_masks(config.dilate), pseudo.config.background, config)

    @property
    def weight(self) -> Ramp:
        """Factor on the loss over the run."""
        return self.config.weight

    @property
    def every(self) -> int:
        """Steps between two turns."""
        return self.config.every

    def to(self, device: torch.device) -> WeakReconstruction:
        """The same objective with its pictures on a device."""
        return replace(self, views=self.views.to(device), inside=self.inside.to(device))

    def shot(self, step: int, total: int, generator: torch.Generator, device: torch.device) -> Shot:
        """Some views without any light, on the colour that their renderings stood on."""
        size = round(self.config.resolution.at(step, total))
        drawn = torch.randperm(len(self.views), generator=generator, device=generator.device)
        index = drawn[: self.config.count].to(device)
        cameras = self.views.cameras[index].with_size(size, size)
        return Shot(cameras, background=torch.tensor(self.background, device=device), index=index)

    def loss(
        self, rendering: Rendering, shot: Shot, step: int, total: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, ""], Metrics]:
        """The configured distance inside the mask; nothing outside has a gradient."""
        assert shot.index is not None, "a weak reconstruction needs the shot that this objective made"
        size = min(rendering.rgb.shape[-2], self.views.images.shape[-1])
        ours = _shrink(rendering.images(), size)
        theirs = _shrink(self.views.images.index_select(0, shot.index), size)
        inside = _shrink(self.inside.index_select(0, shot.index), size)
        value = distance(ours, theirs, inside, self.config.compare)
        metrics: Metrics = {"colour": value.detach()}
        loss = value
        if (weight := self.config.mask.at(step, total)) > 0 and self.views.masks is not None:
            outline = _shrink(self.views.masks.index_select(0, shot.index), size)
            outside = (_shrink(rendering.masks(), size) - outline).square().mean()
            metrics["mask"] = outside.detach()
            loss = loss + weight * outside
        return loss, metrics


def distance(
    ours: Float[Tensor, "n 3 s s"],
    theirs: Float[Tensor, "n 3 s s"],
    inside: Float[Tensor, "n 1 s s"],
    compare: Pixels | LowPass | Moments,
) -> Float[Tensor, ""]:
    """Mean difference of two sets of pictures inside a mask, as `compare` says."""
    if isinstance(compare, Moments):
        pairs = zip(_moments(ours, inside), _moments(theirs, inside), strict=True)
        return torch.stack([(a - b).abs().mean() for a, b in pairs]).sum()
    if isinstance(compare, LowPass):
        cells = min(compare.cells, ours.shape[-1])
        share = _shrink(inside, cells)
        ours, theirs = (_shrink(inside * x, cells) / share.clamp(min=1e-6) for x in (ours, theirs))
        inside = share
    apart = (ours - theirs).abs()
    return (inside * (apart if compare.norm == 1 else apart.square())).sum() / (3 * inside.sum()).clamp(min=1e-6)


def _moments(images: Float[Tensor, "n 3 s s"], inside: Float[Tensor, "n 1 s s"]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [n, 3] inside the mask."""
    total = inside.sum((-2, -1)).clamp(min=1e-6)
    mean = (inside * images).sum((-2, -1)) / total
    variance = (inside * (images - mean[..., None, None]).square()).sum((-2, -1)) / total
    return mean, (variance + 1e-8).sqrt()


def _shrink(images: Float[Tensor, "n c h w"], size: int) -> Float[Tensor, "n c s s"]:
    """Means over areas; images of that size stay as they are."""
    return images if images.shape[-1] == size else F.interpolate(images, (size, size), mode="area")
