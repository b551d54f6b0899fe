"""Saving what a stage made, and loading it again as the same kind of thing."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from maquette.errors import UserError
from maquette.run.state import read_state, write_state


@runtime_checkable
class Saveable(Protocol):
    """What a stage may return: `save(folder)` writes everything into an existing folder, the classmethod
    `load(folder)` makes an equal value from it. Formats that can execute code (pickle) are not allowed.
    """

    def save(self, folder: Path) -> object: ...


def save_result(result: Any, folder: Path) -> dict[str, Any]:
    """Write `result` below `folder` and return the JSON description that `load_result` needs.

    A result is an object with `save` and `load`, a tree of tensors and plain values (see `state`), or a tuple, list or
    dictionary of results. Raises ValueError for anything else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(result, Saveable) and not isinstance(result, type):
        kind = type(result)
        if not callable(getattr(kind, "load", None)) or "<locals>" in kind.__qualname__:
            raise ValueError(f"{kind.__qualname__} has save() but no importable classmethod load(folder).")
        result.save(folder)
        return {"kind": "object", "class": f"{kind.__module__}:{kind.__qualname__}"}
    if isinstance(result, (tuple, list)) and _holds_objects(list(result)):
        items = [save_result(item, folder / str(i)) for i, item in enumerate(result)]
        return {"kind": type(result).__name__, "items": items}
    if isinstance(result, dict) and _holds_objects(list(result.values())):
        pairs = [[key, save_result(item, folder / str(i))] for i, (key, item) in enumerate(result.items())]
        return {"kind": "dict", "items": pairs}
    write_state(folder / "value.safetensors", result)
    return {"kind": "state"}


def load_result(description: dict[str, Any], folder: Path, trusted: str) -> Any:
    """The result that `save_result` described. Classes are taken only from this package and the package `trusted`,
    so that a run folder from elsewhere cannot name other code to run (UserError).
    """
    kind = description["kind"]
    if kind == "object":
        module, _, name = description["class"].partition(":")
        if module.split(".")[0] not in (__name__.split(".")[0], trusted.split(".")[0]):
            raise UserError(f"{folder} names {module}:{name}, a class that is not part of maquette; it is not loaded.")
        owner: Any = importlib.import_module(module)
        for part in name.split("."):
            owner = getattr(owner, part)
        return owner.load(folder)
    if kind in ("tuple", "list"):
        items = [load_result(item, folder / str(i), trusted) for i, item in enumerate(description["items"])]
        return tuple(items) if kind == "tuple" else items
    if kind == "dict":
        pairs = enumerate(description["items"])
        return {key: load_result(item, folder / str(i), trusted) for i, (key, item) in pairs}
    return read_state(folder / "value.safetensors")


def _holds_objects(items: list[Any]) -> bool:
    """Whether any of `items` is, or contains, an object that saves itself."""
    return any(
        isinstance(item, Saveable)
        or (isinstance(item, (tuple, list)) and _holds_objects(list(item)))
        or (isinstance(item, dict) and _holds_objects(list(item.values())))
        for item in items
    )
