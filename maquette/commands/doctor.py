"""`maquette doctor`: what is here, what is missing, and what to do about it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from maquette.commands.arguments import parse
from maquette.doctor import examine


@dataclass(frozen=True)
class Options:
    json: bool = False
    """Print the report as JSON."""
    out: Path = Path("runs")
    """The folder whose disk is looked at."""


def run(arguments: list[str]) -> int:
    """Print the report; 0 when a default run will work here, 1 when not."""
    options = parse(Options, arguments, "maquette doctor", about="What this machine offers and lacks for maquette.")
    report = examine(options.out)
    print(json.dumps(report.as_json(), indent=2) if options.json else report.as_text())
    return 0 if report.healthy else 1
