"""The patch renderer over recorded rays and a renderer in closed form."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maquette.cameras import orbit
from maquette.rendering.base import Rendering, Shot
from maquette.rendering.patch import PatchConfig, PatchScene
from tests.parity.golden import NETWORK, Checks, Golden, Kind, has, needs


class RecordedRays(nn.Module):
    """A scene of rays that were drawn at random, interpolated between pixels; rgb = sin(3 o + 5 d), opacity = red^2."""

    def __init__(self, rays_o: Tensor, rays_d: Tensor) -> None:
        super().__init__()
        self.rays = torch.cat([rays_o, rays_d], dim=-1).movedim(-1, 1)  # [b, 6, H, W]

    def render(self, shot: Shot, generator: Any = None) -> Rendering:
        assert shot.pixels is not None
        size = shot.pixels.new_tensor([shot.cameras.width, shot.cameras.height])
        places = 2 * shot.pixels / size - 1
        rays = F.grid_sample(self.rays, places, mode="bilinear", padding_mode="border", align_corners=False)
        rgb = (3 * rays[:, :3] + 5 * rays[:, 3:]).sin().movedim(1, -1)
        opacity = rgb[..., :1].square()
        return Rendering(rgb=rgb, opacity=opacity, depth=torch.zeros_like(opacity), background=torch.zeros_like(rgb))


def run(golden: Golden, checks: Checks) -> None:
    """One view of each batch entry, with the window where it was drawn."""
    given, facts = golden.tensors, golden.metadata
    rays_o, rays_d = needs(given, "rays_o"), needs(given, "rays_d")
    batch, height, width = rays_o.shape[:3]
    division = PatchConfig(int(facts["patch_size"]), int(facts["global_downsample"]))
    scene = PatchScene(RecordedRays(rays_o, rays_d), division)
    shot = Shot(orbit(batch, height=height, width=width))
    found = scene.render_patch(shot, top=int(needs(given, "patch_y")), left=int(needs(given, "patch_x")))
    checks.compare("comp_rgb", found.rgb, NETWORK)
    checks.compare("opacity", found.opacity, NETWORK)


def expects(golden: Golden) -> Checks:
    """The composed pictures."""
    given = ("rays_o", "rays_d", "patch_x", "patch_y")
    return Checks({name: value for name, value in golden.tensors.items() if name not in given})


KINDS = [Kind("patch renderer", has("patch_x", "patch_y", "rays_o", "comp_rgb"), run, expects)]
