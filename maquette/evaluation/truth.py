"""One object of the benchmark: the prompt made from it, and everything that a result is scored against.

Two frames. In the *scene* the object stands as training data do: bounding-box centre at the origin, farthest vertex
at 0.75; prompts and pictures are rendered there. For figures of shape, object and result are each brought to the
*unit box* (bounding-box centre at the origin, longest side 1), so that a result is not punished for its size; figures
named `..._unnormalised` leave the result where the method put it in the scene.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from maquette.asset import Mesh, load_mesh
from maquette.cameras import Cameras, fit_distance, orbit
from maquette.evaluation import image as image_metrics
from maquette.evaluation.geometry import PointDistances, face_normals, longest_side, sample_visible_surface
from maquette.evaluation.voxels import Grid, enclosed_occupancy, stray_volume, voxel_iou
from maquette.images import ImagePrompt, Views
from maquette.rendering.raster import MeshRenderer, render_mesh

THRESHOLDS = (0.01, 0.02, 0.05)
"""F-score thresholds, in longest sides of the object."""


@dataclass(frozen=True)
class Protocol:
    """What is shown to the method and how its answer is measured; part of every result."""

    elevation: float = 5.0
    """Elevation of the prompt's camera, degrees; its azimuth is 0."""
    prompt_size: int = 256
    """Pixels a side of the prompt."""
    fovy: float = 40.0
    """Vertical field of view of prompt and pictures, degrees."""
    fill: float = 0.8
    """Share of the prompt's height that the object's bounding sphere takes."""
    view_size: int = 128
    """Pixels a side of the pictures that are compared."""
    num_azimuths: int = 12
    """Pictures around the object, per elevation."""
    view_elevations: tuple[float, ...] = (5.0, 30.0)
    """Elevations of the pictures, degrees; a picture with the prompt's camera is left out."""
    num_points: int = 30_000
    """Points on each surface, uniform over the area that can be seen from outside."""
    resolution: int = 96
    """Cells along a side of the grid for the volume."""
    grid_side: float = 1.1
    """Side of that grid in longest sides of the object."""
    samples: int = 3
    """Rays a pixel, along each side."""

    def __post_init__(self) -> None:
        if not -90 <= self.elevation <= 90:
            raise ValueError(f"elevation lies between -90 and 90 degrees, got {self.elevation}")
        if not 0 < self.fill < 1 or not 0 < self.fovy < 180:
            raise ValueError(f"fill lies in (0, 1) and fovy in (0, 180) degrees, got {self.fill} and {self.fovy}")
        for name in ("prompt_size", "view_size", "num_azimuths", "num_points", "resolution", "samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.grid_side <= 1:
            raise ValueError(f"grid_side must exceed 1, or the grid cuts the object, got {self.grid_side}")

    @property
    def distance(self) -> float:
        """Distance of every camera from the centre of the scene."""
        return fit_distance(self.fovy, fill=self.fill)

    def circle(self, num_views: int, elevation: float, size: int, azimuth: float = 0.0) -> Cameras:
        """Cameras around the object at this protocol's field of view and distance."""
        return orbit(
            num_views,
            elevation=elevation,
            azimuth=azimuth,
            distance=self.distance,
            fovy=self.fovy,
            height=size,
            width=size,
        )

    def prompt_camera(self) -> Cameras:
        """The one camera that the prompt was taken with, [1]."""
        return self.circle(1, self.elevation, self.prompt_size)

    def view_cameras(self) -> Cameras:
        """Cameras of the pictures that are compared, without the prompt's own."""
        cameras = Cameras.cat([self.circle(self.num_azimuths, e, self.view_size) for e in self.view_elevations])
        return cameras[torch.nonzero(~self.is_prompt_view(cameras))[:, 0]]

    def is_prompt_view(self, cameras: Cameras, tolerance: float = 1.0) -> Bool[Tensor, " v"]:
        """Which cameras look from where the prompt was taken, within `tolerance` degrees."""
        turned = (cameras.azimuth + 180) % 360 - 180
        return (turned.abs() < tolerance) & ((cameras.elevation - self.elevation).abs() < tolerance)


@dataclass(frozen=True)
class Truth:
    """A ground-truth object, prepared once and compared with any number of results."""

    id: str
    mesh: Mesh
    """In the scene."""
    protocol: Protocol
    seed: int
    prompt: ImagePrompt
    """All that a method may see."""
    views: Views
    """Straight colours and masks at the protocol's cameras."""
    points: Float[np.ndarray, "n 3"] = field(repr=False)
    """On the visible surface, in the unit box."""
    normals: Float[np.ndarray, "n 3"] = field(repr=False)
    solid: Bool[np.ndarray, "r r r"] = field(repr=False)
    """Cells inside, in the unit box."""

    @classmethod
    def read(cls, path: str | Path, protocol: Protocol, seed: int = 0, id: str | None = None) -> Truth:
        """Prepare the object in a mesh file; ValueError names a file that cannot be used."""
        return cls.of(load_mesh(path), protocol, seed, Path(path).stem if id is None else id)

    @classmethod
    def of(cls, mesh: Mesh, protocol: Protocol, seed: int, id: str) -> Truth:
        """Prepare a mesh in any unit, front towards +x and +z up."""
        mesh = mesh.normalized()
        renderer = MeshRenderer(mesh)
        shown = renderer.render(protocol.prompt_camera(), samples=protocol.samples).views()
        assert shown.masks is not None
        views = renderer.render(protocol.view_cameras(), samples=protocol.samples).views()
        vertices, faces = _used(mesh)
        placed = longest_side(vertices)(vertices)
        points, normals = _surface(placed, faces, protocol.num_points, _generator(seed, id, "truth"))
        solid = enclosed_occupancy(placed, faces, _unit_grid(protocol))
        prompt = ImagePrompt(shown.images[0], shown.masks[0])
        return cls(id, mesh, protocol, seed, prompt, views, points, normals, solid)

    def score(self, mesh: Mesh, views: Views | None = None) -> dict[str, float]:
        """Every figure of a result in the scene's frame; `views` spares a second `render` of it.

        Raises ValueError for a mesh without extent or visible surface.
        """
        vertices, faces = _used(mesh)
        truth_vertices, truth_faces = _used(self.mesh)
        own, to_unit = longest_side(vertices), longest_side(truth_vertices)
        unit, raw = own(vertices), to_unit(vertices)

        points, normals = _surface(unit, faces, self.protocol.num_points, _generator(self.seed, self.id, "result"))
        distances = PointDistances.between(points, self.points)
        grid = _unit_grid(self.protocol)
        figures = {
            "chamfer": distances.cd_l1,
            "volume_iou": voxel_iou(enclosed_occupancy(unit, faces, grid), self.solid),
            "normal_consistency": distances.normal_consistency(normals, self.normals),
            **{f"fscore_{threshold}": distances.fscore(threshold) for threshold in THRESHOLDS},
        }

        # The same points of the same surface, where the method put it.
        raw_points = to_unit(own.inverse()(points))
        figures["chamfer_unnormalised"] = PointDistances.between(raw_points, self.points).cd_l1
        # Where the result reaches out of the usual grid, both are put into a larger one with the same number of cells.
        wide = Grid(self.protocol.resolution, max(0.5, float(np.abs(raw).max())) * self.protocol.grid_side)
        solid = self.solid if wide == grid else enclosed_occupancy(to_unit(truth_vertices), truth_faces, wide)
        occupied = enclosed_occupancy(raw, faces, wide)
        figures["volume_iou_unnormalised"] = voxel_iou(occupied, solid)
        figures["floater_volume"] = stray_volume(occupied, solid)

        figures |= compare_views(self.render(mesh) if views is None else views, self.views)
        unnormalised = compare_views(self.render(mesh, normalise=False), self.views)
        figures |= {f"{name}_unnormalised": value for name, value in unnormalised.items()}
        return figures

    def render(self, mesh: Mesh, *, normalise: bool = True) -> Views:
        """Pictures of a result at the protocol's cameras, given the object's place and size unless told otherwise."""
        mesh = self.aligned(mesh) if normalise else mesh
        return render_mesh(mesh, self.protocol.view_cameras(), samples=self.protocol.samples).views()

    def aligned(self, mesh: Mesh) -> Mesh:
        """A result moved and scaled so that its bounding box has the object's centre and longest side."""
        own, to_unit = longest_side(_used(mesh)[0]), longest_side(_used(self.mesh)[0])
        return replace(mesh, vertices=to_unit.inverse()(own(mesh.vertices)).astype(np.float32))

    def score_views(self, views: Views) -> tuple[dict[str, float], list[dict[str, float]]]:
        """Mean figures over generated views (the prompt's own left out), and the figures of every single one.

        The object is rendered at the views' own cameras and size. Views without masks are taken to stand on the
        colour of their border, and that border decides their silhouettes. Raises ValueError if only the prompt's view
        is left.
        """
        truth = render_mesh(self.mesh, views.cameras, samples=self.protocol.samples).views()
        is_prompt = self.protocol.is_prompt_view(views.cameras)
        if bool(is_prompt.all()):
            raise ValueError("all generated views have the prompt's own camera; nothing is left to measure")
        single = []
        for k in range(len(views)):
            angles = {"azimuth": float(views.cameras.azimuth[k]) % 360, "elevation": float(views.cameras.elevation[k])}
            single.append(angles | compare_views(views[k : k + 1], truth[k : k + 1]))
        kept = [figures for figures, own in zip(single, is_prompt.tolist(), strict=True) if not own]
        names = [name for name in kept[0] if name not in ("azimuth", "elevation")]
        return {name: float(np.mean([figures[name] for figures in kept])) for name in names}, single


def compare_views(result: Views, truth: Views) -> dict[str, float]:
    """PSNR (at most 100 dB), SSIM, silhouette IoU and perceptual distance on white, and how much more saturated the
    result's colours are inside its silhouettes than the truth's: means over views.
    """
    a, b = (_on_white(views) for views in (result, truth))
    colour = [image_metrics.saturation(c, silhouettes(views)) for c, views in ((a, result), (b, truth))]
    return {
        "psnr": float(image_metrics.psnr(a, b, ceiling=image_metrics.PSNR_CEILING).mean()),
        "ssim": float(image_metrics.ssim(a, b).mean()),
        "silhouette_iou": float(image_metrics.mask_iou(silhouettes(result), silhouettes(truth)).mean()),
        "perceptual": float(image_metrics.structure_colour_distance(a, b).mean()),
        "saturation_excess": float((colour[0] - colour[1]).mean()),
    }


def silhouettes(views: Views, tolerance: float = 0.06) -> Float[Tensor, "v 1 h w"]:
    """The views' masks; without them, what differs by more than `tolerance` from the border's median colour."""
    if views.masks is not None:
        return views.masks
    images = views.images
    border = torch.cat([images[:, :, 0], images[:, :, -1], images[:, :, :, 0], images[:, :, :, -1]], dim=-1)
    difference = (images - border.median(dim=-1).values[:, :, None, None]).abs()
    return (difference.amax(dim=1, keepdim=True) > tolerance).to(images.dtype)


def _on_white(views: Views) -> Float[Tensor, "v 3 h w"]:
    return views.to(torch.float64).composite(torch.ones(3, dtype=torch.float64))


def _used(mesh: Mesh) -> tuple[Float[np.ndarray, "v 3"], np.ndarray]:
    """Vertices that faces use, float64, and the faces renumbered: a stray vertex must not move the bounding box."""
    if not len(mesh.faces):
        raise ValueError("a result without faces cannot be measured")
    used, faces = np.unique(mesh.faces, return_inverse=True)
    return mesh.vertices[used].astype(np.float64), faces.reshape(-1, 3)


def _surface(
    vertices: np.ndarray, faces: np.ndarray, count: int, generator: np.random.Generator
) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, "n 3"]]:
    points, face = sample_visible_surface(vertices, faces, count, generator)
    return points, face_normals(vertices, faces)[face]


def _unit_grid(protocol: Protocol) -> Grid:
    return Grid(protocol.resolution, protocol.grid_side / 2)


def _generator(seed: int, id: str, role: str) -> np.random.Generator:
    """Randomness that depends on the object and the role alone, so that neither order nor resumption moves it."""
    return np.random.default_rng([seed, zlib.crc32(id.encode()), zlib.crc32(role.encode())])
