"""The benchmark of cameras tells a prior that uses them from one that does not."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from packed_bars import pack_bars

from maquette.priors.codecs import SpaceToDepth
from maquette.priors.nano.assembly import build_nano, parts
from maquette.training.data import PackedObjects
from tests.priors.tiny import randomised, tiny_config

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


denoising, benchmark = load("denoising"), load("cameras")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return PackedObjects.open(pack_bars(tmp_path_factory.mktemp("bars")))


@pytest.fixture
def prior():
    made = build_nano(replace(tiny_config(), codec=SpaceToDepth(32, 4)))
    for index, module in enumerate(parts(made).values()):
        randomised(module, index)
    return made


def test_a_prior_that_is_told_no_cameras_has_no_spread(data, prior):
    scenes = benchmark.scenes_of(data, prior, 4, fronts=1.0)
    truth = prior.codec.encode(scenes.targets)
    told = benchmark.use_of(benchmark.predicted(prior, scenes, 999), truth)
    assert float(told.spread.min()) > 1e-6
    for parameter in prior.network.camera_embedding.parameters():
        parameter.data.zero_()
    blind = benchmark.use_of(benchmark.predicted(prior, scenes, 999), truth)
    assert float(blind.spread.max()) < 1e-3 * float(told.spread.min())


def test_the_truth_has_its_own_spread_and_no_error(data, prior):
    scenes = benchmark.scenes_of(data, prior, 4, fronts=0.0)
    truth = prior.codec.encode(scenes.targets)
    use = benchmark.use_of(truth, truth)
    assert torch.count_nonzero(use.error) == 0 and float(use.spread.min()) > 0
    assert torch.allclose(use.spread, benchmark.use_of(truth, 0 * truth).spread)
