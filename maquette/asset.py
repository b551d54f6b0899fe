"""Meshes and the asset that people keep: `Mesh`, `load_mesh`, `Asset`.

Frames. A `Mesh` lives in the world frame (+z up, front faces +x). Files that stand on +Y (glTF, OBJ) are turned on the
way in and out: (X, Y, Z)_file = (y, z, x)_world. PLY and STL carry world coordinates as they are, because slicers and
scanners expect +z up.

Texture coordinates. As in glTF, `uv = (0, 0)` is the *upper left corner* of the image and v grows downwards; texture
rows are stored top-down, so texel (row, column) has its centre at u = (column + 0.5) / width, v = (row + 0.5) / height.

Colours are display values (sRGB) in [0, 1]. Factors that glTF defines in linear light are applied in linear light when
a file is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Int64, UInt8

from maquette.errors import UserError
from maquette.run.state import read_state, write_state

if TYPE_CHECKING:
    from maquette.images import Views

Wrap = Literal["repeat", "clamp", "mirror"]
AlphaMode = Literal["opaque", "mask", "blend"]
TextureFilter = Literal["bilinear", "nearest"]
ExportFormat = Literal["obj", "ply", "stl"]
EXPORTS: Mapping[ExportFormat, tuple[str, ...]] = {"obj": ("obj", "mtl", "png"), "ply": ("ply",), "stl": ("stl",)}
"""Formats beside GLB -> suffixes of the files that `Asset.save` writes for a mesh with one texture; its own first."""


@dataclass(frozen=True)
class Tile:
    """A rectangle of `Mesh.texture` (pixels) in which the uv of a material live; uv outside [0, 1] wrap inside it."""

    x: int
    y: int
    width: int
    height: int
    wrap_u: Wrap = "repeat"
    wrap_v: Wrap = "repeat"
    alpha: AlphaMode = "opaque"
    cutoff: float = 0.5


@dataclass(frozen=True, eq=False)
class Mesh:
    """A triangle mesh with its colour, in the world frame (+z up, front +x).

    `normals` are unit vertex normals; without them `vertex_normals()` derives smooth ones. Colour is the product (in
    linear light) of the texture and the vertex colours, whichever are present; a mesh with neither is white. A mesh
    read from a file with several materials keeps every image unresampled: `texture` holds them side by side, `tiles`
    says where, `face_tile` which face uses which. Ask `sample_color`, which knows all of this, rather than the fields.
    Arrays of any precision are accepted and kept as float32 and int64.
    """

    vertices: Float[np.ndarray, "v 3"]
    faces: Int[np.ndarray, "f 3"]
    uv: Float[np.ndarray, "v 2"] | None = None
    texture: UInt8[np.ndarray, "h w c"] | None = None
    vertex_colors: Float[np.ndarray, "v 3"] | None = None
    normals: Float[np.ndarray, "v 3"] | None = None
    tiles: tuple[Tile, ...] = ()
    face_tile: Int[np.ndarray, " f"] | None = None

    def __post_init__(self) -> None:
        def as_array(name: str, dtype: Any, columns: int) -> None:
            value = getattr(self, name)
            if value is None:
                return
            array = np.ascontiguousarray(np.asarray(value), dtype=dtype)
            if array.ndim != 2 or array.shape[1] != columns:
                raise ValueError(f"Mesh.{name} expects an array [n, {columns}], got shape {list(np.shape(value))}")
            object.__setattr__(self, name, array)

        for name, dtype, columns in (
            ("vertices", np.float32, 3),
            ("faces", np.int64, 3),
            ("uv", np.float32, 2),
            ("vertex_colors", np.float32, 3),
            ("normals", np.float32, 3),
        ):
            as_array(name, dtype, columns)
        count = len(self.vertices)
        for name in ("uv", "vertex_colors", "normals"):
            value = getattr(self, name)
            if value is not None and len(value) != count:
                raise ValueError(f"Mesh.{name} has {len(value)} rows for {count} vertices; give one row per vertex")
        if len(self.faces) and (self.faces.min() < 0 or self.faces.max() >= count):
            raise ValueError(
                f"Mesh.faces index {int(self.faces.min())}..{int(self.faces.max())}, but there are {count} vertices"
            )
        if self.texture is not None:
            texture = np.ascontiguousarray(self.texture, dtype=np.uint8)
            if texture.ndim != 3 or texture.shape[2] not in (3, 4):
                raise ValueError(f"Mesh.texture expects [height, width, 3 or 4] bytes, got shape {list(texture.shape)}")
            if self.uv is None:
                raise ValueError("Mesh.texture needs Mesh.uv; pass both or neither")
            object.__setattr__(self, "texture", texture)
            if not self.tiles:
                object.__setattr__(self, "tiles", (Tile(0, 0, texture.shape[1], texture.shape[0]),))
        if self.face_tile is not None:
            face_tile = np.ascontiguousarray(self.face_tile, dtype=np.int64)
            if face_tile.shape != (len(self.faces),):
                raise ValueError(
                    f"Mesh.face_tile expects one entry per face ({len(self.faces)}), got {face_tile.shape}"
                )
            if len(face_tile) and (face_tile.min() < 0 or face_tile.max() >= len(self.tiles)):
                raise ValueError(f"Mesh.face_tile must lie in 0..{len(self.tiles) - 1}")
            object.__setattr__(self, "face_tile", face_tile)
        elif len(self.tiles) > 1:
            raise ValueError(f"a mesh with {len(self.tiles)} texture tiles needs face_tile, one entry per face")

    @property
    def bounds(self) -> Float[np.ndarray, "2 3"]:
        """Lowest and highest corner of the vertices' bounding box, world units."""
        if not len(self.vertices):
            raise ValueError("an empty mesh has no bounds")
        return np.stack([self.vertices.min(0), self.vertices.max(0)])

    @property
    def has_alpha(self) -> bool:
        """Whether some surface points may be transparent (glTF's alpha modes MASK and BLEND)."""
        return any(tile.alpha != "opaque" for tile in self.tiles)

    def face_normals(self) -> Float32[np.ndarray, "f 3"]:
        """Unit normals of the faces by winding (zero for degenerate faces)."""
        return _unit(self._face_cross())

    def face_areas(self) -> Float[np.ndarray, " f"]:
        """Area of each face, in squared world units."""
        return 0.5 * np.linalg.norm(self._face_cross().astype(np.float64), axis=-1)

    def position_index(self) -> Int64[np.ndarray, " v"]:
        """A number per vertex, equal where positions are equal: undoes the splitting of vertices along uv seams."""
        _, index = np.unique(self.vertices, axis=0, return_inverse=True)
        return index.reshape(-1).astype(np.int64)

    @property
    def is_watertight(self) -> bool:
        """Whether the surface, welded at equal positions, is closed and consistently wound.

        That is, each directed edge occurs as often as its reverse (and there is at least one face).
        """
        faces = self.position_index()[self.faces]
        edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
        edges = edges[edges[:, 0] != edges[:, 1]]  # sides of collapsed faces bound nothing
        if not len(edges):
            return False
        forward = edges[:, 0] * len(self.vertices) + edges[:, 1]
        backward = edges[:, 1] * len(self.vertices) + edges[:, 0]
        return np.array_equal(np.sort(forward), np.sort(backward))

    def vertex_normals(self) -> Float32[np.ndarray, "v 3"]:
        """`normals` where given, else area-weighted averages of the face normals around each position.

        Vertices at the same position (split along uv seams) share one normal, so that no seam shows in shading.
        """
        if self.normals is not None:
            return self.normals
        position = self.position_index()
        cross = self._face_cross().astype(np.float64)
        total = np.zeros((len(self.vertices), 3))
        for corner in range(3):
            np.add.at(total, position[self.faces[:, corner]], cross)
        return _unit(total[position].astype(np.float32))

    def normalized(self, radius: float = 0.75) -> Mesh:
        """The mesh with its bounding-box centre at the origin and its farthest vertex at `radius` from it."""
        low, high = self.bounds.astype(np.float64)
        centred = self.vertices.astype(np.float64) - (low + high) / 2
        reach = float(np.linalg.norm(centred, axis=-1).max())
        if not np.isfinite(reach) or reach <= 0:
            raise ValueError("cannot normalise a mesh whose vertices all coincide or are not finite")
        return replace(self, vertices=(centred * (radius / reach)).astype(np.float32))

    def sample_color(
        self,
        face_index: Int[np.ndarray, " n"],
        barycentric: Float[np.ndarray, "n 3"],
        texture_filter: TextureFilter = "bilinear",
    ) -> Float32[np.ndarray, "n 4"]:
        """Straight RGBA (sRGB, [0, 1]) of surface points given by face and barycentric weights of its three corners.

        Textures are read bilinearly or at the nearest texel, without mipmaps (palette images must not blend).
        """
        corners = self.faces[face_index]  # [n, 3]
        weights = np.asarray(barycentric, dtype=np.float32)
        color = np.ones((len(corners), 4), dtype=np.float32)
        if self.texture is not None and self.uv is not None:
            uv = np.einsum("nk,nkc->nc", weights, self.uv[corners])
            tile = np.zeros(len(corners), np.int64) if self.face_tile is None else self.face_tile[face_index]
            color = sample_tiles(self.texture, self.tiles, tile, uv, texture_filter)
        if self.vertex_colors is not None:
            vertex = np.einsum("nk,nkc->nc", weights, self.vertex_colors[corners])
            if self.texture is None:
                color[:, :3] = vertex
            else:
                color[:, :3] = linear_to_srgb(srgb_to_linear(color[:, :3]) * srgb_to_linear(vertex))
        return color

    def save(self, folder: str | Path) -> None:
        """Write `mesh.safetensors` into `folder`, losslessly (files for other programs are `Asset.save`'s job)."""
        names = ("vertices", "faces", "uv", "texture", "vertex_colors", "normals", "face_tile")
        arrays = {name: value for name in names if (value := getattr(self, name)) is not None}
        tree = {"arrays": {name: torch.from_numpy(value) for name, value in arrays.items()}}
        write_state(Path(folder) / "mesh.safetensors", {**tree, "tiles": [vars(tile) for tile in self.tiles]})

    @classmethod
    def load(cls, folder: str | Path) -> Mesh:
        """Read what `save` wrote."""
        tree = read_state(Path(folder) / "mesh.safetensors")
        arrays = {name: value.numpy() for name, value in tree["arrays"].items()}
        return cls(**arrays, tiles=tuple(Tile(**tile) for tile in tree["tiles"]))

    def _face_cross(self) -> Float32[np.ndarray, "f 3"]:
        a, b, c = (self.vertices[self.faces[:, corner]] for corner in range(3))
        return np.cross(b - a, c - a)


