"""Fitting posed pictures on one core: `python benchmarks/field.py [OBJECTS...] [--budgets 15 30 60]`.

For each object (a GLB, OBJ, PLY or STL file) 40 unlit renders of 80 px from all around are fitted and 6 others held
out. Each encoding gets the same budgets of core seconds, with one thread and a schedule that ends with the budget; the
table shows the mean PSNR of the held-out views on white, and what was done for it. The number of steps that fills a
budget is found by trying, so the fits themselves count steps and anyone can repeat one. Times are process times, so
that a busy machine disturbs them little; peak memory is that of a process which does one fit. The default objects are
one of the shared training pack and two of the validation pack (MAQUETTE_SHARED). Tables are Markdown.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from maquette.asset import load_mesh
from maquette.cameras import Cameras, OrbitSampler, fit_distance, from_angles
from maquette.evaluation.image import psnr
from maquette.fields import EncodingConfig, HashGridConfig, LinearBlob, RadianceConfig, RadianceField, TriPlanesConfig
from maquette.images import Views
from maquette.rendering import Shot, VolumeConfig, VolumeScene, render_mesh, render_views
from maquette.rendering.presets import photometric_volume
from maquette.run import Run, read_log
from maquette.run.memory import peak_memory
from maquette.schedules import Constant, Linear
from maquette.stages.fit import FitConfig, fit
from maquette.stages.objectives import Photometric, PhotometricConfig, RandomRays

DEFAULT_OBJECTS = (
    "train/kaykit_adventurers__knight.glb",
    "val/quat_animals__horse.glb",
    "val/kaykit_furniture__armchair.glb",
)
ENCODINGS: dict[str, EncodingConfig] = {
    "tri-planes": TriPlanesConfig(),
    "hash grid 8 x 2, 2^15": HashGridConfig(levels=8, table_size_log2=15, growth=1.5),
    "hash grid 16 x 2, 2^19": HashGridConfig(),
}
RATES = {"tri-planes": 0.05}
"""Learning rates of encodings other than the papers' 0.01, which hash grids keep."""
TRAIN, HELD_OUT, SIZE, RAYS = 40, 6, 80, 3072
WHITE = torch.ones(3)


@dataclass(frozen=True)
class Result:
    """One fit."""

    steps: int
    seconds: float
    psnr: float
    samples_per_ray: float
    peak: int

    @property
    def rays_per_second(self) -> float:
        """Rays rendered and learned from, per core second."""
        return self.steps * RAYS / self.seconds

    @property
    def samples_per_second(self) -> float:
        """Samples evaluated and learned from, per core second."""
        return self.rays_per_second * self.samples_per_ray


def spiral(count: int) -> Cameras:
    """Cameras all around, on a spiral of even density, looking at the origin."""
    k = torch.arange(count) + 0.5
    elevation = torch.rad2deg(torch.asin((1 - 2 * k / count) * 0.98))
    azimuth = (k * 137.50776) % 360
    fovy = torch.tensor(40.0)
    return from_angles(azimuth, elevation, torch.tensor(fit_distance(40.0)), fovy, height=SIZE, width=SIZE)


def make_views(path: Path) -> tuple[Views, Views]:
    """Views to learn from and views held out."""
    views = render_mesh(load_mesh(path).normalized(), spiral(TRAIN + HELD_OUT)).views()
    order = torch.randperm(TRAIN + HELD_OUT, generator=torch.Generator().manual_seed(0))
    return views[order[:TRAIN]], views[order[TRAIN:]]


def run_fit(name: str, learn: Views, judge: Views, steps: int) -> Result:
    """Fit `steps` steps and judge."""
    base = photometric_volume()
    config = replace(base, field=replace(base.field, encoding=ENCODINGS[name]))
    objective = Photometric(learn, PhotometricConfig(pixels=RandomRays(RAYS), mask=Constant(0.1)))
    settings = FitConfig(steps=steps, encoding_rate=RATES.get(name, 0.01), network_rate=0.01, rate=Linear(1.0, 0.02))
    with tempfile.TemporaryDirectory() as folder:
        with Run.open(folder, device="cpu", quiet=True) as run:
            began = time.process_time()
            scene = run.stage("fit", fit, VolumeScene(config), [objective], settings)
            seconds = time.process_time() - began
        kept = [line["samples_per_ray"] for line in read_log(folder) if "samples_per_ray" in line]
    likeness = float(psnr(render_views(scene, judge.cameras).composite(WHITE), judge.composite(WHITE)).mean())
    return Result(steps, seconds, likeness, sum(kept) / len(kept), peak_memory() or 0)


