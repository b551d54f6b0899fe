"""Which part limits ImageDream's results: `python benchmarks/replace.py [OBJECTS...] [--quality draft] [--out FOLDER]`.

Each row runs `maquette imagedream` on the benchmark's prompt of an object with one part replaced by the truth: the
prompt's camera, the sampled views, the prior in sampling and distillation, the same at twice the resolution, and at
last everything but the extraction of the mesh, which then gets the object's own solid. The figures are those of the
object benchmark, means over objects; with --out every answer is kept there, with a picture of all of them from two
sides. The default objects are the first four of the object benchmark on the shared validation pack (MAQUETTE_SHARED).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F

from maquette.asset import Asset, Mesh
from maquette.evaluation.objects import ObjectBenchmark, choose_objects
from maquette.evaluation.true_prior import TruePrior
from maquette.evaluation.truth import Protocol, Truth
from maquette.evaluation.voxels import Grid, enclosed_occupancy
from maquette.images import CameraEstimate, Prompt, Views, save_image, sheet
from maquette.meshing.pipeline import mesh_from_field
from maquette.meshing.project import ProjectionConfig, project_views
from maquette.methods import imagedream
from maquette.priors.codecs import SpaceToDepth
from maquette.priors.hub import load_prior
from maquette.rendering.raster import render_mesh
from maquette.run import Run
from maquette.schedules import Constant
from maquette.stages.locate import Located, into_frame

WHITE = torch.ones(3)
SHOWN = ("chamfer", "volume_iou", "psnr", "silhouette_iou", "perceptual", "floater_volume")
SOLID = 192
"""Cells along the side of the grid that stands for the object's solid."""

Answer = Callable[[Truth, imagedream.Config, Run], Asset]


def as_it_is(truth: Truth, config: imagedream.Config, run: Run) -> Asset:
    """The method."""
    return imagedream.imagedream(Prompt(truth.prompt), config, run)


def true_camera(truth: Truth, config: imagedream.Config, run: Run) -> Asset:
    """The prompt's camera is known."""
    with replaced(match=lambda *_: None, locate=lambda *_: located(truth)):
        return as_it_is(truth, config, run)


def true_views(truth: Truth, config: imagedream.Config, run: Run) -> Asset:
    """The sampled views are renders; the distillation asks the prior."""
    sample = imagedream.canonical_views
    with replaced(canonical_views=lambda prior, *rest: sample(perfect(truth, config), *rest)):
        return as_it_is(truth, config, run)


def true_views_alone(truth: Truth, config: imagedream.Config, run: Run) -> Asset:
    """The sampled views are renders; no distillation."""
    return true_views(truth, replace(config, distillation=replace(config.distillation, weight=Constant(0.0))), run)


def true_prior(truth: Truth, config: imagedream.Config, run: Run) -> Asset:
    """The prior is right about everything, at its own resolution."""
    exact = replace(config, guidance=replace(config.guidance, background_step=0.0))
    with replaced(prior_of=lambda *_: perfect(truth, config)):
        return as_it_is(truth, exact, run)


def sharper_true_prior(truth: Truth, config: imagedream.Config, run: Run) -> Asset:
    """The prior is right about everything, at twice its resolution."""
    exact = replace(config, guidance=replace(config.guidance, background_step=0.0))
    with replaced(prior_of=lambda *_: perfect(truth, config, 2)):
        return as_it_is(truth, exact, run)


def true_solid(truth: Truth, config: imagedream.Config, run: Run) -> Asset:
    """The field is right everywhere: the object's solid, meshed, with renders painted onto it."""
    mesh, _ = mesh_from_field(
        solid(truth.mesh), lambda x: torch.full_like(x, 0.5), replace(config.mesh, threshold=0.5, bake_depth=0.0)
    )
    return Asset(project_views(mesh, truth.views, None, ProjectionConfig()))


ROWS: dict[str, Answer] = {
    "nothing": as_it_is,
    "the prompt's camera": true_camera,
    "the sampled views": true_views,
    "the sampled views, no distillation": true_views_alone,
    "the prior": true_prior,
    "the prior, at twice the pixels": sharper_true_prior,
    "all but the extraction": true_solid,
}


@contextmanager
def replaced(**parts: Any) -> Iterator[None]:
    """Other functions in place of the method's own."""
    with ExitStack() as stack:
        for name, part in parts.items():
            stack.enter_context(patch.object(imagedream, name, part))
        yield


