"""Killing a command in the middle of its work, at a moment that its log tells and not the clock."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path


def lines_of(log: Path) -> int:
    """Lines of a log so far."""
    return log.read_bytes().count(b"\n") if log.exists() else 0


def kill_at(process: subprocess.Popen[str], log: Path, goal: int) -> None:
    """Kill -9 as soon as the log has `goal` lines; the process must not have ended by itself before."""
    wait_for_lines(process, log, goal)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def wait_for_lines(process: subprocess.Popen[str], log: Path, goal: int) -> None:
    """Wait until the log has `goal` lines, or the process has ended."""
    while lines_of(log) < goal and process.poll() is None:
        time.sleep(0.002)


def assert_same_asset(resumed: subprocess.Popen[str], whole: subprocess.Popen[str], folders: tuple[Path, Path]) -> None:
    """Both runs end well, with the same bytes of an asset in both folders."""
    for process in (resumed, whole):
        _, error = process.communicate()
        assert process.returncode == 0, error
    assert (folders[0] / "asset.glb").read_bytes() == (folders[1] / "asset.glb").read_bytes()
