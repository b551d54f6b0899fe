"""Write a `Mesh` as GLB, OBJ (+ MTL), PLY or STL: the same mesh always gives the same bytes.

Nothing here depends on time, on the machine or on the place that is written to; provenance is stripped of such things.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from maquette import __version__
from maquette.asset import Mesh, Tile, from_world, srgb_to_linear
from maquette.run.files import write_bytes

_FLOAT, _USHORT, _UINT = 5126, 5123, 5125
_VERTICES, _INDICES = 34962, 34963
_WRAPS = {"repeat": 10497, "clamp": 33071, "mirror": 33648}
_TRANSIENT = {
    "time", "times", "timestamp", "date", "started", "finished", "created", "duration", "durations",
    "seconds", "elapsed",
    "out", "output", "folder", "cwd", "host", "hostname", "user", "machine", "pid", "argv", "memory",
}  # fmt: skip


def portable(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Provenance without what differs between two runs of the same command: times, durations, places, machines.

    Entries with such names are left out at any depth; of an absolute path only the last part stays. NaN and infinities,
    which JSON lacks, are written as text.
    """

    def clean(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): clean(item) for key, item in value.items() if str(key).lower() not in _TRANSIENT}
        if isinstance(value, (list, tuple)):
            return [clean(item) for item in value]
        if isinstance(value, Path):
            return value.name
        if isinstance(value, str):
            for flavour in (PurePosixPath, PureWindowsPath):
                if "\n" not in value and flavour(value).is_absolute():
                    return flavour(value).name
            return value
        if isinstance(value, (float, np.floating)) and not np.isfinite(value):
            return str(value)
        if isinstance(value, np.generic):
            return value.item()
        return value

    return clean(provenance)


