"""From fields and meshes to pictures: shots, renderings, volume and surface scenes, and a ray caster for meshes."""

from maquette.rendering.base import Rendering, Samples, Scene, Shot
from maquette.rendering.lights import LightSampler
from maquette.rendering.painted import PaintedConfig, PaintedScene
from maquette.rendering.patch import PatchConfig, PatchScene
from maquette.rendering.raster import MeshRendering, render_mesh
from maquette.rendering.sampling import OccupancyConfig
from maquette.rendering.scene import VolumeConfig, VolumeScene
from maquette.rendering.sharpness import Cap
from maquette.rendering.surface import ProgressiveLevels, SurfaceConfig, SurfaceScene
from maquette.rendering.views import render_pictures, render_views

__all__ = [
    "Cap",
    "LightSampler",
    "MeshRendering",
    "OccupancyConfig",
    "PaintedConfig",
    "PaintedScene",
    "PatchConfig",
    "PatchScene",
    "ProgressiveLevels",
    "Rendering",
    "Samples",
    "Scene",
    "Shot",
    "SurfaceConfig",
    "SurfaceScene",
    "VolumeConfig",
    "VolumeScene",
    "render_mesh",
    "render_pictures",
    "render_views",
]
