"""A method for the tests of the command line: real options, run folder and asset, and next to no work.

python sketch.py WORDS... is `maquette WORDS...` with one more command, `sketch`.
"""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from maquette import cli
from maquette.asset import Asset, Mesh
from maquette.cameras import orbit
from maquette.commands.method import Method, run_method
from maquette.errors import RunFailed
from maquette.images import Views


@dataclass(frozen=True)
class FitConfig:
    steps: int = 20
    """Steps."""
    learning_rate: float = 0.01
    """Step size."""

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ValueError(f"fit.learning_rate must be positive, got {self.learning_rate:g}")


@dataclass(frozen=True)
class Round:
    radius: float = 0.5
    """Of the ball."""


@dataclass(frozen=True)
class Square:
    side: float = 0.7
    """Of the cube."""


@dataclass(frozen=True)
class TurnConfig:
    speed: float = 1.0
    """Of the turning."""


@dataclass(frozen=True)
class Config:
    prior: str = "nano"
    """Which prior."""
    weights: Path | None = None
    """Where its weights are."""
    fit: FitConfig = field(default_factory=FitConfig)
    """The fit."""
    shape: Round | Square = field(default_factory=Round)
    """What to sketch."""
    spin: TurnConfig | None = None
    """Whether it turns."""
    trouble: str = ""
    """What shall go wrong."""


def config(preset: str, quality: str) -> Config:
    steps = {"draft": 5, "default": 20, "high": 60}[quality]
    return Config(fit=FitConfig(steps=steps * (10 if preset == "paper" else 1)))


def draw(count, run):
    images = torch.rand(4, 3, 16, 16, generator=run.generator(purpose="views"))
    return Views(images, None, orbit(4, height=16, width=16))


def fit(views, fit_config, trouble, run):
    size = torch.ones(())
    for step in run.progress(fit_config.steps):
        run.preview(step, lambda: views)
        run.log(step, size=size)
        if trouble == "nan" and step == 3:
            raise RunFailed(f"the loss became NaN at step {step}; the last checkpoint is kept")
    if trouble == "bug":
        return {}["missing"]
    if trouble == "memory":
        return torch.empty(1 << 62, dtype=torch.uint8)
    return size


def sketch(prompt, config, run):
    views = run.stage("views", draw, 4)
    run.stage("fit", fit, views, config.fit, config.trouble)
    corners = np.array([[0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5], [0, 0, 0]], np.float32)
    faces = np.array([[0, 1, 2], [0, 2, 3], [0, 3, 1], [1, 3, 2]], np.int64)
    return Asset(Mesh(corners, faces), views, run.provenance())


METHOD = Method(
    "sketch", "One picture to a tetrahedron.", config, sketch, lambda config: (config.fit.steps / 1.0, 1000)
)


def install() -> None:
    """Add the command, and a report page that costs nothing."""
    command = types.ModuleType("sketch_command")
    command.run = lambda arguments: run_method(METHOD, arguments)
    report = types.ModuleType("maquette.report")
    report.write_live = lambda folder, turn=None, stopped="": folder / "report.html"
    report.write_report = lambda folder: (folder / "report.html").write_text("<html></html>")
    sys.modules.update({"sketch_command": command, "maquette.report": report})
    cli.COMMANDS["sketch"] = ("sketch_command", "for tests")


if __name__ == "__main__":
    install()
    sys.exit(cli.main())
