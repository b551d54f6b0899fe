"""A small folder of object files written by another library, some of them broken."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

CUBE_COLORS = {
    (0, 0, 1): (255, 0, 0),
    (1, 0, 0): (0, 255, 0),
    (0, 0, -1): (0, 0, 255),
    (-1, 0, 0): (255, 255, 0),
    (0, 1, 0): (255, 255, 255),
    (0, -1, 0): (0, 0, 0),
}
"""Normal in glTF's frame -> colour: +Z, the front, is red; +X, the object's left, green; the back blue; -X yellow."""


def write_cube(path: Path, extents: tuple[float, float, float] = (2.0, 2.0, 2.0)) -> None:
    """A glTF box with a palette of one colour a face, away from the origin."""
    import trimesh
    from PIL import Image

    box = trimesh.creation.box(extents)
    order = list(CUBE_COLORS)
    face = np.array([order.index(tuple(int(x) for x in np.round(normal))) for normal in box.face_normals])
    palette = np.repeat(np.repeat(np.array([list(CUBE_COLORS.values())], np.uint8), 4, axis=0), 4, axis=1)
    uv = np.stack([(np.repeat(face, 3) + 0.5) / 6, np.full(36, 0.5)], axis=-1)
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=Image.fromarray(palette))
    visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    vertices = box.vertices[box.faces].reshape(-1, 3) + [5.0, 1.0, -3.0]
    trimesh.Trimesh(vertices, np.arange(36).reshape(12, 3), visual=visual, process=False).export(path)


def write_garden(folder: Path) -> Path:
    """Five sound objects in all formats and three broken ones, without an index."""
    import trimesh

    (folder / "more").mkdir(parents=True)
    write_cube(folder / "cube.glb")
    write_cube(folder / "more" / "plank.glb", (0.2, 3.0, 1.0))
    (folder / "leaf.mtl").write_text("newmtl green\nKd 0.2 0.6 0.1\n")
    (folder / "leaf.obj").write_text("mtllib leaf.mtl\nusemtl green\nv 0 0 0\nv 1 0 0\nv 0 2 0\nf 1 2 3\n")
    trimesh.creation.icosphere(subdivisions=2, radius=40.0).export(folder / "ball.stl")
    trimesh.creation.cone(radius=1.0, height=2.0).export(folder / "cone.ply")
    (folder / "torn.glb").write_bytes((folder / "cube.glb").read_bytes()[:700])
    (folder / "nothing.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\n")
    (folder / "flat.obj").write_text("v 1 1 1\nv 1 1 1\nv 1 1 1\nf 1 2 3\n")
    return folder


def write_index(folder: Path, *rows: dict) -> None:
    """An index.jsonl of these rows."""
    (folder / "index.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder that is not hidden."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }
