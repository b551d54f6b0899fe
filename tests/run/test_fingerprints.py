"""Equal values have equal fingerprints, others differ, and what cannot be told apart is refused."""

from __future__ import annotations

import enum
import functools
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from maquette.run import fingerprint


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclass(frozen=True)
class Small:
    x: int = 1


@dataclass(frozen=True)
class Twin:
    x: int = 1


@dataclass(frozen=True)
class Cached:
    x: int = 1
    cache: dict = field(default_factory=dict, compare=False)


class Named:
    def __init__(self, name):
        self.name = name

    def fingerprint(self):
        return self.name


def work(a, b=0):
    return a


DISTINCT = [
    None, True, 1, 1.0, "1", b"1", 0, -0.0, 0.0, "", [], (), {}, set(), [1], (1,), [[1], 2], [1, [2]], {"a": 1},
    {1: "a"}, float("nan"), float("inf"), 1j, Colour.RED, Colour.BLUE, Small(), Small(2), Twin(), Cached(), Cached,
    Small, torch.float32, torch.device("cpu"), torch.zeros(2), torch.zeros(2, 1), torch.zeros(2, dtype=torch.float64),
    torch.ones(2), torch.zeros(0), torch.zeros(0, 3), torch.tensor(1), np.zeros(2), np.zeros(2, np.float32), work,
    functools.partial(work, 1), functools.partial(work, b=1), Named("a"), Named("b"), "a\0b", ("a", "b"), ("ab",),
]  # fmt: skip


def test_distinct_values_have_distinct_fingerprints():
    prints = [fingerprint(value) for value in DISTINCT]
    clashes = [
        (a, b) for i, a in enumerate(DISTINCT) for j, b in enumerate(DISTINCT) if i < j and prints[i] == prints[j]
    ]
    assert clashes == []


def test_equal_values_have_equal_fingerprints():
    assert fingerprint({"a": 1, "b": [2, 3.5]}) == fingerprint({"b": [2, 3.5], "a": 1})
    assert fingerprint({3, 1, 2}) == fingerprint({2, 3, 1})
    assert fingerprint(torch.arange(6).reshape(2, 3).T) == fingerprint(torch.arange(6).reshape(2, 3).T.contiguous())
    assert fingerprint(torch.ones(3, requires_grad=True)) == fingerprint(torch.ones(3))
    assert fingerprint(Cached(1, {"x": 2})) == fingerprint(Cached(1, {}))


def test_it_is_the_same_in_every_process_and_release():
    # Recorded once; a change here makes every saved stage of every user run again.
    assert fingerprint({"steps": 3, "lr": 0.01, "x": torch.arange(3)}) == (
        "b969f58eb274d20510ee33fa5c2cdc63613df9afcf14ff55740318ca2f70bc5f"
    )


def test_modules_by_class_settings_and_state():
    torch.manual_seed(0)
    a = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.LayerNorm(3, eps=1e-5))
    b = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.LayerNorm(3, eps=1e-5))
    assert fingerprint(a) != fingerprint(b)
    b.load_state_dict(a.state_dict())
    assert fingerprint(a) == fingerprint(b)
    before = fingerprint(a)
    assert fingerprint(a.eval()) == before
    b[1] = torch.nn.SiLU()
    assert fingerprint(b) != before
    a[2].eps = 1e-3
    assert fingerprint(a) != before


def test_paths_stand_for_their_content(tmp_path):
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").write_text("x")
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")
    (tmp_path / "b").write_text("y")
    assert fingerprint(tmp_path / "a") != fingerprint(tmp_path / "b")
    before = fingerprint(tmp_path)
    (tmp_path / "b").rename(tmp_path / "c")
    assert fingerprint(tmp_path) != before
    with pytest.raises(ValueError, match="does not exist"):
        fingerprint(tmp_path / "none")


@pytest.mark.parametrize("value", [object(), lambda: 0, np.array([object()]), [object()], {"a": object()}])
def test_what_cannot_be_described_is_refused(value):
    with pytest.raises(ValueError, match="fingerprint|lasting name"):
        fingerprint(value)


def test_an_expanded_tensor_is_what_it_reads_as():
    for count in (1, 3):
        expanded = torch.full((1,), 2.5).expand(count)[:, None].expand(count, 1)
        assert fingerprint(expanded) == fingerprint(torch.full((count, 1), 2.5))
    assert fingerprint(torch.zeros(()).expand(1)) == fingerprint(torch.zeros(1))
