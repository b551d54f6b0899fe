"""Texture coordinates: xatlas within a bounded time, and a box projection of our own as the second way, reported when
taken.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, Int64

from maquette.asset import Mesh
from maquette.meshing.texels import covering_pairs

WORKER = Path(__file__).with_name("xatlas_worker.py")
"""The program that asks xatlas, with the arguments that its docstring says."""


@dataclass(frozen=True)
class Unwrapped:
    """A mesh with uv, and how it came by them."""

    mesh: Mesh
    method: Literal["xatlas", "box"]
    note: str = ""
    """Why the second way was taken, in a sentence; empty for the first."""


def unwrap_mesh(mesh: Mesh, *, texture_size: int = 1024, padding: int = 3, seconds: int = 60) -> Unwrapped:
    """`mesh` with uv in [0, 1]^2 in which no two faces overlap, `padding` texels between charts.

    xatlas works in a process of its own and may use `seconds` of *processor* time, so that a busy machine changes
    nothing about the result; as a last resort it is stopped after ten times as much by the clock. If it does not get
    done, or fails, or `seconds` is 0, `box_unwrap` answers instead and `note` says so. Vertices are split along seams;
    normals stay continuous across them.
    """
    if not len(mesh.faces):
        raise ValueError("cannot unwrap a mesh without faces")
    note = "xatlas was not asked (0 seconds allowed)"
    if seconds > 0:
        try:
            return Unwrapped(_xatlas(mesh, texture_size, padding, seconds), "xatlas")
        except _Failed as error:
            note = str(error)
    return Unwrapped(
        box_unwrap(mesh, texture_size=texture_size, padding=padding), "box", f"{note}; box projection was used"
    )


class _Failed(Exception):
    """xatlas did not deliver; the message is a sentence."""


def _xatlas(mesh: Mesh, texture_size: int, padding: int, seconds: int) -> Mesh:
    normals = mesh.vertex_normals()
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.npz"), Path(folder, "out.npz")
        np.savez(source, vertices=mesh.vertices, faces=mesh.faces, normals=normals)
        arguments = [str(source), str(target), str(texture_size), str(padding), str(seconds)]
        try:
            done = subprocess.run(
                [sys.executable, str(WORKER), *arguments],
                capture_output=True,
                text=True,
                timeout=10 * seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise _Failed(f"xatlas did not finish {len(mesh.faces)} faces in {10 * seconds} s by the clock") from None
        if done.returncode < 0:
            raise _Failed(f"xatlas did not finish {len(mesh.faces)} faces in {seconds} s of processor time")
        if done.returncode != 0 or not target.is_file():
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise _Failed(f"xatlas failed ({last})")
        data = np.load(target)
        mapping, faces = data["mapping"].astype(np.int64), data["faces"].astype(np.int64)
        uv, size = data["uv"].astype(np.float64), data["size"]
    if len(faces) != len(mesh.faces) or not len(uv):
        raise _Failed(f"xatlas returned {len(faces)} of {len(mesh.faces)} faces")
    # Its atlas need not be square, so one common scale keeps texels square; it touches the border, where a reader would
    # find the other side of the texture, so it is drawn in by the padding.
    inset = padding / texture_size
    uv = inset + (1 - 2 * inset) * uv / max(int(size[0]), int(size[1]))
    return Mesh(mesh.vertices[mapping], faces, uv=uv, normals=normals[mapping])


def box_unwrap(mesh: Mesh, *, texture_size: int = 1024, padding: int = 3) -> Mesh:
    """`mesh` with uv by projection along the axis that each face looks along most, charts packed on shelves.

    A chart is a set of faces connected over edges that look the same way. Where a chart overlaps itself in projection,
    its faces are dealt out to further charts until no texel centre is covered twice.
    """
    normals = mesh.vertex_normals()
    direction = mesh.face_normals()
    axis = np.abs(direction).argmax(1)
    side = axis * 2 + (np.take_along_axis(direction, axis[:, None], 1)[:, 0] < 0)
    layer = np.zeros(len(mesh.faces), np.int64)
    for _ in range(8):
        chart = _charts(mesh, side * (layer.max() + 1) + layer)
        corners = _pack(_project(mesh, axis, side), chart, texture_size, padding)  # [f, 3, 2] in texels
        texel, face = covering_pairs(corners, texture_size, texture_size)
        deeper = _separate(texel, face, len(mesh.faces))
        if not deeper.any():
            break
        layer = layer + deeper
    key, corner = np.unique(
        np.stack([np.repeat(chart, 3), mesh.faces.reshape(-1)], axis=-1), axis=0, return_inverse=True
    )
    corner = corner.reshape(-1)
    uv = np.zeros((len(key), 2))
    uv[corner] = corners.reshape(-1, 2) / texture_size
    source = key[:, 1]
    return Mesh(mesh.vertices[source], corner.reshape(-1, 3), uv=uv, normals=normals[source])


def _project(mesh: Mesh, axis: np.ndarray, side: np.ndarray) -> Float[np.ndarray, "f 3 2"]:
    others = np.array([[1, 2], [2, 0], [0, 1]])[axis]  # [f, 2], right-handed with the axis
    flat = np.take_along_axis(mesh.vertices[mesh.faces].astype(np.float64), others[:, None, :].repeat(3, 1), axis=2)
    flat[side % 2 == 1, :, 0] *= -1  # seen from the other side, so that no chart is mirrored
    return flat


def _charts(mesh: Mesh, label: Int64[np.ndarray, " f"]) -> Int64[np.ndarray, " f"]:
    """Components of faces with the same label that share edges."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    count = len(mesh.faces)
    faces = mesh.position_index()[mesh.faces]
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    keyed = np.concatenate([edges, np.tile(label, 3)[:, None]], axis=1)
    order = np.lexsort(keyed.T)
    same = (np.diff(keyed[order], axis=0) == 0).all(1)
    owner = np.tile(np.arange(count), 3)[order]
    a, b = owner[:-1][same], owner[1:][same]
    graph = coo_matrix((np.ones(len(a), np.int8), (a, b)), shape=(count, count))
    _, chart = connected_components(graph, directed=False)
    return chart.astype(np.int64)


