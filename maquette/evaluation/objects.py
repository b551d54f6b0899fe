"""The object benchmark: show a method one picture of a known object, and measure what it makes of it.

`evaluate_objects` is for methods that answer with an asset, `evaluate_views` for those that answer with pictures;
both take the method as a function and know nothing else of it. All that the function gets is a `Prompt` (the picture
with its mask; no caption, no elevation) and a folder of its own to work in. Everything is kept beside the JSON file,
one folder an object, so that anybody can recompute and a second call goes on where the first one ended: for
`metrics.json`,

    metrics/config.json                      the protocol and the method's settings; another set is refused
    metrics/<id>/prompt.png                  what the method saw
    metrics/<id>/asset.glb, views/           its answer, and its pictures at the protocol's cameras
    metrics/<id>/run/                        the method's own folder
    metrics/<id>/figures.json                what was measured
    metrics/<id>/<baseline>/...              the same of each baseline
    metrics.png                              all objects from two sides, truth beside result
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from maquette import __version__
from maquette.asset import Asset, Mesh, load_mesh
from maquette.cameras import Cameras
from maquette.errors import RunFailed, UserError
from maquette.evaluation.baselines import NearestObjects, billboard, copy_views, lathe, read_index
from maquette.evaluation.encoders import ImageEncoder
from maquette.evaluation.object_record import ObjectRecord, Record
from maquette.evaluation.quality import bootstrap_interval, image_score
from maquette.evaluation.truth import Protocol, Truth
from maquette.images import ImagePrompt, Prompt, Views, save_image, sheet
from maquette.rendering.lighting import studio
from maquette.rendering.raster import render_mesh
from maquette.run.files import write_json

Answer = TypeVar("Answer", Asset, Views)
TWELVE = (
    "kenney_space__satellitedish", "kaykit_restaurant__fridge_a", "quat_easy_enemies__spider",
    "quat_house_interior__bookshelf", "quat_animals__horse", "kaykit_halloween__coffin_decorated",
    "kaykit_furniture__armchair_pillows", "quat_cyberpunk__turret_cannon", "aws_house__chaird_01",
    "quat_survival__phone", "quat_cute_fish__anglerfish", "aws_house__chaira_01",
)  # fmt: skip
"""The objects of the committed tables, by name, whatever else a data pack holds; its first three are run at full
quality."""
BACKDROP = torch.tensor([0.8, 0.83, 0.87])
"""Behind the pictures of the sheet, which are for people: white would hide white objects."""
MEASURES = 3
"""Raised when figures are made in another way or new ones are added."""


@dataclass(frozen=True)
class ObjectBenchmark:
    """Which objects, and how they are shown and measured."""

    protocol: Protocol = field(default_factory=Protocol)
    """Cameras, sizes, counts."""
    limit: int | None = None
    """Take the first so many objects with a canonical front, in an order shuffled by `seed`; None takes all of them."""
    ids: tuple[str, ...] = ()
    """Take exactly these objects, in this order, instead; "twelve" stands for `TWELVE`."""
    seed: int = 0
    """Order of the objects, points on the surfaces, resampling of the intervals."""

    def __post_init__(self) -> None:
        if self.ids == ("twelve",):
            object.__setattr__(self, "ids", TWELVE)
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1, got {self.limit}; leave it out to take every object")
        if len(set(self.ids)) < len(self.ids):
            raise ValueError("ids names an object twice; name each once")


def choose_objects(folder: str | Path, config: ObjectBenchmark) -> list[dict[str, Any]]:
    """The rows of `folder/index.jsonl` that a benchmark takes, in its order; UserError if one is unknown."""
    rows = read_index(folder)
    if config.ids:
        by_id = {row["id"]: row for row in rows}
        unknown = [id for id in config.ids if id not in by_id]
        if unknown:
            raise UserError(f"{folder} has no object {unknown[0]!r}; its index.jsonl lists {len(rows)} others")
        return [by_id[id] for id in config.ids]
    rows = sorted((row for row in rows if row.get("has_canonical_front") is True), key=lambda row: row["id"])
    if not rows:
        raise UserError(f"{folder} has no object with has_canonical_front in its index.jsonl")
    # `random` rather than NumPy: its shuffle of a seed is the same in every version of Python.
    random.Random(config.seed).shuffle(rows)
    return rows[: config.limit]


def evaluate_objects(
    folder: str | Path,
    reconstruct: Callable[[Prompt, Path], Asset],
    config: ObjectBenchmark = ObjectBenchmark(),
    *,
    out: str | Path = "metrics.json",
    train: str | Path | None = None,
    baselines: bool = True,
    encoders: Sequence[ImageEncoder] = (),
    method: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure a method that makes assets; returns what it also writes to `out`.

    `reconstruct(prompt, folder)` answers in the scene's frame. Unless `baselines` is off, the billboard, the lathe and,
    where `train` names a folder of training objects, the nearest of them are measured beside it. `encoders` add
    `<name>_image`, the likeness of the pictures to the prompt. `method` holds the method's name and settings: results
    of other settings in the same place are refused (UserError), or deleted with `overwrite`. An object for which the
    method raises is listed under `failures`, left out of the means, and tried again by the next call; RunFailed if
    there is no other. `say` gets a line per object.
    """
    protocol = config.protocol
    others: dict[str | None, Callable[[Prompt, Path], Asset]] = {
        "billboard": lambda prompt, _: Asset(billboard(_image(prompt), protocol)),
        "lathe": lambda prompt, _: Asset(lathe(_image(prompt), protocol)),
    }
    nearest = _nearest(train, protocol, Path(out), say) if baselines else None
    if nearest is not None:
        others["nearest"] = lambda prompt, _: nearest.reconstruct(_image(prompt))

    def keep(record: ObjectRecord, asset: Asset) -> None:
        asset.save(record.folder / "asset.glb")

    def measure(record: ObjectRecord, truth: Truth) -> dict[str, Any]:
        mesh = load_mesh(record.folder / "asset.glb")
        views = truth.render(mesh)
        if record.baseline is None:
            views.save(record.folder / "views")
        save_image(record.folder / "sides.png", _three_sides(truth, mesh))
        return {**truth.score(mesh, views), **_likeness(encoders, truth, views)}

    kind = _Kind("assets", keep, measure, [encoder.name for encoder in encoders])
    return _evaluate(folder, config, Path(out), kind, method, overwrite, say, reconstruct, others if baselines else {})


