"""The pages of the documentation and their fenced blocks."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from maquette.priors.hub import save_prior
from tests.priors.tiny import tiny_config, tiny_prior

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str
    line: int
    runs: bool
    """Whether the page marks it as running."""


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in re.finditer(r"(<!-- runs -->\n)?```(\w*)\n(.*?)```", text, flags=re.DOTALL):
        yield Block(match[2], match[3], text.count("\n", 0, match.start(3)) + 1, match[1] is not None)


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def run_blocks(page: Path) -> list[dict[str, Any]]:
    """Namespaces of the blocks that a page marks as running, each run as a module of its own."""
    spaces = []
    for number, block in enumerate(blocks(page)):
        if block.runs:
            module = ModuleType(f"{page.stem}_{number}")
            module.__file__ = __file__  # who asks for its source learns that there is none
            sys.modules[module.__name__] = module  # dataclasses look their module up
            exec(compile(block.text, f"{page.name}:{block.line}", "exec"), module.__dict__)
            spaces.append(module.__dict__)
    return spaces


def save_package(folder: Path) -> Path:
    """A weights package of a nano prior small enough for tests."""
    save_prior(folder, tiny_prior(), tiny_config(), {"name": "nano", "licence": "Apache-2.0"})
    return folder
