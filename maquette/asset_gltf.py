"""Read glTF 2.0 (`.glb`, `.gltf`) into a `Mesh`, keeping what a faithful unlit rendering needs.

Specification: Khronos glTF 2.0. Understood beyond its core: KHR_texture_transform, KHR_materials_pbrSpecularGlossiness
(its diffuse part), KHR_mesh_quantization, KHR_materials_unlit. Files that *require* another extension (Draco, meshopt,
Basis textures) are refused by name. Positions stay in the file's frame; `maquette.asset.load_mesh` turns them into the
world.
"""

from __future__ import annotations

import base64
import io
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from maquette.asset import Mesh, Tile, linear_to_srgb, srgb_to_linear
from maquette.errors import UserError

_DTYPES: dict[int, Any] = {
    5120: np.int8,
    5121: np.uint8,
    5122: np.int16,
    5123: np.uint16,
    5125: np.uint32,
    5126: np.float32,
}
_COLUMNS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
_UNDERSTOOD = {
    "KHR_texture_transform",
    "KHR_materials_pbrSpecularGlossiness",
    "KHR_mesh_quantization",
    "KHR_materials_unlit",
    "KHR_materials_emissive_strength",
    "KHR_materials_specular",
    "KHR_materials_ior",
    "KHR_materials_clearcoat",
    "KHR_materials_sheen",
    "KHR_lights_punctual",
}
_WRAPS = {10497: "repeat", 33071: "clamp", 33648: "mirror"}


def read_gltf(path: Path) -> Mesh:
    """All triangles of the default scene as one `Mesh` in the file's own frame (+Y up)."""
    document, chunk = _parse(path)
    missing = set(document.get("extensionsRequired", [])) - _UNDERSTOOD
    if missing:
        raise UserError(
            f"{path}: needs the glTF extension {', '.join(sorted(missing))}, which is not supported; "
            "re-export it uncompressed"
        )
    try:
        return _Reader(path, document, chunk).mesh()
    except (KeyError, IndexError, TypeError, struct.error) as error:
        raise UserError(f"{path}: broken glTF ({type(error).__name__}: {error})") from error


