"""A worker may crash, hang or fail without harm to the other tasks."""

from __future__ import annotations

import multiprocessing
import time

import pytest
from worker_tasks import act, process

from maquette.errors import RunFailed
from maquette.training.workers import Lost, run_isolated


def test_results_come_with_their_index_and_every_task_once():
    tasks = [("square", n) for n in range(9)]
    assert sorted(run_isolated(act, tasks, workers=2, timeout=60)) == [(n, n * n) for n in range(9)]
    assert list(run_isolated(act, [], workers=2, timeout=60)) == []
    with pytest.raises(ValueError, match="at least one worker"):
        list(run_isolated(act, tasks, workers=0, timeout=60))


def test_a_death_loses_its_own_task_only():
    tasks = [("square", 1), ("die", 2), ("square", 3), ("leave", 4), ("square", 5)]
    results = dict(run_isolated(act, tasks, workers=1, timeout=60))
    assert {k: v for k, v in results.items() if not isinstance(v, Lost)} == {0: 1, 2: 9, 4: 25}
    assert "SIGKILL" in results[1].reason and "memory" in results[1].reason
    assert "code 3" in results[3].reason


def test_a_hanging_task_is_ended():
    began = time.monotonic()
    results = dict(run_isolated(act, [("sleep", 0), ("square", 2)], workers=1, timeout=1.5))
    assert results[1] == 4 and "longer than 1.5 s" in results[0].reason
    assert time.monotonic() - began < 50


def test_failures_that_concern_all_are_raised_here():
    with pytest.raises(RunFailed, match="disk is full"):
        list(run_isolated(act, [("full", 0)], workers=1, timeout=60))
    with pytest.raises(RuntimeError, match="ZeroDivisionError: task 7"):
        list(run_isolated(act, [("bug", 7)], workers=1, timeout=60))


def test_processes_are_reused_and_end_with_the_iterator():
    results = run_isolated(process, list(range(4)), workers=1, timeout=60)
    ids = {next(results)[1], next(results)[1]}
    assert len(ids) == 1
    children = multiprocessing.active_children()
    assert ids <= {child.pid for child in children}
    results.close()
    assert not ids & {child.pid for child in multiprocessing.active_children()}
