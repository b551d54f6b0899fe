"""The expected numbers of a case whose results stand in a JSON file, and tolerances of these goldens."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tests.parity.golden import Checks, Golden

FORMULA = 1e-9
"""Relative, of float64 formula values."""
QUADRATURE = 1e-7
"""Relative, of means over surfaces that were integrated numerically."""
SINGLE = 1e-4
"""Relative, of anything that was computed in float32."""
_INFINITE, _UNDEFINED = 1e30, -1e30
"""Stand for "inf" and null, which relative errors cannot be taken of."""


def facts(golden: Golden, *, instead: str) -> dict[str, Any]:
    """The JSON object that belongs to a data file: of the same name, or named `instead`."""
    for path in (golden.path.with_suffix(".json"), golden.folder / f"{instead}.json"):
        if path.exists():
            return json.loads(path.read_text())
    raise ValueError(f"{golden.path.name} needs {golden.name}.json or {instead}.json beside it")


def numbers(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every number in JSON data with its dotted name; lists of plain numbers stay together, text is left out."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from numbers(item, f"{name}.{key}" if name else key)
    elif isinstance(value, list) and value and not all(_is_number(item) for item in value):
        for index, item in enumerate(value):
            yield from numbers(item, f"{name}.{index}")
    elif isinstance(value, list):
        yield name, encode([_decode(item) for item in value])
    elif _is_number(value):
        yield name, encode(_decode(value))


def expected(golden: Golden, values: Any, is_input: Callable[[str], bool], *, arrays: Callable[[str], bool]) -> Checks:
    """All results of a case: the arrays that `arrays` picks, and every number of the JSON that is no input."""
    found = {name: tensor.double() for name, tensor in golden.tensors.items() if arrays(name)}
    found |= {name: tensor for name, tensor in numbers(values) if not is_input(name)}
    return Checks(found)


def encode(value: Any) -> Tensor:
    """A float64 tensor with "inf" and "undefined" as fixed large numbers."""
    tensor = torch.as_tensor(value, dtype=torch.float64)
    tensor = torch.where(tensor.isinf(), torch.full_like(tensor, _INFINITE), tensor)
    return torch.where(tensor.isnan(), torch.full_like(tensor, _UNDEFINED), tensor)


def tell(checks: Checks, name: str, value: Any, limit: float = FORMULA) -> None:
    """Compare one of our numbers; values that ought to be 0 are measured on the scale of 1."""
    actual = encode(value.detach() if isinstance(value, Tensor) else value)
    if name in checks.expected and float(checks.expected[name].abs().max()) == 0:
        error = float(actual.abs().max()) if actual.shape == checks.expected[name].shape else float("inf")
        checks.errors[name], checks.limits[name] = error, limit
        return
    checks.compare(name, actual, limit)


def from_name(text: str) -> float:
    """7.5 of "7p5": how a number is written inside a tensor's name."""
    return float(text.replace("p", "."))


def _is_number(value: Any) -> bool:
    return value is None or value == "inf" or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _decode(value: Any) -> float:
    return float("nan") if value is None else float(value)
