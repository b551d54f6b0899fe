"""README and docs tell the truth: commands parse, code runs, links and references lead somewhere, examples run."""

from __future__ import annotations

import argparse
import ast
import contextlib
import doctest
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import tyro

from maquette import cli
from maquette.commands.arguments import option_names
from maquette.commands.dreambooth3d import read_options as read_subject_options
from maquette.errors import UserError
from maquette.guidance.base import NoiseRange
from maquette.images import Views, read_image
from maquette.methods import dreambooth3d, imagedream, text, usd
from maquette.priors.hub import NANO, load_prior, save_prior
from maquette.rendering import OccupancyConfig, VolumeConfig
from maquette.run import Run
from maquette.schedules import Constant
from maquette.stages.fit import FitConfig
from maquette.stages.locate import LocateConfig
from maquette.stages.look import SamplingConfig, sample_views
from maquette.stages.objectives import PhotometricConfig, RandomRays
from maquette.wording import require_subject
from tests.priors.tiny import four_cameras, prompt, tiny_config, tiny_prior, tiny_stable_diffusion, tiny_zero123

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("[0-9]*.py"))
DRAFT = imagedream.nano("draft")
AFTER_TRAINING = {"docs/images/demo.png", "docs/results.md"}
"""What is made with the nano weights, and is there once they are."""

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

    known = {"--help", "--pack", "--variants"}
    kinds = [train.NanoOptions, train.JudgeOptions, render.Options, render.PackOptions]
    kinds += [evaluate.CompareOptions, evaluate.TallyOptions, models.ListOptions, models.CheckOptions]
    kinds += [subject.Options, evaluate.SubjectOptions, words.Options]
    kinds += [model_files.FetchOptions, model_files.ConvertOptions]
    for kind in kinds:
        known |= set(option_names(kind))
    for start in (
        imagedream.nano(), imagedream.paper(), views.configure_views("nano", "default"), usd.nano(), usd.paper(),
        dreambooth3d.nano(), dreambooth3d.paper(), text.nano(), text.dreamfusion(),
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


def run_blocks(page: Path) -> list[dict[str, Any]]:
    """Namespaces of the blocks that a page marks as running, each run on its own."""
    spaces = []
    for block in blocks(page):
        if block.runs:
            space: dict[str, Any] = {"__name__": __name__}  # dataclasses look their module up
            exec(compile(block.text, f"{page.name}:{block.line}", "exec"), space)
            spaces.append(space)
    return spaces


@pytest.fixture(scope="module")
def extended() -> dict[str, Any]:
    """Everything that docs/extend.md defines."""
    spaces = run_blocks(ROOT / "docs" / "extend.md")
    assert len(spaces) == 5
    return {name: value for space in spaces for name, value in space.items()}


def test_the_guidance_of_the_page_guides(extended):
    prior = tiny_prior()
    images = torch.rand(1, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    guidance = extended["ClassifierGuidance"](prior, prompt())
    result = guidance(images, four_cameras(), torch.ones(3), (0.5, 0.5), torch.Generator().manual_seed(0))
    result.loss.backward()
    assert images.grad.any() and result.metrics["t"] == 500
    assert guidance.fingerprint() != extended["ClassifierGuidance"](prior, prompt("a blue chair")).fingerprint()


def test_the_prior_of_the_page_can_be_sampled_and_distilled(extended, tmp_path):
    prior, shown = extended["CopyPrior"](), prompt()
    white = torch.ones(3)
    condition = prior.condition(shown, white)
    cameras = four_cameras().with_size(32, 32)
    config = SamplingConfig(steps=4, guidance_scale=1.0, spacing="exact")
    with Run.open(tmp_path / "run", quiet=True) as run:
        views = run.stage("views", sample_views, prior, condition, cameras, config)
    expected = shown.image.resized(32).composite(white).clamp(0, 1)
    assert (views.composite(white) - expected).abs().mean() < 0.1
    images = torch.rand(1, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    guidance = extended["ClassifierGuidance"](prior, shown)
    guidance(images, cameras, white, (0.5, 0.5), torch.Generator().manual_seed(0)).loss.backward()
    assert images.grad.any()


def test_the_field_of_the_page_becomes_a_mesh(extended):
    mesh, quality = extended["mesh"], extended["quality"]
    assert mesh.is_watertight and quality.components == 1
    radius = torch.from_numpy(mesh.vertices).norm(dim=-1)
    assert float((radius - 0.6).abs().max()) < 0.05


def test_the_metric_of_the_page_measures(extended):
    mask = torch.ones(2, 1, 8, 8)
    grey = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)).expand(2, 3, 8, 8)
    colours = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert extended["colourfulness"](grey, mask).max() < 1e-6
    assert extended["colourfulness"](colours, mask).shape == (2,)
    assert extended["colourfulness"](colours, mask).min() > 0.1


def test_the_method_of_the_page_is_a_method(extended, package, tmp_path, monkeypatch):
    method = extended["METHOD"]
    monkeypatch.setitem(method.make.__globals__, "load_prior", lambda *arguments: load_prior("nano", package))
    config = method.config("nano", "draft")
    with Run.open(tmp_path / "run", config=config, method=method.name, quiet=True) as run:
        views = method.make(prompt(), config, run)
    assert isinstance(views, Views) and len(views) == 4
    torch.testing.assert_close(views.cameras.elevation, torch.full((4,), 20.0), atol=1e-3, rtol=0)
    with pytest.raises(UserError, match="IMAGE is missing"):
        extended["run"]([])


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """A weights package of a nano prior small enough for tests."""
    folder = tmp_path_factory.mktemp("package")
    card = {"name": "nano", "licence": "Apache-2.0"}
    save_prior(folder, tiny_prior(), tiny_config(), card)
    return folder


def quick(package: Path) -> imagedream.Config:
    """ImageDream's draft preset with next to no work."""
    nothing = FitConfig(steps=2)
    rays = PhotometricConfig(pixels=RandomRays(16), mask=Constant(0.5))
    whole = DRAFT
    assert whole.warm_start is not None and whole.prompt_view is not None
    return replace(
        whole, weights=package, fit=nothing, keep_views=rays,
        scene=VolumeConfig(occupancy=OccupancyConfig(resolution=16), samples=Constant(24)),
        sampling=replace(whole.sampling, steps=2),
        warm_start=replace(whole.warm_start, fit=nothing, photometric=rays),
        prompt_view=replace(whole.prompt_view, locate=LocateConfig(4, (5.0,), size=16, refine=0), photometric=rays),
        distillation=replace(whole.distillation, resolution=Constant(16), noise_range=NoiseRange()),
        mesh=replace(whole.mesh, resolution=16, texture_size=64, unwrap_seconds=0),
    )  # fmt: skip


def test_the_readme_s_python_makes_an_asset(package, tmp_path, monkeypatch):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(imagedream, "nano", lambda quality="default": quick(package))
    (space,) = run_blocks(ROOT / "README.md")
    assert len(space["asset"].mesh.faces) > 0
    assert (tmp_path / "first.glb").read_bytes()[:4] == b"glTF"
    assert (tmp_path / "runs" / "first" / "provenance.json").is_file()


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


# Examples


def example(number: str, *words: object) -> subprocess.CompletedProcess[str]:
    """Run an example as a person would, without a network."""
    (path,) = [path for path in EXAMPLES if path.name.startswith(number)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(path), *map(str, words)], capture_output=True, text=True, env=environment, cwd=ROOT
    )


