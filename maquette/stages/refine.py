"""Around the refinement of a field's renderings (USD, section 4.2): making them, and putting the new colours into them.

The refinement itself is `translate`, by a prior that `personalize` taught the object.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from maquette.cameras import Cameras
from maquette.errors import UserError
from maquette.images import ImagePrompt, Views
from maquette.matting import spread_colour
from maquette.priors.usd_cameras import export_cameras
from maquette.rendering.base import Scene
from maquette.rendering.views import render_views
from maquette.run import Stage
from maquette.stages.locate import into_frame
from maquette.stages.translate import Translated, resized


@dataclass(frozen=True)
class Renderings:
    """Pictures of the finished field, which are refined and become the surface's training data."""

    count: int = 120
    """Views evenly around at elevations of their own, besides those of the novel views."""
    size: int = 512
    """Pixels along the side."""
    hardening: float = 1.0
    """Slope of the masks around one half: 1 leaves them as they are; a larger one cuts the half-covered rim of a
    blurred field in two, which a surface could only meet by staying soft."""

    def __post_init__(self) -> None:
        if self.count < 1 or self.size < 8 or self.hardening < 1:
            raise UserError(
                f"renderings need count >= 1, size >= 8 and hardening >= 1, got {self.count}, {self.size} and "
                f"{self.hardening}"
            )


def render_around(scene: Scene, around: Cameras, config: Renderings, run: Stage) -> Views:
    """Pictures of the field: from the cameras of the novel views first, then all around at varying height."""
    more = export_cameras(
        run.generator(device="cpu"), config.count, distance=float(around.distance[0]), fovy=float(around.fovy[0]),
        size=config.size,
    )  # fmt: skip
    cameras = Cameras.cat([around.with_size(config.size, config.size), more])
    views = render_views(scene, cameras.to(run.device)).to("cpu")
    assert views.masks is not None  # render_views always knows them
    return Views(views.images, ((views.masks - 0.5) * config.hardening + 0.5).clamp(0, 1), views.cameras)


def place_picture(picture: ImagePrompt, views: Views, size: int = 256) -> Views:
    """The picture as a view from its own camera, its object as large there as the first of the novel views shows it.

    How far a picture was taken from, nobody knows; the view prior draws objects of one size.
    """
    assert views.masks is not None  # the condition has a background
    seen = F.interpolate(
        torch.cat([views.images[:1], views.masks[:1]], dim=1), (size, size), mode="bilinear", align_corners=False
    )
    placed, _ = into_frame(picture, seen[0])
    return Views(placed[None, :3], placed[None, 3:], views.cameras[:1].with_size(size, size))


def repaint(rendered: Views, painted: Translated) -> Views:
    """The renderings with the change of colours that their translations made, out of the white that these stand on.

    A prior of smaller pictures than the renderings says nothing about what is finer; that stays as it was rendered. So
    does a rendering that was not changed, and what is less than half covered follows its surroundings.
    """
    views = painted.views
    assert views.masks is not None and rendered.masks is not None  # field renderings have them
    small, background = views.images.shape[-1], torch.tensor(painted.config.background)
    before = rendered[list(painted.numbers)]
    assert before.masks is not None
    change = views.images - resized(before.composite(background), small)
    straight = change / views.masks.clamp(min=0.5)
    spread = torch.stack([_filled(image, known[0] > 0.5) for image, known in zip(straight, views.masks, strict=True)])
    images = before.images + resized(spread, before.images.shape[-1])
    return Views(images.clamp(0, 1), before.masks, before.cameras)


def _filled(image: Float[Tensor, "3 h w"], known: Tensor) -> Float[Tensor, "3 h w"]:
    if not bool(known.any()):
        return torch.zeros_like(image)
    spread = spread_colour(image.permute(1, 2, 0).contiguous().numpy(), known.numpy())
    return torch.from_numpy(spread).permute(2, 0, 1).contiguous()
