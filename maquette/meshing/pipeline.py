"""From a field to a textured mesh, in the order in which it happens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from maquette.asset import Mesh
from maquette.fields.base import DENSITY, RGB, SDF, Field
from maquette.images import Views
from maquette.meshing.bake import ColorFunction, bake_texture
from maquette.meshing.clean import drop_floaters, fill_holes, simplify, smooth, weld
from maquette.meshing.extract import FieldFunction, Inside, Silhouettes, extract_mesh
from maquette.meshing.quality import MeshQuality, measure_mesh
from maquette.meshing.unwrap import unwrap_mesh


@dataclass(frozen=True)
class MeshConfig:
    """How a field becomes a mesh."""

    resolution: int = 128
    """Grid cells along each side of the volume [-1, 1]^3."""
    threshold: float | Literal["auto"] = "auto"
    """Value of the field on the surface; "auto": the density that best matches the volume's own silhouettes."""
    blur: float = 0.0
    """Scene units: deviation of the Gaussian under which inside and outside are blurred before the surface is drawn.
    What is finer than the pictures that a field was fitted to is their noise."""
    fill_pits: bool = False
    """Fill what is enclosed at its own height: cameras near the horizon do not look into it."""
    min_component: float = 0.02
    """Pieces with less than this part of the largest piece's area are floaters and go (0 keeps all)."""
    smoothing: int = 4
    """Iterations of Taubin smoothing; they take the grain of the grid away and keep the volume."""
    max_faces: int = 20_000
    """Triangles of the final mesh, at most."""
    texture_size: int = 1024
    """Width and height of the texture, texels."""
    padding: int = 3
    """Texels between charts of the texture."""
    unwrap_seconds: int = 60
    """Processor seconds that xatlas may use; then (or if 0) a box projection unwraps."""
    bake_depth: float = 0.02
    """Scene units on both sides of the surface whose volume-rendered colour is baked; 0 reads the colour on the surface
    itself.
    """

    def __post_init__(self) -> None:
        for name, low in (("resolution", 8), ("max_faces", 4), ("texture_size", 16), ("padding", 1), ("smoothing", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"MeshConfig.{name} expects at least {low}, got {getattr(self, name)}")
        if not 0 <= self.min_component < 1:
            raise ValueError(f"MeshConfig.min_component expects a part in [0, 1), got {self.min_component}")
        if min(self.unwrap_seconds, self.bake_depth, self.blur) < 0:
            raise ValueError("MeshConfig.unwrap_seconds, bake_depth and blur expect numbers >= 0")


def mesh_from_field(
    field: FieldFunction,
    color: ColorFunction,
    config: MeshConfig = MeshConfig(),
    *,
    silhouettes: Silhouettes | None = None,
    inside: Inside = "above",
    outline: Views | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Mesh, MeshQuality]:
    """The textured surface of a density (`inside` "above") or a signed distance ("below"), and its quality numbers.

    `field` and `color` are functions of positions [n, 3]; `silhouettes` (cameras -> opacity) is needed for the
    automatic threshold of a density, whose surface is held to the mask of `outline`, one view. The same input gives the
    same mesh. Raises RunFailed if the field has no surface.
    """
    mesh, level = extract_mesh(
        field, config.resolution, config.threshold,
        silhouettes=silhouettes, inside=inside, fill_pits=config.fill_pits, blur=config.blur, outline=outline,
        device=device,
    )  # fmt: skip
    mesh, floaters = drop_floaters(weld(mesh), config.min_component)
    mesh = simplify(smooth(fill_holes(mesh), config.smoothing), config.max_faces)
    unwrapped = unwrap_mesh(
        mesh, texture_size=config.texture_size, padding=config.padding, seconds=config.unwrap_seconds
    )
    mesh = bake_texture(
        unwrapped.mesh,
        color,
        size=config.texture_size,
        density=field if inside == "above" else None,
        depth=config.bake_depth,
        device=device,
    )
    quality = measure_mesh(
        mesh,
        floaters=floaters,
        threshold=level.value,
        silhouette_iou=level.silhouette_iou,
        unwrap=unwrapped.method,
        notes=(unwrapped.note,) if unwrapped.note else (),
    )
    return mesh, quality


def density_of(field: Field) -> FieldFunction:
    """`field`'s density as a function of position alone."""

    def density(positions: torch.Tensor) -> torch.Tensor:
        answer = field(positions, want=DENSITY).density
        if answer is None:
            raise ValueError(f"{type(field).__name__} answers no density")
        return answer

    return density


def distance_of(field: Field) -> FieldFunction:
    """`field`'s signed distance as a function of position alone."""

    def distance(positions: torch.Tensor) -> torch.Tensor:
        answer = field(positions, want=SDF).sdf
        if answer is None:
            raise ValueError(f"{type(field).__name__} answers no signed distance")
        return answer

    return distance


def color_of(field: Field) -> ColorFunction:
    """`field`'s colour as a function of position alone."""

    def color(positions: torch.Tensor) -> torch.Tensor:
        answer = field(positions, want=RGB).rgb
        if answer is None:
            raise ValueError(f"{type(field).__name__} answers no colour")
        return answer

    return color
