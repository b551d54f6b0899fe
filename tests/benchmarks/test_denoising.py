"""The table of denoising errors agrees with what training logs, and its last row is what copying gives."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from packed_bars import pack_bars

from maquette.priors.codecs import SpaceToDepth
from maquette.priors.nano.assembly import build_nano, parts
from maquette.training.data import PackedObjects
from maquette.training.encoders import Encoders
from maquette.training.multiview import MultiViewTraining, Trainer
from maquette.training.validation import Validation
from tests.priors.tiny import randomised, tiny_config

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "denoising.py"
spec = importlib.util.spec_from_file_location("denoising", FILE)
benchmark = importlib.util.module_from_spec(spec)
sys.modules["denoising"] = benchmark
spec.loader.exec_module(benchmark)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return PackedObjects.open(pack_bars(tmp_path_factory.mktemp("bars")))


@pytest.fixture(scope="module")
def prior():
    made = build_nano(replace(tiny_config(), codec=SpaceToDepth(32, 4)))
    for index, module in enumerate(parts(made).values()):
        randomised(module, index)
    return made


def test_a_row_agrees_with_the_log_of_training(data, prior):
    config = tiny_config()
    encoders = Encoders(config.text_encoder, config.image_encoder)
    encoders.text.load_state_dict(prior.text_encoder.state_dict())
    encoders.image.load_state_dict(prior.image_encoder.state_dict())
    trainer = Trainer(MultiViewTraining(size=32, unet=config.network), encoders, initial=prior.network.state_dict())
    logged = Validation.of(data, trainer, scenes=6).measure(trainer, prior.network.state_dict())
    found = benchmark.errors(prior, benchmark.scenes_of(data, prior, 6), at_once=4)
    # Training may compute in bfloat16, and priors in float32.
    assert found == {int(name[4:]): pytest.approx(value, rel=5e-3) for name, value in logged.items()}
    shuffled = benchmark.errors(prior, benchmark.scenes_of(data, prior, 6, seed=6))
    assert abs(shuffled[600] / found[600] - 1) > 5e-3


def test_copying_is_the_distance_from_the_prompt_and_knows_no_noise(data, prior):
    scenes = benchmark.scenes_of(data, prior, 5)
    figures = benchmark.errors(prior, scenes, copy=True)
    expected = (2 * (scenes.targets - scenes.prompts[:, None])).square().mean()  # colours in [-1, 1]
    assert list(figures.values()) == pytest.approx([float(expected)] * 4, rel=1e-5)
