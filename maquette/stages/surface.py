"""From a fitted volume, surface or painted mesh to a textured mesh, as one stage."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial

from torch import Tensor

from maquette.asset import Mesh
from maquette.cameras import Cameras
from maquette.images import Views
from maquette.meshing.bake import bake_texture
from maquette.meshing.pipeline import MeshConfig, color_of, density_of, distance_of, mesh_from_field
from maquette.meshing.project import ProjectionConfig, project_views
from maquette.rendering.painted import PaintedScene
from maquette.rendering.scene import VolumeScene
from maquette.rendering.surface import SurfaceScene
from maquette.rendering.views import render_views
from maquette.run import Stage


def make_mesh(
    scene: VolumeScene | SurfaceScene,
    config: MeshConfig,
    pictures: Views | tuple[Views, ...] | None,
    projection: ProjectionConfig | tuple[ProjectionConfig, ...] | None,
    outline: Views | None = None,
    *,
    run: Stage,
) -> Mesh:
    """The surface of a scene with its colours baked, and `pictures` painted onto what they see of it.

    A volume's surface is the level that `config` says or that fits its silhouettes best; a signed distance's is zero.
    Of several sets of pictures a later one covers the earlier: refined views all around first, the prompt's own last;
    each has a `projection` of its own, or all have the same.
    A volume's surface is held to the mask of `outline`, one view, where that is given.
    The quality numbers go to the log (event "mesh_quality"), from where the report reads them.
    """
    if isinstance(scene, SurfaceScene):
        mesh, quality = mesh_from_field(
            distance_of(scene.field), color_of(scene.field), config, inside="below", device=run.device
        )
    else:
        mesh, quality = mesh_from_field(
            density_of(scene.field),
            color_of(scene.field),
            config,
            silhouettes=partial(_masks, scene),
            outline=outline,
            device=run.device,
        )
    if projection is not None:
        painted = (pictures,) if isinstance(pictures, Views) else pictures or ()
        ways = projection if isinstance(projection, tuple) else (projection,) * len(painted)
        for views, way in zip(painted, ways, strict=True):
            mesh = project_views(mesh, views, None, way)
    run.log(event="mesh_quality", **asdict(quality))
    return mesh


def paint_mesh(scene: PaintedScene, run: Stage) -> Mesh:
    """The textured mesh of a painted scene with the learned colours in place of its own, in a texture of equal size."""
    if scene.mesh.texture is None:
        raise ValueError("colours are painted into a texture, and this mesh has none; unwrap it first")
    return bake_texture(scene.mesh, scene.field.albedo, size=len(scene.mesh.texture), device=run.device)


def _masks(scene: VolumeScene, cameras: Cameras) -> Tensor:
    masks = render_views(scene, cameras).masks
    assert masks is not None  # render_views always knows them
    return masks
