"""Objects to posed pictures: `render_objects` fills a folder; `maquette.training.packs` fills arrays for training.

An object is turned to the world frame (+z up, front +x), its bounding box centred at the origin and its bounding sphere
brought to radius 0.75; then every configured viewpoint is rendered with straight alpha. The output folder holds

    index.jsonl              one JSON object an object, sorted by id: id, file, status ("ok" or "broken"), reason,
    views,
                             and what the source's own index says (caption, category, licence, ...)
    NAME/000.png ...         RGBA; the canonical circle first, then the free views NAME/000.depth.npy       on
    request: float32 [size, size], distance along the ray through the pixel's centre, 0: nothing NAME/000.normal.png
    on request: (normal + 1) / 2 in the world frame; mid-grey: nothing NAME/transforms.json     the cameras, as
    nerfstudio reads them NAME/object.json         source and its SHA-256, what was done to normalise it, and each
    view's kind, angles and light config.json              the settings

Objects are rendered in processes of their own. One that cannot be read, crashes its process or takes too long becomes a
"broken" line in the index, and the others go on. A killed or interrupted run goes on with the same command: folders of
objects appear whole or not at all, and finished ones are kept as long as their source and the settings stay the same.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from maquette.errors import UserError
from maquette.run.files import atomic_folder, write_json, write_text
from maquette.run.fingerprints import file_sha256
from maquette.run.record import read_json
from maquette.run.settings import plain
from maquette.training.jobs import (
    SETTINGS,
    Outcome,
    RenderSummary,
    Report,
    check_effort,
    claimed,
    one_line,
    summarise,
    work_through,
)
from maquette.training.objects import INDEX, ObjectFile, find_objects
from maquette.training.viewpoints import Circle, Scatter, Viewpoints, object_generator

if TYPE_CHECKING:
    from maquette.rendering.raster import MeshRendering

RADIUS = 0.75
"""Of a normalised object's bounding sphere."""
FORMAT = 1
"""Version of the pictures and their layout; those of another version are rendered anew."""
EFFORT = ("workers", "timeout")
"""Settings that do not change the result."""

Up = Literal["auto", "y", "z"]
TextureFilter = Literal["bilinear", "nearest"]


@dataclass(frozen=True)
class RenderConfig:
    """Pictures to take of every object."""

    size: int = 256
    """Side of the pictures in pixels."""
    canonical: Circle = Circle()
    """Views evenly around the object, starting at its front, unlit."""
    free: Scatter = Scatter(lit=0.5)
    """Random views."""
    depth: bool = False
    """Write depth maps too."""
    normal: bool = False
    """Write normal maps too."""
    samples: int = 4
    """Rays a pixel side; a pixel is the mean of up to samples x samples rays."""
    texture_filter: TextureFilter = "bilinear"
    """How textures are read."""
    up: Up = "auto"
    """The axis that points up in the files; auto: y in glTF and OBJ, z in PLY and STL."""
    seed: int = 0
    """Seed of the random views; each object has its own stream."""
    workers: int = 0
    """Processes; 0: one a core."""
    timeout: float = 300.0
    """Seconds after which an object counts as broken."""

    def __post_init__(self) -> None:
        if self.canonical.num_views + self.free.num_views < 1:
            raise UserError("there is nothing to render: canonical.num_views and free.num_views are both 0.")
        check_effort(self.size, self.samples, self.workers, self.timeout)


def render_objects(
    objects: Sequence[Path],
    out: Path,
    config: RenderConfig | None = None,
    *,
    report: Report | None = None,
    overwrite: bool = False,
) -> RenderSummary:
    """Render `objects` (files and folders, see `find_objects`) into the folder `out`, whose layout is told above.

    `report(done, total, outcome)` is called after each object. Raises UserError for wrong paths and for an `out` that
    holds other settings (unless `overwrite`) or other things, RunFailed when the disk is full; broken objects are in
    the summary and in the index. Results do not depend on the number of workers, nor on being interrupted.
    """
    config = RenderConfig() if config is None else config
    began = time.monotonic()
    items = find_objects([Path(path) for path in objects])
    outcomes: list[Outcome] = []
    with claimed(Path(out), "renders", settings_of(config), overwrite, _owned) as folder:
        tasks = [(item, folder, config) for item in items]
        try:
            for outcome in work_through(
                _render, items, tasks, workers=config.workers, timeout=config.timeout, report=report
            ):
                outcomes.append(outcome)
        finally:
            _write_index(folder, outcomes, config)
    views = config.canonical.num_views + config.free.num_views
    return summarise(folder, outcomes, views, time.monotonic() - began)


def settings_of(config: Any) -> dict[str, Any]:
    """The settings of a RenderConfig or PackConfig that decide the result, as plain data."""
    return {name: value for name, value in plain(config).items() if name not in EFFORT} | {"format": FORMAT}


