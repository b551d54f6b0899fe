"""From fields and meshes to pictures: shots, renderings, the volume scene, and a ray caster for meshes."""

from maquette.rendering.base import Rendering, Samples, Scene, Shot
from maquette.rendering.lights import LightSampler
from maquette.rendering.raster import MeshRendering, render_mesh
from maquette.rendering.sampling import OccupancyConfig
from maquette.rendering.scene import VolumeConfig, VolumeScene
from maquette.rendering.views import render_pictures, render_views

__all__ = [
    "LightSampler",
    "MeshRendering",
    "OccupancyConfig",
    "Rendering",
    "Samples",
    "Scene",
    "Shot",
    "VolumeConfig",
    "VolumeScene",
    "render_mesh",
    "render_pictures",
    "render_views",
]
