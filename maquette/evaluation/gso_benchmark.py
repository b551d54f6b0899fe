"""A table in the protocol of `gso`: run a method on view 0 of each scan, or take meshes that are there, and measure.

Everything is kept beside the JSON file as the object benchmark keeps its own (see `objects`): one folder an object with
`prompt.png`, `asset.glb`, `sides.png` and `figures.json`; a second call goes on where the first one ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maquette import __version__
from maquette.asset import Asset, Mesh
from maquette.errors import RunFailed, UserError
from maquette.evaluation.gso import (
    ROTATIONS,
    GsoProtocol,
    Likeness,
    Placement,
    Scan,
    find_shape,
    look,
    read_upright,
)
from maquette.evaluation.object_record import ObjectRecord, Record
from maquette.evaluation.quality import bootstrap_interval
from maquette.images import CameraEstimate, Prompt, save_image, sheet
from maquette.run import file_sha256
from maquette.run.files import write_json

MEASURES = 1
"""Raised when figures are made in another way or new ones are added."""


@dataclass(frozen=True)
class GsoBenchmark:
    """Which objects, and how results are placed."""

    protocol: GsoProtocol = GsoProtocol()
    """Cameras, sizes, counts."""
    objects: tuple[str, ...] = ()
    """Only these, in this order; without, all thirty."""
    placement: Placement = "as-is"
    """Where results are compared: "as-is" in the frame of the renders, as the scripts do, or moved and scaled to the
    bounding box of the scan, for methods with a frame of their own."""
    told: bool = False
    """Tell the method the elevation of view 0, as released methods of fixed cameras are told it; otherwise it guesses.
    Its azimuth is never told, but that view faces +x, so that only methods whose front is the input's may be told."""
    seed: int = 0
    """Of the intervals."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.objects if name not in ROTATIONS]
        if unknown:
            raise UserError(f"the protocol has no object {unknown[0]!r}; it has {', '.join(ROTATIONS)}")
        if len(set(self.objects)) < len(self.objects):
            raise UserError("objects names one twice; name each once")

    @property
    def names(self) -> tuple[str, ...]:
        """The objects that are measured."""
        return self.objects or tuple(ROTATIONS)


def evaluate_gso(
    folder: str | Path,
    config: GsoBenchmark = GsoBenchmark(),
    *,
    reconstruct: Callable[[Prompt, Path], Asset] | None = None,
    results: str | Path | None = None,
    renders: str | Path | None = None,
    lpips: Likeness | None = None,
    out: str | Path = "gso.json",
    method: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure a method that makes assets, or the meshes in the folder `results`; returns what it also writes to `out`.

    `folder` holds the scans (see `find_shape`), `renders` a folder of published pictures for each object. All objects
    must be there before anything is measured (UserError naming the first that is not). A result that is missing, or
    that the method or the measurement fails on, is listed under `failures` and left out of the means, and tried again
    by the next call; RunFailed if there is no other.
    """
    if (reconstruct is None) == (results is None):
        raise UserError("give either a method that makes assets or a folder of results")
    scans = _all_found(Path(folder), config.names, "scans")
    made = None if results is None else Path(results)
    if made is not None and not made.is_dir():
        raise UserError(f"{made} is not a folder of results")
    source = {"results": made.name} if made is not None else dict(method or {})
    pictures = "published" if renders is not None else "rendered here, unlit"
    settings = {
        "kind": "gso", "protocol": config.protocol, "placement": config.placement, "seed": config.seed,
        "pictures": pictures, "told": config.told, "method": source,
    }  # fmt: skip
    failures: dict[str, str] = {}
    with Record.open(Path(out), settings, overwrite=overwrite) as record:
        for done, name in enumerate(config.names):
            one = record.object(name, None)
            try:
                _measure(one, name, scans[name], made, renders, reconstruct, lpips, config)
            except Exception as error:
                failures[name] = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            shown = failures.get(name) or _line(record.read(name, None))
            say(f"{done + 1}/{len(config.names)} {name}: {shown}")
        names = [name for name in config.names if name not in failures]
        if not names:
            first = config.names[0]
            raise RunFailed(f"there is nothing to compare for any object; the first: {first}: {failures[first]}")
        rows = [record.read(name, None) for name in names]
        report = {
            "objects": [{"id": name, **row} for name, row in zip(names, rows, strict=True)],
            **_summary(rows, config.seed),
            "failures": [{"id": name, "error": error} for name, error in failures.items()],
            **record.settings,
            "version": __version__,
        }
        write_json(out, report)
        record.write_sheet(names)
    return report


