"""A run folder as a method leaves it, made in a second from a mesh instead of by a prior."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from maquette.asset import Asset, Mesh
from maquette.cameras import fit_distance, from_angles, orbit
from maquette.images import CameraEstimate, save_image
from maquette.meshing.quality import measure_mesh
from maquette.methods.imagedream import CITATION, nano
from maquette.rendering.raster import render_mesh
from maquette.run import Run
from maquette.stages.locate import Located

CARD = {
    "name": "nano",
    "kind": "multiview",
    "licence": "Apache-2.0",
    "sha256": "0" * 64,
    "training_objects": {"count": 1850, "licences": ["CC0-1.0", "MIT"]},
}


def pawn(rings: int = 48, sectors: int = 64) -> Mesh:
    """A textured, watertight figure with a nose towards +x; no two sides of it look alike."""
    height = np.linspace(0, math.pi, rings + 1)
    around = np.arange(sectors + 1) % sectors * (2 * math.pi / sectors)  # the seam closes exactly
    profile = np.sin(height) * (0.34 + 0.16 * np.cos(2 * height + 0.6))
    nose = 0.22 * np.exp(-((height[:, None] - 0.9) ** 2) / 0.02 - (1 - np.cos(around[None])) / 0.03)
    radius = profile[:, None] + nose * np.sin(height)[:, None]
    radius[[0, -1]] = 0
    x, y = radius * np.cos(around), radius * np.sin(around)
    z = np.broadcast_to(0.7 * np.cos(height)[:, None], x.shape)
    u, v = np.meshgrid(np.linspace(0, 1, sectors + 1), np.linspace(0, 1, rings + 1))
    corner = np.arange(rings)[:, None] * (sectors + 1) + np.arange(sectors)
    right, below = corner + 1, corner + sectors + 1
    upper, lower = np.stack([corner, below, right], -1), np.stack([right, below, below + 1], -1)
    faces = np.concatenate([upper[1:].reshape(-1, 3), lower[:-1].reshape(-1, 3)])
    return Mesh(np.stack([x, y, z], -1).reshape(-1, 3), faces, np.stack([u, v], -1).reshape(-1, 2), _paint(128, 256))


def _paint(height: int, width: int) -> np.ndarray:
    """Four sides in four colours with stripes."""
    v, u = np.mgrid[:height, :width]
    colors = np.array([[196, 98, 62], [226, 190, 92], [72, 120, 108], [70, 84, 130]])
    side = ((u + width // 8) // (width // 4)) % 4
    return (colors[side] * np.where((v // 10) % 4 == 0, 0.72, 1.0)[..., None]).astype(np.uint8)


def make_run(
    folder: Path, mesh: Mesh | None = None, *, caption: str = "a painted pawn", reliable: bool = True, steps: int = 60,
    finish: bool = True,
) -> Path:  # fmt: skip
    """Write a run of ImageDream into `folder`: prompt, views, stages, log, and with `finish` the asset."""
    mesh = (pawn() if mesh is None else mesh).normalized()
    config = nano("default")
    config = replace(config, fit=replace(config.fit, steps=steps))
    inputs = {"image": "pawn.png", "image_sha256": "1" * 64, "caption": caption, "preset": "nano", "quality": "default"}
    azimuth = 38.0
    with Run.open(folder, config=config, device="cpu", method="imagedream", inputs=inputs, quiet=True) as run:
        run.record_prior(CARD)
        run.cite(CITATION)
        place = (torch.tensor([x]) for x in (azimuth, 12.0, fit_distance(40.0), 40.0))
        camera = from_angles(*place, height=256, width=256)
        prompt = render_mesh(mesh, camera).views()
        save_image(folder / "prompt.png", torch.cat([prompt.images[0], prompt.masks[0]]))
        run.log(event="cutout", method="plain", coverage=0.31, warnings=[])
        views = run.stage("views", imagine, mesh, 0.0)
        run.stage("views_1", imagine, mesh, 45.0)
        views.save(folder / "views")
        if not finish:
            return folder
        run.stage("warm_start", fit, ["psnr", "loss", "rgb"], steps)
        run.stage("locate", locate, prompt, azimuth, reliable)
        figures = ["distillation.loss", "distillation.guidance", "views.psnr", "gradient"]
        run.stage("radiance_field", fit, figures, steps)
        made = run.stage("mesh", surface, mesh)
        Asset(made, views=views, provenance=run.provenance()).save(folder / "asset.glb")
    return folder


def imagine(mesh, azimuth, run):
    cameras = orbit(4, elevation=5.0, azimuth=azimuth, height=64, width=64)
    return render_mesh(mesh, cameras).views()


def fit(metrics, steps, run):
    for step in range(steps):
        noise = torch.rand(len(metrics), generator=run.generator(step)).tolist()
        fall = math.exp(-4 * step / steps)
        values = {
            name: 15 + 12 * (1 - fall) + random if name.endswith("psnr") else (0.2 + fall) * (0.5 + random)
            for name, random in zip(metrics, noise, strict=True)
        }
        if "distillation.guidance" in values:
            values["distillation.guidance"] = values["distillation.loss"]
        run.log(step, **values)
    return torch.zeros(1)


def locate(prompt, azimuth, reliable, run):
    estimate = CameraEstimate(azimuth, 12.0, 1.02, 0.09 if reliable else 0.55, reliable)
    run.log(**asdict(estimate), colour_error=0.04)
    return Located(estimate, prompt, 0.04)


def surface(mesh, run):
    known = {"threshold": 2.9, "silhouette_iou": 0.964, "unwrap": "xatlas"}
    run.log(event="mesh_quality", **asdict(measure_mesh(mesh, **known)))
    return mesh
