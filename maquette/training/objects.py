"""Finding objects to render: files, folders of them, and folders that describe theirs in an index.jsonl."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from maquette.errors import UserError

SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".stl")
INDEX = "index.jsonl"


@dataclass(frozen=True)
class ObjectFile:
    """One object to render."""

    name: str
    """Unique, usable as a file name; the index's `id`, or the path below the folder that was given."""
    path: Path
    """Its mesh file; it may turn out not to exist."""
    record: dict[str, Any] = field(default_factory=dict)
    """What the index says of it: caption, category, licence and so on."""


def find_objects(paths: Sequence[Path]) -> list[ObjectFile]:
    """The objects that `paths` stand for, in their order; a folder's in the order of its index, else by name.

    A file is itself. A folder with an index.jsonl holds what that lists (`id`, `file`); another folder holds every mesh
    file below it. Raises UserError for a path that does not exist, a file of another kind, a folder without objects, an
    index that cannot be read, and objects that cannot be told apart by name.
    """
    found: list[ObjectFile] = []
    for path in paths:
        if path.is_dir():
            listed = _indexed(path) if (path / INDEX).is_file() else _below(path)
            if not listed:
                raise UserError(f"{path} holds no objects ({', '.join(SUFFIXES)}).")
            found += listed
        elif not path.exists():
            raise UserError(f"there is no object at {path}.")
        elif path.suffix.lower() in SUFFIXES:
            found.append(ObjectFile(_file_name(path.stem), path))
        else:
            raise UserError(f"{path} is not an object; expected {', '.join(SUFFIXES)} or a folder of them.")
    return _distinct(found)


def _indexed(folder: Path) -> list[ObjectFile]:
    objects = []
    for number, line in enumerate((folder / INDEX).read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            file = record["file"]
            name = record.get("id", Path(file).stem)
            path = folder / file
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"{folder / INDEX}, line {number}: expected a JSON object with the field 'file' ({error!r})."
            ) from None
        objects.append(ObjectFile(_file_name(str(name)), path, {k: v for k, v in record.items() if k != "file"}))
    return objects


def _below(folder: Path) -> list[ObjectFile]:
    files = [
        path.relative_to(folder)
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")
    ]
    return [ObjectFile(_file_name("__".join(path.with_suffix("").parts)), folder / path) for path in files]


def _distinct(objects: list[ObjectFile]) -> list[ObjectFile]:
    """The objects with names that differ, even ignoring case; chair.glb and chair.obj get their suffix as well."""
    named: dict[str, list[ObjectFile]] = defaultdict(list)
    for item in objects:
        named[item.name.lower()].append(item)
    shared = {name for name, items in named.items() if len(items) > 1}
    renamed = [
        replace(item, name=f"{item.name}-{item.path.suffix[1:].lower()}") if item.name.lower() in shared else item
        for item in objects
    ]
    first: dict[str, ObjectFile] = {}
    for item in renamed:
        other = first.setdefault(item.name.lower(), item)
        if other is not item:
            raise UserError(
                f"{other.path} and {item.path} would both be called {item.name!r}; "
                f"give the folder above both, or render them into two folders."
            )
    return renamed


def _file_name(text: str) -> str:
    """`text` with everything that could trouble a file system replaced, at most 120 characters."""
    return re.sub(r"[^\w.-]+", "_", text).strip(".")[:120] or "object"
