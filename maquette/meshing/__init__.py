"""From a field to a surface with a texture: extract, clean, unwrap, bake, paint, measure."""

from maquette.meshing.bake import bake_texture
from maquette.meshing.clean import drop_floaters, fill_holes, simplify, smooth, weld, wind_outwards
from maquette.meshing.extract import choose_level, extract_mesh
from maquette.meshing.pipeline import MeshConfig, color_of, density_of, distance_of, mesh_from_field
from maquette.meshing.project import ProjectionConfig, project_views
from maquette.meshing.quality import MeshQuality, measure_mesh
from maquette.meshing.unwrap import unwrap_mesh

__all__ = [
    "MeshConfig",
    "MeshQuality",
    "ProjectionConfig",
    "bake_texture",
    "choose_level",
    "color_of",
    "density_of",
    "distance_of",
    "drop_floaters",
    "extract_mesh",
    "fill_holes",
    "measure_mesh",
    "mesh_from_field",
    "project_views",
    "simplify",
    "smooth",
    "unwrap_mesh",
    "weld",
    "wind_outwards",
]
