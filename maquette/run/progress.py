"""How far a long job is: a bar with the time left on a terminal, now and then a plain line anywhere else.

Everything goes to standard error, so that standard output keeps only results.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from io import TextIOBase
from types import TracebackType
from typing import Any, TextIO

PLAIN_INTERVAL = 10.0
"""Seconds between two plain lines of one job."""


class Progress:
    """Progress of one job of `total` steps; a context manager, and an iterator over the steps still to do.

    for step in progress: ...            # from `start` to total - 1; counts by itself
    with progress: progress.update(n)    # or: n steps are done now, with figures worth seeing
    """

    def __init__(
        self,
        total: int,
        label: str,
        *,
        start: int = 0,
        quiet: bool = False,
        stream: TextIO | TextIOBase | None = None,
    ) -> None:
        self.total, self.label, self.start = total, label, start
        self.done = start
        self._stream: Any = sys.stderr if stream is None else stream
        self._bar: Any = None
        self._task: Any = None
        self._quiet = quiet
        self._fancy = not quiet and self._stream.isatty()
        self._began = self._spoke = 0.0
        self._open = False

    def __enter__(self) -> Progress:
        if self._open:
            return self
        self._open = True
        self._began = self._spoke = time.monotonic()
        if self._fancy:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description:<22}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}", style="dim"),
                console=Console(file=self._stream),
                refresh_per_second=4,
            )
            self._bar.start()
            self._task = self._bar.add_task(self.label, total=self.total, completed=self.start, figures="")
        elif not self._quiet:
            resumed = f", going on from {self.start}" if self.start else ""
            self._say(f"{self.label}: {self.total} steps{resumed}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._open:
            return
        self._open = False
        if self._bar is not None:
            self._bar.stop()
        elif not self._quiet and kind is None:
            self._say(f"{self.label}: done in {duration(time.monotonic() - self._began)}")

    def __iter__(self) -> Iterator[int]:
        with self:
            for step in range(self.start, self.total):
                yield step
                if self.done < step + 1:
                    self.update(step + 1)

    def update(self, done: int, **figures: Any) -> None:
        """Say that `done` steps are finished; `figures` are shown beside the bar (numbers with four digits)."""
        self.done = done
        if self._quiet:
            return
        if not self._open:
            self.__enter__()
        now = time.monotonic()
        if self._bar is not None:
            text = _figures(figures)
            self._bar.update(self._task, completed=done, **({"figures": text} if text else {}))
        elif now - self._spoke >= PLAIN_INTERVAL and done < self.total:
            self._spoke = now
            rate = (now - self._began) / max(done - self.start, 1)
            # The first steps of a job also warm things up, and would promise hours.
            left = f", {duration(rate * (self.total - done))} left" if done - self.start >= 3 else ""
            text = _figures(figures)
            self._say(f"{self.label}: {done}/{self.total}{left}" + (f", {text}" if text else ""))

    def _say(self, line: str) -> None:
        with suppress(OSError, ValueError):  # a closed pipe must not end the work
            print(line, file=self._stream, flush=True)


def duration(seconds: float) -> str:
    """`seconds` for people: '8 s', '3 min 20 s', '2 h 05 min'.

    >>> duration(200)
    '3 min 20 s'
    """
    whole = int(round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _figures(figures: dict[str, Any]) -> str:
    shown = []
    for key, value in figures.items():
        number = value.item() if hasattr(value, "item") else value
        text = f"{number:.4g}" if isinstance(number, (int, float)) else str(number)
        shown.append(f"{key.replace('_', ' ')} {text}")
    return "  ".join(shown)
