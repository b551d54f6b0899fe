"""A case's data, its companions, and the comparison of every expected tensor in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

NETWORK = 1e-4
"""Largest relative error of single network calls: README of the goldens, atol 2e-5 and rtol 1e-4."""
LOOP = 5e-5
"""Of samplers and of gradients."""
CAMERA = 1e-6
"""Of camera matrices and of schedules, which are closed formulas."""
EXACT = 0.0
"""Of integers."""


@dataclass(frozen=True)
class Golden:
    """One data file, read lazily, with the files beside it."""

    path: Path

    @property
    def name(self) -> str:
        """The file's name without its last suffix."""
        return self.path.stem

    @property
    def folder(self) -> Path:
        """Where it lies, and its companions."""
        return self.path.parent

    @cached_property
    def _content(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        return read_tensors(self.path)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the file; none for a JSON file."""
        return self._content[0]

    @property
    def metadata(self) -> dict[str, str]:
        """Scalar facts of the case, as text."""
        return self._content[1]

    @cached_property
    def facts(self) -> Any:
        """The JSON file itself, or the one of the same name beside a data file; ValueError if there is none."""
        path = self.path.with_suffix(".json")
        if not path.exists():
            raise ValueError(f"{self.path.name} needs {path.name} beside it")
        return json.loads(path.read_text())

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Tensors whose name begins with `prefix`, without it."""
        return {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}

    def config(self, model: str) -> dict[str, Any]:
        """The settings of a model of this folder; ValueError if its file is missing."""
        path = self.folder / f"{model}.config.json"
        if not path.exists():
            raise ValueError(f"{self.path.name} needs {path.name} beside it")
        return json.loads(path.read_text())


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a .safetensors or .npz file."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return {name: torch.from_numpy(np.array(file[name])) for name in file.files}, {}
    return {}, {}


@dataclass
class Checks:
    """The expected numbers of one case, ticked off one by one."""

    expected: dict[str, Tensor]
    errors: dict[str, float] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, golden: Golden, prefixes: Iterable[str] = ("out.", "mid.", "asm.")) -> Checks:
        """Everything in the file that is a result."""
        prefixes = tuple(prefixes)
        return cls({name: value for name, value in golden.tensors.items() if name.startswith(prefixes)})

    def compare(self, name: str, actual: Tensor, limit: float) -> None:
        """Tick off the expected tensor `name`; comparing it again keeps the larger error.

        A name that the case does not hold is passed over: cases record what they like of what we compute.
        """
        if name not in self.expected:
            return
        error = relative_error(actual.detach(), self.expected[name])
        if name not in self.errors or not error <= self.errors[name]:
            self.errors[name] = error
        self.limits[name] = limit

    def compare_if_expected(self, name: str, actual: Callable[[], Tensor], limit: float) -> None:
        """`compare`, for results that not every case holds."""
        if name in self.expected:
            self.compare(name, actual(), limit)

    @property
    def uncompared(self) -> list[str]:
        """Expected tensors that nothing was compared with."""
        return [name for name in self.expected if name not in self.errors]

    @property
    def failed(self) -> list[str]:
        """Expected tensors that differ by more than their limit, or are not numbers."""
        return [name for name, error in self.errors.items() if not error <= self.limits[name]]

    @property
    def max_error(self) -> float:
        """The largest relative error; infinite where a shape differs, nan where a number is missing."""
        values = list(self.errors.values())
        return next((v for v in values if v != v), max(values, default=float("nan")))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """max|actual - expected| / max|expected|: infinite for another shape, nan where only one of both is finite."""
    if actual.shape != expected.shape:
        return float("inf")
    a, b = actual.double(), expected.double()
    if a.numel() == 0:
        return 0.0
    difference, scale = float((a - b).abs().max()), float(b.abs().max())
    return difference / scale if scale > 0 else (0.0 if difference == 0 else float("inf"))


@dataclass(frozen=True)
class Kind:
    """A kind of case: how to know it, what is expected in it, and how to recompute it with the product."""

    name: str
    recognises: Callable[[Golden], bool]
    run: Callable[[Golden, Checks], None]
    expects: Callable[[Golden], Checks] = Checks.of


def has(*names: str) -> Callable[[Golden], bool]:
    """Recognises a file that holds all these tensors."""
    return lambda golden: all(name in golden.tensors for name in names)


def needs(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """A tensor that a case cannot do without; ValueError naming it."""
    if name not in tensors:
        raise ValueError(f"the case lacks the tensor {name!r}")
    return tensors[name]
