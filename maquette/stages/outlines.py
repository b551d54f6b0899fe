"""Opposite views see one outline: what only one of two covers is cut off.

Seen from far away and from the horizon, an object's outline from behind is the mirror image of that from the front, and
the left side's that of the right side: both are the shadow that it casts along the same line. Views of a small prior
know no such law; where it is unsure how far a side reaches, each of two sides fades out on its own. Not in the papers.

Real cameras look from a distance of a few objects and from a little above, so front and back agree within a pixel of a
small view alone, left and right nearly always: they are each other's mirror image on anything that is left-right
symmetric.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from maquette.errors import UserError
from maquette.images import Views


@dataclass(frozen=True)
class OutlineConfig:
    """How far opposite views may differ."""

    sides: int = 0
    """Pixels by which left and right may reach beyond each other."""
    others: int = 1
    """Pixels by which views of any other pair may."""
    trust_front: bool = True
    """The front is not cut: there a prior shows what it was given."""

    def __post_init__(self) -> None:
        if min(self.sides, self.others) < 0:
            raise UserError(f"outlines differ by 0 pixels or more, got sides={self.sides}, others={self.others}")


def agreed_outlines(views: Views, config: OutlineConfig) -> Views:
    """`views` whose masks end where the opposite view's mirrored mask does; colours and cameras stay.

    A view without an opposite one (azimuth + 180 degrees, same elevation, within a degree), or without masks, stays as
    it is.
    """
    if views.masks is None:
        return views
    azimuth, elevation = views.cameras.azimuth, views.cameras.elevation
    masks = []
    for index, mask in enumerate(views.masks):
        turned = ((azimuth - azimuth[index]) % 360 - 180).abs()
        apart = torch.maximum(turned, (elevation - elevation[index]).abs())
        side = abs(abs(float(azimuth[index])) - 90) < 1
        front = abs(float(azimuth[index])) < 1
        if float(apart.min()) > 1 or (front and config.trust_front):
            masks.append(mask)
            continue
        other = views.masks[int(apart.argmin())].flip(-1)
        masks.append(torch.minimum(mask, widened(other, config.sides if side else config.others)))
    return Views(views.images, torch.stack(masks), views.cameras)


def widened(mask: Float[Tensor, "1 h w"], pixels: int) -> Float[Tensor, "1 h w"]:
    """The largest value within a square of `pixels` around each pixel."""
    return F.max_pool2d(mask[None], 2 * pixels + 1, stride=1, padding=pixels)[0]
