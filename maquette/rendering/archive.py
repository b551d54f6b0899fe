"""A scene as one file: its configuration, type by type, and its tensors."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from maquette.errors import UserError
from maquette.run.state import read_state, write_state

Scene = TypeVar("Scene", bound=nn.Module)
FILE = "scene.safetensors"
_TRUSTED = __name__.split(".")[0]


def write_scene(folder: Path | str, config: Any, tensors: Mapping[str, Tensor]) -> None:
    """Write a configuration (a tree of dataclasses) and named tensors into `folder`, which is made if need be."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_state(folder / FILE, {"config": describe(config), "tensors": dict(tensors)})


def read_scene(folder: Path | str, expected: type) -> tuple[Any, dict[str, Tensor]]:
    """The configuration and tensors that `write_scene` wrote; UserError where they are missing, damaged, or not of the
    `expected` configuration class."""
    path = Path(folder) / FILE
    if not path.is_file():
        raise UserError(f"no saved scene at {path}")
    tree = read_state(path)
    try:
        config, tensors = restore(tree["config"]), tree["tensors"]
    except (KeyError, TypeError, AttributeError, ImportError) as error:
        raise UserError(f"{path} holds no scene of this version of maquette ({error})") from error
    if not isinstance(config, expected):
        raise UserError(f"{path} holds a {type(config).__name__}, expected a {expected.__name__}")
    return config, tensors


def restore_scene(folder: Path | str, expected: type[Any], build: Callable[[Any], Scene]) -> Scene:
    """The scene that `build` makes of a saved configuration, with the saved tensors; UserError as `read_scene`, and
    where the tensors do not fit.
    """
    config, tensors = read_scene(folder, expected)
    scene = build(config)
    try:
        scene.load_state_dict(tensors)
    except (RuntimeError, KeyError) as error:
        raise UserError(f"the scene in {folder} does not fit its own configuration ({error})") from error
    return scene


def describe(value: Any) -> Any:
    """A configuration as a tree of plain values that remembers its classes."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        fields = {f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        return {"class": f"{kind.__module__}:{kind.__qualname__}", "fields": fields}
    if isinstance(value, (tuple, list)):
        return type(value)(describe(item) for item in value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"a scene's configuration holds plain values and dataclasses, got a {type(value).__name__}")


def restore(tree: Any) -> Any:
    """The inverse of `describe`; only dataclasses of this package are made, so that a file cannot name other code."""
    if isinstance(tree, dict):
        module, _, name = tree["class"].partition(":")
        if module.split(".")[0] != _TRUSTED:
            raise UserError(f"a saved scene names {module}:{name}, which is not part of maquette; it is not loaded")
        kind = getattr(importlib.import_module(module), name)
        if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
            raise UserError(f"a saved scene names {module}:{name}, which is no configuration; it is not loaded")
        return kind(**{key: restore(item) for key, item in tree["fields"].items()})
    if isinstance(tree, (tuple, list)):
        return type(tree)(restore(item) for item in tree)
    return tree
