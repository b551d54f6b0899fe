"""One finished run for all tests of the report."""

from __future__ import annotations

import shutil

import pytest
from finished_run import make_run

from maquette.report import write_report


@pytest.fixture(scope="session")
def reported(tmp_path_factory):
    """A run's folder with its report; tests leave it as it is."""
    folder = make_run(tmp_path_factory.mktemp("runs") / "pawn")
    write_report(folder)
    return folder


@pytest.fixture
def run_folder(reported, tmp_path):
    """A copy of that folder, to be changed."""
    return shutil.copytree(reported, tmp_path / "pawn", ignore=shutil.ignore_patterns(".lock"))
