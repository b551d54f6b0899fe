"""Checkpoints come back as they were written, or not at all."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maquette.errors import UserError
from maquette.run.files import atomic_folder, atomic_path, sweep, write_text
from maquette.run.settings import differences, plain
from maquette.run.state import read_state, write_state

LEAVES = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=5)
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(0, 9), inner, max_size=3)
    ),
    max_leaves=8,
)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    return type(a) is type(b) and a == b


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(tree=TREES)
def test_trees_come_back_exactly(tmp_path_factory, tree):
    path = tmp_path_factory.mktemp("state") / "x.safetensors"
    whole = {"tree": tree, "weights": [torch.arange(3), (torch.zeros(0, 2), torch.tensor(1.5, dtype=torch.bfloat16))]}
    write_state(path, whole)
    assert same(read_state(path), whole)


def test_an_optimizer_comes_back(tmp_path):
    torch.manual_seed(0)
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(2)).sum().backward()
    optimizer.step()
    write_state(tmp_path / "x.safetensors", {"layer": dict(layer.state_dict()), "optimizer": optimizer.state_dict()})
    state = read_state(tmp_path / "x.safetensors")
    other = torch.nn.Linear(2, 2)
    other.load_state_dict(state["layer"])
    second = torch.optim.Adam(other.parameters())
    second.load_state_dict(state["optimizer"])
    for module, stepper in ((layer, optimizer), (other, second)):
        stepper.zero_grad()
        module(torch.ones(2)).pow(2).sum().backward()
        stepper.step()
    assert torch.equal(layer.weight, other.weight)


def test_shared_and_odd_tensors_and_special_floats(tmp_path):
    shared = torch.arange(6.0)
    tree = {1: shared, "1": shared[2:], "t": shared.view(2, 3).T, "inf": math.inf}
    write_state(tmp_path / "x", tree)
    back = read_state(tmp_path / "x")
    assert same(back, {**tree, "t": tree["t"].contiguous()})
    write_state(tmp_path / "x", math.nan)
    assert math.isnan(read_state(tmp_path / "x"))


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "x.safetensors"
    write_state(path, torch.zeros(1000))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="x.safetensors is damaged"):
        read_state(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="x.safetensors is damaged"):
        read_state(path)


def test_what_has_no_place_in_a_tree_is_refused(tmp_path):
    with pytest.raises(ValueError, match="object at /a/0 cannot be saved"):
        write_state(tmp_path / "x", {"a": [object()]})
    with pytest.raises(ValueError, match="keys"):
        write_state(tmp_path / "x", {(1, 2): 3})
    assert list(tmp_path.iterdir()) == []


def test_an_error_while_writing_leaves_the_old_file(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a.txt": "old"}


def test_an_error_while_filling_a_folder_leaves_the_old_one(tmp_path):
    for content in ("first", "second"):
        with atomic_folder(tmp_path / "views") as temporary:
            (temporary / content).mkdir()
            (temporary / content / "x").write_text(content)
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "views") as temporary:
        (temporary / "x").write_text("half")
        raise RuntimeError
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")) == [
        "views", "views/second", "views/second/x",
    ]  # fmt: skip


def test_an_error_of_another_file_is_not_blamed_on_the_one_being_written(tmp_path):
    with pytest.raises(FileNotFoundError, match="elsewhere"), atomic_path(tmp_path / "a.txt"):
        open(tmp_path / "elsewhere" / "input.txt")


def test_leftovers_are_swept_and_nothing_else(tmp_path):
    (tmp_path / "stages" / ".views.123.tmp" / "deep").mkdir(parents=True)
    (tmp_path / "stages" / ".checkpoint.123.tmp.safetensors").write_text("half")
    (tmp_path / ".tmp").write_text("mine")
    (tmp_path / "a.tmp").write_text("mine")
    sweep(tmp_path)
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")) == [".tmp", "a.tmp", "stages"]


def test_differences_name_the_setting():
    old, new = {"a": {"b": 1, "c": [1, 2]}, "gone": 1}, {"a": {"b": 2, "c": [1, 2]}, "new": {}}
    assert differences(old, new) == [("a.b", 1, 2), ("new", None, {}), ("gone", 1, None)]


def test_plain_settings_are_json_and_refuse_the_rest():
    assert plain({"x": (1, math.inf), "d": torch.float32, "t": torch.ones(2)}) == {
        "x": [1, "inf"], "d": "torch.float32", "t": [1.0, 1.0],
    }  # fmt: skip
    with pytest.raises(ValueError, match="config.json"):
        plain(object())
