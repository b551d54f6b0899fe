"""How well is a prompt's own camera found? Known objects are photographed from somewhere, and a method is asked where.

Prompts look at the front half of an object from random azimuths, elevations and distances that depend on the seed, the
object and the prompt's number alone. The method gets the picture and, if wanted, true views of the object in place of
those that its prior would imagine, which tells the search's own error from the prior's. Everything is kept beside the
JSON file as the object benchmark keeps its own, one folder a prompt, and a second call goes on where the first ended.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from maquette import __version__
from maquette.asset import load_mesh
from maquette.cameras import Cameras, fit_distance, from_angles
from maquette.errors import RunFailed
from maquette.evaluation.object_record import ObjectRecord, Record
from maquette.evaluation.objects import ObjectBenchmark, choose_objects
from maquette.images import CameraEstimate, ImagePrompt, Prompt, Views, save_image, sheet
from maquette.rendering.raster import MeshRenderer
from maquette.run.files import write_json

Locate = Callable[[Prompt, Views | None, Path], CameraEstimate]
"""(prompt, true views or None, folder to work in) -> where the prompt was taken from."""


@dataclass(frozen=True)
class PromptCameras:
    """Where prompts are taken from."""

    limit: int | None = None
    """Take the first so many objects with a front, in an order shuffled by the seed."""
    prompts: int = 2
    """Prompts of each object."""
    azimuth: tuple[float, float] = (-75.0, 75.0)
    """Range around the front, degrees."""
    elevation: tuple[float, float] = (0.0, 40.0)
    """Range above the horizon, degrees."""
    fill: tuple[float, float] = (0.6, 0.9)
    """Range of the share of the picture's height that the object's bounding sphere takes."""
    fovy: float = 40.0
    """Vertical field of view, degrees."""
    size: int = 256
    """Pixels a side of a prompt."""
    seed: int = 0
    """Order of the objects, places of the cameras."""

    def __post_init__(self) -> None:
        for name in ("limit", "prompts", "size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")

    def draw(self, id: str, number: int) -> tuple[float, float, float]:
        """(azimuth, elevation, fill) of one prompt."""
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {id} {number}".encode()))
        shares = torch.rand(3, generator=generator).tolist()
        ranges = (self.azimuth, self.elevation, self.fill)
        a, e, f = (low + share * (high - low) for share, (low, high) in zip(shares, ranges, strict=True))
        return a, e, f

    def camera(self, azimuth: float, elevation: float, fill: float = 0.8) -> Cameras:
        """One camera [1]."""
        values = (azimuth, elevation, fit_distance(self.fovy, fill=fill), self.fovy)
        return from_angles(*(torch.tensor([value]) for value in values), height=self.size, width=self.size)


def evaluate_cameras(
    folder: str | Path,
    locate: Locate,
    config: PromptCameras = PromptCameras(),
    *,
    true_views: Cameras | None = None,
    out: str | Path = "cameras.json",
    method: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Errors of the cameras that `locate` finds for prompts of the objects in `folder`; also written to `out`.

    With `true_views`, renders from these cameras are handed on. `all` sums all prompts up, `reliable` those whose
    estimate calls itself so. Settings, failures and resumption are as in `evaluate_objects`.
    """
    rows = choose_objects(folder, ObjectBenchmark(limit=config.limit, seed=config.seed))
    settings = {
        "kind": "cameras", "protocol": {**vars(config), "limit": None}, "method": dict(method or {}),
        "true_views": None if true_views is None else len(true_views),
    }  # fmt: skip
    cases: list[dict[str, Any]] = []
    failures: list[dict[str, str]] = []
    with Record.open(Path(out), settings, overwrite=overwrite) as record:
        for row in rows:
            for number in range(config.prompts):
                one = record.object(f"{row['id']}.{number}", None)
                name = one.object_folder.name
                if one.figures is None:
                    try:
                        one.finish(
                            _answer(one, Path(folder) / row["file"], row["id"], number, config, locate, true_views)
                        )
                    except Exception as error:
                        failures.append({"id": name, "error": f"{type(error).__name__}: {error}"})
                        say(f"{name}: {failures[-1]['error']}")
                        continue
                cases.append({"id": name, **record.read(name, None)})
                say(f"{name}: {_line(cases[-1])}")
        if not cases:
            raise RunFailed(
                f"the method failed on every prompt; the first: {failures[0]['id']}: {failures[0]['error']}"
            )
        trusted = [case for case in cases if case["found"]["reliable"]]
        report = {
            "all": summary(cases),
            "reliable": summary(trusted) if trusted else {"prompts": 0.0},
            "cases": cases,
            "failures": failures,
            **record.settings,
            "version": __version__,
        }
        write_json(out, report)
        record.write_sheet([case["id"] for case in cases])
    return report