def _pack(
    flat: Float[np.ndarray, "f 3 2"], chart: Int64[np.ndarray, " f"], size: int, padding: int
) -> Float[np.ndarray, "f 3 2"]:
    """Charts moved and scaled alike onto shelves in a size x size square of texels."""
    charts = int(chart.max()) + 1
    low, high = np.full((charts, 2), np.inf), np.full((charts, 2), -np.inf)
    np.minimum.at(low, chart, flat.min(1))
    np.maximum.at(high, chart, flat.max(1))
    extent = high - low
    lying = extent[:, 0] < extent[:, 1]
    local = flat - low[chart][:, None]
    # Tall charts are turned by a quarter, for flatter shelves; (x, y) -> (y, width - x) is a rotation.
    turned = np.stack([local[..., 1], extent[chart, 0][:, None] - local[..., 0]], axis=-1)
    local = np.where(lying[chart][:, None, None], turned, local)
    extent = np.where(lying[:, None], extent[:, ::-1], extent)
    order = np.lexsort((np.arange(charts), -extent[:, 0], -extent[:, 1]))
    wide, tall = extent[order].T

    def shelves(scale: float) -> np.ndarray | None:
        places = np.zeros((charts, 2))
        x, y, shelf = float(padding), float(padding), 0.0
        for number, (w, h) in enumerate(zip((wide * scale).tolist(), (tall * scale).tolist(), strict=True)):
            if x + w + padding > size:
                x, y, shelf = float(padding), y + shelf + padding, 0.0
            if x + w + padding > size or y + h + padding > size:
                return None
            places[number] = x, y
            x, shelf = x + w + padding, max(shelf, h)
        return places

    # The area alone bounds the scale from above; halving until it fits bounds it from below.
    high_scale = size / max(float(np.sqrt((wide * tall).sum())), 1e-12)
    low_scale = high_scale
    while (placed := shelves(low_scale)) is None:
        low_scale /= 2
        if low_scale < 1e-9 * high_scale:
            raise ValueError(
                f"{charts} charts do not fit into {size} texels with a padding of {padding}; use a larger texture"
            )
    for _ in range(12):
        middle = (low_scale + high_scale) / 2
        attempt = shelves(middle)
        if attempt is None:
            high_scale = middle
        else:
            low_scale, placed = middle, attempt
    place = np.zeros((charts, 2))
    place[order] = placed
    return local * low_scale + place[chart][:, None]


def _separate(texel: np.ndarray, face: np.ndarray, count: int) -> Int64[np.ndarray, " f"]:
    """For every face a layer such that no two faces of one layer cover the same texel; 0 where nothing overlaps."""
    order = np.lexsort((face, texel))
    texel, face = texel[order], face[order]
    layer = np.zeros(count, np.int64)
    pairs = [np.zeros((0, 2), np.int64)]
    for lag in range(1, len(texel)):  # faces of one texel stand next to each other: neighbours, next but one, ...
        together = texel[lag:] == texel[:-lag]
        if not together.any():
            break
        pairs.append(np.unique(np.stack([face[lag:][together], face[:-lag][together]], axis=-1), axis=0))
    later: dict[int, list[int]] = {}
    for one, other in np.unique(np.concatenate(pairs), axis=0).tolist():  # other < one, so its layer is already known
        later.setdefault(one, []).append(other)
    for one, others in later.items():
        taken = {int(layer[other]) for other in others}
        layer[one] = next(number for number in range(len(taken) + 1) if number not in taken)
    return layer