def sample_tiles(
    texture: UInt8[np.ndarray, "h w c"],
    tiles: tuple[Tile, ...],
    tile: Int[np.ndarray, " n"],
    uv: Float[np.ndarray, "n 2"],
    texture_filter: TextureFilter = "bilinear",
) -> Float32[np.ndarray, "n 4"]:
    """RGBA in [0, 1] at `uv`, bilinear or of the nearest texel, wrapping inside tile number `tile` of `texture`."""
    if texture_filter not in ("bilinear", "nearest"):
        raise ValueError(f'a texture is read "bilinear" or "nearest", got {texture_filter!r}')
    origin = np.array([[t.x, t.y] for t in tiles], np.int64)
    size = np.array([[t.width, t.height] for t in tiles], np.int64)
    wraps = [
        np.array([("repeat", "clamp", "mirror").index(w) for w in axis])
        for axis in zip(*((t.wrap_u, t.wrap_v) for t in tiles), strict=True)
    ]
    color = np.zeros((len(uv), texture.shape[2]), np.float32)
    # Pixel coordinates of the four taps, per axis: a weight and an index inside the tile, wrapped.
    taps = []
    for axis in range(2):
        extent = size[tile, axis]
        at = uv[:, axis].astype(np.float64) * extent - (0.5 if texture_filter == "bilinear" else 0.0)
        low = np.floor(at).astype(np.int64)
        fraction = (at - low).astype(np.float32) if texture_filter == "bilinear" else np.zeros(len(at), np.float32)
        wrap = wraps[axis][tile]
        taps.append(
            [(w, origin[tile, axis] + _wrap(i, extent, wrap)) for w, i in ((1 - fraction, low), (fraction, low + 1))]
        )
    for weight_y, row in taps[1]:
        for weight_x, column in taps[0]:
            color += (weight_x * weight_y)[:, None] * texture[row, column]
    color /= 255
    if texture.shape[2] == 3:
        color = np.concatenate([color, np.ones((len(color), 1), np.float32)], axis=1)
    if any(t.alpha != "blend" for t in tiles):
        cutoff = np.array([{"opaque": -1.0, "mask": t.cutoff, "blend": 2.0}[t.alpha] for t in tiles])[tile]
        color[:, 3] = np.where(cutoff > 1.5, color[:, 3], color[:, 3] >= cutoff)
    return color


