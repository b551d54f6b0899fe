"""USD's radiance field stage, piece by piece together: patches, both guidances, its cameras, the one loop."""

from __future__ import annotations

from dataclasses import replace

import torch

from maquette.fields.background import FlatBackgroundConfig
from maquette.fields.encodings import TriPlanesConfig
from maquette.fields.radiance import RadianceConfig
from maquette.guidance import unbiased
from maquette.guidance.unbiased import ReferenceGuidance, UnbiasedGuidance
from maquette.priors.usd_cameras import input_sampler, training_cameras
from maquette.rendering import OccupancyConfig, VolumeConfig, VolumeScene
from maquette.rendering.patch import PatchConfig, PatchScene
from maquette.run import Run
from maquette.schedules import Constant, Piecewise
from maquette.stages.fit import FitConfig, fit
from maquette.stages.objectives import Distillation, DistillationConfig, ShadingConfig
from maquette.stages.regularizers import Regularizers
from tests.priors.tiny import prompt, tiny_stable_diffusion, tiny_zero123

VOLUME = VolumeConfig(
    field=RadianceConfig(encoding=TriPlanesConfig(resolutions=(8,), features=4, initial_scale=0.5), hidden=8),
    background=FlatBackgroundConfig(), occupancy=OccupancyConfig(resolution=16), samples=Constant(24),
)  # fmt: skip
PENALTIES = Regularizers(sparsity=Constant(10.0), opaque=Piecewise((0.0, 1000.0), (2 / 3,)))
VIEWS = DistillationConfig(
    noise_range=unbiased.NOISE, resolution=Constant(32), scenes=Constant(2), random_background=0.0,
    shading=ShadingConfig(begin=1.0), regularizers=PENALTIES,
)  # fmt: skip
REFERENCE = replace(VIEWS, noise_range=unbiased.REFERENCE_NOISE, scenes=Constant(1))


def test_a_field_is_fitted_by_both_guidances_in_patches(tmp_path):
    view, free, shown = tiny_zero123(), tiny_stable_diffusion(), prompt()
    scene = PatchScene(VolumeScene(VOLUME), PatchConfig(size=8, factor=4))
    guidance, reference = UnbiasedGuidance(view, free, shown), ReferenceGuidance(free, shown.image)
    objectives = [
        Distillation(guidance, training_cameras(distance=2.5, fovy=40.0), VIEWS, name="views"),
        Distillation(reference, input_sampler(10.0, distance=2.5, fovy=40.0), REFERENCE, name="reference"),
    ]
    with Run.open(tmp_path / "run", quiet=True) as run:
        fitted = run.stage("radiance field", fit, scene, objectives, FitConfig(steps=3))
    assert isinstance(fitted, PatchScene) and fitted.config == scene.config
    before, after = scene.state_dict(), fitted.state_dict()
    changed = [n for n, v in before.items() if torch.is_floating_point(v) and not torch.equal(v, after[n])]
    assert any("planes" in name for name in changed) and any("rgb_network" in name for name in changed)
    log = (tmp_path / "run" / "log.jsonl").read_text()
    assert "views.grad_norm" in log and "reference.grad_norm" in log and "views.opaque" in log
