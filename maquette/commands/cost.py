"""What a run will take, before anything of it is loaded: a table of measured steps, multiplied.

`measured.json` holds what was measured, a row for each kind of step on each device; `benchmarks/rehearsal.py` prints
such rows. Nothing is interpolated: a kind of step without a row is "not measured", and so is a total that needs it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import torch

from maquette.priors.placement import Placement, Precision
from maquette.run.memory import gib
from maquette.run.progress import duration

Stage = Literal["load", "views", "distillation"]


@dataclass(frozen=True)
class Row:
    """One measured kind of step."""

    stage: Stage
    device: str
    """Name of the GPU, or "cpu (name of the processor), N threads"."""
    prior: str
    precision: str
    """Of the U-Net and the encoders: "float16"."""
    views: int
    """Views in the step; 0 for loading."""
    pixels: int
    """Along the side of a rendering; 0 where nothing is rendered."""
    seconds: float
    """Of one step."""
    bytes: int
    """Peak of memory, of the GPU where there is one."""
    by: str
    """The command that measured it, and where."""


@dataclass(frozen=True)
class Need:
    """A kind of step that a run takes, and how often."""

    stage: Stage
    views: int
    pixels: int
    count: int

    def row(self, rows: Sequence[Row], device: str, prior: str, precision: str) -> Row | None:
        """What was measured of it."""
        wanted = (self.stage, device, prior, precision, self.views, self.pixels)
        return next((r for r in rows if (r.stage, r.device, r.prior, r.precision, r.views, r.pixels) == wanted), None)

    def __str__(self) -> str:
        about = [f"{self.views} views"] if self.views else []
        about += [f"{self.pixels} px"] if self.pixels else []
        return f"{self.stage} ({', '.join(about)})" if about else self.stage


@cache
def measured_rows() -> tuple[Row, ...]:
    """The committed table."""
    text = files("maquette.commands").joinpath("measured.json").read_text(encoding="utf-8")
    return tuple(Row(**row) for row in json.loads(text)["rows"])


def needs_of(config: Any, views: int = 4) -> list[Need]:
    """Kinds of steps that a method's config asks for, by its fields `sampling` (its own, or that of `first_views`),
    `distillation`, `cameras` (whose scenes have so many views) and `fit`.
    """
    needs = [Need("load", 0, 0, 1)]
    if (sampling := getattr(getattr(config, "first_views", config), "sampling", None)) is not None:
        rings = getattr(getattr(config, "warm_start", None), "rings", 1)
        needs.append(Need("views", views, 0, sampling.evaluations * rings))
    distillation, fit = getattr(config, "distillation", None), getattr(config, "fit", None)
    if distillation is not None and fit is not None:
        views = getattr(getattr(config, "cameras", None), "num_views", views)
        kinds = Counter(
            (round(distillation.scenes.at(step, fit.steps)), round(distillation.resolution.at(step, fit.steps)))
            for step in range(0, fit.steps, distillation.every)
        )
        needs += [Need("distillation", scenes * views, pixels, count) for (scenes, pixels), count in kinds.items()]
    return needs


def device_name(device: torch.device) -> str:
    """The name under which a device stands in the table."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    import platform
    from contextlib import suppress
    from pathlib import Path

    name = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"cpu ({name}), {torch.get_num_threads()} threads"


def describe_cost(
    config: Any, device: torch.device, rows: Sequence[Row] | None = None, precision: Precision = "auto"
) -> str:
    """Expected time and memory of a config's run on a device, as text; "not measured" where the table has no row."""
    rows = measured_rows() if rows is None else rows
    name, prior = device_name(device), str(config.prior)
    kind = str(Placement(precision).dtype(device)).removeprefix("torch.")
    lines = [f"prior {prior} in {kind} on {name}"]
    seconds, memory, lacking = 0.0, 0, False
    for need in needs_of(config):
        row = need.row(rows, name, prior, kind)
        if row is None:
            lacking = True
            lines.append(f"  {need!s:<34} {need.count:>6} x  not measured")
            continue
        seconds, memory = seconds + need.count * row.seconds, max(memory, row.bytes)
        lines.append(f"  {need!s:<34} {need.count:>6} x {row.seconds:>7.2f} s  {gib(row.bytes)}")
    lines.append(f"time: {'not measured' if lacking else duration(seconds)}")
    lines.append(f"memory: {'not measured' if lacking else gib(memory)}")
    if lacking:
        others = [row for row in rows if row.prior == prior]
        lines += ["measured elsewhere:"] if others else []
        for row in others:
            step = str(Need(row.stage, row.views, row.pixels, 1))
            lines.append(f"  {step:<34} {row.seconds:.2f} s, {gib(row.bytes)}: {row.device}, {row.precision}")
    return "\n".join(lines)
