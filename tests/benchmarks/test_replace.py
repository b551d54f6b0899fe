"""Parts of ImageDream replaced by the truth: the truth is true, and the method gets it back unharmed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from maquette.evaluation.truth import Protocol, Truth
from maquette.methods import imagedream
from tests.evaluation.conftest import OBJECTS

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "replace.py"
spec = importlib.util.spec_from_file_location("replace_by_truth", FILE)
benchmark = importlib.util.module_from_spec(spec)
sys.modules["replace_by_truth"] = benchmark
spec.loader.exec_module(benchmark)


@pytest.fixture(scope="module")
def truth():
    protocol = Protocol(prompt_size=96, view_size=40, num_azimuths=4, num_points=2000, resolution=48, samples=2)
    return Truth.of(OBJECTS["tower"], protocol, seed=0, id="tower")


def test_the_solid_ends_half_way_at_the_objects_surface(truth):
    inside = benchmark.solid(truth.mesh)
    top = torch.tensor(truth.mesh.vertices.max(axis=0))
    cell = 2 / benchmark.SOLID
    assert float(inside(torch.zeros(1, 3))) > 0.8 and float(inside(top[None] * 1.2)) == 0
    for axis in range(3):
        line = torch.zeros(400, 3)
        line[:, axis] = torch.linspace(-3 * cell, 3 * cell, 400) + top[axis]
        crossing = float(line[(inside(line) > 0.5).sum(), axis])
        assert crossing == pytest.approx(float(top[axis]), abs=cell)


def test_the_true_camera_puts_the_prompt_where_the_object_is(truth):
    found = benchmark.located(truth)
    assert found.estimate.reliable and found.estimate.scale == pytest.approx(1.0)
    torch.testing.assert_close(found.view.masks[0], truth.prompt.mask, atol=0.05, rtol=0)
    torch.testing.assert_close(found.view.cameras.c2w, truth.protocol.prompt_camera().c2w)


def test_parts_are_replaced_for_a_while_and_only_parts_that_there_are():
    before = imagedream.locate
    with benchmark.replaced(locate=lambda *_: None):
        assert imagedream.locate(None, None, None, None) is None
    assert imagedream.locate is before
    with pytest.raises(AttributeError):
        with benchmark.replaced(loacte=None):
            pass
    assert all(row.__doc__ for row in benchmark.ROWS.values())