def _all_found(folder: Path, names: Sequence[str], what: str) -> dict[str, Path]:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder of {what}")
    found = {name: find_shape(folder, name) for name in names}
    missing = [name for name, path in found.items() if path is None]
    if missing:
        raise UserError(
            f"{folder} has no mesh of {missing[0]!r} and lacks {len(missing)} of {len(names)} objects; expected files "
            "such as alarm.glb or folders such as alarm/ with one mesh in each, or name fewer --objects"
        )
    return {name: path for name, path in found.items() if path is not None}


def _measure(
    one: ObjectRecord,
    name: str,
    scan: Path,
    results: Path | None,
    renders: str | Path | None,
    reconstruct: Callable[[Prompt, Path], Asset] | None,
    lpips: Likeness | None,
    config: GsoBenchmark,
) -> None:
    """Make the answer if it is not there yet, and its figures if they are not those of this file and these measures."""
    answer = one.folder / "asset.glb" if results is None else find_shape(results, name)
    if answer is None:
        raise UserError(f"{results} has no mesh of {name!r}")
    before = one.figures
    measured_by = [MEASURES, lpips is not None, file_sha256(scan)]
    if before is not None and answer.is_file() and before["measured_by"] == [*measured_by, file_sha256(answer)]:
        return
    pictures = None if renders is None else Path(renders) / name
    truth = Scan.read(scan, name, config.protocol, pictures)
    save_image(one.object_folder / "prompt.png", truth.prompt.rgba())
    seconds = {} if before is None or "seconds" not in before else {"seconds": before["seconds"]}
    if reconstruct is not None and before is None:
        began = time.perf_counter()
        told = CameraEstimate(0.0, config.protocol.elevation, 1.0, 0.0, True) if config.told else None
        reconstruct(Prompt(truth.prompt, camera=told), one.run).save(answer)
        seconds = {"seconds": time.perf_counter() - began}
    mesh = read_upright(answer)
    figures = truth.score(mesh, config.placement, lpips)
    save_image(one.folder / "sides.png", _two_sides(truth, truth.placed(mesh, config.placement)))
    one.finish({**figures, **seconds, "measured_by": [*measured_by, file_sha256(answer)]})


def _two_sides(truth: Scan, mesh: Mesh) -> torch.Tensor:
    """Input, then from two sides: scan, result. [3, H, W] on white."""
    views, _ = look(mesh, truth.protocol)
    white, count = torch.ones(3), len(views)
    own, ours = truth.views.composite(white), views.composite(white)
    sides = (count // 8, count // 8 + count // 2)
    return sheet(torch.stack([own[0], *(picture for side in sides for picture in (own[side], ours[side]))]))


def _summary(rows: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Any]:
    """`mean` over objects and its 95 % bootstrap `interval`, of every figure."""
    names = [name for name, value in rows[0].items() if isinstance(value, float)]
    columns = {name: torch.tensor([row[name] for row in rows if name in row], dtype=torch.float64) for name in names}
    return {
        "mean": {name: float(np.mean(column.numpy())) for name, column in columns.items()},
        "interval": {name: list(bootstrap_interval(column, seed)) for name, column in columns.items()},
    }


def _line(figures: Mapping[str, Any]) -> str:
    names = ("chamfer", "volume_iou", "psnr", "ssim", "lpips", "seconds")
    return "  ".join(f"{name} {figures[name]:.3g}" for name in names if name in figures)
