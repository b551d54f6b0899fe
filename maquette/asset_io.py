"""Read and write OBJ (+ MTL), PLY and STL as `Mesh`.

Positions stay in the file's own frame here; `maquette.asset.load_mesh` and `Asset.save` turn between the file and the
world.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from maquette.asset import Mesh
from maquette.asset_gltf import compact, stack_tiles
from maquette.errors import UserError


def read_obj(path: Path) -> Mesh:
    """A Wavefront OBJ with the diffuse colour (Kd) and image (map_Kd) of its MTL files; polygons are cut into fans.

    A missing MTL or image is an error, because the object would silently lose its colour. Vertex colours (`v x y z r g
    b`) are read.
    """
    positions: list[list[float]] = []
    colors: list[list[float]] = []
    uvs: list[list[float]] = []
    normals: list[list[float]] = []
    corners: list[tuple[int, int, int]] = []  # position, uv, normal; -1 where absent
    corner_of: dict[tuple[int, int, int], int] = {}
    faces: list[tuple[int, int, int]] = []
    face_material: list[str] = []
    libraries: list[str] = []
    material = ""

    def corner(token: str) -> int:
        numbers = (token + "//").split("/")[:3]
        key = []
        for text, have in zip(numbers, (positions, uvs, normals), strict=True):
            index = int(text) if text else 0
            index = index - 1 if index > 0 else len(have) + index if index < 0 else -1
            if index >= len(have) or (text and index < 0):
                raise ValueError(f"refers to entry {text} of {len(have)}")
            key.append(index)
        if key[0] < 0:
            raise ValueError("a face corner has no position")
        triple = (key[0], key[1], key[2])
        if triple not in corner_of:
            corner_of[triple] = len(corners)
            corners.append(triple)
        return corner_of[triple]

    text = path.read_text(encoding="utf-8", errors="replace").replace("\\\n", " ")
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            if words[0] == "v":
                numbers = [float(word) for word in words[1:]]
                positions.append(numbers[:3])
                if len(numbers) >= 6:
                    colors.append(numbers[3:6])
            elif words[0] == "vt":
                uvs.append([float(words[1]), float(words[2]) if len(words) > 2 else 0.0])
            elif words[0] == "vn":
                normals.append([float(word) for word in words[1:4]])
            elif words[0] == "f":
                loop = [corner(token) for token in words[1:]]
                fans = [(loop[0], b, c) for b, c in itertools.pairwise(loop[1:])]
                faces.extend(fans)
                face_material.extend([material] * len(fans))
            elif words[0] == "usemtl":
                material = line.split(None, 1)[1].strip() if len(words) > 1 else ""
            elif words[0] == "mtllib":
                libraries.append(line.split(None, 1)[1].strip())
        except (ValueError, IndexError) as error:
            raise UserError(f"{path}:{number}: cannot read {line.strip()!r} ({error})") from error

    definitions: dict[str, dict[str, Any]] = {}
    for library in libraries:
        definitions.update(_read_mtl(path, library))
    names = list(dict.fromkeys(face_material))
    images = [_material_image(path, definitions.get(name, {})) for name in names]
    index = np.array(corners, np.int64).reshape(-1, 3)
    attributes: dict[str, Any] = {}
    if any(name in definitions for name in names):
        texture, tiles = stack_tiles([(image, {}) for image in images])
        face_tile = np.array([names.index(name) for name in face_material], np.int64)
        uv = np.array(uvs, np.float64).reshape(-1, 2) * (1, -1) + (0, 1)  # OBJ's v grows upwards
        placed = np.full((len(index), 2), 0.5)
        placed[index[:, 1] >= 0] = uv[index[index[:, 1] >= 0, 1]]
        attributes.update(uv=placed, texture=texture, tiles=tiles, face_tile=face_tile if len(tiles) > 1 else None)
    if len(normals) and (index[:, 2] >= 0).all():
        attributes["normals"] = _unit(np.array(normals, np.float64)[index[:, 2]])
    if colors:
        if len(colors) != len(positions):
            raise UserError(f"{path}: {len(colors)} of {len(positions)} vertices have a colour; expected all or none")
        attributes["vertex_colors"] = np.array(colors)[index[:, 0]]
    return compact(
        np.array(positions, np.float64).reshape(-1, 3)[index[:, 0]],
        np.array(faces, np.int64).reshape(-1, 3),
        **attributes,
    )


def _read_mtl(path: Path, library: str) -> dict[str, dict[str, Any]]:
    target = _beside(path, library)
    materials: dict[str, dict[str, Any]] = {}
    current: dict[str, Any] = {}
    for line in target.read_text(encoding="utf-8", errors="replace").splitlines():
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if words[0] == "newmtl":
            current = materials.setdefault(line.split(None, 1)[1].strip(), {})
        elif words[0] == "Kd":
            current["color"] = [float(word) for word in words[1:4]]
        elif words[0] == "map_Kd":
            rest = line.split(None, 1)[1].strip()
            # The file name may hold blanks; only when options precede it is the last word taken.
            current["image"] = rest.split()[-1] if rest.startswith("-") else rest
    return materials


def _material_image(path: Path, material: dict[str, Any]) -> np.ndarray:
    """RGBA of an MTL material: its image, else its Kd as one texel (exporters write Kd as a display value, and so is it
    read).
    """
    from PIL import Image

    if "image" in material:
        target = _beside(path, material["image"].replace("\\", "/"))
        try:
            return np.asarray(Image.open(target).convert("RGBA"))
        except Exception as error:  # Pillow's decoders raise many kinds
            raise UserError(f"{target}: cannot be decoded ({error})") from error
    color = np.clip(np.array([*material.get("color", (1.0, 1.0, 1.0)), 1.0]), 0, 1)
    return np.round(color * 255).astype(np.uint8).reshape(1, 1, 4)


def _beside(path: Path, name: str) -> Path:
    target = (path.parent / name).resolve()
    if not target.is_relative_to(path.parent.resolve()):
        raise UserError(f"{path}: refers to '{name}', outside its own folder")
    if not target.is_file():
        raise UserError(f"{path}: refers to '{name}', which does not exist; put it beside the OBJ")
    return target


def read_ply(path: Path) -> Mesh:
    """A PLY (ascii or binary) with its vertex colours and normals."""
    from trimesh.exchange.ply import load_ply

    content = _read_with(load_ply, path, "PLY")
    count = len(content["vertices"])
    colors, normals = content.get("vertex_colors"), content.get("vertex_normals")
    if colors is not None and len(colors) == count:
        colors = np.asarray(colors)[:, :3] / (255.0 if np.issubdtype(np.asarray(colors).dtype, np.integer) else 1.0)
    if normals is not None:
        normals = _unit(np.asarray(normals, np.float64))
    return compact(np.asarray(content["vertices"]), np.asarray(content["faces"]), vertex_colors=colors, normals=normals)


def read_stl(path: Path) -> Mesh:
    """An STL (ascii or binary), its triangles welded at equal positions."""
    from trimesh.exchange.stl import load_stl

    content = _read_with(load_stl, path, "STL")
    corners = np.asarray(content["vertices"], np.float32)
    vertices, index = np.unique(corners, axis=0, return_inverse=True)
    return compact(vertices, index.reshape(-1)[np.asarray(content["faces"])])


def _read_with(parser: Callable[[Any], dict[str, Any]], path: Path, kind: str) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = parser(file)
    except OSError:
        raise
    except Exception as error:  # the parsers raise many kinds on damaged files
        raise UserError(f"{path}: cannot be read as {kind} ({error})") from error
    if content.get("vertices") is None or content.get("faces") is None:
        raise UserError(f"{path}: the file holds no triangles")
    return content


def _unit(vectors: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
