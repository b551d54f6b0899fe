"""Two priors at once in one fit: Magic123 (arXiv:2306.17843), a 2D prior for detail and a 3D prior for shape.

Its first stage descends the reference view's colours, SDS of Stable Diffusion with words for each view, and SDS of
Zero-1-to-3 with forty times the weight.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from maquette.cameras import OrbitSampler, orbit
from maquette.fields import FlatBackgroundConfig, LinearBlob, RadianceConfig, TriPlanesConfig
from maquette.guidance.base import NoiseRange
from maquette.guidance.recon import ReconConfig, ReconGuidance
from maquette.guidance.view_text import ViewTextConfig, ViewTextGuidance
from maquette.images import Views
from maquette.rendering import OccupancyConfig, VolumeConfig, VolumeScene
from maquette.run import Run, read_log
from maquette.schedules import Constant
from maquette.stages.fit import FitConfig, fit
from maquette.stages.objectives import Distillation, DistillationConfig, Photometric, PhotometricConfig, ShadingConfig
from maquette.stages.regularizers import Regularizers
from tests.priors.tiny import prompt, tiny_stable_diffusion, tiny_zero123

SCENE = VolumeConfig(
    field=RadianceConfig(encoding=TriPlanesConfig((8,), 4, initial_scale=1.0), bias=LinearBlob(30.0, 0.5), hidden=8),
    background=FlatBackgroundConfig(),
    occupancy=OccupancyConfig(resolution=16),
    samples=Constant(32),
)
ASKED = DistillationConfig(
    noise_range=NoiseRange(Constant(0.2), Constant(0.6)), resolution=Constant(16), scenes=Constant(1),
    random_background=0.0, shading=ShadingConfig(begin=1.0), regularizers=Regularizers(),
)  # fmt: skip
AROUND = OrbitSampler(elevation=(-10.0, 45.0), fovy=(40.0, 40.0), distance=(2.7, 2.7), num_views=1)


def magic123(weight_2d: float, weight_3d: float) -> list[Distillation | Photometric]:
    """The objectives of its first stage, on tiny random priors."""
    shown = prompt()
    assert shown.image is not None
    picture = shown.image.resized(16)
    reference = Views(picture.image[None], picture.mask[None], orbit(1, fovy=40.0, height=16, width=16))
    words = ViewTextGuidance(tiny_stable_diffusion(), shown, ViewTextConfig(omega=100.0, lambda_=1.0, front=45.0))
    shape = ReconGuidance(
        tiny_zero123(), shown, ReconConfig(guidance_scale=5.0, form="eps", alignment="none")
    )  # fmt: skip
    return [
        Distillation(words, AROUND, replace(ASKED, weight=Constant(weight_2d)), name="prior_2d"),
        Distillation(shape, AROUND, replace(ASKED, weight=Constant(weight_3d)), name="prior_3d"),
        Photometric(reference, PhotometricConfig(mask=Constant(1.0)), name="reference"),
    ]


def fitted(folder, objectives, steps=3):
    """Parameters after a few steps, and the lines of the log."""
    with Run.open(folder, seed=1, device="cpu", quiet=True) as run:
        scene = run.stage("fit", fit, VolumeScene(SCENE), objectives, FitConfig(steps=steps))
    parameters = torch.cat([p.detach().flatten() for p in scene.parameters()])
    return parameters, [line for line in read_log(folder) if line["step"] is not None and "gradient" in line]


def test_both_priors_have_their_say(tmp_path):
    both, lines = fitted(tmp_path / "both", magic123(1.0, 40.0))
    for line in lines:
        assert {"prior_2d.guidance", "prior_3d.guidance", "reference.psnr"} <= line.keys()
    # Random numbers belong to an objective by its name, so each is asked the same whoever else is asked.
    for name, objectives in (("2d", magic123(1.0, 0.0)), ("3d", magic123(0.0, 40.0))):
        alone, own = fitted(tmp_path / name, objectives)
        assert own[0][f"prior_{name}.guidance"] == pytest.approx(lines[0][f"prior_{name}.guidance"], rel=1e-5)
        assert not torch.equal(alone, both), f"the other prior than {name} changes nothing"


def test_the_log_weighs_them_apart(tmp_path):
    _, light = fitted(tmp_path / "light", magic123(1.0, 1.0), steps=1)
    _, heavy = fitted(tmp_path / "heavy", magic123(1.0, 40.0), steps=1)
    assert heavy[0]["prior_3d.guidance"] == pytest.approx(light[0]["prior_3d.guidance"], rel=1e-5), "unweighted"
    assert heavy[0]["gradient"] > light[0]["gradient"]
