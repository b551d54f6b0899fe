"""What rays meet on a grid over [-1, 1]^3."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float

from maquette.cameras import Cameras
from maquette.meshing.raycast import pixel_rays


def largest_along_rays(values: Float[np.ndarray, "n n n"], cameras: Cameras) -> Float[np.ndarray, "v p"]:
    """Largest trilinear value along every pixel's ray inside [-1, 1]^3; steps of one grid cell."""
    # grid_sample names the last axis of a volume x, ours names the first: the coordinates are given in reverse.
    volume = torch.from_numpy(np.ascontiguousarray(values))[None, None]
    step = 2.0 / (len(values) - 1)
    largest = []
    for camera in cameras:
        origins, directions = (torch.from_numpy(array.copy()) for array in pixel_rays(camera))
        # Everything inside the cube lies within sqrt(3) of the origin.
        middle = -(origins * directions).sum(-1, keepdim=True)
        peak = torch.full((len(origins),), 0.0)
        reach = float(np.sqrt(3.0))
        hits = (origins + middle * directions).norm(dim=-1) < reach
        o, d, m = origins[hits], directions[hits], middle[hits]
        offsets = torch.arange(-reach, reach, step)
        found = torch.zeros(len(o))
        for part in offsets.split(32):
            points = o[:, None] + (m + part)[..., None] * d[:, None]  # [r, s, 3]
            read = torch.nn.functional.grid_sample(
                volume, points.flip(-1)[None, None], mode="bilinear", padding_mode="zeros", align_corners=True
            )
            found = torch.maximum(found, read[0, 0, 0].max(dim=-1).values)
        peak[hits] = found
        largest.append(peak.numpy())
    return np.stack(largest)
