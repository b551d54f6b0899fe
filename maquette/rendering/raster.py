"""Pictures of textured meshes by ray casting: colour, coverage, depth and normals, without a display or a GPU.

Rays are cast through a regular grid of `samples` x `samples` points in each pixel and averaged (a box filter), so
that silhouettes are antialiased and every colour is the mean of what the pixel sees. Colours are *straight*: the mean
over the covered part only; pixels that see nothing repeat the nearest covered one, so that no later resize drags a
fringe in. Textures are read bilinearly or at the nearest texel, never from mipmaps: palettes and atlases must not
blend.

Surfaces are two-sided. Where a texture is transparent (glTF's alpha modes MASK and BLEND), rays go on behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from maquette.asset import Mesh, TextureFilter
from maquette.cameras import Cameras
from maquette.images import Views
from maquette.matting import spread_colour
from maquette.rendering.lighting import Lighting
from maquette.rendering.pinhole import Band, Pinhole, sample_grid

Want = frozenset[str]
OFFERED: Want = frozenset({"rgb", "opacity", "depth", "normal"})
"""What `want` may name; colour and opacity are always made."""
RAYS_AT_ONCE = 1 << 19
"""Rays are cast in bands of at most this many (or one row), which bounds the memory to about 100 bytes a ray."""
LAYERS = 32
"""Transparent surfaces that a ray passes before it is given up."""
OPAQUE = 0.5
"""Depth and normals are those of the first surface with at least this alpha."""
AGREED = 3 / 255
"""Samples of a pixel, and pixels side by side, that differ by no more than this are not looked at more closely."""


@dataclass(frozen=True)
class MeshRendering:
    """What cameras [*b] see of a mesh."""

    cameras: Cameras
    """Who saw it."""
    rgb: Float[Tensor, "*b h w 3"]
    """Straight colours in [0, 1], display (sRGB) values; zero throughout a picture that shows nothing at all."""
    opacity: Float[Tensor, "*b h w 1"]
    """Coverage in [0, 1]."""
    depth: Float[Tensor, "*b h w 1"] | None = None
    """Distance along the ray through the pixel's centre, scene units; 0 where that ray meets nothing."""
    normal: Float[Tensor, "*b h w 3"] | None = None
    """Unit normals (world, towards the camera) where rays through pixel centres end; 0 where they meet nothing."""

    @property
    def rgba(self) -> Float[Tensor, "*b h w 4"]:
        """Straight colours and coverage together."""
        return torch.cat([self.rgb, self.opacity], dim=-1)

    def composite(self, background: Float[Tensor, "3"]) -> Float[Tensor, "*b h w 3"]:
        """The pictures on a flat background colour."""
        return self.opacity * self.rgb + (1 - self.opacity) * background.to(self.rgb)

    def views(self) -> Views:
        """The pictures as `Views`, batch axes flattened."""
        size = (-1, self.cameras.height, self.cameras.width)
        images, masks = self.rgb.reshape(*size, 3), self.opacity.reshape(*size, 1)
        return Views(images.movedim(-1, 1), masks.movedim(-1, 1), self.cameras.flatten())


def render_mesh(
    mesh: Mesh,
    cameras: Cameras,
    *,
    lighting: Lighting | Sequence[Lighting | None] | None = None,
    textureless: bool = False,
    samples: int = 4,
    texture_filter: TextureFilter = "bilinear",
    want: Want = frozenset({"rgb"}),
) -> MeshRendering:
    """What `cameras` see of `mesh`; see `MeshRenderer.render`, and keep a MeshRenderer to look several times."""
    renderer = MeshRenderer(mesh, texture_filter=texture_filter)
    return renderer.render(cameras, lighting=lighting, textureless=textureless, samples=samples, want=want)


