"""The measurement of elevations: clean renders give it away, disturbed ones differ by what was asked for."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from maquette.rendering.raster import MeshRenderer
from tests.evaluation.conftest import box_mesh

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "elevation.py"
spec = importlib.util.spec_from_file_location("elevation_benchmark", FILE)
benchmark = importlib.util.module_from_spec(spec)
sys.modules["elevation_benchmark"] = benchmark
spec.loader.exec_module(benchmark)


@pytest.fixture(scope="module")
def renderer():
    return MeshRenderer(box_mesh((1.8, 0.7, 1.0), (0.8, 0.3, 0.1)).normalized())


def test_clean_renders_give_the_elevation_away(renderer):
    found, reliable = benchmark.by_renders(renderer, 30.0, 0, 0.0, 0.0)
    assert reliable and found == pytest.approx(30.0, abs=6.0)


def test_the_picture_stays_clean_and_the_rest_is_disturbed_as_asked(renderer):
    clean = benchmark.disturbed(renderer, 30.0, 0, 0.0, 0.0)
    noisy = benchmark.disturbed(renderer, 30.0, 0, 0.0, 0.05)
    moved = benchmark.disturbed(renderer, 30.0, 0, 5.0, 0.0)
    assert torch.equal(clean[0], noisy[0]) and torch.allclose(clean[0], moved[0], atol=1e-4)
    assert torch.equal(clean[1:, 3], noisy[1:, 3]) and not torch.equal(clean[1:, 3], moved[1:, 3])
    inside = (clean[1:, :3] > 0.2) & (clean[1:, :3] < 0.8)  # where nothing is clamped
    assert float((noisy - clean)[1:, :3][inside].std()) == pytest.approx(0.05, rel=0.1)
