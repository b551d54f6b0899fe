"""The prior that knows the object says what the object looks like, whatever the noise."""

from __future__ import annotations

import pytest
import torch

from maquette.cameras import orbit
from maquette.diffusion.schedule import NoiseSchedule
from maquette.evaluation.true_prior import TruePrior
from maquette.images import Prompt
from maquette.priors.base import Prior
from maquette.priors.codecs import SpaceToDepth
from maquette.rendering.raster import render_mesh
from maquette.run import Run
from maquette.stages.look import SamplingConfig, sample_views
from tests.evaluation.conftest import OBJECTS

GREY = torch.tensor([0.5, 0.25, 0.75])
CAMERAS = orbit(4, elevation=5.0, height=32, width=32)


@pytest.fixture(scope="module")
def prior():
    mesh = OBJECTS["tower"].normalized()
    return TruePrior(mesh, SpaceToDepth(32, 4), NoiseSchedule.scaled_linear(predicts="x0"))


def test_sampling_shows_the_object_on_any_background(prior, tmp_path):
    assert isinstance(prior, Prior)
    condition = prior.condition(Prompt(None), GREY)
    config = SamplingConfig(steps=2, guidance_scale=7.0, eta=1.0, spacing="exact", rescale=0.5)
    with Run.open(tmp_path / "run", quiet=True) as run:
        views = run.stage("views", sample_views, prior, condition, CAMERAS, config)
    truth = render_mesh(prior.mesh, CAMERAS, samples=4).views()
    assert views.masks is not None and truth.masks is not None
    assert (views.masks - truth.masks).abs().mean() < 0.02
    assert (views.composite(GREY) - truth.composite(GREY)).abs().mean() < 0.01


def test_noise_and_truth_make_up_what_was_asked(prior):
    generator = torch.Generator().manual_seed(0)
    latents_t, t = torch.randn(2, 4, *prior.codec.latent_shape, generator=generator), torch.tensor([400, 400])
    cameras = CAMERAS[torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]])]
    answer = prior.predict(latents_t, t, prior.condition(Prompt(None), GREY), cameras)
    schedule = prior.noise_schedule
    torch.testing.assert_close(schedule.add_noise(answer.x0, answer.eps, t), latents_t, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(answer.x0[0], answer.x0[1].flip(0), atol=2e-2, rtol=0)
    with pytest.raises(ValueError, match="needs cameras"):
        prior.predict(latents_t, t, prior.condition(Prompt(None), GREY))


def test_another_object_or_size_is_another_prior(prior):
    schedule = prior.noise_schedule
    prints = {
        TruePrior(OBJECTS[name].normalized(), SpaceToDepth(size, 4), schedule).fingerprint()
        for name, size in (("tower", 32), ("plank", 32), ("tower", 64))
    }
    assert len(prints) == 3 and prior.fingerprint() in prints
