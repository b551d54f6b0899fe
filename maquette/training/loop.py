"""The loop of every prior's training: steps, log, checkpoints, and a stop that loses nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from torch import Tensor

from maquette.errors import RunFailed
from maquette.training.data import PackedObjects
from maquette.training.weights import Average


@runtime_checkable
class Chunk(Protocol):
    """What the loop must know of a recipe."""

    @property
    def steps(self) -> int: ...
    @property
    def batch(self) -> int: ...


@runtime_checkable
class Trainable(Protocol):
    """What the loop drives: a network in training, whose steps depend on (seed, step) alone."""

    step: int
    average: Average

    @property
    def config(self) -> Chunk: ...
    def train_step(self, data: PackedObjects) -> dict[str, float]:
        """One update; `loss`, `grad_norm`, and `single` where the step was not of the kind that the log follows."""
        ...

    def save(self, folder: Path) -> None: ...
    def load(self, folder: Path) -> bool: ...


MAX_SKIPPED = 10
"""Steps of a call with NaN or infinite gradients that are skipped before training fails."""

T = TypeVar("T", bound=Trainable)


def chunk_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Learning rate at `step`: a linear warm-up, then a cosine to 1 % at the last step. A chunk is a whole schedule."""
    decay = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
    return peak * min(1.0, (step + 1) / warmup) * decay


def run_training(
    data: PackedObjects,
    folder: Path,
    trainer: T,
    log: Callable[[dict[str, Any]], None],
    *,
    stage: str = "prior",
    save_every: float = 120.0,
    seconds: float | None = None,
    validate: Callable[[T, dict[str, Tensor]], dict[str, float]] | None = None,
    validate_every: int = 500,
) -> T:
    """Run to the last step (or until `seconds` are over), saving every `save_every` seconds; resumes from `folder`.

    `validate` measures the averaged weights every `validate_every` steps and at the end; the log gets its figures.
    RunFailed at a loss that is no number, or after `MAX_SKIPPED` steps whose gradient was not finite and which changed
    nothing: the checkpoint in `folder` is from before it.
    """
    trainer.load(folder)
    started = saved = time.monotonic()
    first, total, losses, skipped = trainer.step, trainer.config.steps, [], 0
    while trainer.step < total:
        metrics = trainer.train_step(data)
        if not math.isfinite(metrics["loss"]):
            raise RunFailed(
                f"the loss of step {trainer.step} is no number; the last good checkpoint is in {folder}: go on from "
                "there with a lower learning rate"
            )
        if not math.isfinite(metrics["grad_norm"]):
            skipped += 1
            log({"stage": stage, "step": trainer.step, "event": "skipped", "reason": "the gradient is not finite"})
            if skipped >= MAX_SKIPPED:
                raise RunFailed(
                    f"the gradient was NaN or infinite in {skipped} steps, last in step {trainer.step}; the last "
                    f"checkpoint is in {folder}: go on from there with a lower learning rate"
                )
        if not metrics.get("single"):
            losses.append(metrics["loss"])
        now = time.monotonic()
        if trainer.step % 50 == 0 or trainer.step == total:
            log(
                {
                    "stage": stage,
                    "step": trainer.step,
                    "loss": float(np.mean(losses[-100:] or [math.nan])),
                    "grad_norm": metrics["grad_norm"],
                    "samples_per_second": (trainer.step - first) * trainer.config.batch / (now - started),
                    "seconds": now - started,
                }
            )
        if validate and (trainer.step % validate_every == 0 or trainer.step == total):
            figures = validate(trainer, trainer.average.state)
            samples = trainer.step * trainer.config.batch
            log({"stage": "validation", "step": trainer.step, "samples": samples} | figures)
        if now - saved > save_every:
            trainer.save(folder)
            saved = now
        if seconds is not None and now - started > seconds:
            break
    trainer.save(folder)
    return trainer
