"""04. A radiance field fitted to posed pictures, and the mesh that comes out of it.

No prior takes part: the pictures are renders of a toy with known cameras. It is the same field, the same loop and the
same mesh extraction that distillation uses, so this is the place to see what they can do at their best.

    python examples/04_fit_a_field.py --out runs/examples/04

takes about 20 seconds of one idle CPU core. It prints the likeness to views that were never shown, writes them beside
the truth (`unseen.png`) and saves `robot.glb`. Interrupt it and run it again: it goes on where it was.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from toy import toy_robot

from maquette import Cameras, orbit, save_image
from maquette.asset import Asset
from maquette.evaluation.image import psnr
from maquette.images import sheet
from maquette.meshing import MeshConfig
from maquette.rendering import VolumeScene, render_mesh, render_views
from maquette.rendering.presets import photometric_volume
from maquette.run import Run
from maquette.schedules import Constant, Linear
from maquette.stages.fit import FitConfig, fit
from maquette.stages.objectives import Photometric, PhotometricConfig, RandomRays
from maquette.stages.surface import make_mesh

WHITE = torch.ones(3)


def rings(size: int) -> tuple[Cameras, Cameras]:
    """Cameras to learn from and cameras to be judged by, none of them in both."""
    learn = [orbit(12, elevation=e, azimuth=a, height=size, width=size) for e, a in ((-15, 0), (15, 15), (45, 0))]
    judge = orbit(4, elevation=25.0, azimuth=40.0, height=size, width=size)
    return Cameras.cat(learn), judge


def main(out: Path, steps: int, size: int) -> None:
    learn, judge = rings(size)
    truth = toy_robot()
    shown, unseen = render_mesh(truth, learn).views(), render_mesh(truth, judge).views()

    # Pictures say where the object is, so this field begins nearly empty; under a prior it begins with a blob.
    volume = photometric_volume()
    objective = Photometric(shown, PhotometricConfig(pixels=RandomRays(2048), mask=Constant(0.1)))
    settings = FitConfig(steps=steps, encoding_rate=0.03, network_rate=0.003, rate=Linear(1.0, 0.02))

    with Run.open(out, config=settings, method="example-04", inputs={"size": size}) as run:
        scene = run.stage("fit", fit, VolumeScene(volume, seed=run.seed), [objective], settings)
        ours = render_views(scene, judge)
        likeness = psnr(ours.composite(WHITE), unseen.composite(WHITE))
        print(f"likeness to views that were not shown: {float(likeness.mean()):.1f} dB over {len(unseen)} views")
        mesh = run.stage("mesh", make_mesh, scene, replace(MeshConfig(), resolution=96, texture_size=512), None, None)
        provenance = run.provenance()
    pairs = torch.cat([unseen.composite(WHITE), ours.composite(WHITE)])
    save_image(out / "unseen.png", sheet(pairs, columns=len(unseen), gap=2))
    Asset(mesh, provenance=provenance).save(out / "robot.glb")
    print(f"wrote {out / 'robot.glb'} with {len(mesh.faces)} triangles, and {out / 'unseen.png'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/examples/04"), help="folder for the results")
    parser.add_argument("--steps", type=int, default=400, help="steps of the fit")
    parser.add_argument("--size", type=int, default=80, help="pixels of the pictures")
    options = parser.parse_args()
    main(options.out, options.steps, options.size)
