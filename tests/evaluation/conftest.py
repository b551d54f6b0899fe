"""A small folder of objects, and a protocol that takes a fraction of a second each."""

from __future__ import annotations

import json

import numpy as np
import pytest

from maquette.asset import Asset, Mesh
from maquette.evaluation.truth import Protocol


def box_mesh(size, color, centre=(0.0, 0.0, 0.0)):
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = np.array([face for a, b, c, d in quads for face in ((a, b, c), (a, c, d))])
    vertices = corners * np.asarray(size) / 2 + centre
    return Mesh(vertices, faces, vertex_colors=np.tile(color, (8, 1)))


def cylinder_mesh(radius, height, color):
    import trimesh

    shape = trimesh.creation.cylinder(radius, height, sections=64)
    return Mesh(shape.vertices, shape.faces, vertex_colors=np.tile(color, (len(shape.vertices), 1)))


OBJECTS = {
    "tower": box_mesh((0.6, 0.5, 2.0), (0.8, 0.2, 0.1), centre=(3.0, 0.0, 1.0)),
    "plank": box_mesh((1.8, 0.4, 0.3), (0.2, 0.6, 0.2)),
    "drum": cylinder_mesh(0.7, 1.2, (0.1, 0.3, 0.8)),
    "pebble": box_mesh((1.0, 1.0, 0.9), (0.5, 0.5, 0.5)),
}


@pytest.fixture(scope="session")
def objects_folder(tmp_path_factory):
    """Four objects as GLB files; the pebble has no front."""
    folder = tmp_path_factory.mktemp("objects")
    rows = []
    for name, mesh in OBJECTS.items():
        Asset(mesh).save(folder / f"{name}.glb")
        front = name != "pebble"
        rows.append({"id": name, "file": f"{name}.glb", "caption": f"a {name}", "has_canonical_front": front})
    (folder / "index.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def protocol():
    """Few pixels, points and cells."""
    return Protocol(prompt_size=96, view_size=32, num_azimuths=4, num_points=600, resolution=24, samples=2)
