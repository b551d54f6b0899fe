"""Tasks for worker processes, which must be able to import them."""

from __future__ import annotations

import os
import signal
import time

from maquette.errors import RunFailed


def act(task: tuple[str, int]) -> int:
    """Behave as told and return the number."""
    kind, number = task
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "leave":
        os._exit(3)
    if kind == "sleep":
        time.sleep(60)
    if kind == "full":
        raise RunFailed("the disk is full")
    if kind == "bug":
        raise ZeroDivisionError(f"task {number}")
    return number * number


def process(task: int) -> int:
    """The id of the process at work."""
    return os.getpid()
