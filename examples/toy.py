"""A toy robot made of boxes, cylinders and balls: what the other examples look at. Not an example itself.

It faces +x, like everything here. Its left arm is blue, its right arm red, and only its back carries a yellow pack, so
every side can be told from every other.
"""

from __future__ import annotations

import numpy as np
import trimesh

from maquette.asset import Mesh

PARTS = (
    # shape, size, centre, colour
    ("box", (0.44, 0.58, 0.56), (0.0, 0.0, 0.02), (0.93, 0.49, 0.19)),  # body
    ("box", (0.36, 0.42, 0.32), (0.02, 0.0, 0.50), (0.16, 0.60, 0.60)),  # head
    ("ball", 0.07, (0.21, 0.11, 0.54), (0.98, 0.98, 0.94)),  # left eye
    ("ball", 0.07, (0.21, -0.11, 0.54), (0.98, 0.98, 0.94)),  # right eye
    ("box", (0.03, 0.18, 0.05), (0.205, 0.0, 0.40), (0.10, 0.12, 0.16)),  # mouth
    ("box", (0.16, 0.13, 0.48), (0.02, 0.37, 0.04), (0.20, 0.36, 0.78)),  # left arm
    ("box", (0.16, 0.13, 0.48), (0.02, -0.37, 0.04), (0.78, 0.20, 0.22)),  # right arm
    ("cylinder", (0.11, 0.32), (0.0, 0.15, -0.40), (0.32, 0.33, 0.38)),  # left leg
    ("cylinder", (0.11, 0.32), (0.0, -0.15, -0.40), (0.32, 0.33, 0.38)),  # right leg
    ("box", (0.14, 0.40, 0.36), (-0.28, 0.0, 0.06), (0.95, 0.80, 0.24)),  # pack
    ("cylinder", (0.02, 0.20), (0.02, 0.0, 0.74), (0.10, 0.12, 0.16)),  # antenna
)


def toy_robot() -> Mesh:
    """The robot, normalised: bounding-box centre at the origin, bounding sphere of radius 0.75."""
    pieces, colours = [], []
    for shape, size, centre, colour in PARTS:
        if shape == "box":
            piece = trimesh.creation.box(size)
        elif shape == "ball":
            piece = trimesh.creation.icosphere(subdivisions=2, radius=size)
        else:
            radius, height = size
            piece = trimesh.creation.cylinder(radius, height, sections=24)
        piece.apply_translation(centre)
        pieces.append(piece)
        colours.append(np.tile(colour, (len(piece.vertices), 1)))
    whole = trimesh.util.concatenate(pieces)
    return Mesh(whole.vertices, whole.faces, vertex_colors=np.concatenate(colours)).normalized()
