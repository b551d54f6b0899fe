"""Bars on a terminal, plain lines elsewhere, nothing when quiet; and the terminal is given back."""

from __future__ import annotations

import io

import pytest

from maquette.run import Progress, Run
from maquette.run import progress as module


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves by hand."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_plain_lines_come_now_and_then_with_the_time_left(clock):
    stream = io.StringIO()
    for step in Progress(100, "fit", stream=stream):
        clock[0] += 1.0
        assert step < 100
    lines = stream.getvalue().splitlines()
    assert lines[0] == "fit: 100 steps"
    assert lines[1] == "fit: 10/100, 1 min 30 s left"
    assert lines[-1] == "fit: done in 1 min 40 s"
    assert len(lines) == 11


def test_figures_and_resumption_are_told(clock):
    stream = io.StringIO()
    with Progress(60, "fit", start=50, stream=stream) as progress:
        clock[0] = 20.0
        progress.update(55, loss=0.123456, sharp_edges=7)
    assert stream.getvalue().splitlines() == [
        "fit: 60 steps, going on from 50",
        "fit: 55/60, 20 s left, loss 0.1235  sharp edges 7",
        "fit: done in 20 s",
    ]


def test_a_terminal_gets_a_bar():
    stream = Terminal()
    with Progress(4, "views", stream=stream) as progress:
        progress.update(2, loss=0.5)
        progress.update(4, loss=0.25)
    shown = stream.getvalue()
    assert "views" in shown and "4/4" in shown and "left" in shown and "loss 0.25" in shown
    assert shown.rstrip().endswith("\x1b[?25h")  # the cursor is visible again


def test_quiet_says_nothing():
    stream = Terminal()
    assert list(Progress(3, "fit", quiet=True, stream=stream)) == [0, 1, 2]
    assert stream.getvalue() == ""


def test_an_error_leaves_no_bar_and_no_done():
    stream = io.StringIO()
    with pytest.raises(RuntimeError), Progress(3, "fit", stream=stream):
        raise RuntimeError
    assert stream.getvalue() == "fit: 3 steps\n"


def broken_off(run):
    for step in run.progress(5):
        if step == 2:
            raise RuntimeError("broken off")


def test_a_stage_that_is_broken_off_gives_the_terminal_back(tmp_path, monkeypatch):
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    with pytest.raises(RuntimeError, match="broken off") as caught, Run.open(tmp_path / "a", device="cpu") as run:
        run.stage("x", broken_off)
    assert caught.value.__traceback__ is not None  # it still holds the loop's frame
    assert stream.getvalue().rstrip().endswith("\x1b[?25h")
