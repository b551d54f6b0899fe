"""A pool of processes in which a task may crash, hang or run out of memory without taking the others with it.

`concurrent.futures` gives up the whole pool when one process dies. Here every process has its own pipe and holds one
task at a time, so that a death is the failure of that task alone, and the next task gets a fresh process.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from maquette.errors import RunFailed, UserError

Task = TypeVar("Task")
Result = TypeVar("Result")
START = 300.0
"""Seconds that a process may take until it is ready for its first task (imports on a busy machine)."""


@dataclass(frozen=True)
class Lost:
    """A task whose process died or took too long."""

    reason: str
    """What happened, for people."""


def run_isolated(
    function: Callable[[Task], Result], tasks: Sequence[Task], *, workers: int, timeout: float
) -> Iterator[tuple[int, Result | Lost]]:
    """Do `function(task)` in `workers` processes; yields (index of the task, result) in the order of completion.

    A task whose process dies or which takes longer than `timeout` seconds yields `Lost`. An exception of `function` is
    raised here: UserError and RunFailed as they are, others as RuntimeError with their traceback. Closing the iterator
    ends the processes. They are spawned, so `function` must be importable, and a script that calls this needs the
    usual `if __name__ == "__main__":`.
    """
    if workers < 1:
        raise ValueError(f"there is at least one worker, got workers={workers}")
    waiting = list(range(len(tasks)))[::-1]
    crew = [_Worker(function) for _ in range(min(workers, len(tasks)))]
    try:
        while waiting or any(worker.task is not None for worker in crew):
            for position, worker in enumerate(crew):
                lost = worker.lost(timeout)
                if lost is not None:
                    finished, worker = worker.task, _Worker(function)
                    crew[position].stop()
                    crew[position] = worker
                    if finished is None:
                        raise RunFailed(f"A worker process did not start ({lost.reason}); see its message above.")
                    yield finished, lost
                if worker.ready and worker.task is None and waiting:
                    worker.give(waiting.pop(), tasks)
            for connection in wait([worker.connection for worker in crew], timeout=0.5):
                answer = next(worker for worker in crew if worker.connection is connection).receive()
                if answer is not None:
                    yield answer
    finally:
        for worker in crew:
            worker.stop()


class _Worker(Generic[Task, Result]):
    """One process and what it is busy with."""

    def __init__(self, function: Callable[[Task], Result]) -> None:
        context = multiprocessing.get_context("spawn")  # a fork of a process with threads may deadlock
        self.connection, far_end = context.Pipe()
        self.process = context.Process(target=_serve, args=(far_end, function), daemon=True)
        self.process.start()
        far_end.close()
        self.ready = self.gone = False
        self.task: int | None = None
        self.since = time.monotonic()

    def give(self, index: int, tasks: Sequence[Task]) -> None:
        self.task, self.since = index, time.monotonic()
        with suppress(OSError):  # the process has just died, which `lost` will tell
            self.connection.send(tasks[index])

    def receive(self) -> tuple[int, Result] | None:
        """The answer that is waiting in the pipe, or None for the first sign of life and the last."""
        try:
            kind, content = self.connection.recv()
        except (EOFError, OSError):
            self.gone = True
            return None
        if kind == "ready":
            self.ready = True
            return None
        if kind == "error":
            raise _rebuilt(*content)
        index, self.task = self.task, None
        assert index is not None
        return index, content

    def lost(self, timeout: float) -> Lost | None:
        """Why this process will answer no more, or None if it may."""
        if self.gone:
            self.process.join(10)
            return Lost(_obituary(self.process.exitcode or 0))
        if self.connection.poll():
            return None
        seconds = time.monotonic() - self.since
        if self.task is not None and seconds > timeout:
            return Lost(f"it took longer than {timeout:g} s")
        if not self.ready and seconds > START:
            return Lost(f"not ready after {START:g} s")
        return None

    def stop(self) -> None:
        """End the process now."""
        self.connection.close()
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.process.close()


def _serve(connection: Connection, function: Callable[[Any], Any]) -> None:
    """Answer tasks until the pipe closes; the life of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    os.environ["OMP_NUM_THREADS"] = "1"  # one task a core is the parallelism
    if "torch" in sys.modules:  # it came with the function's module, before the line above
        sys.modules["torch"].set_num_threads(1)
    with suppress(EOFError, OSError):
        connection.send(("ready", None))
        while True:
            task = connection.recv()
            try:
                answer = ("result", function(task))
            except Exception as error:
                answer = ("error", (type(error).__name__, str(error), traceback.format_exc()))
            connection.send(answer)


def _rebuilt(kind: str, message: str, trace: str) -> Exception:
    known = {"UserError": UserError, "RunFailed": RunFailed}
    return known[kind](message) if kind in known else RuntimeError(f"in a worker process:\n{trace}")


def _obituary(exitcode: int) -> str:
    if exitcode >= 0:
        return f"its process ended with code {exitcode}"
    name = signal.Signals(-exitcode).name if -exitcode in signal.Signals._value2member_map_ else f"signal {-exitcode}"
    memory = ", most likely for lack of memory" if name == "SIGKILL" else ""
    return f"its process was ended by {name}{memory}"