class MeshRenderer:
    """A mesh with the search tree that makes casting rays at it fast (Embree)."""

    def __init__(self, mesh: Mesh, *, texture_filter: TextureFilter = "bilinear") -> None:
        """Raises ValueError for a mesh without faces or with vertices that are not finite."""
        from embreex.mesh_construction import TriangleMesh
        from embreex.rtcore_scene import EmbreeScene

        if not len(mesh.faces):
            raise ValueError("cannot render a mesh without faces")
        if not np.isfinite(mesh.vertices).all():
            raise ValueError("cannot render a mesh with vertices that are not finite numbers")
        self.mesh = mesh
        self.texture_filter = texture_filter
        self._scene = EmbreeScene(robust=True)
        self._geometry = TriangleMesh(self._scene, mesh.vertices, mesh.faces.astype(np.int32))
        self._step = 1e-4 * float(np.ptp(mesh.bounds, axis=0).max())  # from a transparent surface to what is behind it
        self._face_normals = mesh.face_normals()
        # Faces of one colour (all of a palette model's) are looked up instead of sampled, with the same result.
        self._plain = _plain_faces(mesh)
        self._plain_color = np.zeros((len(mesh.faces), 4), np.float32)
        plain = np.flatnonzero(self._plain)
        centre = np.full((len(plain), 3), 1 / 3, np.float32)
        self._plain_color[plain] = mesh.sample_color(plain, centre, texture_filter)

    def render(
        self,
        cameras: Cameras,
        *,
        lighting: Lighting | Sequence[Lighting | None] | None = None,
        textureless: bool = False,
        samples: int = 4,
        want: Want = frozenset({"rgb"}),
    ) -> MeshRendering:
        """What `cameras` (any batch axes) see, with `samples` x `samples` rays a pixel.

        Without `lighting` the colour is the unlit base colour; a sequence gives every camera (flattened) its own,
        None meaning unlit. `textureless` paints the mesh white, which shows its shape when lit. `want` adds "depth"
        and "normal", which belong to pixel centres and are not antialiased. CPU tensors, float32; not differentiable.
        """
        if samples < 1:
            raise ValueError(f"there is at least 1 sample a pixel side, got samples={samples}")
        if not want <= OFFERED:
            raise ValueError(f"render offers {sorted(OFFERED)}, got want={sorted(want)}; drop {sorted(want - OFFERED)}")
        flat = cameras.flatten()
        lightings = list(lighting) if isinstance(lighting, Sequence) else [lighting] * len(flat)
        if len(lightings) != len(flat):
            raise ValueError(f"give one lighting for all cameras or one for each of {len(flat)}, got {len(lightings)}")
        c2w = flat.c2w.detach().to("cpu", torch.float64).numpy()
        slopes = torch.tan(torch.deg2rad(flat.fovy.detach().to("cpu", torch.float64)) / 2).tolist()
        size = (len(flat), flat.height, flat.width)
        rgb, opacity = np.zeros((*size, 3), np.float32), np.zeros((*size, 1), np.float32)
        depth, normal = np.zeros((*size, 1), np.float32), np.zeros((*size, 3), np.float32)
        for view, light in enumerate(lightings):
            pinhole = Pinhole(c2w[view], slopes[view], flat.height, flat.width)
            for band in pinhole.bands(self.mesh.bounds, RAYS_AT_ONCE // samples**2):
                at = (view, *band.slices)
                rgb[at], opacity[at] = self._color(pinhole, band, light, textureless, samples)
                if want & {"depth", "normal"}:
                    depth[at], normal[at] = self._depth_and_normal(pinhole, band)
            rgb[view] = spread_colour(rgb[view], opacity[view, ..., 0] > 0)

        def batched(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).reshape(*cameras.batch_shape, *array.shape[1:])

        return MeshRendering(
            cameras,
            batched(rgb),
            batched(opacity),
            depth=batched(depth) if "depth" in want else None,
            normal=batched(normal) if "normal" in want else None,
        )

    def _color(
        self, pinhole: Pinhole, band: Band, light: Lighting | None, textureless: bool, samples: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Straight colour [h, w, 3] and opacity [h, w, 1] of a band of pixels.

        `samples` points of the grid are looked at everywhere, no two in a row or column, so that nothing wider than a
        cell of the grid slips through. Where they disagree, or with the pixels around, the rest of the grid follows.
        """
        shape = (band.height, band.width)
        pixels = np.arange(band.height * band.width)
        first, rest = sample_grid(samples)
        seen = self._look(pinhole, band, pixels, first, light, textureless)
        total, count = seen.sum(axis=0), np.full((len(pixels), 1), float(samples))
        if len(rest):
            spread = (seen.max(axis=0) - seen.min(axis=0)).max(axis=-1).reshape(shape)
            unsettled = _uneven(spread, (total / samples).reshape(*shape, 4)).reshape(-1)
            total[unsettled] += self._look(pinhole, band, pixels[unsettled], rest, light, textureless).sum(axis=0)
            count[unsettled] = samples**2
        weight = total[:, 3:]
        rgb = total[:, :3] / np.where(weight > 0, weight, 1)
        return rgb.reshape(*shape, 3), (weight / count).reshape(*shape, 1)

    def _look(
        self,
        pinhole: Pinhole,
        band: Band,
        pixels: Int[np.ndarray, " m"],
        offsets: Float[np.ndarray, "k 2"],
        light: Lighting | None,
        textureless: bool,
    ) -> Float[np.ndarray, "k m 4"]:
        """What `pixels` of the band see at `offsets`: colour times alpha, and alpha; 0 where there is nothing."""
        origins, directions = pinhole.rays(band, pixels, offsets)
        seen = np.zeros((len(directions), 4), np.float32)

        def visit(hits: _Hits) -> Bool[np.ndarray, " n"]:
            rgba = self._shade(hits, directions, light, textureless)
            share = (1 - seen[hits.ray, 3]) * rgba[:, 3]
            rgba[:, 3] = 1
            seen[hits.ray] += share[:, None] * rgba
            return seen[hits.ray, 3] < 1 - 1 / 512

        self._cast(origins, directions, visit)
        return seen.reshape(len(offsets), len(pixels), 4)

    def _depth_and_normal(self, pinhole: Pinhole, band: Band) -> tuple[np.ndarray, np.ndarray]:
        """Depth [h, w, 1] and normal [h, w, 3] of a band, along the rays through pixel centres."""
        pixels = np.arange(band.height * band.width)
        origins, directions = pinhole.rays(band, pixels, np.array([[0.5, 0.5]]))
        length = np.linalg.norm(directions.astype(np.float64), axis=-1)
        depth, normal = np.zeros(len(directions), np.float32), np.zeros((len(directions), 3), np.float32)

        def visit(hits: _Hits) -> Bool[np.ndarray, " n"]:
            passes = np.zeros(len(hits.ray), bool)
            if self.mesh.has_alpha:
                passes = self._base_color(hits)[:, 3] < OPAQUE
            seen = hits.take(np.flatnonzero(~passes))
            depth[seen.ray] = seen.distance * length[seen.ray]
            normal[seen.ray] = self._normals(seen, directions)
            return passes

        self._cast(origins, directions, visit)
        shape = (band.height, band.width)
        return depth.reshape(*shape, 1), normal.reshape(*shape, 3)

    def _cast(
        self,
        origins: Float[np.ndarray, "n 3"],
        directions: Float[np.ndarray, "n 3"],
        visit: Callable[[_Hits], Bool[np.ndarray, " m"]],
    ) -> None:
        """Follow rays to their first surface, and on behind transparent ones for which `visit` answers True."""
        camera, ray, passed = origins[:1], np.arange(len(directions)), np.zeros(len(directions), np.float32)
        for _ in range(LAYERS if self.mesh.has_alpha else 1):
            result = self._scene.run(origins, directions[ray], query="INTERSECT", output=True)
            met = np.flatnonzero(result["geomID"] >= 0)
            if not len(met):
                return
            u, v, ray = result["u"][met], result["v"][met], ray[met]
            passed = passed[met] + result["tfar"][met]
            hits = _Hits(ray, result["primID"][met], np.stack([1 - u - v, u, v], axis=-1), passed)
            passes = visit(hits)
            if not (self.mesh.has_alpha and passes.any()):
                return
            ray, passed = ray[passes], passed[passes]
            passed = passed + self._step / np.linalg.norm(directions[ray], axis=-1)
            origins = camera + passed[:, None] * directions[ray]

    def _shade(
        self, hits: _Hits, directions: Float[np.ndarray, "n 3"], light: Lighting | None, textureless: bool
    ) -> Float[np.ndarray, "m 4"]:
        """Straight colour and alpha at hits, under `light`."""
        rgba = self._base_color(hits)
        if textureless:
            rgba[:, :3] = 1
        if light is not None:
            rgba[:, :3] = np.minimum(rgba[:, :3] * light.irradiance(self._normals(hits, directions)), 1)
        return rgba

    def _base_color(self, hits: _Hits) -> Float[np.ndarray, "m 4"]:
        rgba = self._plain_color[hits.face]
        detailed = np.flatnonzero(~self._plain[hits.face])
        if len(detailed):
            rgba[detailed] = self.mesh.sample_color(hits.face[detailed], hits.weights[detailed], self.texture_filter)
        return rgba

    def _normals(self, hits: _Hits, directions: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "m 3"]:
        """Unit normals turned against the rays: interpolated where the mesh has normals, else those of the faces.

        glTF, too, asks for flat shading without normals; smoothing an STL cube would round its edges.
        """
        normals = self._face_normals[hits.face]
        if self.mesh.normals is not None:
            smooth = np.einsum("nk,nkc->nc", hits.weights, self.mesh.normals[self.mesh.faces[hits.face]])
            length = np.linalg.norm(smooth, axis=-1, keepdims=True)
            normals = np.where(length > 1e-6, smooth / np.maximum(length, 1e-6), normals)
        away = np.einsum("nc,nc->n", normals, directions[hits.ray]) > 0
        return np.where(away[:, None], -normals, normals)


@dataclass(frozen=True)
class _Hits:
    """Where rays met the surface."""

    ray: Int[np.ndarray, " n"]
    face: Int[np.ndarray, " n"]
    weights: Float[np.ndarray, "n 3"]
    """Barycentric, of the face's corners."""
    distance: Float[np.ndarray, " n"]
    """From the camera, in lengths of the ray's direction."""

    def take(self, index: Int[np.ndarray, " m"]) -> _Hits:
        return _Hits(self.ray[index], self.face[index], self.weights[index], self.distance[index])


def _uneven(spread: Float[np.ndarray, "h w"], mean: Float[np.ndarray, "h w 4"]) -> Bool[np.ndarray, "h w"]:
    """Pixels whose samples or whose four neighbours are not AGREED; `spread` is the samples' largest difference."""
    uneven = spread > AGREED
    for one, other in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differs = (
            (np.abs(mean[one] - mean[other]) > AGREED).any(axis=-1) | (spread[one] > AGREED) | (spread[other] > AGREED)
        )
        uneven[one] |= differs
        uneven[other] |= differs
    return uneven


def _plain_faces(mesh: Mesh) -> Bool[np.ndarray, " f"]:
    """Faces whose corners agree in everything that decides colour."""
    plain = np.ones(len(mesh.faces), bool)
    values: list[Any] = [mesh.vertex_colors, mesh.uv if mesh.texture is not None else None]
    for value in values:
        if value is not None:
            corners = value[mesh.faces]
            plain &= (corners == corners[:, :1]).all(axis=(1, 2))
    return plain
