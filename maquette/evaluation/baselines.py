"""What a sceptic would try first: answers to the object benchmark that need no prior.

`billboard` stands the prompt up as a card; `lathe` makes every row of the silhouette a round slice; `NearestObjects`
returns the training object whose picture is most like the prompt; `copy_views` says that all views look like the
prompt. Each sees the prompt and the protocol's camera (field of view and distance), nothing else: the elevation is
unknown to them and taken as 0.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from maquette.asset import Asset, Mesh, load_mesh
from maquette.cameras import Cameras
from maquette.evaluation.truth import Protocol
from maquette.images import ImagePrompt, Views
from maquette.rendering.raster import render_mesh
from maquette.run.files import atomic_path

CARD_SIZE = 96
"""Pixels a side at which the card and the lathe read the prompt: two triangles a pixel stay below 20 000 faces."""
FEATURE_SIZE = 32
"""Pixels a side of the pictures that are compared to find the nearest object."""
SEGMENTS = 48
"""Corners of a slice of the lathe."""


def billboard(prompt: ImagePrompt, protocol: Protocol) -> Mesh:
    """The prompt as a flat card through the origin that faces azimuth 0, cut along its mask, coloured per pixel."""
    small = prompt.resized(CARD_SIZE)
    inside = _inside(small)
    rows, columns = np.nonzero(inside)
    y, z = _grid(protocol)
    corners = ((0, 0), (1, 0), (1, 1), (0, 1))  # (row, column) offsets, counter-clockwise seen from +x
    vertices = np.stack(
        [np.stack([np.zeros(len(rows)), y[columns + right], z[rows + down]], axis=1) for down, right in corners], axis=1
    )
    quad = np.arange(len(rows))[:, None] * 4
    faces = np.concatenate([quad + [0, 1, 2], quad + [0, 2, 3]])
    colors = small.image.permute(1, 2, 0).numpy()[rows, columns]
    return Mesh(vertices.reshape(-1, 3), faces, vertex_colors=np.repeat(colors, 4, axis=0))


def lathe(prompt: ImagePrompt, protocol: Protocol) -> Mesh:
    """The silhouette revolved: each row becomes a disc as wide as the mask there and centred on it; closed at both
    ends.

    Seen from the front it has the prompt's outline (rows with gaps are filled). Colours are the prompt's, projected
    through the solid from the front, so that the back repeats the front.
    """
    small = prompt.resized(CARD_SIZE)
    inside = _inside(small)
    rows = np.nonzero(inside.any(axis=1))[0]
    rows = np.arange(rows[0], rows[-1] + 1)
    y, z = _grid(protocol)
    left = np.array([np.nonzero(inside[row])[0].min() if inside[row].any() else -1 for row in rows])
    right = np.array([np.nonzero(inside[row])[0].max() + 1 if inside[row].any() else -1 for row in rows])
    present = left >= 0
    # Rows between two parts of the object carry on what lies around them, or the solid would fall apart.
    start, end = (np.interp(rows, rows[present], y[edge[present]]) for edge in (left, right))
    # Slices have height: each row gives the ring at its top and at its bottom.
    heights = np.stack([z[rows], z[rows + 1]], axis=1).reshape(-1)
    centre, half = np.repeat((start + end) / 2, 2), np.repeat((end - start) / 2, 2)
    # In perspective a round slice looks wider than it is: its outline is where lines of sight touch it.
    radius = half / np.sqrt(1 + (half / protocol.distance) ** 2)

    angle = 2 * np.pi * np.arange(SEGMENTS) / SEGMENTS
    ring_x, ring_y = radius[:, None] * np.cos(angle), centre[:, None] + radius[:, None] * np.sin(angle)
    ring_z = np.broadcast_to(heights[:, None], ring_x.shape)
    caps = np.array([[0, centre[0], heights[0]], [0, centre[-1], heights[-1]]])
    vertices = np.concatenate([np.stack([ring_x, ring_y, ring_z], axis=-1).reshape(-1, 3), caps])
    faces = _lathe_faces(len(heights))
    return Mesh(vertices, faces, vertex_colors=_project(small, inside, vertices, rows, protocol))


def _lathe_faces(rings: int) -> np.ndarray:
    """Triangles between consecutive rings (from the top down) and fans over both ends, outward winding."""
    a = (np.arange(rings - 1)[:, None] * SEGMENTS + np.arange(SEGMENTS)).reshape(-1)
    b = (np.arange(rings - 1)[:, None] * SEGMENTS + (np.arange(SEGMENTS) + 1) % SEGMENTS).reshape(-1)
    sides = np.concatenate([np.stack([a, a + SEGMENTS, b], axis=1), np.stack([b, a + SEGMENTS, b + SEGMENTS], axis=1)])
    around, after = np.arange(SEGMENTS), (np.arange(SEGMENTS) + 1) % SEGMENTS
    top, bottom, last = rings * SEGMENTS, rings * SEGMENTS + 1, (rings - 1) * SEGMENTS
    upper = np.stack([np.full(SEGMENTS, top), around, after], axis=1)
    lower = np.stack([np.full(SEGMENTS, bottom), last + after, last + around], axis=1)
    return np.concatenate([sides, upper, lower])


def _project(
    small: ImagePrompt, inside: Bool[np.ndarray, "h w"], vertices: np.ndarray, rows: np.ndarray, protocol: Protocol
) -> Float[np.ndarray, "v 3"]:
    """The prompt's colour at each vertex's (y, z), from the nearest pixel of the object."""
    from scipy.ndimage import distance_transform_edt

    side = 2 * _half_height(protocol)
    column = np.clip((vertices[:, 1] / side + 0.5) * CARD_SIZE, 0, CARD_SIZE - 1).astype(int)
    row = np.empty(len(vertices), int)
    row[:-2] = np.repeat(rows, 2 * SEGMENTS)
    row[-2:] = rows[0], rows[-1]
    nearest = distance_transform_edt(~inside, return_distances=False, return_indices=True)
    return small.image.permute(1, 2, 0).numpy()[nearest[0][row, column], nearest[1][row, column]]


def _half_height(protocol: Protocol) -> float:
    """Half of the prompt's height at the plane through the origin, scene units."""
    return protocol.distance * float(np.tan(np.deg2rad(protocol.fovy) / 2))