def evaluate_views(
    folder: str | Path,
    sample: Callable[[Prompt, Path], Views],
    config: ObjectBenchmark = ObjectBenchmark(),
    *,
    out: str | Path = "metrics.json",
    train: str | Path | None = None,
    baselines: bool = True,
    encoders: Sequence[ImageEncoder] = (),
    method: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure a method that answers with posed pictures; like `evaluate_objects`, without figures of shape.

    Pictures are compared with renders of the object at the answer's own cameras; one with the prompt's camera is left
    out of the means. Every entry of `objects` has its `views` one by one, and `by_view` holds their means. Baselines
    are the prompt copied to all views and, with `train`, the nearest training object, both at the cameras of the
    method's answer.
    """
    nearest = _nearest(train, config.protocol, Path(out), say) if baselines else None

    def cameras(baseline: Path) -> Cameras:
        # The method has answered before: its own pictures say from where the baselines have to look.
        return Views.load(baseline.parent.parent / "views").cameras

    others: dict[str | None, Callable[[Prompt, Path], Views]] = {
        "copy": lambda prompt, run: copy_views(_image(prompt), cameras(run))
    }
    if nearest is not None:
        others["nearest"] = lambda prompt, run: nearest.views(_image(prompt), cameras(run))

    def keep(record: ObjectRecord, views: Views) -> None:
        views.save(record.folder / "views")

    def measure(record: ObjectRecord, truth: Truth) -> dict[str, Any]:
        views = Views.load(record.folder / "views")
        figures, single = truth.score_views(views)
        save_image(record.folder / "sides.png", _beside(truth, views))
        unseen = torch.nonzero(~config.protocol.is_prompt_view(views.cameras))[:, 0]
        return {**figures, **_likeness(encoders, truth, views[unseen]), "views": single}

    kind = _Kind("views", keep, measure, [encoder.name for encoder in encoders])
    return _evaluate(folder, config, Path(out), kind, method, overwrite, say, sample, others if baselines else {})


@dataclass(frozen=True)
class _Kind(Generic[Answer]):
    """What distinguishes answers that are assets from answers that are views."""

    name: str
    keep: Callable[[ObjectRecord, Answer], None]
    """Write an answer to its folder."""
    measure: Callable[[ObjectRecord, Truth], dict[str, Any]]
    """Figures of what was written: anybody who has the folder finds the same."""
    encoders: list[str]

    @property
    def measured_by(self) -> list[Any]:
        """Stands in every file of figures; where it differs, a kept answer is measured again, not made again."""
        return [MEASURES, *self.encoders]


def _evaluate(
    folder: str | Path,
    config: ObjectBenchmark,
    out: Path,
    kind: _Kind[Answer],
    method: Mapping[str, Any] | None,
    overwrite: bool,
    say: Callable[[str], None],
    make: Callable[[Prompt, Path], Answer],
    baselines: Mapping[str | None, Callable[[Prompt, Path], Answer]],
) -> dict[str, Any]:
    """The loop over objects, resumable after every answer."""
    rows = choose_objects(folder, config)
    settings = {"kind": kind.name, "protocol": config.protocol, "seed": config.seed, "method": dict(method or {})}
    failures: dict[str, str] = {}
    with Record.open(out, settings, overwrite=overwrite) as record:
        for done, row in enumerate(rows):
            truth: Truth | None = None
            # The method first, always: what it leaves decides nothing for the baselines but, for views, their cameras.
            answers: dict[str | None, Callable[[Prompt, Path], Answer]] = {None: make, **baselines}
            for name, function in answers.items():
                one = record.object(row["id"], name)
                figures = one.figures
                if figures is not None and figures["measured_by"] == kind.measured_by:
                    continue
                if truth is None:
                    truth = Truth.read(Path(folder) / row["file"], config.protocol, config.seed, row["id"])
                    save_image(one.object_folder / "prompt.png", truth.prompt.rgba())
                try:
                    seconds = _made(one, truth, function, kind) if figures is None else figures["seconds"]
                    one.finish({**kind.measure(one, truth), "seconds": seconds, "measured_by": kind.measured_by})
                except Exception as error:
                    if name is not None:
                        raise
                    failures[row["id"]] = f"{type(error).__name__}: {error}"
                    break
            shown = failures.get(row["id"]) or _line(record.read(row["id"], None))
            say(f"{done + 1}/{len(rows)} {row['id']}: {shown}")
        ids = [row["id"] for row in rows if row["id"] not in failures]
        if not ids:
            raise RunFailed(f"the method failed on every object; the first: {rows[0]['id']}: {failures[rows[0]['id']]}")
        report = {
            "objects": [{"id": id, **record.read(id, None)} for id in ids],
            **_summary([record.read(id, None) for id in ids], config.seed),
            "baselines": {
                name: {
                    **(summary := _summary([record.read(id, name) for id in ids], config.seed))["mean"],
                    **summary,
                    "objects": [{"id": id, **record.read(id, name)} for id in ids],
                }
                for name in baselines
            },
            "failures": [{"id": id, "error": error} for id, error in failures.items()],
            **record.settings,
            "encoders": kind.encoders,
            "version": __version__,
        }
        write_json(out, report)
        record.write_sheet(ids)
    return report


def _summary(figures: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Any]:
    """`mean` over objects, its 95 % bootstrap `interval`, and, where there are single views, their means `by_view`."""
    names = [name for name, value in figures[0].items() if isinstance(value, float)]
    columns = {name: torch.tensor([row[name] for row in figures], dtype=torch.float64) for name in names}
    summary: dict[str, Any] = {
        "mean": {name: float(column.mean()) for name, column in columns.items()},
        "interval": {name: list(bootstrap_interval(column, seed)) for name, column in columns.items()},
    }
    if "views" in figures[0]:
        count = min(len(row["views"]) for row in figures)
        summary["by_view"] = [
            {name: float(np.mean([row["views"][k][name] for row in figures])) for name in figures[0]["views"][k]}
            for k in range(count)
        ]
    return summary


def _nearest(
    train: str | Path | None, protocol: Protocol, out: Path, say: Callable[[str], None]
) -> NearestObjects | None:
    if train is None:
        return None

    def report(done: int, total: int) -> None:
        if done % 200 == 0:
            say(f"looking at the training objects, {done}/{total}")

    return NearestObjects.of(train, protocol, cache=out.parent, report=report)


def _made(record: ObjectRecord, truth: Truth, make: Callable[[Prompt, Path], Answer], kind: _Kind[Answer]) -> float:
    """Let `make` answer, keep the answer; seconds that it took."""
    began = time.perf_counter()
    answer = make(Prompt(truth.prompt), record.run)
    seconds = time.perf_counter() - began
    kind.keep(record, answer)
    return seconds


def _image(prompt: Prompt) -> ImagePrompt:
    assert prompt.image is not None
    return prompt.image


def _line(figures: Mapping[str, Any]) -> str:
    """The figures worth a glance, in one line."""
    names = ("psnr", "silhouette_iou", "perceptual", "chamfer", "volume_iou", "seconds")
    return "  ".join(f"{name} {figures[name]:.3g}" for name in names if name in figures)


def _likeness(encoders: Sequence[ImageEncoder], truth: Truth, views: Views) -> dict[str, float]:
    """`<encoder>_image`: 100 cos between each view and the prompt, both on white, mean over views."""
    white = torch.ones(3)
    figures = {}
    for encoder in encoders:
        image = encoder.embed_images(views.composite(white))
        prompt = encoder.embed_images(truth.prompt.composite(white)[None])
        figures[f"{encoder.name}_image"] = float(image_score(image[:, None], prompt).mean())
    return figures


def _three_sides(truth: Truth, mesh: Mesh) -> torch.Tensor:
    """Prompt; then from its own side, from beside it and from behind: truth, result. [3, H, W], lit, so that plain
    objects show."""
    size, circle = truth.protocol.view_size, truth.protocol.circle
    cameras = Cameras.cat([circle(1, truth.protocol.elevation, size), circle(2, 15.0, size, azimuth=30.0)])
    seen = [
        render_mesh(mesh, cameras, samples=3, lighting=studio(30.0)).views().composite(BACKDROP)
        for mesh in (truth.mesh, truth.aligned(mesh))
    ]
    prompt = truth.prompt.resized(size).composite(BACKDROP)
    return sheet(torch.stack([prompt, *(views[side] for side in range(3) for views in seen)]))


def _beside(truth: Truth, views: Views) -> torch.Tensor:
    """The prompt, the generated views, and below them the object's own. [3, H, W]."""
    own = render_mesh(truth.mesh, views.cameras, samples=3).views().composite(BACKDROP)
    prompt = truth.prompt.resized(views.cameras.height, views.cameras.width).composite(BACKDROP)
    rows = torch.cat([prompt[None], views.composite(BACKDROP), torch.ones_like(prompt)[None], own])
    return sheet(rows, columns=1 + len(views))
