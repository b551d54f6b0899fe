"""From a fitted volume to a textured mesh, as one stage."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial

from torch import Tensor

from maquette.asset import Mesh
from maquette.cameras import Cameras
from maquette.images import Views
from maquette.meshing.pipeline import MeshConfig, color_of, density_of, mesh_from_field
from maquette.meshing.project import ProjectionConfig, project_views
from maquette.rendering.scene import VolumeScene
from maquette.rendering.views import render_views
from maquette.run import Stage


def make_mesh(
    scene: VolumeScene, config: MeshConfig, prompt: Views | None, projection: ProjectionConfig | None, run: Stage
) -> Mesh:
    """The surface of a volume with its colours baked; the `prompt` view is painted onto what it sees of it.

    The quality numbers go to the log (event "mesh_quality"), from where the report reads them.
    """
    mesh, quality = mesh_from_field(
        density_of(scene.field), color_of(scene.field), config, silhouettes=partial(_masks, scene), device=run.device
    )
    if prompt is not None and projection is not None:
        mesh = project_views(mesh, prompt, None, projection)
    run.log(event="mesh_quality", **asdict(quality))
    return mesh


def _masks(scene: VolumeScene, cameras: Cameras) -> Tensor:
    masks = render_views(scene, cameras).masks
    assert masks is not None  # render_views always knows them
    return masks
