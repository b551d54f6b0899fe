"""Long work over many objects: a folder of our own, processes, and an account of every object."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from maquette import __version__
from maquette.errors import UserError
from maquette.run.files import FolderLock, explain_os_error, sweep, write_json
from maquette.run.record import read_json
from maquette.run.settings import differences
from maquette.training.objects import ObjectFile
from maquette.training.workers import Lost, run_isolated

SETTINGS = "config.json"


@dataclass(frozen=True)
class Outcome:
    """What became of one object."""

    item: ObjectFile
    """Which."""
    status: Literal["rendered", "reused", "broken"]
    """How it ended."""
    reason: str = ""
    """Why it is broken."""


@dataclass(frozen=True)
class RenderSummary:
    """What became of all objects."""

    folder: Path
    """Where the results are."""
    rendered: int
    """Objects rendered now."""
    reused: int
    """Objects that were there already."""
    broken: dict[str, str] = field(default_factory=dict)
    """Name of the object -> why it was left out."""
    views: int = 0
    """Pictures taken now."""
    seconds: float = 0.0
    """Wall-clock time."""


Report = Callable[[int, int, Outcome], None]
"""Called after each object with (objects done, objects in all, what became of this one)."""


def summarise(folder: Path, outcomes: Sequence[Outcome], views: int, seconds: float) -> RenderSummary:
    """The account of `outcomes`, of `views` pictures an object."""
    rendered = sum(outcome.status == "rendered" for outcome in outcomes)
    return RenderSummary(
        folder,
        rendered,
        reused=sum(outcome.status == "reused" for outcome in outcomes),
        broken={outcome.item.name: outcome.reason for outcome in outcomes if outcome.status == "broken"},
        views=rendered * views,
        seconds=seconds,
    )


def work_through(
    function: Callable[[Any], Outcome],
    items: Sequence[ObjectFile],
    tasks: Sequence[Any],
    *,
    workers: int,
    timeout: float,
    report: Report | None,
) -> Iterator[Outcome]:
    """`function(task)` of every task (one an item) in processes; yields outcomes in the order of completion."""
    results = run_isolated(function, tasks, workers=workers or _cores(), timeout=timeout)
    for finished, (index, result) in enumerate(results, 1):
        outcome = Outcome(items[index], "broken", result.reason) if isinstance(result, Lost) else result
        yield outcome
        if report is not None:
            report(finished, len(items), outcome)


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def claimed(
    out: Path, kind: str, config: dict[str, Any], overwrite: bool, owned: Callable[[Path], Iterable[Path]]
) -> Iterator[Path]:
    """The folder `out`, made and locked for us, with `config` noted in its config.json.

    `owned(out)` says which files and folders there are ours to remove. Raises UserError for a folder in use, one with
    other settings (naming the first that differs) unless `overwrite`, and one that holds something else.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain_os_error(error, out) from error
    lock = FolderLock(out)
    lock.acquire()
    try:
        settings = {"maquette": __version__, "kind": kind, "config": config}
        before = read_json(out / SETTINGS)
        strangers = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
        if (before is None and strangers) or (before is not None and before.get("kind") != kind):
            held = ", ".join(strangers[:3])
            raise UserError(f"{out} holds other things ({held}) and no {kind}; choose another folder with --out.")
        if before is not None and overwrite:
            for path in owned(out):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            before = None
        changed = differences(before["config"], config) if before is not None else []
        if changed:
            name, old, new = changed[0]
            raise UserError(
                f"{out} holds {kind} with {name} = {old}, and now it is {new}; choose another --out, or replace them "
                f"with --overwrite."
            )
        sweep(out)
        if before is None:
            write_json(out / SETTINGS, settings)
        yield out
    finally:
        lock.release()


def one_line(error: BaseException) -> str:
    """An exception as one line for an index."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return "not enough memory"
    return (
        text if isinstance(error, (UserError, ValueError)) and text else f"{type(error).__name__}: {text}".rstrip(": ")
    )


def check_effort(size: int, samples: int, workers: int, timeout: float) -> None:
    """Refuse sizes and efforts that no machine has: UserError naming the setting."""
    if not 1 <= size <= 8192:
        raise UserError(f"size is between 1 and 8192 pixels, got {size}.")
    if not 1 <= samples <= 16:
        raise UserError(f"samples is between 1 and 16 a pixel side, got {samples}.")
    if not 0 <= workers <= 1024:
        raise UserError(f"workers is between 0 (one a core) and 1024, got {workers}.")
    if not timeout > 0:
        raise UserError(f"timeout is a positive number of seconds, got {timeout}.")
