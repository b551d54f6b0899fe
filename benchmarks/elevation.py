"""How well a view prior's pictures tell the elevation of a picture: `python benchmarks/elevation.py [OBJECTS...]`.

Each object (a mesh file) is photographed from 0, 30 and 60 degrees above the horizon, and `stages/elevation.py` is
asked. By default no prior takes part: the views around the picture are renders, blurred, noisy, and each standing off
its place by 5 degrees of azimuth and of elevation (standard deviations), which is the method's own error under mistakes
of a known size. With --prior NAME (and --weights FILE) the views are that prior's. The default objects are five of the
shared validation pack (MAQUETTE_SHARED). The table is Markdown.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import zlib
from pathlib import Path

import torch
import torch.nn.functional as F

from maquette.asset import load_mesh
from maquette.cameras import Cameras, from_angles
from maquette.images import ImagePrompt, Prompt, Views
from maquette.priors.base import Prior
from maquette.priors.hub import load_view_prior
from maquette.rendering.raster import MeshRenderer
from maquette.run import Run
from maquette.stages.elevation import (
    ElevationConfig,
    disagreement,
    estimate_elevation,
    parabola_minimum,
    view_cameras,
)

DEFAULT_OBJECTS = (
    "kaykit_adventurers__barbarian",
    "quat_animals__horse",
    "kaykit_furniture__armchair",
    "ycb__004_sugar_box",
    "gso__glazed_rim_porcelain_ramekin",
)
ELEVATIONS = (0.0, 30.0, 60.0)
WHITE = torch.ones(3)
CONFIG = ElevationConfig()


def turned(cameras: Cameras, azimuth: torch.Tensor, elevation: torch.Tensor) -> Cameras:
    """The cameras moved around the origin by degrees [V]."""
    return from_angles(
        cameras.azimuth + azimuth, cameras.elevation + elevation, cameras.distance, cameras.fovy,
        height=cameras.height, width=cameras.width,
    )  # fmt: skip


def disturbed(renderer: MeshRenderer, elevation: float, seed: int, jitter: float, noise: float) -> torch.Tensor:
    """Pictures [V, 4, s, s] as `disagreement` takes them: the first clean, the others as a prior might draw them."""
    generator = torch.Generator().manual_seed(seed)
    cameras = view_cameras(CONFIG, elevation).with_size(64, 64)
    away = jitter * torch.randn(2, len(cameras), generator=generator)
    away[:, 0] = 0
    views = renderer.render(turned(cameras, *away), samples=3).views()
    assert views.masks is not None
    pictures = torch.cat([views.composite(WHITE), views.masks], dim=1)
    small = F.interpolate(pictures, (CONFIG.size, CONFIG.size), mode="area")
    blurred = F.avg_pool2d(F.pad(small, (1,) * 4, mode="replicate"), 3, stride=1)
    blurred[:, :3] += noise * torch.randn(blurred[:, :3].shape, generator=generator)
    return torch.cat([small[:1], blurred[1:].clamp(0, 1)])


def by_renders(renderer: MeshRenderer, elevation: float, seed: int, jitter: float, noise: float) -> tuple[float, bool]:
    """(elevation found, whether it is called reliable) with renders in place of a prior's views."""
    pictures = disturbed(renderer, elevation, seed, jitter, noise)
    values = [disagreement(pictures, view_cameras(CONFIG, float(e)), CONFIG.samples) for e in CONFIG.candidates]
    found, error = parabola_minimum(CONFIG.candidates, torch.stack(values))
    return found, error < float(torch.stack(values).median()) - CONFIG.clear


def by_prior(renderer: MeshRenderer, elevation: float, prior: Prior) -> tuple[float, bool]:
    """The same with the views of a prior."""
    seen: Views = renderer.render(view_cameras(CONFIG, elevation)[:1].with_size(256, 256), samples=3).views()
    assert seen.masks is not None
    prompt = Prompt(ImagePrompt(seen.images[0], seen.masks[0]))
    with tempfile.TemporaryDirectory() as folder, Run.open(Path(folder) / "run", device="cpu", quiet=True) as run:
        camera = run.stage("elevation", estimate_elevation, prior, None, prompt, CONFIG).camera
    return camera.elevation, camera.reliable


def main() -> None:
    shared = Path(os.environ.get("MAQUETTE_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = [shared / "data" / "objects" / "val" / f"{name}.glb" for name in DEFAULT_OBJECTS]
    parser.add_argument("objects", type=Path, nargs="*", default=defaults, help="mesh files")
    parser.add_argument("--prior", default=None, help="whose views are used, such as nano-zero123")
    parser.add_argument("--weights", type=Path, default=None)
    parser.add_argument("--jitter", type=float, default=5.0, help="degrees by which renders stand off")
    parser.add_argument("--noise", type=float, default=0.05, help="standard deviation of their colours' noise")
    options = parser.parse_args()
    prior = None if options.prior is None else load_view_prior(options.prior, options.weights)
    print("| object | " + " | ".join(f"at {e:.0f}" for e in ELEVATIONS) + " |")
    print("| --- " * (1 + len(ELEVATIONS)) + "|")
    errors, trusted = [], []
    for path in options.objects:
        renderer = MeshRenderer(load_mesh(path).normalized())
        cells = []
        for elevation in ELEVATIONS:
            seed = zlib.crc32(f"{path.stem} {elevation}".encode())
            if prior is None:
                found, reliable = by_renders(renderer, elevation, seed, options.jitter, options.noise)
            else:
                found, reliable = by_prior(renderer, elevation, prior)
            errors.append(abs(found - elevation))
            trusted += [errors[-1]] if reliable else []
            cells.append(f"{found:.0f}{'' if reliable else ' (not reliable)'}")
        print(f"| {path.stem} | " + " | ".join(cells) + " |", flush=True)
    print(
        f"\nerror of {len(errors)}: median {statistics.median(errors):.1f}, mean {statistics.mean(errors):.1f} degrees"
    )
    if trusted:
        worst, mean = max(trusted), statistics.mean(trusted)
        print(f"of the {len(trusted)} that call themselves reliable: mean {mean:.1f}, worst {worst:.1f} degrees")


if __name__ == "__main__":
    main()
