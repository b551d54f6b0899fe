"""What a run folder tells about its run, gathered for the page: settings, stages, figures, camera, quality."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maquette.errors import UserError
from maquette.images import Views
from maquette.run.record import read_json, read_log

Figures = dict[str, list[tuple[int, float]]]
"""Metric -> (step, value) in order; values that are not finite numbers are left out."""


@dataclass(frozen=True)
class StageRecord:
    """One stage as the folder shows it."""

    name: str
    done: bool
    """Whether its result is saved."""
    seconds: float | None
    """Working time of all attempts; None while it works."""
    steps: int
    """Steps in the log."""
    figures: Figures = field(default_factory=dict)
    """What it logged step by step."""
    kind: str = ""
    """Class of its result, as "module:Name"; empty for plain values."""


@dataclass(frozen=True)
class RunRecord:
    """Everything that the page is made from, apart from pictures and the mesh."""

    folder: Path
    settings: Mapping[str, Any]
    """config.json: method, seed, device, inputs, config."""
    provenance: Mapping[str, Any]
    """provenance.json; empty while there is none."""
    stages: tuple[StageRecord, ...]
    """In the order in which this run came to them."""
    log: tuple[Mapping[str, Any], ...]
    """log.jsonl without what later attempts replaced."""

    @classmethod
    def read(cls, folder: Path | str) -> RunRecord:
        """What is in a run folder, finished or not. UserError if it is none, or damaged."""
        folder = Path(folder)
        settings = read_json(folder / "config.json")
        if settings is None or not (folder / "log.jsonl").is_file():
            raise UserError(f"{folder} is not a run folder: it lacks config.json or log.jsonl")
        log = read_log(folder)
        # A folder may have been opened several times; the last opening says which stages the run has.
        opened = max((index for index, line in enumerate(log) if line.get("event") == "opened"), default=0)
        names = dict.fromkeys(
            line["stage"] for line in log[opened:] if line["stage"] and line.get("event") in ("started", "reused")
        )
        stages = tuple(_stage(folder, name, [line for line in log if line["stage"] == name]) for name in names)
        return cls(folder, settings, read_json(folder / "provenance.json") or {}, stages, tuple(log))

    @property
    def method(self) -> str:
        """The method's word on the command line."""
        return str(self.settings.get("method", ""))

    @property
    def config(self) -> Mapping[str, Any]:
        """The method's config as plain values."""
        return self.settings.get("config") or {}

    @property
    def inputs(self) -> Mapping[str, Any]:
        """What went in: names and hashes of files, words, preset, quality."""
        return self.settings.get("inputs") or {}

    @property
    def seconds(self) -> float:
        """Working time of all finished stages together."""
        return sum(stage.seconds for stage in self.stages if stage.seconds is not None)

    @property
    def peak_memory(self) -> int | None:
        """Bytes, the largest that any line of the log names."""
        return max((line["peak_memory"] for line in self.log if line.get("peak_memory")), default=None)

    def last(self, *keys: str) -> Mapping[str, Any] | None:
        """The newest line of the log that has all `keys`."""
        return next((line for line in reversed(self.log) if all(key in line for key in keys)), None)

    def last_event(self, event: str) -> Mapping[str, Any] | None:
        """The newest line of the log with that event."""
        return next((line for line in reversed(self.log) if line.get("event") == event), None)

    def setting(self, path: str) -> Any:
        """The value at a dotted path of the config; None where there is none."""
        value: Any = self.config
        for name in path.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        return value

    def results(self, kind: str) -> list[tuple[str, Path]]:
        """(stage, folder of its result) of the finished stages whose result is of the class `kind`."""
        return [
            (stage.name, self.folder / "stages" / stage.name / "result")
            for stage in self.stages
            if stage.done and stage.kind == kind
        ]

    def views(self) -> Views | None:
        """The views that the run keeps beside its asset, if any."""
        return Views.load(self.folder / "views") if (self.folder / "views" / "transforms.json").is_file() else None


def _stage(folder: Path, name: str, lines: list[dict[str, Any]]) -> StageRecord:
    record = read_json(folder / "stages" / name / "stage.json") or {}
    figures: Figures = {}
    last = -1
    for line in lines:
        step = line["step"]
        if step is None or "event" in line:
            continue
        last = max(last, step)
        for key, value in line.items():
            if key in ("seconds", "stage", "step") or isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            if math.isfinite(value):
                figures.setdefault(key, []).append((step, float(value)))
    return StageRecord(
        name,
        done=bool(record),
        seconds=record.get("seconds"),
        steps=last + 1,
        figures=figures,
        kind=record.get("result", {}).get("class", ""),
    )