def photograph(
    path: Path,
    viewpoints: Viewpoints,
    *,
    size: int,
    samples: int,
    texture_filter: TextureFilter,
    up: Up,
    want: frozenset[str] = frozenset({"rgb"}),
) -> tuple[MeshRendering, dict[str, Any]]:
    """Pictures of the normalised object in `path`, and what was found there and done to normalise it.

    Raises an exception of some kind for a file that cannot be read, and ValueError if no picture shows anything.
    """
    from maquette.asset import load_mesh
    from maquette.rendering.raster import MeshRenderer

    mesh = load_mesh(path, up=None if up == "auto" else up)
    normalized = mesh.normalized(RADIUS)
    renderer = MeshRenderer(normalized, texture_filter=texture_filter)
    pictures = renderer.render(viewpoints.cameras(size), lighting=list(viewpoints.lighting), samples=samples, want=want)
    if not bool(pictures.opacity.any()):
        raise ValueError("nothing of it can be seen from any viewpoint")
    low, high = mesh.bounds.astype(np.float64)
    reach = float(np.linalg.norm(mesh.vertices.astype(np.float64) - (low + high) / 2, axis=-1).max())
    return pictures, {
        "vertices": len(mesh.vertices),
        "faces": len(mesh.faces),
        "centre": ((low + high) / 2).tolist(),
        "scale": RADIUS / reach,
    }


def _render(task: tuple[ObjectFile, Path, RenderConfig]) -> Outcome:
    """Render one object into its folder, in a worker process; what is wrong with the object becomes its outcome."""
    item, out, config = task
    folder = out / item.name
    try:
        source = file_sha256(item.path)
        known = read_json(folder / "object.json")
        if known is not None and (known.get("sha256"), known.get("format")) == (source, FORMAT):
            return Outcome(item, "reused")
        parts = {
            kind: viewpoints.draw(object_generator(config.seed, item.name, kind))
            for kind, viewpoints in (("canonical", config.canonical), ("free", config.free))
        }
        viewpoints = Viewpoints.cat(list(parts.values()))
        want = {"rgb"} | ({"depth"} if config.depth else set()) | ({"normal"} if config.normal else set())
        pictures, found = photograph(
            item.path,
            viewpoints,
            size=config.size,
            samples=config.samples,
            texture_filter=config.texture_filter,
            up=config.up,
            want=frozenset(want),
        )
    except Exception as error:  # whatever a file may hold that its reader did not expect
        shutil.rmtree(folder, ignore_errors=True)
        return Outcome(item, "broken", one_line(error))
    kinds = [kind for kind, part in parts.items() for _ in range(len(part))]
    described = {
        "id": item.name,
        "sha256": source,
        "format": FORMAT,
        **found,
        "views": list(_describe(viewpoints, kinds)),
    }
    with atomic_folder(folder) as place:
        _save(place, pictures)
        write_json(place / "object.json", described)
    return Outcome(item, "rendered")


def _save(place: Path, pictures: MeshRendering) -> None:
    from maquette.images import save_image

    pictures.views().save(place)
    for view in range(len(pictures.cameras)):
        if pictures.depth is not None:
            np.save(place / f"{view:03d}.depth.npy", pictures.depth[view, ..., 0].numpy())
        if pictures.normal is not None:
            save_image(place / f"{view:03d}.normal.png", (pictures.normal[view].movedim(-1, 0) + 1) / 2)


def _describe(viewpoints: Viewpoints, kinds: list[str]) -> Iterator[dict[str, Any]]:
    for view, kind in enumerate(kinds):
        yield {
            "file": f"{view:03d}.png",
            "kind": kind,
            "azimuth": float(viewpoints.azimuth[view]),
            "elevation": float(viewpoints.elevation[view]),
            "distance": float(viewpoints.distance[view]),
            "fovy": float(viewpoints.fovy[view]),
            "lighting": plain(viewpoints.lighting[view]),
        }


def _write_index(folder: Path, outcomes: list[Outcome], config: RenderConfig) -> None:
    """Bring index.jsonl up to date with `outcomes`; other objects' lines stay as long as their folders do."""
    path = folder / INDEX
    rows: dict[str, dict[str, Any]] = {}
    if path.exists():
        for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            if row["status"] == "broken" or (folder / row["id"]).is_dir():
                rows[row["id"]] = row
    for outcome in outcomes:
        item = outcome.item
        row = {**item.record, "id": item.name, "file": item.path.as_posix()}
        if outcome.status == "broken":
            row |= {"status": "broken", "reason": outcome.reason, "views": 0}
        else:
            row |= {"status": "ok", "views": config.canonical.num_views + config.free.num_views}
        rows[item.name] = row
    lines = [json.dumps(rows[name], ensure_ascii=False) for name in sorted(rows)]
    write_text(path, "".join(line + "\n" for line in lines))


def _owned(folder: Path) -> list[Path]:
    """What render_objects has put into a folder."""
    objects = [path.parent for path in folder.glob("*/object.json")]
    return [*objects, folder / INDEX, folder / SETTINGS]
