"""Pictures to a surface on one core: `python benchmarks/surface.py [OBJECTS...] [--size 72] [--out FOLDER]`.

For each object (a GLB, OBJ, PLY or STL file) twenty unlit renders from around it are fitted with the settings of
`stages.recovery.quick_recovery`, meshed at the zero level and painted with the same pictures. The table shows core
seconds of the fit and of everything after it, the likeness of four views that were not shown, and the figures of the
object benchmark, shapes compared where they stand. With --out each object is drawn there: truth and result, in colour
and in plaster. Times are process times, so that a busy machine disturbs them little; the table is Markdown. The
default objects are two of the shared validation pack (MAQUETTE_SHARED).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import torch

from maquette.asset import Mesh, load_mesh
from maquette.cameras import Cameras, orbit
from maquette.evaluation.image import psnr
from maquette.evaluation.truth import Protocol, Truth
from maquette.images import save_image, sheet
from maquette.rendering import SurfaceScene, render_mesh, render_views
from maquette.rendering.lighting import studio
from maquette.run import Run
from maquette.stages.fit import fit
from maquette.stages.objectives import Photometric
from maquette.stages.recovery import quick_recovery
from maquette.stages.surface import make_mesh

DEFAULT_OBJECTS = ("kaykit_adventurers__barbarian.glb", "ycb__004_sugar_box.glb")
RINGS = ((7, 5.0, 0.0), (7, 30.0, 25.0), (3, 60.0, 10.0), (3, -20.0, 60.0))
"""Views, elevation and first azimuth of each ring of cameras."""
WHITE = torch.ones(3)


def measure(path: Path, size: int, out: Path | None) -> dict[str, float]:
    """Fit one object, and every figure of it."""
    truth = Truth.of(load_mesh(path), Protocol(), 0, path.stem)
    cameras = Cameras.cat([orbit(n, elevation=e, azimuth=a, height=size, width=size) for n, e, a in RINGS])
    views = render_mesh(truth.mesh, cameras, samples=3).views()
    judge = orbit(4, elevation=20.0, azimuth=40.0, height=size, width=size)
    unseen = render_mesh(truth.mesh, judge, samples=3).views()
    config = quick_recovery()
    with tempfile.TemporaryDirectory() as folder, Run.open(Path(folder), config=config, quiet=True) as run:
        began = time.process_time()
        objective = Photometric(views, config.photometric)
        scene = run.stage("surface", fit, SurfaceScene(config.scene, run.seed), [objective], config.fit)
        fitted = time.process_time()
        mesh = run.stage("mesh", make_mesh, scene, config.mesh, views, config.projection)
        done = time.process_time()
    likeness = psnr(render_views(scene, judge).composite(WHITE), unseen.composite(WHITE)).mean()
    scores = truth.score(mesh)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        pictures = torch.cat([picture for shape in (truth.mesh, mesh) for picture in draw(shape)])
        save_image(out / f"{path.stem}.png", sheet(pictures, columns=4, gap=2))
    shown = ("chamfer_unnormalised", "volume_iou_unnormalised", "chamfer", "volume_iou", "normal_consistency")
    return {
        "fit, core s": fitted - began,
        "mesh, core s": done - fitted,
        "s": float(scene.sharpness().detach()),
        "unseen, dB": float(likeness),
        **{name: scores[name] for name in (*shown, "fscore_0.02", "silhouette_iou")},
        "closed": float(mesh.is_watertight),
    }


def draw(mesh: Mesh) -> list[torch.Tensor]:
    """Four views in colour, and four of plaster."""
    cameras = orbit(4, elevation=20.0, azimuth=40.0, height=160, width=160)
    plaster = render_mesh(mesh, cameras, samples=2, textureless=True, lighting=studio(30.0))
    return [render_mesh(mesh, cameras, samples=2).views().composite(WHITE), plaster.views().composite(WHITE)]


def main(objects: list[Path], size: int, out: Path | None) -> None:
    """Measure and print, an object at a time."""
    for number, path in enumerate(objects):
        figures = measure(path, size, out)
        if not number:
            print("| object |", " | ".join(figures), "|\n|", " | ".join(["---"] * (len(figures) + 1)), "|", flush=True)
        print(f"| {path.stem} |", " | ".join(f"{value:.4g}" for value in figures.values()), "|", flush=True)


if __name__ == "__main__":
    repository = Path(__file__).resolve().parent.parent
    shared = Path(os.environ.get("MAQUETTE_SHARED", repository.parent / "shared"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = [shared / "data" / "objects" / "val" / name for name in DEFAULT_OBJECTS]
    parser.add_argument("objects", nargs="*", type=Path, default=defaults, help="mesh files")
    parser.add_argument("--size", type=int, default=72, help="pixels of the pictures")
    parser.add_argument("--out", type=Path, default=None, help="folder for drawings")
    options = parser.parse_args()
    torch.set_num_threads(1)
    main(options.objects, options.size, options.out)
