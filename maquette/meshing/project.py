"""Put the pixels of pictures onto the surface that they show.

Naming: the *coverage* b_v in [0, 1] of view v at a texel is its weight times a feather that vanishes at grazing angles,
towards silhouettes, occluding edges and the border of the image, where a small misalignment would paint the wrong
thing; it is 0 where the texel is hidden. Its *confidence* a_v is the coverage times how squarely the camera faces the
surface. The texel becomes

    (1 - A) base + A sum_v p_v c_v,   A = 1 - prod_v (1 - b_v),   p_v = a_v^k / sum_u a_u^k

so that unseen parts keep the colour they had and borders blend smoothly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int

from maquette.asset import Mesh
from maquette.cameras import Cameras
from maquette.images import Views
from maquette.meshing.bake import nearest_texel, own_texture, texture_of
from maquette.meshing.raycast import RayCaster, pixel_rays
from maquette.meshing.texels import Texels, rasterize_uv

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


FADE = 0.2
"""Range of the cosine between surface and camera, from `grazing` on, over which a picture gains its full coverage."""


@dataclass(frozen=True)
class ProjectionConfig:
    """How pictures are painted onto a mesh."""

    grazing: float = 75.0
    """Angle between surface normal and camera, in degrees, from which on a picture is not believed at all."""
    facing_power: float = 2.0
    """How fast belief falls from a squarely seen surface towards `grazing`."""
    feather: float = 2.0
    """Pixels of the picture over which belief fades towards silhouettes and occluding edges."""
    sharpness: float = 4.0
    """The exponent k by which the better view wins where several see the same point; 1 averages."""
    refine_steps: int = 0
    """Corrections after painting: render, compare with the pictures, paint the difference (iterative back-projection).
    """
    refine_rate: float = 0.8
    """Part of the difference that one correction paints."""


@dataclass(frozen=True)
class _Surface:
    """The mesh at its texels, computed once for all views."""

    mesh: Mesh
    texels: Texels
    caster: RayCaster
    positions: Float[np.ndarray, "n 3"]
    normals: Float[np.ndarray, "n 3"]
    face_normals: Float[np.ndarray, "n 3"]


@dataclass(frozen=True)
class _Seen:
    """One view on the texels: which of them, where in the picture (pixels), how confidently."""

    texel: Int[np.ndarray, " m"]
    pixel: Float[np.ndarray, "m 2"]
    coverage: Float[np.ndarray, " m"]
    """b_v: how far the base gives way."""
    confidence: Float[np.ndarray, " m"]
    """a_v: how good this view is among several."""


def project_views(
    mesh: Mesh,
    views: Views,
    weights: Float[np.ndarray, " v"] | list[float] | None = None,
    config: ProjectionConfig = ProjectionConfig(),
) -> Mesh:
    """`mesh` with `views` painted onto what they see of its texture, each believed by its weight in [0, 1] (default 1).

    Pictures are read with the straight colours and masks of `Views`; where a mask is missing, the mesh's own silhouette
    bounds it. A picture with finer pixels than the texture is reduced first. Raises ValueError for a mesh without a
    texture of its own (one tile, uv without overlaps: what `bake_texture` makes).
    """
    if mesh.uv is None or mesh.texture is None or len(mesh.tiles) != 1:
        raise ValueError("project_views paints on a mesh with one texture; unwrap and bake it first")
    belief = np.ones(len(views)) if weights is None else np.asarray(weights, np.float64)
    if belief.shape != (len(views),) or belief.min() < 0 or belief.max() > 1:
        raise ValueError(f"weights expects {len(views)} numbers in [0, 1], got {np.asarray(weights).tolist()}")
    texels = rasterize_uv(mesh, *mesh.texture.shape[:2])
    normals = texels.interpolate(mesh.vertex_normals(), mesh)
    surface = _Surface(
        mesh,
        texels,
        RayCaster(mesh),
        texels.interpolate(mesh.vertices, mesh),
        normals / np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-9),
        mesh.face_normals()[texels.face],
    )
    pictures = _matched(views, mesh, texels)
    seen = [
        _look(surface, camera, mask, float(weight), config)
        for (camera, _, mask), weight in zip(pictures, belief, strict=True)
    ]
    total, sureness = _shares(seen, len(texels), config.sharpness)
    base = mesh.texture[texels.row, texels.column, :3].astype(np.float64) / 255
    painted = np.zeros_like(base)
    for view, (_, image, _) in zip(seen, pictures, strict=True):
        share = view.confidence**config.sharpness / total[view.texel]
        painted[view.texel] += share[:, None] * _read(image, view.pixel)
    values = base + sureness[:, None] * (painted - base)
    if config.refine_steps:
        values = _refine(values, surface, pictures, seen, total, sureness, config)
    return replace(mesh, **own_texture(texture_of(values, texels)))


def _refine(
    values: Float[np.ndarray, "n 3"],
    surface: _Surface,
    pictures: list[tuple[Cameras, np.ndarray, np.ndarray | None]],
    seen: list[_Seen],
    total: np.ndarray,
    sureness: np.ndarray,
    config: ProjectionConfig,
) -> Float[np.ndarray, "n 3"]:
    """Corrections that bring renderings of the painted mesh closer to the pictures."""
    nearest = nearest_texel(surface.texels)
    readers = [_reader(surface, nearest, camera) for camera, _, _ in pictures]
    for _ in range(config.refine_steps):
        correction = np.zeros_like(values)
        for view, (reader, covered), (_, image, mask) in zip(seen, readers, pictures, strict=True):
            difference = image - (reader @ values).reshape(image.shape)
            trusted = covered if mask is None else covered & (mask > 0.99)
            difference = _spread(difference, trusted)
            share = view.confidence**config.sharpness / total[view.texel]
            correction[view.texel] += share[:, None] * _read(difference, view.pixel)
        values = np.clip(values + config.refine_rate * sureness[:, None] * correction, 0, 1)
    return values


def _matched(views: Views, mesh: Mesh, texels: Texels) -> list[tuple[Cameras, np.ndarray, np.ndarray | None]]:
    """(camera, image [h, w, 3], mask [h, w] or None) per view, reduced to one pixel per texel where finer."""
    density = np.sqrt(
        max(float(texels.inside.sum()), 1.0) / max(float(mesh.face_areas().sum()), 1e-12)
    )  # texels per unit
    centre = torch.from_numpy(mesh.bounds.mean(0)).float()
    pictures = []
    for number, camera in enumerate(views.cameras.flatten()):
        image = views.images[number].detach().cpu().float()
        mask = None if views.masks is None else views.masks[number].detach().cpu().float()
        distance = float((camera.position.cpu().float() - centre).norm())
        ratio = density / (float(camera.intrinsics()) / max(distance, 1e-6))
        if ratio < 0.9:
            height, width = (max(8, round(side * ratio)) for side in image.shape[-2:])
            weight = torch.ones_like(image[:1]) if mask is None else mask
            both = torch.nn.functional.interpolate(
                torch.cat([image * weight, weight, image])[None], (height, width), mode="bilinear", antialias=True
            )[0]
            covered = both[3:4] > 1e-3
            image = torch.where(covered, both[:3] / both[3:4].clamp_min(1e-3), both[4:7])
            mask = None if mask is None else both[3:4]
            camera = camera.with_size(height, width)
        pictures.append(
            (camera, image.permute(1, 2, 0).double().numpy(), None if mask is None else mask[0].double().numpy())
        )
    return pictures


def _look(
    surface: _Surface, camera: Cameras, mask: np.ndarray | None, belief: float, config: ProjectionConfig
) -> _Seen:
    """Which texels a camera sees, where, and how far to believe it."""
    positions, normals = surface.positions, surface.normals
    eye = camera.position.detach().cpu().double().numpy()
    towards = eye - positions
    distance = np.linalg.norm(towards, axis=-1)
    cosine = (normals * towards).sum(-1) / np.maximum(distance, 1e-9)
    # The face itself must be turned to the camera too: interpolated normals lean over edges.
    front = (surface.face_normals * towards).sum(-1) > 0
    limit = np.cos(np.deg2rad(config.grazing))
    index = np.flatnonzero((cosine > limit) & front & (belief > 0))
    pixel, depth = (t.double().numpy() for t in camera.project(torch.from_numpy(positions[index]).float()))
    margin = 0.5
    framed = (depth > 0) & (pixel > margin).all(-1) & (pixel < np.array([camera.width, camera.height]) - margin).all(-1)
    index, pixel = index[framed], pixel[framed]
    # Rays start a little above the surface, by the size of float32 errors and of the texel's own bulge.
    lift = 2e-4 * float(np.linalg.norm(surface.mesh.bounds[1] - surface.mesh.bounds[0]))
    origins = positions[index] + lift * normals[index]
    hidden = surface.caster.occluded(origins, np.broadcast_to(eye, origins.shape))
    index, pixel = index[~hidden], pixel[~hidden]
    facing = np.clip((cosine[index] - limit) / (1 - limit), 0, 1) ** config.facing_power
    room = _distance_to_edges(surface.caster, camera, mask)
    feather = _smoothstep((_read(room[..., None], pixel)[:, 0] - 0.5) / max(config.feather, 1e-6))
    coverage = belief * feather * _smoothstep((cosine[index] - limit) / FADE)
    confidence = coverage * facing
    kept = confidence > 1e-6
    return _Seen(index[kept], pixel[kept], coverage[kept], confidence[kept])


def _distance_to_edges(caster: RayCaster, camera: Cameras, mask: np.ndarray | None) -> Float[np.ndarray, "h w"]:
    """Pixels between each pixel and the nearest one where the picture cannot be trusted (silhouette, mask, jump in
    depth).
    """
    from scipy import ndimage

    shape = (camera.height, camera.width)
    hits = caster.first_hits(*pixel_rays(camera))
    depth = hits.distance.reshape(shape)
    covered = np.isfinite(depth)
    if mask is not None:
        covered &= mask > 0.9
    # A jump: the depth between neighbours changes by more than a surface at the grazing angle would explain (8 pixel
    # widths).
    width = np.where(covered, depth, 0) / float(camera.intrinsics())
    jump = np.zeros(shape, bool)
    with np.errstate(invalid="ignore"):
        for axis in (0, 1):
            step = np.diff(np.where(covered, depth, np.nan), axis=axis)
            far = np.abs(step) > 8 * np.maximum(*(np.delete(width, end, axis) for end in (0, -1)))
            behind, before = far & (step > 0), far & (step < 0)
            # The pixel behind the edge is doubtful, the one in front of it as well, a pixel later.
            for lost, ends in ((behind, (1, None)), (before, (0, -1))):
                where = [slice(None), slice(None)]
                where[axis] = slice(*ends)
                jump[tuple(where)] |= lost
    trusted = np.pad(covered & ~jump, 1)
    return ndimage.distance_transform_edt(trusted)[1:-1, 1:-1]


def _shares(seen: list[_Seen], count: int, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    """Per texel the sum over views of a_v^k (at least a tiny number) and A = 1 - prod (1 - b_v)."""
    total, open_ = np.zeros(count), np.ones(count)
    for view in seen:
        total[view.texel] += view.confidence**sharpness
        open_[view.texel] *= 1 - view.coverage
    return np.maximum(total, 1e-30), 1 - open_


def _reader(surface: _Surface, nearest: np.ndarray, camera: Cameras, samples: int = 2) -> tuple[csr_matrix, np.ndarray]:
    """A matrix from texel values to the pixels of `camera` (averages of samples x samples bilinear readings), and which
    pixels the mesh covers wholly.
    """
    from scipy.sparse import coo_matrix

    mesh, count = surface.mesh, len(surface.texels)
    hits = surface.caster.first_hits(*pixel_rays(camera, samples))
    height, width = camera.height, camera.width
    rows, columns = np.divmod(np.arange(len(hits.face)), width * samples)
    pixel = rows // samples * width + columns // samples
    met = hits.face >= 0
    assert mesh.uv is not None  # checked by project_views
    uv = np.einsum("nk,nkc->nc", hits.barycentric[met], mesh.uv[mesh.faces[hits.face[met]]]).astype(np.float64)
    at = uv * (nearest.shape[1], nearest.shape[0]) - 0.5
    low = np.floor(at).astype(np.int64)
    fraction = at - low
    entries: list[Any] = []
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        weight = np.abs(1 - dx - fraction[:, 0]) * np.abs(1 - dy - fraction[:, 1])
        column = np.clip(low[:, 0] + dx, 0, nearest.shape[1] - 1)
        row = np.clip(low[:, 1] + dy, 0, nearest.shape[0] - 1)
        entries.append((weight, pixel[met], nearest[row, column]))
    weight, row, column = (np.concatenate(part) for part in zip(*entries, strict=True))
    hit_count = np.bincount(pixel[met], minlength=height * width)
    weight = weight / hit_count[row]
    matrix = coo_matrix((weight, (row, column)), shape=(height * width, count)).tocsr()
    return matrix, (hit_count == samples**2).reshape(height, width)


def _spread(image: Float[np.ndarray, "h w c"], valid: np.ndarray) -> Float[np.ndarray, "h w c"]:
    """`image` with invalid pixels replaced by the nearest valid ones (zero if there is none)."""
    from scipy import ndimage

    if not valid.any():
        return np.zeros_like(image)
    row, column = ndimage.distance_transform_edt(~valid, return_distances=False, return_indices=True)
    return image[row, column]


def _read(image: Float[np.ndarray, "h w c"], pixel: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n c"]:
    """Bilinear values at pixel coordinates (x right, y down, half-pixel centres), clamped at the border."""
    height, width = image.shape[:2]
    at = np.clip(pixel - 0.5, 0, np.array([width - 1, height - 1]))
    low = np.minimum(np.floor(at).astype(np.int64), np.maximum(np.array([width - 2, height - 2]), 0))
    fx, fy = (at - low).T[..., None]
    x, y = low.T
    x1, y1 = np.minimum(x + 1, width - 1), np.minimum(y + 1, height - 1)
    top = image[y, x] * (1 - fx) + image[y, x1] * fx
    return top * (1 - fy) + (image[y1, x] * (1 - fx) + image[y1, x1] * fx) * fy


def _smoothstep(x: np.ndarray) -> np.ndarray:
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)
