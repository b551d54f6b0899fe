"""Geometry recovery: the settings by which pictures from all around become a surface and a mesh (USD, section 4.3).

The stages themselves are those of every fit:

    scene = run.stage("surface", fit, SurfaceScene(config.scene, run.seed),
                      [Photometric(views, config.photometric)], config.fit)
    mesh = run.stage("mesh", make_mesh, scene, config.mesh, views, config.projection)
"""

from __future__ import annotations

from dataclasses import dataclass, field

from maquette.fields.encodings import TriPlanesConfig
from maquette.fields.normals import FiniteDifferenceNormals
from maquette.fields.surface import SurfaceFieldConfig, TextureConfig
from maquette.meshing.pipeline import MeshConfig
from maquette.meshing.project import ProjectionConfig
from maquette.rendering.sampling import OccupancyConfig
from maquette.rendering.surface import SurfaceConfig
from maquette.schedules import Constant, Exponential, Linear
from maquette.stages.fit import FitConfig
from maquette.stages.objectives import PhotometricConfig, RandomRays
from maquette.stages.regularizers import Regularizers


@dataclass(frozen=True)
class RecoveryConfig:
    """From pictures to a mesh; the defaults are instant-nsr-pl's `neus-blender`."""

    scene: SurfaceConfig = SurfaceConfig()
    """The surface and its renderer."""
    photometric: PhotometricConfig = PhotometricConfig(
        pixels=RandomRays(8192),
        rgb=Constant(10.0),
        mask=Constant(0.1),
        measure="l2",
        mask_measure="entropy",
        regularizers=Regularizers(eikonal=Constant(0.1)),
    )
    """How the pictures are compared."""
    fit: FitConfig = FitConfig(
        steps=20_000,
        encoding_rate=0.01,
        network_rate=0.01,
        background_rate=0.01,
        other_rate=0.001,
        rate=Exponential(1.0, 0.1, begin=0.025, warmup=0.01),
    )
    """The optimisation."""
    mesh: MeshConfig = field(default_factory=lambda: MeshConfig(resolution=512, max_faces=100_000, texture_size=2048))
    """The mesh."""
    projection: ProjectionConfig = ProjectionConfig()
    """How the pictures are painted onto it."""


def quick_recovery() -> RecoveryConfig:
    """For some twenty pictures of 64 to 80 px on a CPU: about a minute of one core (`benchmarks/surface.py`).

    Tri-planes, and finite differences across their cells with a little curvature loss: analytic normals do not see the
    creases between bilinear cells, and leave a comb in surfaces of one colour, on which the pictures say nothing. Ten
    times that loss takes thin parts away. Colour needs neither normal nor direction: the texture is painted from the
    pictures.
    """
    return RecoveryConfig(
        scene=SurfaceConfig(
            field=SurfaceFieldConfig(
                encoding=TriPlanesConfig(initial_scale=0.01),
                hidden=32,
                features=8,
                normals=FiniteDifferenceNormals(0.02),
                texture=TextureConfig(hidden=32, layers=1, normals=False, directions=False, encoding=True),
            ),
            anneal=Linear(0.0, 1.0, 0.25),
            # Every update visits every cell: what was full once does not stay so, which short runs cannot afford.
            occupancy=OccupancyConfig(resolution=64, interval=32, warmup=1_000_000, threshold=1e-3),
            samples=Constant(160),
        ),
        photometric=PhotometricConfig(
            pixels=RandomRays(1024),
            mask=Constant(0.3),
            regularizers=Regularizers(eikonal=Constant(0.1), curvature=Linear(3e-5, 1e-5)),
        ),
        fit=FitConfig(
            steps=700,
            network_rate=0.003,
            other_rate=0.005,
            rate=Exponential(1.0, 0.05, begin=0.05, warmup=0.1),
            weight_decay=0.0,
            total_variation=Constant(0.03),
        ),
        mesh=MeshConfig(resolution=128, smoothing=12),
    )