def _grid(protocol: Protocol) -> tuple[np.ndarray, np.ndarray]:
    """World y of the pixel columns' edges and z of the rows' edges, seen from azimuth 0 (image right is +y)."""
    edges = (np.arange(CARD_SIZE + 1) / CARD_SIZE - 0.5) * 2 * _half_height(protocol)
    return edges, -edges


def _inside(prompt: ImagePrompt) -> Bool[np.ndarray, "h w"]:
    inside = (prompt.mask[0] > 0.5).numpy()
    if not inside.any():
        raise ValueError("the prompt's mask is empty; there is nothing to stand up or to turn")
    return inside


def copy_views(prompt: ImagePrompt, cameras: Cameras) -> Views:
    """The prompt itself as every view."""
    small = prompt.resized(cameras.height, cameras.width)
    count = len(cameras)
    return Views(small.image.expand(count, -1, -1, -1), small.mask.expand(count, -1, -1, -1), cameras)


@dataclass(frozen=True)
class NearestObjects:
    """Training objects with a small picture of each, taken as prompts are, to be found again by a prompt.

    Pictures are compared as premultiplied colours and masks at 32 px, Euclidean distance: no network that has seen
    the objects.
    """

    files: tuple[Path, ...]
    features: Float[np.ndarray, "n d"]
    skipped: tuple[str, ...]
    """Files that could not be read."""

    @classmethod
    def of(
        cls,
        folder: str | Path,
        protocol: Protocol,
        *,
        cache: Path | None = None,
        report: Callable[[int, int], None] = lambda done, total: None,
    ) -> NearestObjects:
        """Look at every object in `folder/index.jsonl` (about 50 ms each), or read what `cache` (a folder) remembers
        of it.

        `report(done, total)` is called as it goes. ValueError if no object can be read.
        """
        folder = Path(folder)
        rows = read_index(folder)
        names = [row["file"] for row in rows]
        camera = protocol.circle(1, protocol.elevation, 2 * FEATURE_SIZE)
        key = hashlib.sha256(
            json.dumps(
                [names, [(folder / name).stat().st_size for name in names], camera.c2w.tolist(), protocol.fovy]
            ).encode()
        ).hexdigest()[:16]
        stored = None if cache is None else cache / f"nearest-{key}.npz"
        if stored is not None and stored.exists():
            with np.load(stored) as data:
                return cls(
                    tuple(folder / str(name) for name in data["files"]),
                    data["features"],
                    tuple(data["skipped"].tolist()),
                )
        kept, features, skipped = [], [], []
        for done, name in enumerate(names):
            report(done, len(names))
            try:
                mesh = load_mesh(folder / name).normalized()
            except ValueError:
                skipped.append(name)
                continue
            view = render_mesh(mesh, camera, samples=2).views()
            assert view.masks is not None
            kept.append(name)
            features.append(_feature(ImagePrompt(view.images[0], view.masks[0])))
        if not kept:
            raise ValueError(f"none of the {len(names)} objects in {folder} can be read")
        found = cls(tuple(folder / name for name in kept), np.stack(features), tuple(skipped))
        if stored is not None:
            with atomic_path(stored) as temporary:
                np.savez(temporary, files=np.array(kept), features=found.features, skipped=np.array(skipped, dtype=str))
        return found

    def nearest(self, prompt: ImagePrompt) -> Path:
        """The file of the object most like the prompt."""
        distance = np.square(self.features - _feature(prompt)).sum(axis=1)
        return self.files[int(distance.argmin())]

    def reconstruct(self, prompt: ImagePrompt) -> Asset:
        """That object, in the scene's frame."""
        return Asset(load_mesh(self.nearest(prompt)).normalized())

    def views(self, prompt: ImagePrompt, cameras: Cameras, samples: int = 3) -> Views:
        """Pictures of that object."""
        return render_mesh(self.reconstruct(prompt).mesh, cameras, samples=samples).views()


def _feature(prompt: ImagePrompt) -> Float[np.ndarray, " d"]:
    premultiplied: Tensor = torch.cat([prompt.image * prompt.mask, prompt.mask])[None]
    small = torch.nn.functional.interpolate(premultiplied, (FEATURE_SIZE, FEATURE_SIZE), mode="area")
    return small.flatten().numpy().astype(np.float32)


def read_index(folder: str | Path) -> list[dict]:
    """The rows of `folder/index.jsonl`, each with text `id` and `file`; ValueError names what is missing."""
    path = Path(folder) / "index.jsonl"
    if not path.exists():
        raise ValueError(
            f"{folder} has no index.jsonl; expected a folder of .glb files with one JSON object a line in it"
        )
    return read_jsonl(path, ("id", "file"))


def read_jsonl(path: Path, texts: Sequence[str]) -> list[dict]:
    """JSON objects, one a line, that have text under each name in `texts`; ValueError names the line that has not."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not JSON ({error})") from None
        if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in texts):
            raise ValueError(f"{path}, line {number} needs text entries {' and '.join(map(repr, texts))}")
        rows.append(row)
    return rows
