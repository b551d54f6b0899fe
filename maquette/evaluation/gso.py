"""The protocol of SyncDreamer's tables: thirty scanned objects (Google Scanned Objects), sixteen views of each.

Wonder3D and others adopted it. A scan is scaled so that the longest side of its bounding box is 1, centred, and turned
about +z by minus the angle that it was turned by before it was rendered; azimuth 0 then looks at view 0, the input.
Shapes are compared as the sixteen cameras see them: both are turned into points by their depth pictures, thinned to one
point in each cube of side 0.01, and the mean distances to the nearest point, unsquared, are averaged over both ways.
Volumes are compared by the 64^3 cell centres of [-1, 1]^3 inside each closed mesh.

Differs from the released scripts: scans are rendered here, unlit, where no published renders are given (those were
made by Cycles under a grey sky of strength 0.5), and depth is exact where theirs is stored in 16 bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from maquette.asset import Mesh, load_mesh
from maquette.cameras import Cameras, orbit
from maquette.errors import UserError
from maquette.evaluation import image as image_metrics
from maquette.evaluation.geometry import PointDistances, longest_side
from maquette.evaluation.voxels import Grid, enclosed_occupancy, voxel_iou, winding_occupancy
from maquette.images import ImagePrompt, Views, read_image
from maquette.rendering.raster import MeshRenderer
from maquette.rendering.rays import cast_rays

ROTATIONS: Mapping[str, float] = {
    "alarm": 270.0, "backpack": 270.0, "bell": 0.0, "blocks": 270.0, "chicken": 270.0, "cream": 0.0,
    "elephant": 180.0, "grandfather": 270.0, "grandmother": 270.0, "hat": 0.0, "leather": 0.0, "lion": 270.0,
    "lunch_bag": 270.0, "mario": 270.0, "oil": 270.0, "school_bus1": 180.0, "school_bus2": 225.0, "shoe": 225.0,
    "shoe1": 0.0, "shoe2": 0.0, "shoe3": 0.0, "soap": 270.0, "sofa": -90.0, "sorter": 112.5, "sorting_board": 0.0,
    "stucking_cups": 0.0, "teapot": 0.0, "toaster": 0.0, "train": 225.0, "turtle": 225.0,
}  # fmt: skip
"""The thirty objects, by their names in the released scripts, and the degrees about +z that each was turned by."""
SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".stl")
Placement = Literal["as-is", "box"]
Likeness = Callable[[Tensor, Tensor], Tensor]
"""Two batches of pictures [v, 3, h, w] in [0, 1] -> a distance for each pair."""


@dataclass(frozen=True)
class GsoProtocol:
    """Cameras and counts; the defaults are the released scripts'."""

    size: int = 256
    """Pixels a side of every picture."""
    num_views: int = 16
    """Views around the object; the first is the input."""
    elevation: float = 30.0
    """Degrees above the horizon of every camera."""
    distance: float = 1.5
    """Of every camera from the centre."""
    focal: float = 280 / 256
    """Focal length in picture heights: a field of view of 49.13 degrees."""
    voxel: float = 0.01
    """Side of the cubes that points are thinned by."""
    resolution: int = 64
    """Cells along a side of the grid for the volume."""
    samples: int = 3
    """Rays a pixel, along each side, of colours."""

    def __post_init__(self) -> None:
        for name in ("size", "num_views", "resolution", "samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not (self.distance > 0 and self.focal > 0 and self.voxel > 0):
            raise ValueError(
                f"distance, focal and voxel must be positive, got {self.distance}, {self.focal}, {self.voxel}"
            )

    def cameras(self) -> Cameras:
        """The cameras of all views."""
        fovy = math.degrees(2 * math.atan(0.5 / self.focal))
        return orbit(
            self.num_views,
            elevation=self.elevation,
            distance=self.distance,
            fovy=fovy,
            height=self.size,
            width=self.size,
        )


@dataclass(frozen=True)
class Scan:
    """A scanned object as results are compared with it."""

    name: str
    mesh: Mesh
    """In the frame of the cameras."""
    protocol: GsoProtocol
    views: Views
    """Straight colours and masks from all cameras."""
    points: Float[np.ndarray, "n 3"]
    """What the cameras see of its surface."""
    winding: Bool[np.ndarray, "r r r"]
    """Cells whose centre is inside, by winding number."""
    enclosed: Bool[np.ndarray, "r r r"]
    """Cells that cannot be reached from outside."""

    @classmethod
    def read(cls, path: Path, name: str, protocol: GsoProtocol, renders: Path | None = None) -> Scan:
        """The scan in a mesh file; with `renders`, a folder of 000.png, 001.png ..., those are its pictures."""
        return cls.of(read_upright(path), name, ROTATIONS[name], protocol, renders)

    @classmethod
    def of(cls, mesh: Mesh, name: str, degrees: float, protocol: GsoProtocol, renders: Path | None = None) -> Scan:
        """A mesh of any size that was turned by `degrees` about +z before it was rendered."""
        mesh = in_camera_frame(mesh, degrees)
        views, points = look(mesh, protocol)
        if renders is not None:
            views = read_renders(renders, protocol)
        grid = Grid(protocol.resolution)
        shape = (mesh.vertices.astype(np.float64), mesh.faces)
        winding, enclosed = winding_occupancy(*shape, grid), enclosed_occupancy(*shape, grid)
        return cls(name, mesh, protocol, views, points, winding, enclosed)

    @property
    def prompt(self) -> ImagePrompt:
        """View 0, all that a method may see."""
        assert self.views.masks is not None
        return ImagePrompt(self.views.images[0], self.views.masks[0])

    def placed(self, mesh: Mesh, placement: Placement) -> Mesh:
        """A result where it is compared: "as-is", or ("box") given the scan's bounding-box centre and longest side."""
        if placement == "as-is":
            return mesh
        own, to_unit = longest_side(_used(mesh)), longest_side(_used(self.mesh))
        return replace(mesh, vertices=to_unit.inverse()(own(mesh.vertices)).astype(np.float32))

    def score(self, mesh: Mesh, placement: Placement, lpips: Likeness | None = None) -> dict[str, float]:
        """Every figure of a result; ValueError if no camera sees it.

        `chamfer`, `volume_iou` (winding numbers; means little unless both meshes are closed), `volume_iou_enclosed`;
        means over all views of `psnr`, `ssim` (data range 1), `ssim_inferred_range` (the scripts' own) and `lpips`
        where it is given, and the same without the input view, `..._novel`.
        """
        mesh = self.placed(mesh, placement)
        views, points = look(mesh, self.protocol)
        grid = Grid(self.protocol.resolution)
        shape = (mesh.vertices.astype(np.float64), mesh.faces)
        figures = {
            "chamfer": PointDistances.between(points, self.points).cd_l1,
            "volume_iou": voxel_iou(winding_occupancy(*shape, grid), self.winding),
            "volume_iou_enclosed": voxel_iou(enclosed_occupancy(*shape, grid), self.enclosed),
        }
        white = torch.ones(3, dtype=torch.float64)
        ours, theirs = (each.to(torch.float64).composite(white) for each in (views, self.views))
        measured = {
            "psnr": image_metrics.psnr(ours, theirs, ceiling=image_metrics.PSNR_CEILING),
            "ssim": image_metrics.ssim(ours, theirs),
            "ssim_inferred_range": torch.stack(
                [
                    image_metrics.ssim(a, b, image_metrics.inferred_range(a, b))
                    for a, b in zip(ours, theirs, strict=True)
                ]
            ),
        }
        if lpips is not None:
            measured["lpips"] = lpips(ours.float(), theirs.float())
        figures |= {name: float(values.mean()) for name, values in measured.items()}
        if self.protocol.num_views > 1:
            figures |= {f"{name}_novel": float(values[1:].mean()) for name, values in measured.items()}
        return figures


def in_camera_frame(mesh: Mesh, degrees: float) -> Mesh:
    """Longest side of the bounding box to 1, its centre to the origin, then turned about +z by minus `degrees`."""
    vertices = longest_side(_used(mesh))(mesh.vertices)
    normals = None if mesh.normals is None else turn(mesh.normals, -degrees).astype(np.float32)
    return replace(mesh, vertices=turn(vertices, -degrees).astype(np.float32), normals=normals)


def turn(points: Float[np.ndarray, "n 3"], degrees: float) -> Float[np.ndarray, "n 3"]:
    """Points carried about +z, from +x towards +y."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.asarray(points, np.float64) @ np.array([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])


def look(mesh: Mesh, protocol: GsoProtocol) -> tuple[Views, Float[np.ndarray, "n 3"]]:
    """Pictures of a mesh from the protocol's cameras, and the thinned points of its surface that they see.

    Raises ValueError if they see nothing.
    """
    cameras = protocol.cameras()
    seen = MeshRenderer(mesh).render(cameras, samples=protocol.samples, want=frozenset({"rgb", "depth"}))
    assert seen.depth is not None
    rays = cast_rays(cameras)
    points = (rays.rays_o + seen.depth * rays.rays_d)[seen.depth[..., 0] > 0]
    if not len(points):
        raise ValueError("no camera of the protocol sees the mesh; does it stand in another frame?")
    return seen.views(), voxel_downsample(points.double().numpy(), protocol.voxel)


def voxel_downsample(points: Float[np.ndarray, "n 3"], side: float) -> Float[np.ndarray, "m 3"]:
    """The mean of the points in each cube of a grid; its first cube is centred on the lowest coordinates (Open3D's)."""
    cells = np.floor((points - points.min(0)) / side + 0.5).astype(np.int64)
    _, index, count = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
    total = np.stack([np.bincount(index.reshape(-1), axis) for axis in points.T], axis=1)
    return total / count[:, None]


def read_renders(folder: Path, protocol: GsoProtocol) -> Views:
    """Published pictures 000.png ... of one object, RGBA; UserError if one is missing or of another size."""
    pictures = []
    for number in range(protocol.num_views):
        path = folder / f"{number:03d}.png"
        if not path.is_file():
            raise UserError(f"there is no {path}; expected {protocol.num_views} renders with transparency beside it")
        picture = read_image(path)
        if tuple(picture.shape) != (4, protocol.size, protocol.size):
            channels, height, width = picture.shape
            raise UserError(
                f"{path} has {channels} channels and {height}x{width} px, expected RGBA of {protocol.size}x"
                f"{protocol.size}"
            )
        pictures.append(picture)
    stacked = torch.stack(pictures)
    return Views(stacked[:, :3], stacked[:, 3:], protocol.cameras())


def find_shape(folder: Path, name: str) -> Path | None:
    """The mesh file of an object: `name` with a known suffix, or the only mesh anywhere in a folder of that name.

    Raises UserError if such a folder holds several.
    """
    for suffix in SUFFIXES:
        if (path := folder / f"{name}{suffix}").is_file():
            return path
    found = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in SUFFIXES)
    if len(found) > 1:
        raise UserError(f"{folder / name} holds {len(found)} meshes, such as {found[0].name}; leave one")
    return found[0] if found else None


def read_upright(path: Path) -> Mesh:
    """A mesh in its own units, +z up: glTF stands on +Y by definition, scans and other files on +z."""
    return load_mesh(path) if path.suffix.lower() in (".glb", ".gltf") else load_mesh(path, up="z")


def _used(mesh: Mesh) -> Float[np.ndarray, "v 3"]:
    """Vertices that faces use: a stray one must not move the bounding box."""
    if not len(mesh.faces):
        raise ValueError("a mesh without faces cannot be measured")
    return mesh.vertices[np.unique(mesh.faces)].astype(np.float64)