def fill_budget(name: str, learn: Views, judge: Views, budget: float, guess: int) -> Result:
    """The longest fit within `budget` core seconds, found to 8 % by trying."""
    best = None
    for _ in range(4):
        found = run_fit(name, learn, judge, guess)
        if found.seconds <= budget and (best is None or found.steps > best.steps):
            best = found
        if 0.92 * budget <= found.seconds <= budget:
            break
        guess = max(1, int(guess * 0.97 * budget / found.seconds))
    if best is None:
        raise RuntimeError(f"no fit with {name} kept to {budget} core seconds; the machine is too uneven")
    return best


def throughput(encoding: EncodingConfig) -> float:
    """Million points per core second, forward and backward to all parameters, on points along rays."""
    field = RadianceField(RadianceConfig(encoding=encoding, hidden=32))
    generator = torch.Generator().manual_seed(0)
    origins = torch.rand(12500, 1, 3, generator=generator) * 1.2 - 0.6
    directions = torch.nn.functional.normalize(torch.randn(12500, 1, 3, generator=generator), dim=-1)
    points = (origins + torch.linspace(0, 0.1, 8)[:, None] * directions).reshape(-1, 3)
    times = []
    for _ in range(4):
        began = time.process_time()
        answer = field(points)
        assert answer.density is not None and answer.rgb is not None
        (answer.density.sum() + answer.rgb.sum()).backward()
        times.append(time.process_time() - began)
    return len(points) / min(times) / 1e6


def distillation_step(normals: bool) -> tuple[float, float]:
    """Core seconds and samples per ray of four views of 64 px, forward and backward, in the fog that a field begins
    as."""
    config = VolumeConfig(field=RadianceConfig(bias=LinearBlob(), hidden=32), samples=Constant(96))
    scene = VolumeScene(config)
    generator = torch.Generator().manual_seed(0)
    scene.update(0, 100, generator)
    shot = Shot(OrbitSampler().sample(1, 64, 64, generator), background=WHITE, normals=normals)
    times, samples_per_ray = [], 0.0
    for _ in range(3):
        began = time.process_time()
        rendering = scene.render(shot, generator)
        assert rendering.samples is not None
        loss = rendering.rgb.square().mean()
        if rendering.samples.normal is not None:
            loss = loss + rendering.samples.normal[:, 2].mean()
        loss.backward()
        times.append(time.process_time() - began)
        samples_per_ray = len(rendering.samples.t_mid) / rendering.samples.num_rays
    return min(times), samples_per_ray


def in_its_own_process(*arguments: str) -> str:
    """Output of this script with other arguments, so that peak memory is that of one object and encoding."""
    command = [sys.executable, __file__, *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    shared = Path(os.environ.get("MAQUETTE_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("objects", type=Path, nargs="*", default=[shared / "data/objects" / o for o in DEFAULT_OBJECTS])
    parser.add_argument("--budgets", type=float, nargs="+", default=[15.0, 30.0, 60.0])
    parser.add_argument("--encodings", nargs="+", choices=ENCODINGS, default=list(ENCODINGS)[:2])
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.child:
        (path,), (name,) = options.objects, options.encodings
        learn, judge = make_views(path)
        # A short fit is slow a step, as space is not yet empty: the guess from it errs on the careful side.
        pilot = run_fit(name, learn, judge, 60)
        guess = 1.5 * pilot.steps * options.budgets[0] / pilot.seconds
        for budget in options.budgets:
            found = fill_budget(name, learn, judge, budget, int(guess * budget / options.budgets[0]))
            guess = 1.02 * found.steps * options.budgets[0] / found.seconds
            print(
                f"| {path.stem} | {name} | {budget:.0f} | {found.seconds:.1f} | {found.steps} | {found.psnr:.2f} | "
                f"{found.rays_per_second / 1e3:.0f} | {found.samples_per_second / 1e3:.0f} | "
                f"{found.samples_per_ray:.2f} | {found.peak / 2**20:.0f} |"
            )
        return
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, 1 thread\n")
    print("| encoding | parameters (M) | million points per core-s, forward + backward |\n|---|---|---|")
    for name, encoding in ENCODINGS.items():
        count = sum(p.numel() for p in RadianceField(RadianceConfig(encoding=encoding, hidden=32)).parameters())
        print(f"| {name} | {count / 1e6:.2f} | {throughput(encoding):.2f} |")
    print("\n| four views of 64 px, forward + backward | core-s | samples a ray |\n|---|---|---|")
    for normals in (False, True):
        seconds, kept = distillation_step(normals)
        print(f"| {'colour and normals' if normals else 'colour'} | {seconds:.2f} | {kept:.1f} |")
    print("\n| object | encoding | budget | core-s | steps | PSNR (dB) | krays/s | ksamples/s | samples a ray | MiB |")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    budgets = [str(budget) for budget in options.budgets]
    for path in options.objects:
        for name in options.encodings:
            print(
                in_its_own_process("--child", str(path), "--encodings", name, "--budgets", *budgets), end="", flush=True
            )


if __name__ == "__main__":
    main()
