"""Small glTF files written by hand, so that reading is not tested with our own writer."""

from __future__ import annotations

import base64
import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

COMPONENT = {"f4": 5126, "u1": 5121, "u2": 5123, "u4": 5125, "i2": 5122, "i1": 5120}
KIND = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}


class GltfFile:
    """A document that grows by accessors, images and materials, and is written as GLB or glTF."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.document: dict[str, Any] = {
            "asset": {"version": "2.0"}, "scene": 0, "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0}], "meshes": [],
            "accessors": [], "bufferViews": [], "materials": [], "images": [], "textures": [], "samplers": [],
        }  # fmt: skip

    def add(self, name: str, entry: dict[str, Any]) -> int:
        self.document.setdefault(name, []).append(entry)
        return len(self.document[name]) - 1

    def view(self, data: bytes, **extra: Any) -> int:
        self.data += b"\0" * (-len(self.data) % 4)
        start = len(self.data)
        self.data += data
        return self.add("bufferViews", {"buffer": 0, "byteOffset": start, "byteLength": len(data), **extra})

    def accessor(self, array: Any, dtype: str = "f4", **extra: Any) -> int:
        array = np.asarray(array, np.dtype(f"<{dtype}"))
        columns = 1 if array.ndim == 1 else array.shape[1]
        entry = {"bufferView": self.view(array.tobytes()), "componentType": COMPONENT[dtype], "count": len(array)}
        return self.add("accessors", {**entry, "type": KIND[columns], **extra})

    def texture(self, pixels: Any, **sampler: Any) -> int:
        from PIL import Image

        stream = io.BytesIO()
        Image.fromarray(np.asarray(pixels, np.uint8)).save(stream, format="PNG")
        image = self.add("images", {"bufferView": self.view(stream.getvalue()), "mimeType": "image/png"})
        return self.add("textures", {"source": image, "sampler": self.add("samplers", sampler)})

    def material(self, *, texture: int | None = None, factor: Any = None, reference: Any = None, **extra: Any) -> int:
        metallic: dict[str, Any] = {}
        if texture is not None:
            metallic["baseColorTexture"] = {"index": texture, **(reference or {})}
        if factor is not None:
            metallic["baseColorFactor"] = list(factor)
        return self.add("materials", {"pbrMetallicRoughness": metallic, **extra})

    def primitive(self, positions: Any, indices: Any = None, *, mode: int = 4, **attributes: Any) -> dict[str, Any]:
        """A primitive; `attributes` are arrays, or ready accessor numbers, or `material=`, `targets=`."""
        entry: dict[str, Any] = {"mode": mode, "attributes": {"POSITION": self.accessor(positions)}}
        if indices is not None:
            entry["indices"] = self.accessor(indices, "u2")
        for name in ("material", "targets"):
            if name in attributes:
                entry[name] = attributes.pop(name)
        for name, value in attributes.items():
            entry["attributes"][name] = value if isinstance(value, int) else self.accessor(value)
        return entry

    def write(self, path: Path, *primitives: dict[str, Any]) -> Path:
        """Write; `primitives` become mesh 0 if given."""
        document = dict(self.document)
        if primitives:
            document["meshes"] = [{"primitives": list(primitives)}]
        data = bytes(self.data) + b"\0" * (-len(self.data) % 4)
        if path.suffix == ".gltf":
            uri = "data:application/octet-stream;base64," + base64.b64encode(data).decode()
            document["buffers"] = [{"byteLength": len(data), "uri": uri}]
            path.write_text(json.dumps({key: value for key, value in document.items() if value or value == 0}))
            return path
        document["buffers"] = [{"byteLength": len(data)}]
        text = json.dumps({key: value for key, value in document.items() if value or value == 0}).encode()
        text += b" " * (-len(text) % 4)
        body = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(data), b"BIN\0") + data
        path.write_bytes(struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body)
        return path


def read_glb(path: Path) -> tuple[dict, bytes]:
    """(document, binary chunk) of a GLB file, with its headers checked."""
    data = path.read_bytes()
    magic, version, length = struct.unpack_from("<4sII", data)
    assert (magic, version, length) == (b"glTF", 2, len(data))
    size, kind = struct.unpack_from("<I4s", data, 12)
    assert kind == b"JSON" and size % 4 == 0
    document = json.loads(data[20 : 20 + size])
    binary, kind = struct.unpack_from("<I4s", data, 20 + size)
    assert kind == b"BIN\0" and binary % 4 == 0 and 28 + size + binary == len(data)
    return document, data[28 + size :]