def perfect(truth: Truth, config: imagedream.Config, finer: int = 1) -> TruePrior:
    """The prior that knows the object, with latents and noise of the one that the config names."""
    prior = load_prior(config.prior, config.weights)
    codec = prior.codec
    if finer > 1:
        assert isinstance(codec, SpaceToDepth), "only pixels come at any size"
        codec = replace(codec, image_size=finer * codec.image_size)
    return TruePrior(truth.mesh, codec, prior.noise_schedule)


def located(truth: Truth) -> Located:
    """The prompt in the frame of its true camera."""
    protocol = truth.protocol
    seen = render_mesh(truth.mesh, protocol.prompt_camera(), samples=3).views()
    assert seen.masks is not None
    view, scale = into_frame(truth.prompt, torch.cat([seen.images[0], seen.masks[0]]))
    estimate = CameraEstimate(0.0, protocol.elevation, scale, 0.0, True)
    return Located(estimate, Views(view[None, :3], view[None, 3:], seen.cameras), 0.0)


def solid(mesh: Mesh) -> Callable[[torch.Tensor], torch.Tensor]:
    """How much of its surroundings is inside, in [0, 1], as a function of position: 1/2 on the surface."""
    occupied = enclosed_occupancy(mesh.vertices.astype(np.float64), mesh.faces, Grid(SOLID))
    cells = torch.from_numpy(occupied).float().permute(2, 1, 0)[None, None]  # grid_sample wants [z, y, x]
    # Cells of the wall belong to the solid and reach half a cell too far: the mean of a neighbourhood, eroded by it.
    soft = F.avg_pool3d(F.pad(cells, (1,) * 6), 3, stride=1)

    def inside(positions: torch.Tensor) -> torch.Tensor:
        grid = positions.to(soft)[None, :, None, None]
        value = F.grid_sample(soft, grid, align_corners=False)[0, 0, :, 0, 0]
        return (value - 1 / 6).clamp(min=0)

    return inside


def main() -> None:
    shared = Path(os.environ.get("MAQUETTE_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("objects", type=Path, nargs="*", help="mesh files")
    parser.add_argument("--limit", type=int, default=4, help="objects, where none is named")
    parser.add_argument("--quality", default="draft", choices=("draft", "default", "high"))
    parser.add_argument("--steps", type=int, default=None, help="steps of the distillation")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    val = shared / "data" / "objects" / "val"
    chosen = options.objects or [val / row["file"] for row in choose_objects(val, ObjectBenchmark(limit=options.limit))]
    config = imagedream.nano(options.quality)
    if options.steps is not None:
        config = replace(config, fit=replace(config.fit, steps=options.steps))
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in options.rows}
    pictures: list[torch.Tensor] = []
    with tempfile.TemporaryDirectory() as scratch:
        for path in chosen:
            truth = Truth.read(path, Protocol())
            pictures += sides(truth, truth.mesh)
            for name in options.rows:
                folder = Path(options.out or scratch) / path.stem / name.replace(" ", "-").replace(",", "")
                began = time.perf_counter()
                with Run.open(folder, config=config, inputs={"row": name}, device="cpu", quiet=True) as run:
                    asset = ROWS[name](truth, config, run)
                asset.save(folder / "asset.glb")
                figures[name].append({**truth.score(asset.mesh), "seconds": time.perf_counter() - began})
                pictures += sides(truth, truth.aligned(asset.mesh))
    print(f"{len(chosen)} objects, quality {options.quality}, {torch.get_num_threads()} threads\n")
    print("| true | " + " | ".join((*SHOWN, "seconds")) + " |\n" + "| --- " * (len(SHOWN) + 2) + "|")
    for name, rows in figures.items():
        cells = [f"{sum(row[key] for row in rows) / len(rows):.3g}" for key in (*SHOWN, "seconds")]
        print(f"| {name} | " + " | ".join(cells) + " |")
    if options.out is not None:
        save_image(options.out / "sides.png", sheet(torch.stack(pictures), columns=2 * (1 + len(options.rows))))


def sides(truth: Truth, mesh: Mesh) -> list[torch.Tensor]:
    """From the front and from behind."""
    cameras = truth.protocol.circle(2, 15.0, truth.protocol.view_size, azimuth=30.0)
    return list(render_mesh(mesh, cameras, samples=2).views().composite(WHITE))


if __name__ == "__main__":
    main()
