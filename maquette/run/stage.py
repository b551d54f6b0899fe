"""One stage of a run, as the function that does its work sees it: device, randomness, log and checkpoints."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from maquette.run.progress import Progress
from maquette.run.state import read_state, write_state

if TYPE_CHECKING:
    from maquette.run.run import Run

CHECKPOINT_INTERVAL = 30.0
"""Seconds between two checkpoints of a stage: what a kill can cost at most."""
PREVIEW_INTERVAL = 15.0
"""Seconds between two previews of a stage."""


def derive_seed(seed: int, stage: str, step: int = 0, purpose: str = "") -> int:
    """A 63-bit seed that is a function of its arguments alone: the first bytes of their SHA-256.

    So skipping a finished stage, resuming in the middle of one, or drawing less for one purpose shifts no randomness
    anywhere else.
    """
    digest = hashlib.sha256(f"{seed}\0{stage}\0{step}\0{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class Stage:
    """The workbench of one stage; handed to the stage's function as `run=`."""

    def __init__(self, run: Run, name: str, fingerprint: str) -> None:
        self.name = name
        self.seed = run.seed
        self.device = run.device
        self.quiet = run.quiet
        self.folder: Path = run.folder / "stages" / name
        self._run = run
        self._fingerprint = fingerprint
        self._began = self._saved = time.monotonic()
        self._processor = time.process_time()
        self._previewed = float("-inf")
        self._earlier = 0.0
        self._bars: list[Progress] = []

    @property
    def seconds(self) -> float:
        """Working time of this stage so far, that of interrupted attempts up to their checkpoint included."""
        return self._earlier + time.monotonic() - self._began

    @property
    def processor_seconds(self) -> float:
        """Processor time of all threads since this process began the stage: what a busy machine does not stretch."""
        return time.process_time() - self._processor

    def generator(self, step: int = 0, purpose: str = "", device: torch.device | str | None = None) -> torch.Generator:
        """A fresh generator that is a function of (seed, stage, step, purpose), on the stage's device unless said."""
        generator = torch.Generator(device=self.device if device is None else device)
        return generator.manual_seed(derive_seed(self.seed, self.name, step, purpose))

    def log(self, step: int | None = None, **metrics: Any) -> None:
        """Append one line to the run's log.jsonl: figures, tensors of one element, text or lists of these."""
        self._run.log(stage=self.name, step=step, **metrics)

    def progress(self, total: int, label: str | None = None, start: int = 0) -> Progress:
        """A progress display for `total` steps, of which `start` are already done (see `Progress`)."""
        bar = Progress(total, label or self.name.replace("_", " "), start=start, quiet=self.quiet)
        self._bars.append(bar)
        return bar

    def close(self, error: BaseException | None = None) -> None:
        """Give the terminal back: bars of a stage that was broken off would go on drawing over the message."""
        for bar in self._bars:
            bar.__exit__(None if error is None else type(error), error, None)
        self._bars.clear()

    def save_checkpoint(self, step: int, state: Any) -> None:
        """Keep `state` (a tree of tensors and plain values) with the number of steps done; replaces the one before."""
        tree = {"fingerprint": self._fingerprint, "step": step, "seconds": self.seconds, "state": state}
        write_state(self._checkpoint, tree)
        self._saved = time.monotonic()
        self.log(step, event="checkpoint")

    def load_checkpoint(self) -> tuple[int, Any] | None:
        """(steps done, state) of an interrupted attempt at this very stage with the same inputs; None without one.

        Tensors come back on the CPU. Raises UserError when the file is damaged.
        """
        if not self._checkpoint.exists():
            return None
        tree = read_state(self._checkpoint)
        if tree["fingerprint"] != self._fingerprint:
            self._checkpoint.unlink()
            return None
        self._earlier = tree["seconds"]
        self.log(tree["step"], event="resumed")
        return tree["step"], tree["state"]

    def checkpoint(self, step: int, make_state: Callable[[], Any], every: float = CHECKPOINT_INTERVAL) -> None:
        """Once per step of a loop, with the number of steps done: saves when `every` seconds have passed.

        When the person asked to stop (Ctrl-C), saves at once and raises KeyboardInterrupt, so nothing is lost.
        """
        stopping = not self.keep_going()
        if stopping or time.monotonic() - self._saved >= every:
            self.save_checkpoint(step, make_state())
        if stopping:
            raise KeyboardInterrupt

    def keep_going(self) -> bool:
        """False once the person asked to stop. A loop that asks at least every few seconds is not broken off inside a
        step; it is expected to save what it has and to raise KeyboardInterrupt.
        """
        return self._run.interrupts.keep_going()

    def preview(self, step: int, make: Callable[[], Any]) -> None:
        """Give what `make` returns to whoever watches this run (`Run.watch`), now and then; `make` is not called when
        nobody does, so it must not touch the stage's state or randomness.
        """
        if self._run.watchers and time.monotonic() - self._previewed >= PREVIEW_INTERVAL:
            shown = make()
            for watcher in self._run.watchers:
                watcher(self.name, step, shown)
            self._previewed = time.monotonic()

    def require_memory(self, needed: int) -> None:
        """Say that this stage needs `needed` bytes more than are used now; raises RunFailed when there are fewer."""
        self._run.require_memory(needed, f"Stage {self.name!r}")

    @property
    def _checkpoint(self) -> Path:
        return self.folder / "checkpoint.safetensors"