def _parse(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    chunk = b""
    if data[:4] == b"glTF":
        if len(data) < 20:
            raise UserError(f"{path}: truncated GLB ({len(data)} bytes)")
        version, length = struct.unpack_from("<II", data, 4)
        if version != 2:
            raise UserError(f"{path}: glTF version {version}; expected 2")
        if length > len(data):
            raise UserError(f"{path}: truncated GLB: the header says {length} bytes, the file has {len(data)}")
        text, offset = b"", 12
        while offset + 8 <= length:
            size, kind = struct.unpack_from("<I4s", data, offset)
            body = data[offset + 8 : offset + 8 + size]
            if kind == b"JSON":
                text = body
            elif kind == b"BIN\0" and not chunk:
                chunk = body
            offset += 8 + size
    else:
        text = data
    try:
        document = json.loads(text.decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not a glTF file ({error})") from error
    if not isinstance(document, dict) or "asset" not in document:
        raise UserError(f"{path}: not a glTF file (no 'asset' entry)")
    return document, chunk


@dataclass
class _Part:
    """One primitive, placed."""

    vertices: np.ndarray
    faces: np.ndarray
    normals: np.ndarray | None
    uv: np.ndarray
    colors: np.ndarray | None
    material: int | None


class _Reader:
    def __init__(self, path: Path, document: dict[str, Any], chunk: bytes) -> None:
        self.path, self.document, self.chunk = path, document, chunk
        self._buffers: dict[int, bytes] = {}

    # Bytes

    def _uri(self, uri: str) -> bytes:
        if uri.startswith("data:"):
            return base64.b64decode(uri.partition(",")[2])
        target = (self.path.parent / unquote(uri)).resolve()
        if not target.is_relative_to(self.path.parent.resolve()):
            raise UserError(f"{self.path}: refers to '{uri}', outside its own folder")
        if not target.is_file():
            raise UserError(f"{self.path}: refers to '{uri}', which does not exist")
        return target.read_bytes()

    def _buffer(self, index: int) -> bytes:
        if index not in self._buffers:
            entry = self.document["buffers"][index]
            self._buffers[index] = self._uri(entry["uri"]) if "uri" in entry else self.chunk
            if len(self._buffers[index]) < entry["byteLength"]:
                raise UserError(
                    f"{self.path}: buffer {index} has {len(self._buffers[index])} of {entry['byteLength']} bytes; "
                    "the file is truncated"
                )
        return self._buffers[index]

    def _view(self, index: int) -> tuple[bytes, int, int, int | None]:
        view = self.document["bufferViews"][index]
        return self._buffer(view["buffer"]), view.get("byteOffset", 0), view["byteLength"], view.get("byteStride")

    def _elements(self, view: int, offset: int, count: int, dtype: Any, columns: int) -> np.ndarray:
        data, start, length, stride = self._view(view)
        item = np.dtype(dtype).itemsize * columns
        stride = stride or item
        if count and (offset + stride * (count - 1) + item > length or start + length > len(data)):
            raise UserError(f"{self.path}: an accessor reaches beyond its buffer view; the file is damaged")
        array = np.ndarray((count, columns), dtype, data, start + offset, (stride, np.dtype(dtype).itemsize))
        return array.copy()

    def accessor(self, index: int) -> np.ndarray:
        """Accessor `index` as `[count, columns]`; normalised integers become floats in [-1, 1] or [0, 1]."""
        entry = self.document["accessors"][index]
        dtype, columns, count = _DTYPES[entry["componentType"]], _COLUMNS[entry["type"]], entry["count"]
        if "bufferView" in entry:
            array = self._elements(entry["bufferView"], entry.get("byteOffset", 0), count, dtype, columns)
        else:
            array = np.zeros((count, columns), dtype)
        if sparse := entry.get("sparse"):
            where = sparse["indices"]
            at = self._elements(
                where["bufferView"], where.get("byteOffset", 0), sparse["count"], _DTYPES[where["componentType"]], 1
            )
            values = sparse["values"]
            array[at[:, 0]] = self._elements(
                values["bufferView"], values.get("byteOffset", 0), sparse["count"], dtype, columns
            )
        if entry.get("normalized") and np.issubdtype(dtype, np.integer):
            return np.maximum(array / float(np.iinfo(dtype).max), -1.0).astype(np.float32)
        return array

    # Scene

    def _globals(self) -> dict[int, np.ndarray]:
        """World matrix of every node of the default scene (of all root nodes where no scene is given)."""
        nodes = self.document.get("nodes", [])
        if scenes := self.document.get("scenes"):
            roots = scenes[self.document.get("scene", 0)].get("nodes", [])
        else:
            roots = sorted(set(range(len(nodes))) - {child for node in nodes for child in node.get("children", [])})
        matrices: dict[int, np.ndarray] = {}
        stack = [(root, np.eye(4)) for root in reversed(roots)]
        while stack:
            index, parent = stack.pop()
            if index in matrices:
                raise UserError(f"{self.path}: node {index} is reached twice; the node graph must be a forest")
            matrices[index] = parent @ _local_matrix(nodes[index])
            stack.extend((child, matrices[index]) for child in reversed(nodes[index].get("children", [])))
        return matrices

    def mesh(self) -> Mesh:
        matrices = self._globals()
        parts: list[_Part] = []
        for index, matrix in matrices.items():
            node = self.document["nodes"][index]
            if "mesh" not in node:
                continue
            entry = self.document["meshes"][node["mesh"]]
            weights = node.get("weights", entry.get("weights", []))
            for primitive in entry["primitives"]:
                if primitive.get("mode", 4) in (4, 5, 6) and "POSITION" in primitive["attributes"]:
                    parts.append(self._part(primitive, matrix, weights, node.get("skin"), matrices))
        return self._merge(parts)

    def _part(
        self,
        primitive: dict[str, Any],
        matrix: np.ndarray,
        weights: list[float],
        skin: int | None,
        matrices: dict[int, np.ndarray],
    ) -> _Part:
        attributes = primitive["attributes"]
        vertices = self.accessor(attributes["POSITION"]).astype(np.float64)
        normals = self.accessor(attributes["NORMAL"]).astype(np.float64) if "NORMAL" in attributes else None
        for weight, target in zip(weights, primitive.get("targets", []), strict=False):
            if weight and "POSITION" in target:
                vertices += weight * self.accessor(target["POSITION"])
            if weight and normals is not None and "NORMAL" in target:
                normals += weight * self.accessor(target["NORMAL"])
        if "indices" in primitive:
            indices = self.accessor(primitive["indices"])[:, 0].astype(np.int64)
        else:
            indices = np.arange(len(vertices))
        if len(indices) and indices.max() >= len(vertices):
            raise UserError(f"{self.path}: index {indices.max()} points beyond {len(vertices)} vertices")
        faces = _triangles(indices, primitive.get("mode", 4))
        if skin is not None and "JOINTS_0" in attributes and "WEIGHTS_0" in attributes:
            # A skinned mesh is placed by its joints alone (glTF 3.7.3.3); in the rest pose they need not cancel out.
            blend = self._skin_matrices(skin, attributes, matrices)  # [v, 4, 4]
        else:
            blend = np.broadcast_to(matrix, (len(vertices), 4, 4))
        vertices = np.einsum("vij,vj->vi", blend[:, :3, :3], vertices) + blend[:, :3, 3]
        if normals is not None:
            # Normals go by the cofactor matrix, which also survives a mirrored or singular transform.
            a, b, c = blend[:, :3, 0], blend[:, :3, 1], blend[:, :3, 2]
            cofactor = np.stack([np.cross(b, c), np.cross(c, a), np.cross(a, b)], axis=-1)
            normals = np.einsum("vij,vj->vi", cofactor, normals)
            length = np.linalg.norm(normals, axis=-1, keepdims=True)
            normals = np.divide(normals, length, out=np.zeros_like(normals), where=length > 0)
        if len(vertices) and np.linalg.det(blend[0, :3, :3]) < 0:
            faces = faces[:, ::-1]
            normals = None if normals is None else -normals
        return _Part(
            vertices,
            faces,
            normals,
            self._uv(primitive, len(vertices)),
            self._colors(attributes),
            primitive.get("material"),
        )

    def _skin_matrices(self, skin: int, attributes: dict[str, int], matrices: dict[int, np.ndarray]) -> np.ndarray:
        entry = self.document["skins"][skin]
        joints = np.stack([matrices[joint] for joint in entry["joints"]])
        if "inverseBindMatrices" in entry:
            # glTF matrices are column-major.
            joints = joints @ self.accessor(entry["inverseBindMatrices"]).reshape(-1, 4, 4).transpose(0, 2, 1)
        index = self.accessor(attributes["JOINTS_0"]).astype(np.int64)
        weight = self.accessor(attributes["WEIGHTS_0"]).astype(np.float64)
        weight /= np.maximum(weight.sum(-1, keepdims=True), 1e-12)
        return np.einsum("vk,vkij->vij", weight, joints[index])

    # Colour

    def _base_color(self, material: int | None) -> tuple[dict[str, Any] | None, tuple[float, ...], dict[str, Any]]:
        entry = {} if material is None else self.document["materials"][material]
        glossiness = entry.get("extensions", {}).get("KHR_materials_pbrSpecularGlossiness")
        if glossiness is not None:
            return glossiness.get("diffuseTexture"), tuple(glossiness.get("diffuseFactor", (1.0,) * 4)), entry
        metallic = entry.get("pbrMetallicRoughness", {})
        return metallic.get("baseColorTexture"), tuple(metallic.get("baseColorFactor", (1.0,) * 4)), entry

    def _uv(self, primitive: dict[str, Any], count: int) -> np.ndarray:
        texture, _, _ = self._base_color(primitive.get("material"))
        if texture is None:
            return np.full((count, 2), 0.5)
        transform = texture.get("extensions", {}).get("KHR_texture_transform", {})
        name = f"TEXCOORD_{transform.get('texCoord', texture.get('texCoord', 0))}"
        if name not in primitive["attributes"]:
            return np.zeros((count, 2))
        uv = self.accessor(primitive["attributes"][name]).astype(np.float64)
        if transform:
            turn = transform.get("rotation", 0.0)
            rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
            uv = (uv * transform.get("scale", (1, 1))) @ rotation.T + transform.get("offset", (0, 0))
        return uv

    def _colors(self, attributes: dict[str, int]) -> np.ndarray | None:
        if "COLOR_0" not in attributes:
            return None
        return linear_to_srgb(np.clip(self.accessor(attributes["COLOR_0"])[:, :3].astype(np.float32), 0, 1))

    def _image(self, texture: dict[str, Any]) -> np.ndarray:
        from PIL import Image

        extensions = texture.get("extensions", {})
        index = texture.get("source", extensions.get("EXT_texture_webp", {}).get("source"))
        if index is None:
            raise UserError(f"{self.path}: a texture has no PNG, JPEG or WebP image")
        entry = self.document["images"][index]
        if "uri" in entry:
            data = self._uri(entry["uri"])
        else:
            buffer, start, length, _ = self._view(entry["bufferView"])
            data = buffer[start : start + length]
        try:
            image = Image.open(io.BytesIO(data))
            image.load()
        except Exception as error:  # Pillow's decoders raise many kinds
            raise UserError(f"{self.path}: image {index} cannot be decoded ({error})") from error
        has_alpha = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
        return np.asarray(image.convert("RGBA" if has_alpha else "RGB"))

    def _tile(self, material: int | None) -> tuple[np.ndarray, dict[str, Any]]:
        """The image of a material, factors applied, and how to read it (wrapping, alpha)."""
        texture_ref, factor, entry = self._base_color(material)
        wraps: dict[str, Any] = {}
        if texture_ref is None:
            image = np.full((1, 1, 4), 255, np.uint8)
        else:
            texture = self.document["textures"][texture_ref["index"]]
            image = self._image(texture)
            sampler = self.document["samplers"][texture["sampler"]] if "sampler" in texture else {}
            wraps = {f"wrap_{axis}": _WRAPS[sampler.get(key, 10497)] for axis, key in (("u", "wrapS"), ("v", "wrapT"))}
        if image.shape[2] == 3:
            image = np.concatenate([image, np.full((*image.shape[:2], 1), 255, np.uint8)], axis=-1)
        if factor != (1.0, 1.0, 1.0, 1.0):
            value = image.astype(np.float64) / 255
            value[..., :3] = linear_to_srgb(np.clip(srgb_to_linear(value[..., :3]) * np.array(factor[:3]), 0, 1))
            value[..., 3] *= factor[3]
            image = np.round(np.clip(value, 0, 1) * 255).astype(np.uint8)
        mode = entry.get("alphaMode", "OPAQUE").lower()
        if mode not in ("opaque", "mask", "blend"):
            raise UserError(f"{self.path}: unknown alphaMode {mode!r}")
        if mode != "opaque" and (image[..., 3] == 255).all():
            mode = "opaque"
        return image, {"alpha": mode, "cutoff": float(entry.get("alphaCutoff", 0.5)), **wraps}

    def _merge(self, parts: list[_Part]) -> Mesh:
        if not parts:
            return Mesh(np.zeros((0, 3)), np.zeros((0, 3), np.int64))
        offsets = np.cumsum([0] + [len(part.vertices) for part in parts])
        materials = list(dict.fromkeys(part.material for part in parts))
        texture, tiles = stack_tiles([self._tile(material) for material in materials])
        face_tile = np.concatenate([np.full(len(part.faces), materials.index(part.material)) for part in parts])
        colors = None
        if any(part.colors is not None for part in parts):
            colors = np.concatenate([np.ones((len(p.vertices), 3)) if p.colors is None else p.colors for p in parts])
        normals = None
        if all(part.normals is not None for part in parts):
            normals = np.concatenate([part.normals for part in parts if part.normals is not None])
        return compact(
            np.concatenate([part.vertices for part in parts]),
            np.concatenate([part.faces + offset for part, offset in zip(parts, offsets, strict=False)]),
            uv=np.concatenate([part.uv for part in parts]),
            texture=texture,
            vertex_colors=colors,
            normals=normals,
            tiles=tiles,
            face_tile=face_tile if len(tiles) > 1 else None,
        )


def stack_tiles(images: list[tuple[np.ndarray, dict[str, Any]]]) -> tuple[np.ndarray, tuple[Tile, ...]]:
    """Several RGBA images under each other in one array, with the tiles that tell them apart; alpha is kept only if it
    matters.
    """
    width = max(image.shape[1] for image, _ in images)
    texture = np.zeros((sum(image.shape[0] for image, _ in images), width, 4), np.uint8)
    tiles, row = [], 0
    for image, reading in images:
        height, columns = image.shape[:2]
        texture[row : row + height, :columns] = image
        tiles.append(Tile(0, row, columns, height, **reading))
        row += height
    if all(tile.alpha == "opaque" for tile in tiles):
        texture = np.ascontiguousarray(texture[..., :3])
    return texture, tuple(tiles)


def compact(vertices: np.ndarray, faces: np.ndarray, **attributes: Any) -> Mesh:
    """A Mesh without the vertices that no face uses (they would widen its bounds)."""
    used = np.zeros(len(vertices), bool)
    used[faces.reshape(-1)] = True
    if not used.all():
        index = np.cumsum(used) - 1
        faces, vertices = index[faces], vertices[used]
        for name in ("uv", "vertex_colors", "normals"):
            if attributes.get(name) is not None:
                attributes[name] = attributes[name][used]
    return Mesh(vertices, faces, **attributes)


def _local_matrix(node: dict[str, Any]) -> np.ndarray:
    if "matrix" in node:
        return np.array(node["matrix"], np.float64).reshape(4, 4).T
    x, y, z, w = node.get("rotation", (0.0, 0.0, 0.0, 1.0))
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    matrix = np.eye(4)
    matrix[:3, :3] = rotation * np.array(node.get("scale", (1.0, 1.0, 1.0)))
    matrix[:3, 3] = node.get("translation", (0.0, 0.0, 0.0))
    return matrix


def _triangles(indices: np.ndarray, mode: int) -> np.ndarray:
    if mode == 4:
        return indices[: len(indices) // 3 * 3].reshape(-1, 3)
    if mode == 5:  # strip: every second triangle is turned
        faces = np.stack([indices[:-2], indices[1:-1], indices[2:]], axis=-1)
        faces[1::2] = faces[1::2, [1, 0, 2]]
        return faces
    return np.stack([np.broadcast_to(indices[:1], len(indices) - 2), indices[1:-1], indices[2:]], axis=-1)