def summary(cases: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Number of prompts, medians and means of the errors, and the share of azimuths within 15 and within 30 degrees."""
    figures = {"prompts": float(len(cases))}
    for name in ("azimuth", "elevation", "scale"):
        errors = torch.tensor([case["error"][name] for case in cases], dtype=torch.float64)
        figures |= {f"{name}_median": float(errors.quantile(0.5)), f"{name}_mean": float(errors.mean())}
        if name == "azimuth":
            figures |= {f"azimuth_within_{limit}": float((errors <= limit).double().mean()) for limit in (15, 30)}
    return figures


def camera_errors(found: CameraEstimate, azimuth: float, elevation: float, scale: float) -> dict[str, float]:
    """Degrees of azimuth and elevation between an estimate and the truth, and the factor (>= 1) between the scales."""
    ratio = found.scale / scale
    return {
        "azimuth": abs((found.azimuth - azimuth + 180) % 360 - 180),
        "elevation": abs(found.elevation - elevation),
        "scale": max(ratio, 1 / ratio),
    }


def _answer(
    record: ObjectRecord,
    file: Path,
    id: str,
    number: int,
    config: PromptCameras,
    locate: Locate,
    true_views: Cameras | None,
) -> dict[str, Any]:
    """Photograph the object, ask, compare; the prompt beside the object from the camera that was found."""
    renderer = MeshRenderer(load_mesh(file).normalized())
    azimuth, elevation, fill = config.draw(id, number)
    taken = renderer.render(config.camera(azimuth, elevation, fill), samples=3).views()
    assert taken.masks is not None
    views = None if true_views is None else renderer.render(true_views, samples=4).views()
    prompt = ImagePrompt(taken.images[0], taken.masks[0])
    save_image(record.folder / "prompt.png", prompt.rgba())
    began = time.perf_counter()
    found = locate(Prompt(prompt), views, record.run)
    seconds = time.perf_counter() - began
    usual = renderer.render(config.camera(azimuth, elevation), samples=3).views()
    assert usual.masks is not None
    scale = _side(taken.masks[0, 0]) / _side(usual.masks[0, 0])
    seen = renderer.render(config.camera(found.azimuth, found.elevation), samples=3).views()
    save_image(record.folder / "sides.png", sheet(torch.cat([v.composite(torch.ones(3)) for v in (taken, seen)])))
    return {
        "truth": {"azimuth": azimuth, "elevation": elevation, "scale": scale},
        "found": {**vars(found)},
        "error": camera_errors(found, azimuth, elevation, scale),
        "seconds": seconds,
    }


def _side(mask: Float[Tensor, "h w"]) -> float:
    """The longer side of a silhouette's bounding box, pixels."""
    inside = mask > 0.5
    return float(max(inside.any(dim=0).sum(), inside.any(dim=1).sum(), torch.ones(())))


def _line(case: Mapping[str, Any]) -> str:
    truth, found = case["truth"], case["found"]
    trust = "" if found["reliable"] else ", not reliable"
    return (
        f"azimuth {truth['azimuth']:.0f}, found {found['azimuth']:.0f}; elevation {truth['elevation']:.0f}, found "
        f"{found['elevation']:.0f}; overlap {1 - found['error']:.2f}{trust}"
    )