def test_examples_are_numbered_and_say_what_they_are():
    assert [path.name[:2] for path in EXAMPLES] == [f"{number + 1:02d}" for number in range(len(EXAMPLES))]
    for path in EXAMPLES:
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert text is not None and text.startswith(f"{path.name[:2]}. ") and f"python examples/{path.name}" in text
        assert f"(../examples/{path.name})" in (ROOT / "docs" / "index.md").read_text()


def test_example_01_places_cameras(tmp_path):
    done = example("01", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "pixel (100.5, 30.5)" in done.stdout and "left: azimuth   90.0" in done.stdout
    views = Views.load(tmp_path / "views")
    # Seen from the front the robot's own left, blue, is on the right; its back carries the yellow pack.
    front, _, back, _ = views.images * (views.masks > 0.5)
    blue, yellow = torch.tensor([0.20, 0.36, 0.78]), torch.tensor([0.95, 0.80, 0.24])

    def where(image: torch.Tensor, colour: torch.Tensor) -> torch.Tensor:
        return ((image - colour[:, None, None]).abs().amax(dim=0) < 0.05).nonzero()[:, 1].float()

    assert where(front, blue).mean() > 64 > where(back, blue).mean()
    assert len(where(front, yellow)) == 0 and len(where(back, yellow)) > 100


def test_example_02_cuts_out(tmp_path):
    done = example("02", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"cut out by (\w+)", done.stdout) == ["alpha", "plain", "photo"]
    overlaps = [float(line.split()[-1]) for line in done.stdout.splitlines() if "overlap" in line]
    assert overlaps[0] > 0.999 and overlaps[1] > 0.99 and overlaps[2] > 0.95
    own = example("02", tmp_path / "wall.png", "--out", tmp_path / "own")
    assert own.returncode == 0 and (tmp_path / "own" / "wall-prompt.png").is_file()


def test_example_03_samples_views(package, tmp_path):
    done = example("03", "--weights", package, "--steps", 2, "--out", tmp_path / "views")
    assert done.returncode == 0, done.stderr
    assert "front, left, back, right, prompt" in done.stdout
    assert len(Views.load(tmp_path / "views" / "views")) == 4
    (tmp_path / "empty").mkdir()
    without = example("03", "--weights", tmp_path / "empty", "--out", tmp_path / "none")
    assert without.returncode == 1 and without.stderr.startswith("This example needs the weights of the nano prior")
    assert len(without.stderr.splitlines()) == 1


def test_example_04_fits_a_field(tmp_path):
    done = example("04", "--steps", 60, "--size", 40, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    likeness = float(re.search(r"shown: ([\d.]+) dB", done.stdout)[1])
    assert likeness > 18, "a white picture has about 11 dB"
    assert (tmp_path / "robot.glb").read_bytes()[:4] == b"glTF" and (tmp_path / "unseen.png").is_file()


def test_example_05_tells_nulls_apart(package, tmp_path):
    done = example("05", "--view", "nano", "--view-weights", package, "--draws", 3, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers.keys() == {"views", "pictures"} and numbers["views"]["t"] == [50, 100, 200, 300]
    # A network that was never trained is biased, with cameras otherwise than without.
    assert min(numbers["views"]["bias"] + numbers["pictures"]["bias"]) > 0.01
    assert numbers["views"]["psnr"] != numbers["pictures"]["psnr"]
    assert (
        f"null of views    t = 300: mean of (predicted - added) noise {numbers['views']['bias'][3]:.4f}" in done.stdout
    )
    assert read_image(tmp_path / "nulls.png").shape == (3, 2 * 128 + 4, 6 * 128 + 5 * 4)
    without = example("05", "--view", "nano", "--view-weights", tmp_path / "none", "--out", tmp_path)
    assert without.returncode == 1 and without.stderr.startswith("This example needs the weights of two priors")


def test_example_05_takes_any_pair(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    (path,) = [path for path in EXAMPLES if path.name.startswith("05")]
    spec = importlib.util.spec_from_file_location("example_05", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pair = {"view": tiny_zero123(), "free": tiny_stable_diffusion()}
    monkeypatch.setattr(module, "load_any", lambda name, weights: pair[name])
    options = {"view": "view", "free": "free", "view_weights": None, "free_weights": None, "draws": 2, "out": tmp_path}
    biases = {}
    for null in ("zeros", "projected"):
        module.main(argparse.Namespace(**options, null=null))
        biases[null] = json.loads((tmp_path / "numbers.json").read_text())
    assert biases["zeros"]["views"]["bias"] != biases["projected"]["views"]["bias"]
    assert biases["zeros"]["pictures"] == biases["projected"]["pictures"]


def test_example_06_prints_commands_that_are_understood():
    done = example("06", "--photos", "my dogs", "--subject", "dog")
    assert done.returncode == 0, done.stderr
    commands = [shlex.split(line) for line in done.stdout.splitlines() if line.startswith("maquette ")]
    assert len(commands) == 24 and "does not know" not in done.stdout
    first, second = (read_subject_options(words[2:])[0] for words in commands[:2])
    assert first.folder == Path("my dogs") and first.preset == "paper" and "[v] dog" in first.caption
    assert second.folder is None and second.subject_from == first.out and second.caption == "a [v] dog in the snow"
    for words in commands:
        assert words[:2] == ["maquette", "dreambooth3d"]
        require_subject(read_subject_options(words[2:])[0].caption)
