"""README and docs tell the truth: commands parse, sessions run, links and references lead somewhere."""

from __future__ import annotations

import ast
import contextlib
import doctest
import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tyro
from pages import PAGES, ROOT, blocks, every_page, prose

from maquette import cli
from maquette.commands.arguments import option_names
from maquette.errors import UserError
from maquette.images import read_image
from maquette.methods import dreambooth3d, imagedream, text, usd
from maquette.priors.hub import NANO

AFTER_TRAINING = {"docs/images/demo.png", "docs/results.md"}
"""What is made with the nano weights, and is there once they are."""


def require_weights(what: str) -> None:
    if not (NANO / "multiview" / "card.json").is_file():
        pytest.skip(f"{what} is made with the weights of the nano prior, which are not in this checkout yet")


# Commands


class Parsed(BaseException):
    """The options of a command were understood; nothing is done with them."""


def command_lines() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for block in blocks(page):
            if block.language == "sh":
                lines = block.text.replace("\\\n", " ").splitlines()
                found += [(f"{page.name}:{block.line + i}", line) for i, line in enumerate(lines) if line.strip()]
    assert len(found) > 10, "the pages show commands in fenced blocks of sh"
    return found


@pytest.mark.parametrize(("place", "line"), command_lines(), ids=[place for place, _ in command_lines()])
def test_every_command_is_understood(place, line, monkeypatch, capsys):
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        assert words[1] in targets and all("=" in word for word in words[2:])
    elif words[:2] == ["pip", "install"]:
        _, _, extras = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")
        assert set(re.findall(r"\[(\w+)\]", line)) <= set(re.findall(r"^(\w+) = \[", extras, flags=re.MULTILINE))
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file()
    else:
        assert words[0] == "maquette", f"{place}: teach this test what {words[0]!r} is"
        understand(words[1:], monkeypatch)
    capsys.readouterr()


