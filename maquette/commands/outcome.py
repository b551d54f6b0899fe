"""What a run shows while it works, and the box at its end."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from maquette.asset import EXPORTS, Asset, ExportFormat
from maquette.errors import RunFailed, UserError
from maquette.images import Views, save_image, sheet
from maquette.rendering.base import Scene
from maquette.rendering.views import render_turn
from maquette.run import Run, StageTime
from maquette.run.files import atomic_folder, atomic_path
from maquette.run.memory import gib, peak_memory
from maquette.run.progress import duration

FILES = {
    "asset.glb": "the object, for any 3D viewer",
    "asset.obj": "the same as OBJ, with its colours in asset.mtl and asset.png",
    "asset.ply": "the same as PLY, with colours at the corners",
    "asset.stl": "the same as STL, without colours",
    "report.html": "everything about it on one page; open it in a browser",
    "turntable.webp": "the object turning",
    "views.png": "the views that the prior imagined",
}


NANO = (
    "nano is a small prior, trained on toy-like objects: it shows the method at work on any machine, and is no match\n"
    "for the published {} weights, which want a GPU: `maquette models fetch {}`, then --preset paper."
)
PUBLISHED = {"nano": ("ImageDream", "imagedream"), "nano-zero123": ("Zero-1-to-3", "zero123-xl")}
"""Embedded prior -> the published one that it stands for, in print and by its name."""


def save_object(asset: Asset, folder: Path, formats: Sequence[ExportFormat]) -> None:
    """Write asset.glb, and asset.obj, .ply and .stl as asked for.

    Files of an earlier call are left as they are where the object is the same; where it is not, all that are there
    follow, asked for or not.
    """
    glb = folder / "asset.glb"
    before = glb.read_bytes() if glb.is_file() else None
    asset.save(glb)
    same = before == glb.read_bytes()
    for name, suffixes in EXPORTS.items():
        files = [glb.with_suffix(f".{suffix}") for suffix in suffixes]
        wanted = name in formats or files[0].is_file()
        if wanted and not (same and all(file.is_file() for file in files)):
            asset.save(files[0])


class LiveFolder:
    """Keeps the newest pictures of a run in its folder, as soon as there are any; a watcher for `Run.watch`.

    A context manager around the work: report.html is a live page from the beginning, and says so if the work fails.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._told: set[str] = set()

    def __enter__(self) -> LiveFolder:
        self._show()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            reason = "interrupted." if isinstance(error, KeyboardInterrupt) else str(error) or type(error).__name__
            with suppress(RunFailed, UserError, OSError):  # the error itself matters more
                self._show(stopped=reason)

    def __call__(self, stage: str, step: int | None, what: Any) -> None:
        turn = None
        if isinstance(what, Views) and step is None and stage == "views":
            self.keep_views(what)
        elif isinstance(what, Views) and step is not None:
            turn = what
        elif isinstance(what, torch.nn.Module) and isinstance(what, Scene):
            turn = render_turn(what.to(self._run.device))
        self._show(turn)

    def keep_views(self, views: Views) -> None:
        """Write views/ (pictures and cameras) and views.png (all of them side by side, on white)."""
        with atomic_folder(self._run.folder / "views") as temporary:
            views.save(temporary)
        path = self._run.folder / "views.png"
        with atomic_path(path) as temporary:
            save_image(temporary, sheet(views.composite(torch.ones(3)), columns=len(views)))
        self._tell("views", path)

    def write_report(self) -> None:
        """The run has its asset: make turntable and report from what is in the folder."""
        from maquette.report import write_report

        began = time.monotonic()
        write_report(self._run.folder)
        self._run.times.append(StageTime("report", time.monotonic() - began, False))

    def _show(self, turn: Views | None = None, stopped: str = "") -> None:
        """Bring the live page up to date; `turn` is the newest state of the object, seen from all around."""
        from maquette.report import write_live

        path = write_live(self._run.folder, turn, stopped=stopped)
        self._tell("report (open it now, it follows the run)", path)

    def _tell(self, name: str, path: Path) -> None:
        """Print where something is, once."""
        if name not in self._told:
            self._told.add(name)
            print(f"{name}: {path}", file=sys.stderr)


def closing_box(run: Run, command: str, words: list[str], seconds: float) -> str:
    """The files, how long each stage took, and what to do next; `words` are those of the command just run."""
    peak = peak_memory()
    lines = [f"done in {duration(seconds)}" + (f", at most {gib(peak)} of memory" if peak else "")]
    present = [(run.folder / name, about) for name, about in FILES.items() if (run.folder / name).exists()]
    width = max((len(str(path)) for path, _ in present), default=0)
    lines += [f"  {path!s:<{width}}  {about}" for path, about in present]
    times = [f"{t.name.replace('_', ' ')} {duration(t.seconds)}{' (kept)' if t.reused else ''}" for t in run.times]
    lines += [f"time: {', '.join(times)}", "next:"]
    lines += [f"  {line}" for line in _next_commands(run, command, words)]
    lines += [f"licence: {sentence}" for sentence in run.terms().sentences]
    prior = run.settings["config"].get("prior")
    lines.append(NANO.format(*PUBLISHED[prior]) if prior in PUBLISHED else "")
    text = "\n".join(lines).rstrip()
    rule = "-" * min(100, max(map(len, text.splitlines())))
    return f"{rule}\n{text}\n{rule}"


def _next_commands(run: Run, command: str, words: list[str]) -> list[str]:
    """Another attempt, a better one, and a look at the machine."""
    again = ["maquette", command, *_without(words, ("--seed", "--out", "--quality"))]
    other = shlex.join([*again, "--seed", str(run.seed + 1), "--out", f"{run.folder}-seed{run.seed + 1}"])
    better = shlex.join([*again, "--quality", "high", "--out", f"{run.folder}-high"])
    return [f"{other}  # another attempt", f"{better}  # more time, more detail", "maquette doctor  # this machine"]


def _without(words: list[str], options: tuple[str, ...]) -> list[str]:
    """`words` less these options, their values, and --overwrite."""
    kept: list[str] = []
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word in options:
            skip = True
        elif word != "--overwrite" and word.partition("=")[0] not in options:
            kept.append(word)
    return kept
