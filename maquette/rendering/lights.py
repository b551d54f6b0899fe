"""Where the point light of a shaded training view is (ImageDream's released configuration, after DreamFusion, 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from maquette.cameras import Cameras
from maquette.errors import UserError


def place_lights(
    positions: Float[Tensor, "*b v 3"], offset: Float[Tensor, "*b 3"], distance: Float[Tensor, "*b"]
) -> Float[Tensor, "*b v 3"]:
    """Lights of views: `distance` from the origin, towards camera position + `offset`, which a scene's views share."""
    return distance[..., None, None] * F.normalize(positions + offset[..., None, :], dim=-1)


@dataclass(frozen=True)
class LightSampler:
    """Draws one light per view: behind the camera, swayed by an offset that all views of a scene share."""

    distance: tuple[float, float] = (0.8, 1.5)
    """Distance of the light from the origin, uniform in this range, in scene units."""
    sway: float = 1.0
    """Standard deviation of the offset that is added to the camera's position before normalising."""

    def __post_init__(self) -> None:
        if not 0 < self.distance[0] <= self.distance[1]:
            raise UserError(f"LightSampler.distance is a range (low, high) with 0 < low <= high, got {self.distance}")
        if self.sway < 0:
            raise UserError(f"LightSampler.sway is a standard deviation and cannot be negative, got {self.sway}")

    def sample(self, cameras: Cameras, generator: torch.Generator | None = None) -> Float[Tensor, "*b v 3"]:
        """World positions of the lights of cameras [*b, V], one draw per scene, made on the generator's device."""
        if not cameras.batch_shape:
            raise ValueError("a scene has an axis of views; `cameras.reshape(1)` makes one of a single camera")
        scenes = cameras.batch_shape[:-1]
        device = "cpu" if generator is None else generator.device
        low, high = self.distance
        distance = low + (high - low) * torch.rand(scenes, generator=generator, device=device)
        offset = self.sway * torch.randn((*scenes, 3), generator=generator, device=device)
        return place_lights(cameras.position, offset.to(cameras.position), distance.to(cameras.position))