class _Buffer:
    """The binary chunk of a GLB with its buffer views and accessors."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.views: list[dict[str, Any]] = []
        self.accessors: list[dict[str, Any]] = []

    def view(self, data: bytes, target: int | None = None) -> int:
        self.data += b"\0" * (-len(self.data) % 4)
        entry = {"buffer": 0, "byteOffset": len(self.data), "byteLength": len(data)}
        self.data += data
        self.views.append(entry if target is None else {**entry, "target": target})
        return len(self.views) - 1

    def accessor(self, array: np.ndarray, component: int, kind: str, target: int, *, bounds: bool = False) -> int:
        entry: dict[str, Any] = {
            "bufferView": self.view(np.ascontiguousarray(array).tobytes(), target),
            "componentType": component,
            "count": len(array),
            "type": kind,
        }
        if bounds:
            entry["min"] = [float(value) for value in array.min(0)]
            entry["max"] = [float(value) for value in array.max(0)]
        self.accessors.append(entry)
        return len(self.accessors) - 1


def write_glb(path: Path, mesh: Mesh, provenance: Mapping[str, Any]) -> list[Path]:
    """A glTF 2.0 binary with one node, a primitive and a PBR material per texture tile, and nothing but the core
    specification.
    """
    write_bytes(path, glb_bytes(mesh, provenance))
    return [path]


def glb_bytes(mesh: Mesh, provenance: Mapping[str, Any]) -> bytes:
    """The bytes that `write_glb` writes.

    Materials are plain (metallic 0, roughness 0.9: glTF's own default is a metal, which viewers draw dark). They are
    single-sided only where the surface is closed, because the inside of an open one can be seen.
    """
    buffer = _Buffer()
    attributes = {
        "POSITION": buffer.accessor(from_world(mesh.vertices), _FLOAT, "VEC3", _VERTICES, bounds=True),
        "NORMAL": buffer.accessor(from_world(_export_normals(mesh)), _FLOAT, "VEC3", _VERTICES),
    }
    if mesh.texture is not None and mesh.uv is not None:
        attributes["TEXCOORD_0"] = buffer.accessor(mesh.uv, _FLOAT, "VEC2", _VERTICES)
    if mesh.vertex_colors is not None:
        linear = srgb_to_linear(np.clip(mesh.vertex_colors, 0, 1)).astype(np.float32)
        attributes["COLOR_0"] = buffer.accessor(linear, _FLOAT, "VEC3", _VERTICES)

    small = len(mesh.vertices) <= 0xFFFF  # 65535 itself is the restart value and never an index
    document: dict[str, Any] = {"images": [], "samplers": [], "textures": [], "materials": []}
    primitives = []
    double_sided = not mesh.is_watertight
    for tile, faces in _by_tile(mesh):
        material: dict[str, Any] = {
            "doubleSided": double_sided,
            "pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 0.9},
        }
        if tile is not None and mesh.texture is not None:
            document["images"].append(
                {"bufferView": buffer.view(_png(_crop(mesh.texture, tile))), "mimeType": "image/png"}
            )
            # Linear without mipmaps: neighbouring charts and palette cells must not blend at a distance.
            wrap = {"wrapS": _WRAPS[tile.wrap_u], "wrapT": _WRAPS[tile.wrap_v]}
            document["samplers"].append({"magFilter": 9729, "minFilter": 9729, **wrap})
            number = len(document["textures"])
            document["textures"].append({"source": number, "sampler": number})
            material["pbrMetallicRoughness"]["baseColorTexture"] = {"index": number}
            if tile.alpha != "opaque":
                material["alphaMode"] = tile.alpha.upper()
            if tile.alpha == "mask":
                material["alphaCutoff"] = tile.cutoff
        indices = faces.astype(np.uint16 if small else np.uint32).reshape(-1)
        primitives.append(
            {
                "attributes": attributes,
                "indices": buffer.accessor(indices, _USHORT if small else _UINT, "SCALAR", _INDICES),
                "material": len(document["materials"]),
                "mode": 4,
            }
        )
        document["materials"].append(material)

    document = {key: value for key, value in document.items() if value}
    header: dict[str, Any] = {"version": "2.0", "generator": f"maquette {__version__}"}
    extras = portable(provenance)
    if extras:
        header["extras"] = extras
    buffer.data += b"\0" * (-len(buffer.data) % 4)
    document.update(
        asset=header,
        scene=0,
        scenes=[{"nodes": [0]}],
        nodes=[{"mesh": 0, "name": "object"}],
        meshes=[{"name": "object", "primitives": primitives}],
        accessors=buffer.accessors,
        bufferViews=buffer.views,
        buffers=[{"byteLength": len(buffer.data)}],
    )
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode(
        "utf-8"
    )
    text += b" " * (-len(text) % 4)
    chunks = (
        struct.pack("<I4s", len(text), b"JSON")
        + text
        + struct.pack("<I4s", len(buffer.data), b"BIN\0")
        + bytes(buffer.data)
    )
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def write_obj(path: Path, mesh: Mesh, provenance: Mapping[str, Any]) -> list[Path]:
    """A Wavefront OBJ on +Y with its MTL and a PNG per texture tile beside it; colours without a texture go to the `v`
    lines.
    """
    stem = path.with_suffix("")
    material_path = stem.with_suffix(".mtl")
    written = [path]
    lines = [f"# maquette {__version__}"]
    materials = [f"# maquette {__version__}"]
    groups = _by_tile(mesh)
    textured = mesh.texture is not None and mesh.uv is not None
    if textured:
        lines.append(f"mtllib {material_path.name}")
    points = from_world(mesh.vertices)
    if mesh.vertex_colors is not None:
        points = np.concatenate([points, np.clip(mesh.vertex_colors, 0, 1)], axis=1)
    lines += _rows("v", points)
    if textured and mesh.uv is not None:
        # OBJ's v grows upwards.
        lines += _rows("vt", mesh.uv * np.array([1, -1], np.float32) + np.array([0, 1], np.float32))
    lines += _rows("vn", from_world(_export_normals(mesh)))
    for number, (tile, faces) in enumerate(groups):
        if textured and tile is not None and mesh.texture is not None:
            image_path = path.with_name(f"{stem.name}.png" if len(groups) == 1 else f"{stem.name}_{number}.png")
            write_bytes(image_path, _png(_crop(mesh.texture, tile)))
            written.append(image_path)
            materials += [
                f"newmtl material_{number}",
                "Ka 0 0 0",
                "Kd 1 1 1",
                "Ks 0 0 0",
                "illum 1",
                f"map_Kd {image_path.name}",
            ]
            lines.append(f"usemtl material_{number}")
        corner = "{0}/{0}/{0}" if textured else "{0}//{0}"
        lines += ["f " + " ".join(corner.format(index) for index in face) for face in (faces + 1).tolist()]
    if textured:
        write_bytes(material_path, ("\n".join(materials) + "\n").encode())
        written.append(material_path)
    write_bytes(path, ("\n".join(lines) + "\n").encode())
    return written


def write_ply(path: Path, mesh: Mesh, provenance: Mapping[str, Any]) -> list[Path]:
    """A binary PLY in the world frame with normals and colours at the vertices (read from the texture where there is
    one).
    """
    kind = [(name, "<f4") for name in ("x", "y", "z", "nx", "ny", "nz")]
    table = np.zeros(len(mesh.vertices), [*kind, ("red", "u1"), ("green", "u1"), ("blue", "u1")])
    for name, column in zip("xyz", mesh.vertices.T, strict=True):
        table[name] = column
    for name, column in zip(("nx", "ny", "nz"), _export_normals(mesh).T, strict=True):
        table[name] = column
    for name, column in zip(("red", "green", "blue"), vertex_colors(mesh).T, strict=True):
        table[name] = np.round(np.clip(column, 0, 1) * 255)
    faces = np.zeros(len(mesh.faces), [("count", "u1"), ("index", "<i4", 3)])
    faces["count"], faces["index"] = 3, mesh.faces
    header = [
        "ply",
        "format binary_little_endian 1.0",
        f"comment maquette {__version__}",
        f"element vertex {len(table)}",
    ]
    header += [f"property float {name}" for name, _ in kind]
    header += [f"property uchar {name}" for name in ("red", "green", "blue")]
    header += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header", ""]
    write_bytes(path, "\n".join(header).encode() + table.tobytes() + faces.tobytes())
    return [path]


def write_stl(path: Path, mesh: Mesh, provenance: Mapping[str, Any]) -> list[Path]:
    """A binary STL in the world frame (+z up)."""
    table = np.zeros(len(mesh.faces), [("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
    table["normal"] = mesh.face_normals()
    table["corners"] = mesh.vertices[mesh.faces]
    header = f"maquette {__version__}".encode().ljust(80, b"\0")
    write_bytes(path, header + struct.pack("<I", len(table)) + table.tobytes())
    return [path]


def vertex_colors(mesh: Mesh) -> np.ndarray:
    """RGB [v, 3] in [0, 1] at the vertices: the texture read at each vertex, times the vertex colours."""
    first = np.zeros(len(mesh.vertices), np.int64)
    corner = np.zeros(len(mesh.vertices), np.int64)
    for number in range(3):
        first[mesh.faces[:, number]] = np.arange(len(mesh.faces))
        corner[mesh.faces[:, number]] = number
    return mesh.sample_color(first, np.eye(3, dtype=np.float32)[corner])[:, :3]


def _export_normals(mesh: Mesh) -> np.ndarray:
    """Unit vertex normals; +z where a vertex has only collapsed faces, since formats demand unit length."""
    normals = mesh.vertex_normals().astype(np.float64)
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    unit = np.where(length > 1e-12, normals / np.maximum(length, 1e-12), (0.0, 0.0, 1.0))
    return unit.astype(np.float32)


def _by_tile(mesh: Mesh) -> list[tuple[Tile | None, np.ndarray]]:
    if mesh.texture is None:
        return [(None, mesh.faces)]
    if mesh.face_tile is None:
        return [(mesh.tiles[0], mesh.faces)]
    groups = [(tile, mesh.faces[mesh.face_tile == number]) for number, tile in enumerate(mesh.tiles)]
    return [(tile, faces) for tile, faces in groups if len(faces)]


def _crop(texture: np.ndarray, tile: Tile) -> np.ndarray:
    image = texture[tile.y : tile.y + tile.height, tile.x : tile.x + tile.width]
    return image[..., :3] if tile.alpha == "opaque" else image


def _png(image: np.ndarray) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(stream, format="PNG", compress_level=6)
    return stream.getvalue()


def _rows(word: str, table: np.ndarray) -> list[str]:
    # Nine significant digits bring back every float32 exactly.
    return [word + "".join(f" {value:.9g}" for value in row) for row in table.tolist()]