def understand(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command read its options, and stop it there."""
    read = tyro.cli

    def stop(*args: Any, **kwargs: Any) -> None:
        read(*args, **kwargs)
        raise Parsed

    monkeypatch.setattr(tyro, "cli", stop)
    if words[-1] == "--help":
        with contextlib.suppress(SystemExit):
            assert cli.main(words) == 0
        return
    with pytest.raises(Parsed):
        assert cli.main(words) == 0, "the command refused its options, see standard error"


@cache
def known_options() -> set[str]:
    """Options of all commands, with those of components that can be chosen."""
    from maquette.commands import dreambooth3d as subject
    from maquette.commands import evaluate, method, model_files, models, render, train, views
    from maquette.commands import text as words
    from maquette.commands.components import choose_components, find_choices

    scripts = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "benchmarks").glob("*.py")))
    known = {"--help", "--pack", *re.findall(r"add_argument\(\s*[\"'](--[\w-]+)", scripts)}
    kinds = [train.NanoOptions, train.JudgeOptions, render.Options, render.PackOptions]
    kinds += [evaluate.CompareOptions, evaluate.TallyOptions, models.ListOptions, models.CheckOptions]
    kinds += [subject.Options, evaluate.SubjectOptions, words.Options]
    kinds += [model_files.FetchOptions, model_files.ConvertOptions]
    for kind in kinds:
        known |= set(option_names(kind))
    for start in (
        imagedream.nano(), imagedream.paper(), views.configure_views("nano", "default"), usd.nano(), usd.paper(),
        dreambooth3d.nano(), dreambooth3d.paper(), text.nano(), text.dreamfusion(),
        text.unbiased(),
    ):  # fmt: skip
        for kind in (method.Options, evaluate.ObjectOptions, evaluate.PromptOptions):
            known |= set(option_names(method.method_options(kind, start)))
        for choice in find_choices(start):
            known.add(choice.option)
            for name in choice.classes:
                with contextlib.suppress(UserError):  # some can be chosen from Python only
                    changed, _ = choose_components(start, [choice.option, name])
                    known |= set(option_names(type(changed), changed))
    return known


@every_page
def test_every_option_that_is_named_exists(page):
    named = set(re.findall(r"`[^`\n]*?(--[a-z][\w.-]*)", prose(page)))
    assert named <= known_options()


# Code


@every_page
def test_python_blocks_are_python(page):
    for block in blocks(page):
        if block.language == "python" and ">>>" not in block.text:
            compile(block.text, f"{page.name}:{block.line}", "exec")


@every_page
def test_sessions_show_what_they_show(page):
    failed, _ = doctest.testfile(str(page), module_relative=False, encoding="utf-8",
                                 optionflags=doctest.NORMALIZE_WHITESPACE)  # fmt: skip
    assert failed == 0


# Links and references


def slug(heading: str) -> str:
    """The anchor of a heading on a code host."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@every_page
def test_links_lead_somewhere(page):
    waiting = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        relative = path.relative_to(ROOT).as_posix()
        if not path.exists() and relative in AFTER_TRAINING:
            waiting.append(relative)
            continue
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in map(slug, headings), target
    if waiting:
        require_weights(", ".join(sorted(set(waiting))))
        pytest.fail(f"the weights are here, but not {', '.join(sorted(set(waiting)))}")


def test_the_demo_has_its_picture():
    (shown,) = re.findall(r"^IMAGE :?= (\S+)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert read_image(ROOT / shown).shape[0] in (3, 4)
    assert f'"{shown}"' in (ROOT / "README.md").read_text(), "the first example takes the picture of the demo"


def references(page: Path) -> set[tuple[str, str]]:
    """(file, dotted name or nothing) of everything written as `folder/file.py:name`."""
    return set(re.findall(r"`([\w./-]+\.(?:py|md|txt|png))(?::([A-Za-z_][\w.]*))?`", prose(page)))


def resolve(file: str) -> Path | None:
    """A path of the repository, or of the package."""
    return next((path for path in (ROOT / file, ROOT / "maquette" / file) if path.is_file()), None)


@cache
def names_of(path: Path) -> set[str]:
    """Dotted names that a module defines: functions, classes, their members, constants."""

    def collect(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield prefix + node.name
                if isinstance(node, ast.ClassDef):
                    yield from collect(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                yield prefix + node.target.id
            elif isinstance(node, ast.Assign):
                yield from (prefix + target.id for target in node.targets if isinstance(target, ast.Name))

    return set(collect(ast.parse(path.read_text(encoding="utf-8")).body))


@every_page
def test_references_to_code_exist(page):
    faults = []
    for file, name in sorted(references(page)):
        path = resolve(file)
        if "/" not in file and path is None:
            continue  # a file that a run writes, such as card.json's neighbours
        if path is None or (name and name not in names_of(path)):
            faults.append(f"{file}:{name}" if name else file)
    assert faults == []


def test_the_reference_check_sees_mistakes():
    path = resolve("guidance/recon.py")
    assert (
        path is not None and "ReconGuidance.direction" in names_of(path) and "ReconGuidance.way" not in names_of(path)
    )
    assert resolve("guidance/recoil.py") is None
    assert len(references(ROOT / "docs" / "faults.md")) > 60


def test_every_known_fault_names_its_place_and_its_test():
    rows = [line for line in (ROOT / "docs" / "faults.md").read_text().splitlines() if line.startswith("| ")]
    faults = [row.strip("| ").split(" | ") for row in rows if not row.startswith(("| fault", "| ---"))]
    assert len(faults) >= 25
    for fault in faults:
        assert len(fault) == 4, fault
        assert fault[1].split()[0].rstrip(":;,") in ("fixed", "option", "kept", "not", "here"), fault[1]
        assert re.match(r"`[\w/]+\.\w+", fault[2]) and fault[3].startswith("`tests/"), fault


def test_tables_made_from_the_code_are_up_to_date():
    spec = importlib.util.spec_from_file_location("write_tables", ROOT / "docs" / "write_tables.py")
    assert spec is not None and spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    sys.modules["write_tables"] = tables
    spec.loader.exec_module(tables)
    pages = [page.read_text(encoding="utf-8") for page in sorted(tables.PAGES.glob("*.md"))]
    assert all(any(f"<!-- table: {name} -->" in page for page in pages) for name in tables.TABLES)
    assert [tables.filled(page) for page in pages] == pages, "run `python docs/write_tables.py`"
