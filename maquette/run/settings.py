"""Settings as plain data: what `config.json` holds, and where two sets of settings differ."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def plain(value: Any) -> Any:
    """`value` as JSON data: dataclasses become dictionaries, tuples lists, paths and dtypes text.

    A dataclass standing where its field's declared type names another class (a choice between components) gets an
    entry `kind` with its class's name, as its fields alone would not tell which one it is. Infinities and NaN become
    text, because JSON has none. Raises ValueError for what has no plain form.
    """
    if isinstance(value, str) and not isinstance(value, enum.Enum):
        return printable(value)
    if value is None or isinstance(value, (bool, int)) and not isinstance(value, enum.Enum):
        return value
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, (Path, torch.dtype, torch.device)):
        return printable(str(value))
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().tolist()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        entries = {}
        for field in dataclasses.fields(value):
            item = getattr(value, field.name)
            entries[field.name] = plain(item)
            if dataclasses.is_dataclass(item) and not isinstance(item, type):
                declared = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", "")
                if declared.strip("\"'").split(".")[-1] != type(item).__name__:
                    entries[field.name] = {"kind": type(item).__name__, **entries[field.name]}
        return entries
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((plain(item) for item in value), key=str)
    raise ValueError(f"A setting of type {type(value).__name__} cannot be written to config.json; use plain values.")


def printable(text: str) -> str:
    """`text` without what is no UTF-8: a file's name may hold any bytes, a JSON file and a page may not."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def flatten(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one dictionary with dotted names.

    >>> flatten({"fit": {"steps": 3}, "seed": 0})
    {'fit.steps': 3, 'seed': 0}
    """
    if not isinstance(settings, dict) or (prefix and not settings):
        return {prefix: settings}
    flat: dict[str, Any] = {}
    for key, item in settings.items():
        flat.update(flatten(item, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(dotted name, old, new) of every setting that differs, in the order of `new`; an absent one reads as None."""
    before, after = flatten(old), flatten(new)
    names = [*after, *(name for name in before if name not in after)]
    return [(name, before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)]
