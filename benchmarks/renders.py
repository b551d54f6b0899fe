"""Core time of posed renders: `python benchmarks/renders.py [OBJECTS] [--limit N]`.

Measures, with one thread, reading an object, building its search tree, and taking 8 views of the canonical circle at
64, 128 and 256 px: unlit, lit, with depth and normals, and (the yardstick of the thrifty sampling) unlit with every ray
of the grid. OBJECTS is a folder of objects, by default the shared training pack (MAQUETTE_SHARED); N objects are spread
evenly over it. Times are process times, so that a busy machine disturbs them little; the table is Markdown.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch

import maquette.rendering.raster as raster
from maquette.asset import Mesh, load_mesh
from maquette.cameras import orbit
from maquette.rendering.lighting import studio
from maquette.rendering.raster import MeshRenderer
from maquette.training.objects import find_objects

SIZES = (64, 128, 256)
VIEWS = 8


def core_seconds(work: Callable[[], object]) -> float:
    """Core seconds of the faster of two runs."""
    times = []
    for _ in range(2):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return min(times)


def full_grid(renderer: MeshRenderer, size: int) -> None:
    """Unlit views with all rays of the grid in every pixel."""
    before, raster.AGREED = raster.AGREED, -1.0
    try:
        renderer.render(orbit(VIEWS, elevation=5.0, height=size, width=size))
    finally:
        raster.AGREED = before


def main() -> None:
    shared = Path(os.environ.get("MAQUETTE_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("objects", type=Path, nargs="?", default=shared / "data" / "objects" / "train")
    parser.add_argument("--limit", type=int, default=24)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = find_objects([options.objects])
    chosen = found[:: max(1, len(found) // options.limit)][: options.limit]

    meshes: list[Mesh] = []
    reading = core_seconds(lambda: meshes.extend(load_mesh(item.path).normalized() for item in chosen)) / len(chosen)
    meshes = meshes[: len(chosen)]
    building = core_seconds(lambda: [MeshRenderer(mesh) for mesh in meshes]) / len(chosen)
    renderers = [MeshRenderer(mesh) for mesh in meshes]
    want = frozenset({"rgb", "depth", "normal"})

    def per_view(work: Callable[[MeshRenderer], object]) -> float:
        return core_seconds(lambda: [work(renderer) for renderer in renderers]) / len(renderers) / VIEWS * 1e3

    rows = {}
    for size in SIZES:
        cameras = orbit(VIEWS, elevation=5.0, height=size, width=size)
        rows[size] = (
            per_view(lambda renderer, cameras=cameras: renderer.render(cameras)),
            per_view(lambda renderer, cameras=cameras: renderer.render(cameras, lighting=studio())),
            per_view(lambda renderer, cameras=cameras: renderer.render(cameras, want=want)),
            per_view(lambda renderer, size=size: full_grid(renderer, size)),
        )
    faces = sorted(len(mesh.faces) for mesh in meshes)
    print(
        f"{len(chosen)} objects, {faces[0]}-{faces[-1]} faces (median {faces[len(faces) // 2]}); {platform.processor()}"
    )
    print(f"reading {reading * 1e3:.1f} core-ms an object, search tree {building * 1e3:.1f}\n")
    print("| core-ms a view, 4 x 4 samples | unlit | lit | with depth and normals | unlit, every ray |")
    print("|---|---|---|---|---|")
    for size, values in rows.items():
        print(f"| {size} px | " + " | ".join(f"{value:.1f}" for value in values) + " |")


if __name__ == "__main__":
    main()
