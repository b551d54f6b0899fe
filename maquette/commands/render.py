"""`maquette render`: objects to posed pictures, as folders of PNG files or packed for training."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from maquette.commands.arguments import parse
from maquette.errors import UserError
from maquette.run.progress import Progress, duration
from maquette.training.jobs import Outcome, RenderSummary
from maquette.training.packs import PackConfig, pack_objects
from maquette.training.renders import RenderConfig, render_objects

SHOWN = 5
"""Broken objects that are named at the end; all of them are in the index."""


@dataclass(frozen=True)
class Options:
    objects: Annotated[Positional[tuple[Path, ...]], arg(metavar="OBJECTS...")]
    """GLB, OBJ, PLY or STL files, or folders of them (with or without an index.jsonl)."""
    out: Path = Path("runs/renders")
    """Folder for the pictures."""
    pack: bool = False
    """Write packed arrays for `maquette train` instead of PNG files."""
    overwrite: bool = False
    """Replace renders of other settings in that folder."""
    config: Annotated[RenderConfig, arg(name="")] = RenderConfig()
    """What to render."""


@dataclass(frozen=True)
class PackOptions:
    objects: Annotated[Positional[tuple[Path, ...]], arg(metavar="OBJECTS...")]
    """GLB, OBJ, PLY or STL files, or folders of them (with or without an index.jsonl)."""
    out: Path = Path("runs/packed")
    """Folder for the packed arrays."""
    overwrite: bool = False
    """Replace a pack of other settings in that folder."""
    config: Annotated[PackConfig, arg(name="")] = PackConfig()
    """What to render."""


def run(arguments: list[str]) -> int:
    """Render everything that can be rendered; broken objects are reported and skipped."""
    about = "Turn objects into normalised, posed pictures; a second call goes on where the first one stopped."
    with ObjectProgress() as report:
        if "--pack" in arguments:
            words = [word for word in arguments if word != "--pack"]
            packing = parse(PackOptions, words, "maquette render --pack", about=about)
            objects = require_objects(packing.objects)
            summary = pack_objects(objects, packing.out, packing.config, report=report, overwrite=packing.overwrite)
        else:
            options = parse(Options, arguments, "maquette render", about=about)
            objects = require_objects(options.objects)
            summary = render_objects(objects, options.out, options.config, report=report, overwrite=options.overwrite)
    tell_skipped(summary)
    if not summary.rendered and not summary.reused:
        why = f"see index.jsonl in {summary.folder}"
        raise UserError(f"none of the {len(summary.broken)} objects can be rendered; {why}")
    print(
        f"{summary.folder}: {summary.rendered} objects rendered ({summary.views} pictures), {summary.reused} there "
        f"already, {len(summary.broken)} skipped, in {duration(summary.seconds)}"
    )
    return 0


class ObjectProgress:
    """A progress display that learns from the first object how many there are."""

    def __init__(self) -> None:
        self._shown: Progress | None = None

    def __enter__(self) -> ObjectProgress:
        return self

    def __call__(self, done: int, total: int, outcome: Outcome) -> None:
        if self._shown is None:
            self._shown = Progress(total, "rendering").__enter__()
        self._shown.update(done)

    def __exit__(self, *error: Any) -> None:
        if self._shown is not None:
            self._shown.__exit__(*error)


def require_objects(objects: tuple[Path, ...]) -> tuple[Path, ...]:
    """`objects`, of which there must be one; UserError else."""
    if not objects:
        raise UserError("OBJECTS... is missing: name object files, or folders of them.")
    return objects


def tell_skipped(summary: RenderSummary) -> None:
    """Name the first broken objects on standard error."""
    for name, reason in list(summary.broken.items())[:SHOWN]:
        print(f"skipped {name}: {reason}", file=sys.stderr)
    if len(summary.broken) > SHOWN:
        print(f"skipped {len(summary.broken) - SHOWN} more, see index.jsonl in {summary.folder}", file=sys.stderr)
