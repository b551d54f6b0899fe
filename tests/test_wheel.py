"""A wheel has all that a run needs: built, unpacked into a folder of its own, and run from there."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


def can_build() -> bool:
    """Whether pip and a setuptools that builds wheels by itself are installed here."""
    if importlib.util.find_spec("pip") is None or importlib.util.find_spec("setuptools") is None:
        return False
    return int(importlib.metadata.version("setuptools").split(".")[0]) >= 77


pytestmark = pytest.mark.skipif(
    not can_build(), reason="needs pip and setuptools 77 to build a wheel without a network"
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of the tracked files, built from a copy, so that the repository stays clean."""
    source, built = tmp_path_factory.mktemp("source") / "maquette", tmp_path_factory.mktemp("built")
    leave = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "maquette", source / "maquette", ignore=leave)
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE", "THIRD_PARTY.md"):
        shutil.copy(REPOSITORY / name, source)
    words = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(built)]
    subprocess.run([sys.executable, "-m", "pip", *words, str(source)], check=True, capture_output=True, text=True)
    (path,) = built.glob("maquette-*.whl")
    return path


def test_an_installed_wheel_draws_views(wheel, tmp_path):
    place, work = tmp_path / "site", tmp_path / "elsewhere"
    work.mkdir()
    # What `pip install --no-deps --target` does with a wheel of pure Python.
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)
    environment = {**os.environ, "PYTHONPATH": str(place), "OMP_NUM_THREADS": "1"}
    asked = "import maquette, sys; sys.stdout.write(maquette.__file__)"
    found = subprocess.run([sys.executable, "-c", asked], cwd=work, env=environment, capture_output=True, text=True)
    assert Path(found.stdout) == place / "maquette" / "__init__.py", found.stderr
    shutil.copy(REPOSITORY / "examples" / "images" / "lantern.png", work)
    command = [sys.executable, "-m", "maquette", "views", "lantern.png", "--out", "run", "--sampling.draws", "2"]
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (work / "run" / "views.png").stat().st_size > 1000
    priors = json.loads((work / "run" / "provenance.json").read_text())["priors"]
    assert [prior["name"] for prior in priors] == ["nano"]


def test_a_wheel_brings_licences_and_the_command(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (entry,) = (name for name in names if name.endswith("entry_points.txt"))
        assert "maquette = maquette.cli:main" in archive.read(entry).decode()
    assert any(name.endswith("py.typed") for name in names)
    for licence in ("LICENSE", "NOTICE", "THIRD_PARTY.md"):
        assert any(name.endswith(licence) for name in names), licence
