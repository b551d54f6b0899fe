"""What is published: every file of the package goes into the wheel, and the metadata is what the set-up installs."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from maquette.doctor import EXTRAS

REPOSITORY = Path(__file__).resolve().parents[1]
tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11 or newer to read pyproject.toml")


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def test_every_data_file_is_packaged(project):
    patterns = project["tool"]["setuptools"]["package-data"]["maquette"]
    packaged = {path for pattern in patterns for path in (REPOSITORY / "maquette").glob(pattern)}
    files = (path for path in (REPOSITORY / "maquette").rglob("*") if path.is_file() and path.suffix != ".py")
    assert {path for path in files if "__pycache__" not in path.parts} - packaged == set()


def test_every_folder_is_a_package():
    folders = {path.parent for path in (REPOSITORY / "maquette").rglob("*.py")}
    assert {folder for folder in folders if not (folder / "__init__.py").exists()} == set()


def test_constraints_are_within_the_declared_ranges(project):
    declared = [*project["project"]["dependencies"], *project["project"]["optional-dependencies"]["dev"]]
    least = dict(line.split(">=") for line in declared)
    pinned = dict(re.findall(r"^([a-z0-9-]+)==([0-9.a-z]+)", (REPOSITORY / "constraints.txt").read_text(), re.M))

    def key(version):
        return [int(part) for part in re.findall(r"\d+", version)]

    assert set(least) <= set(pinned)
    assert [name for name, version in least.items() if key(pinned[name]) < key(version)] == []


def imported(root):
    """Every module that a file of the package imports, by the first part of its name."""
    found = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
    return found


HANDED_IN = {"accelerate"}
"""Modules whose objects the package uses where a caller brings them."""


def test_extras_bring_what_the_package_uses_and_nothing_else(project):
    extras = project["project"]["optional-dependencies"]
    assert set(extras) - {"dev"} == set(EXTRAS)
    for extra, (modules, _) in EXTRAS.items():
        brought = [re.split(r"[\[>]", line)[0].replace("-", "_") for line in extras[extra]]
        assert brought == list(modules)
        assert set(modules) <= imported(REPOSITORY / "maquette") | HANDED_IN
    table = re.findall(r"^\| `(\w+)` \|", (REPOSITORY / "docs" / "index.md").read_text(), re.M)
    assert table == list(extras)


def test_the_version_is_the_same_everywhere():
    from maquette import __version__

    assert f"version: {__version__}" in (REPOSITORY / "CITATION.cff").read_text()
    assert f"## {__version__}" in (REPOSITORY / "CHANGELOG.md").read_text()


def test_shipped_weights_stay_small():
    sizes = [path.stat().st_size for path in (REPOSITORY / "maquette").rglob("*.safetensors")]
    assert max(sizes, default=0) <= 16 * 2**20 and sum(sizes) <= 32 * 2**20
