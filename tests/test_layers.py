"""The house stands: imports only go down, and what must stay outside stays outside."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "maquette"

FLOORS: list[set[str]] = [
    {"errors", "cameras", "images", "imagefiles", "matting", "saliency", "schedules", "asset", "run"}
    | {"subjects", "videofiles", "wording", "imagesizes"},
    {"fields"},
    {"rendering", "meshing", "diffusion"},
    {"priors"},
    {"guidance"},
    {"stages", "training", "evaluation"},
    {"methods"},
    {"cli", "commands", "doctor", "report", "batch", "__main__"},
]
NEIGHBOURS: list[set[str]] = [FLOORS[0], {"rendering", "meshing"}, FLOORS[7]]
"""Rooms of one floor that may see each other; all others keep to themselves."""
SPACE = {"fields", "rendering", "meshing"}
BLIND = {"diffusion": {"fields"}, "priors": SPACE, "guidance": SPACE}
"""What a room may not see although it lies below: a prior knows images, a field knows space."""
ONLY_IN = {
    "accelerate": ("run/", "training/", "stages/personalize.py"),
    "ray": ("batch.py",),
    "pickle": ("evaluation/weights_file.py", "priors/tensor_files.py"),
}
"""Engines stay outside: every method runs without them. `pickle` lends the name of the restricted
loader's error, and the reader of structures that runs nothing of them."""
FORBIDDEN = {
    "torchvision", "lpips", "open_clip", "timm", "cleanfid", "open3d", "pytorch3d", "nvdiffrast", "tinycudann",
    "kaolin", "dill", "joblib", "shelve", "marshal",
}  # fmt: skip
"""Libraries that break or replace a CPU build of torch, cannot be installed everywhere, or execute what they read."""

SOURCES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    """The folder, or the file, directly below the package; `asset_io.py` is part of `asset`."""
    name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "asset" if name.startswith("asset_") else name


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import in a file, wherever it stands; `from a import b` counts as a.b."""
    package = ["maquette", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            stem = ".".join(part for part in (base, node.module or "") if part)
            yield from ((node.lineno, f"{stem}.{alias.name}") for alias in node.names)


def test_every_room_has_a_floor():
    rooms = {room_of(path) for path in SOURCES} - {"__init__"}
    assert rooms <= set().union(*FLOORS), "give the new room a floor in FLOORS"


def test_imports_only_go_down():
    floor = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
    faults = []
    for path in SOURCES:
        here = room_of(path)
        if here == "__init__":
            continue
        for line, module in imports(path):
            parts = module.split(".")
            if parts[0] != "maquette" or len(parts) < 2 or parts[1] not in floor | {"asset_io": 0, "asset_gltf": 0}:
                continue
            there = "asset" if parts[1].startswith("asset_") else parts[1]
            beside = here == there or any({here, there} <= group for group in NEIGHBOURS)
            if there in BLIND.get(here, ()) or (floor[there] >= floor[here] and not beside):
                faults.append(f"{path.relative_to(PACKAGE)}:{line}: {here} imports {there}")
    assert faults == []


def test_forbidden_and_confined_libraries():
    faults = []
    for path in SOURCES:
        where = path.relative_to(PACKAGE).as_posix()
        for line, module in imports(path):
            library = module.split(".")[0]
            if library in FORBIDDEN:
                faults.append(f"{where}:{line}: {library}")
            if library in ONLY_IN and not where.startswith(ONLY_IN[library]):
                faults.append(f"{where}:{line}: {library} belongs in {ONLY_IN[library]}")
    assert faults == []


def test_torch_load_never_executes_what_it_reads():
    faults = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "load_pickle")):
                continue
            safe = [k for k in node.keywords if k.arg == "weights_only" and ast.unparse(k.value) == "True"]
            if not safe:
                faults.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert faults == []


@pytest.mark.parametrize("module", ["maquette", "maquette.cli", "maquette.run", "maquette.doctor"])
def test_importing_costs_no_torch(module):
    code = f"import sys, {module}; print([m for m in ('torch', 'numpy', 'tyro', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=True)
    assert done.stdout.strip() == "[]"


def test_files_stay_readable():
    long = {str(p.relative_to(PACKAGE)): n for p in SOURCES if (n := len(p.read_text().splitlines())) > 500}
    assert long == {}, "ask which two things each has become"
