"""Fixtures for all tests: where the shared data packs are, and a seeded generator."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("MAQUETTE_SHARED", REPOSITORY.parent / "shared"))


def shared_path(*parts: str) -> Path:
    """A file or folder of the shared packs; skips the test, naming it, where it is absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs {'/'.join(parts)} of the shared packs; set MAQUETTE_SHARED to the folder that holds them")
    return path


@pytest.fixture(scope="session")
def shared():
    """`shared("data", "images")` is that path, or a skip that names it."""
    return shared_path


@pytest.fixture(scope="session")
def goldens() -> Path:
    """The folder of recorded reference numbers, one sub-folder a topic."""
    return shared_path("reference", "goldens")


@pytest.fixture(scope="session")
def objects_train() -> Path:
    """Training objects: GLB files and index.jsonl."""
    return shared_path("data", "objects", "train")


@pytest.fixture(scope="session")
def objects_val() -> Path:
    """Validation objects: GLB files and index.jsonl."""
    return shared_path("data", "objects", "val")


@pytest.fixture(scope="session")
def images_data() -> Path:
    """Image prompts: PNG files and index.jsonl."""
    return shared_path("data", "images")


@pytest.fixture(scope="session")
def subjects_data() -> Path:
    """DreamBooth subjects: folders of photos and subjects.json."""
    return shared_path("data", "subjects")


@pytest.fixture
def generator() -> torch.Generator:
    """A CPU generator with a fixed seed."""
    return torch.Generator().manual_seed(0)