def srgb_to_linear(value: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """Display values in [0, 1] to linear light (IEC 61966-2-1)."""
    return np.where(value <= 0.04045, value / 12.92, ((np.maximum(value, 0.04045) + 0.055) / 1.055) ** 2.4).astype(
        value.dtype
    )


def linear_to_srgb(value: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """Linear light in [0, 1] to display values (IEC 61966-2-1)."""
    curve = 1.055 * np.maximum(value, 0.0031308) ** (1 / 2.4) - 0.055
    return np.where(value <= 0.0031308, value * 12.92, curve).astype(value.dtype)


def load_mesh(path: str | Path, *, up: Literal["y", "z"] | None = None) -> Mesh:
    """Read a mesh from GLB, glTF, OBJ (+ MTL), PLY or STL, into the world frame (+z up, front +x), with its colours.

    `up` says which axis points up in the file: "y" (front +Z; the default for glTF and OBJ) or "z" (front +x; the
    default for PLY and STL). Node transforms, skins in their rest pose and morph weights are applied; units and origin
    stay the file's own (see `Mesh.normalized`). Raises UserError naming the file for anything that cannot be read.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in (".glb", ".gltf"):
        from maquette.asset_gltf import read_gltf

        mesh = read_gltf(path)
    elif suffix in (".obj", ".ply", ".stl"):
        from maquette import asset_io

        mesh = {".obj": asset_io.read_obj, ".ply": asset_io.read_ply, ".stl": asset_io.read_stl}[suffix](path)
    else:
        raise UserError(f"{path}: cannot read a mesh from '{suffix}'; expected .glb, .gltf, .obj, .ply or .stl")
    if not len(mesh.faces):
        raise UserError(f"{path}: the file holds no triangles")
    if not np.isfinite(mesh.vertices).all():
        raise UserError(f"{path}: {int((~np.isfinite(mesh.vertices)).any(1).sum())} vertices are not finite numbers")
    if (up or ("z" if suffix in (".ply", ".stl") else "y")) == "y":
        mesh = replace(
            mesh, vertices=to_world(mesh.vertices), normals=None if mesh.normals is None else to_world(mesh.normals)
        )
    return mesh


@dataclass(frozen=True, eq=False)
class Asset:
    """What a method hands to people: the mesh, the views it was made from, and where it came from."""

    mesh: Mesh
    views: Views | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """JSON values: generator, version, seed, settings, weights, licences, citations."""

    def save(self, path: str | Path) -> list[Path]:
        """Write the mesh as `.glb`, `.obj` (+ `.mtl`, `.png`), `.ply` or `.stl`, by suffix; returns the files written.

        GLB and OBJ stand upright on +Y with the front towards +Z; PLY (colours at the vertices) and STL (no colours)
        keep +z up. A GLB carries the provenance in `asset.extras`, without times, durations and places on this machine.
        Equal assets give equal bytes. Raises UserError for another suffix or an unwritable place, RunFailed for a full
        disk.
        """
        from maquette import asset_export

        path = Path(path)
        writers = {
            ".glb": asset_export.write_glb,
            ".obj": asset_export.write_obj,
            ".ply": asset_export.write_ply,
            ".stl": asset_export.write_stl,
        }
        if path.suffix.lower() not in writers:
            raise UserError(f"{path}: cannot write a mesh as '{path.suffix}'; expected {', '.join(writers)}")
        if not len(self.mesh.faces):
            raise ValueError("cannot save an asset without faces; was the field empty?")
        return writers[path.suffix.lower()](path, self.mesh, self.provenance)


def to_world(points: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
    """(X, Y, Z) of a +Y-up file to the world frame: (x, y, z) = (Z, X, Y)."""
    return np.ascontiguousarray(points[..., [2, 0, 1]])


def from_world(points: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
    """World points to the +Y-up frame of glTF and OBJ: (X, Y, Z) = (y, z, x)."""
    return np.ascontiguousarray(points[..., [1, 2, 0]])


def _wrap(index: np.ndarray, extent: np.ndarray, wrap: np.ndarray) -> np.ndarray:
    mirrored = np.mod(index, 2 * extent)
    mirrored = np.where(mirrored >= extent, 2 * extent - 1 - mirrored, mirrored)
    return np.choose(wrap, [np.mod(index, extent), np.clip(index, 0, extent - 1), mirrored])


def _unit(vectors: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
