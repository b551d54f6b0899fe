"""Renders packed into arrays, from which training runs on a machine that has neither the objects nor a renderer.

A packed folder holds, for N objects in the row order of meta.jsonl, pictures of S x S pixels:

    canonical.npy       uint8 [N, A, S, S, 4]   unlit, azimuth 0, 360/A, ..., one elevation
    ring.npy            uint8 [N, A, S, S, 4]   unlit, evenly spaced too, at an elevation and azimuth of each object
    prompt.npy          uint8 [N, P, S, S, 4]   random cameras, most before the object's front; every other one lit
    free.npy            uint8 [N, F, S, S, 4]   random cameras all around, unlit
    *_poses.npy         float32 [N, *, 8]       of each of them: azimuth, elevation (degrees), distance (units), fovy
                                                (degrees), lit (0 or 1), direction to the first light (0 if unlit)
    meta.jsonl          id, caption, category, family, has_canonical_front, kind, licence, ... of each row
    pack.json           every object that was asked for with its SHA-256, and why broken ones have no row
    config.json         the settings

Pictures are RGBA with straight alpha: pixels that see nothing repeat the nearest colour of the object. The arrays can
be memory-mapped (`numpy.load(..., mmap_mode="r")`).

Each object is first rendered to a file of its own in the hidden folder `.rows`, so that a killed run goes on where it
was; the arrays are assembled from these, and pack.json is written last.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maquette.errors import RunFailed, UserError
from maquette.run.files import atomic_path, write_json, write_text
from maquette.run.fingerprints import file_sha256
from maquette.run.record import read_json
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
from maquette.training.objects import ObjectFile, find_objects
from maquette.training.renders import TextureFilter, Up, photograph, settings_of
from maquette.training.viewpoints import Circle, Scatter, Viewpoints, object_generator

SETS = ("canonical", "ring", "prompt", "free")
META = "meta.jsonl"
PACK = "pack.json"
ROWS = ".rows"
UNKNOWN = {"caption": "", "category": "", "family": None, "has_canonical_front": False, "kind": "", "licence": ""}
"""What meta.jsonl says of an object whose source has no index; each is a family of its own."""

PROMPTS = (
    Scatter(
        5, azimuth=(-90.0, 90.0), elevation=((-5.0, 15.0), (15.0, 60.0)), fovy=(25.0, 55.0), fill=(0.7, 0.95), lit=0.5
    ),
    Scatter(3, elevation=((-5.0, 15.0), (15.0, 60.0)), fovy=(25.0, 55.0), fill=(0.7, 0.95), lit=0.5),
)


@dataclass(frozen=True)
class PackConfig:
    """Pictures to pack of every object."""

    size: int = 64
    """Side of the pictures in pixels."""
    canonical: Circle = Circle()
    """The views that a multi-view prior learns to make."""
    ring: Circle = Circle(elevation=((0.0, 15.0), (-10.0, 40.0)), azimuth=(0.0, 45.0))
    """As many views on another circle, which differs from object to object."""
    prompt: tuple[Scatter, ...] = PROMPTS
    """Pictures such as people bring, with their own cameras and lights."""
    free: Scatter = Scatter()
    """Views for priors of single pictures."""
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
        if min(views.num_views for views in (self.canonical, self.ring, self.free)) < 1 or not self.prompt:
            raise UserError("a pack has at least one view in each of its sets.")
        check_effort(self.size, self.samples, self.workers, self.timeout)

    def draw(self, name: str) -> dict[str, Viewpoints]:
        """The views of the object `name`, by set."""
        return {
            "canonical": self.canonical.draw(object_generator(self.seed, name, "canonical")),
            "ring": self.ring.draw(object_generator(self.seed, name, "ring")),
            "prompt": Viewpoints.cat(
                [part.draw(object_generator(self.seed, name, f"prompt {k}")) for k, part in enumerate(self.prompt)]
            ),
            "free": self.free.draw(object_generator(self.seed, name, "free")),
        }

    @property
    def num_views(self) -> int:
        """Pictures of an object."""
        scattered = sum(part.num_views for part in self.prompt) + self.free.num_views
        return self.canonical.num_views + self.ring.num_views + scattered


def pack_objects(
    objects: Sequence[Path],
    out: Path,
    config: PackConfig | None = None,
    *,
    report: Report | None = None,
    overwrite: bool = False,
) -> RenderSummary:
    """Render `objects` (files and folders, see `find_objects`) into the packed folder `out`, whose layout is told
    above.

    Arguments, errors and resumption as of `render_objects`. Raises UserError if `out` holds a finished pack of other
    objects, RunFailed if every object is broken.
    """
    config = PackConfig() if config is None else config
    began = time.monotonic()
    items = find_objects([Path(path) for path in objects])
    with claimed(Path(out), "a pack", settings_of(config), overwrite, _owned) as folder:
        finished = read_json(folder / PACK)
        if finished is not None:
            return _finished(folder, finished, items, began)
        (folder / ROWS).mkdir(exist_ok=True)
        outcomes = list(
            work_through(
                _render,
                items,
                [(item, folder, config) for item in items],
                workers=config.workers,
                timeout=config.timeout,
                report=report,
            )
        )
        _assemble(folder, items, {outcome.item.name: outcome for outcome in outcomes})
    return summarise(folder, outcomes, config.num_views, time.monotonic() - began)


def _render(task: tuple[ObjectFile, Path, PackConfig]) -> Outcome:
    """Render one object into its file of rows, in a worker process; what is wrong with it becomes its outcome."""
    item, out, config = task
    path = _rows_path(out, item)
    try:
        source = file_sha256(item.path)
        if path.exists():
            with np.load(path) as rows:
                if str(rows["source"]) == source:
                    return Outcome(item, "reused")
        sets = config.draw(item.name)
        pictures, _ = photograph(
            item.path,
            Viewpoints.cat(list(sets.values())),
            size=config.size,
            samples=config.samples,
            texture_filter=config.texture_filter,
            up=config.up,
        )
    except Exception as error:  # whatever a file may hold that its reader did not expect
        path.unlink(missing_ok=True)
        return Outcome(item, "broken", one_line(error))
    rgba = np.rint(pictures.rgba.numpy() * 255).astype(np.uint8)
    arrays: dict[str, Any] = {"source": np.array(source)}
    start = 0
    for name, viewpoints in sets.items():
        arrays[name] = rgba[start : start + len(viewpoints)]
        arrays[f"{name}_poses"] = viewpoints.poses()
        start += len(viewpoints)
    with atomic_path(path) as temporary:
        np.savez(temporary, **arrays)
    return Outcome(item, "rendered")


def _assemble(folder: Path, items: list[ObjectFile], outcomes: dict[str, Outcome]) -> None:
    """Make the arrays of a pack from the files of rows, and remove those."""
    good = [item for item in items if outcomes[item.name].status != "broken"]
    if not good:
        reason = next(iter(outcomes.values())).reason
        raise RunFailed(f"None of the {len(items)} objects could be rendered; the first: {reason}")
    sources: dict[str, str] = {}
    for name in [file for kind in SETS for file in (kind, f"{kind}_poses")]:
        with atomic_path(folder / f"{name}.npy") as temporary:
            packed: np.memmap | None = None
            for row, item in enumerate(good):
                with np.load(_rows_path(folder, item)) as rows:
                    values = rows[name]
                    sources[item.name] = str(rows["source"])
                if packed is None:
                    packed = np.lib.format.open_memmap(
                        temporary, mode="w+", dtype=values.dtype, shape=(len(good), *values.shape)
                    )
                packed[row] = values
            assert packed is not None
            packed.flush()
            del packed
    meta = [
        json.dumps(UNKNOWN | {"family": item.name} | item.record | {"id": item.name}, ensure_ascii=False)
        for item in good
    ]
    write_text(folder / META, "".join(line + "\n" for line in meta))
    listed = [
        {"id": item.name, "sha256": sources.get(item.name), "reason": outcomes[item.name].reason} for item in items
    ]
    write_json(folder / PACK, {"rows": len(good), "objects": listed})
    shutil.rmtree(folder / ROWS)


def _finished(folder: Path, pack: dict[str, Any], items: list[ObjectFile], began: float) -> RenderSummary:
    """The summary of a pack that is there already; UserError if it is one of other objects."""
    listed = {entry["id"]: entry for entry in pack["objects"]}
    same = list(listed) == [item.name for item in items] and all(
        listed[item.name]["sha256"] in (None, file_sha256(item.path)) for item in items if item.path.exists()
    )
    if not same:
        raise UserError(
            f"{folder} holds a finished pack of other objects; choose another --out, or replace it with --overwrite."
        )
    outcomes = [
        Outcome(item, "broken" if listed[item.name]["sha256"] is None else "reused", listed[item.name]["reason"])
        for item in items
    ]
    shutil.rmtree(folder / ROWS, ignore_errors=True)
    return summarise(folder, outcomes, 0, time.monotonic() - began)


def _rows_path(folder: Path, item: ObjectFile) -> Path:
    return folder / ROWS / f"{item.name}.npz"


def _owned(folder: Path) -> list[Path]:
    """What pack_objects has put into a folder."""
    arrays = [folder / f"{name}{ending}.npy" for name in SETS for ending in ("", "_poses")]
    return [path for path in (*arrays, folder / META, folder / PACK, folder / ROWS, folder / SETTINGS) if path.exists()]
