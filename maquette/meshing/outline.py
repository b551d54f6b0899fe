"""Hold a surface to a picture's outline: nothing beyond it, and something behind each of its pixels.

A field that was fitted to a picture shows its outline well, but thin parts are fog there: where other views do not say
how deep a leg or a wing lies, its density is spread along the line of sight and stays below the level of the surface.
The mask is the surface's shadow as seen from its camera, so on the grid that is marched

    h'(x) = min(h(x) + max(0, room - p(u)) [m(u) > 1/2], 2 m(u) - 1),    p(u) = max of h along the ray through u,

with h in [-1, 1] positive inside, u the pixel that shows x, m the mask. Where h finds nothing at all along a ray, that
ray stays empty: an outline tells that there is something, not where.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float

from maquette.images import Views
from maquette.meshing.rays import largest_along_rays

SIZE = 128
"""Pixels a side at which rays are compared; a mask with more is averaged."""


def held_to_outline(
    heights: Float[np.ndarray, "n n n"], view: Views, *, room: float = 0.25, nothing: float = -0.7
) -> Float[np.ndarray, "n n n"]:
    """`heights` in [-1, 1] (positive inside) on the grid over [-1, 1]^3, held to the mask of `view`, a single one.

    `room` is how far inside the best place of an empty ray is lifted; rays whose best place is below `nothing` are left
    empty. ValueError where that would lift empty space to the inside (room - nothing >= 1), for views without masks and
    for several.
    """
    if room - nothing >= 1:
        raise ValueError(f"room - nothing is below 1, got {room} and {nothing}: empty space would become solid")
    if view.masks is None or len(view) != 1:
        raise ValueError(f"an outline is one view with a mask, got {len(view)} views")
    mask = view.masks.detach().cpu().float()
    camera = view.cameras.to("cpu")
    if camera.height > SIZE:
        mask = F.interpolate(mask, size=(SIZE, SIZE), mode="bilinear", antialias=True)
        camera = camera.with_size(SIZE, SIZE)
    # Rays count what is outside the grid as 0, which here is nothing at all.
    peak = torch.from_numpy(largest_along_rays(heights + 1, camera) - 1).view(1, 1, camera.height, camera.width)
    lift = (room - peak).clamp_min(0) * (mask > 0.5) * (peak > nothing)

    both = torch.cat([mask, lift], dim=1)

    axis = torch.linspace(-1, 1, len(heights))
    held = np.empty_like(heights)
    for index, x in enumerate(axis):  # a slab at a time
        nodes = torch.stack(torch.meshgrid(x[None], axis, axis, indexing="ij"), dim=-1).reshape(-1, 3)
        pixel, depth = camera.project(nodes[None])  # [1, m, 2], [1, m]
        place = 2 * pixel / torch.tensor([camera.width, camera.height]) - 1
        read = F.grid_sample(both, place[:, None], align_corners=False, padding_mode="zeros")[0, :, 0]
        bound, raised = torch.where(depth > 0, read, torch.zeros(())).numpy()
        height = heights[index].reshape(-1)
        held[index] = np.minimum(height + raised, 2 * bound - 1).reshape(heights[index].shape)
    return held
