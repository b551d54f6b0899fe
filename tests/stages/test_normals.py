"""Distillation of normals: what the prior is shown, and what learns from it."""

from __future__ import annotations

import pytest
import torch

from maquette.cameras import OrbitSampler
from maquette.fields import SurfaceFieldConfig, TextureConfig, TriPlanesConfig
from maquette.guidance.base import GuidanceLoss
from maquette.rendering import OccupancyConfig, Rendering, SurfaceConfig, SurfaceScene
from maquette.run import Run
from maquette.schedules import Constant
from maquette.stages.fit import FitConfig, fit
from maquette.stages.normals import NormalDistillation, picture_normals
from maquette.stages.objectives import Distillation, DistillationConfig, Objective, ShadingConfig
from maquette.stages.regularizers import Regularizers

BALL = SurfaceConfig(
    field=SurfaceFieldConfig(
        encoding=TriPlanesConfig((8,), 4, initial_scale=0.01), hidden=16, texture=TextureConfig(8, 1, normals=False)
    ),
    variance=0.4,
    anneal=Constant(1.0),
    occupancy=OccupancyConfig(resolution=16),
    samples=Constant(64),
)
FRONT = OrbitSampler(elevation=(0.0, 0.0), azimuth=(0.0, 0.0), fovy=(40.0, 40.0), distance=(2.5, 2.5), num_views=1)
CONFIG = DistillationConfig(
    resolution=Constant(16), scenes=Constant(1), random_background=1.0, shading=ShadingConfig(begin=1.0),
    regularizers=Regularizers(eikonal=Constant(0.1)),
)  # fmt: skip


class Wants:
    """A guidance that wants pictures to be of one colour, and keeps what it was shown."""

    def __init__(self, colour) -> None:
        self.colour = torch.tensor(colour)
        self.shown: list[torch.Tensor] = []

    def __call__(self, images, cameras, background, noise_range, generator=None):
        self.shown.append(images.detach())
        return GuidanceLoss((images - self.colour[:, None, None]).square().mean(), {})

    def fingerprint(self):
        return str(self.colour)


def objective(guidance) -> NormalDistillation:
    return NormalDistillation(Distillation(guidance, FRONT, CONFIG))


def test_the_prior_sees_normals_as_colours_on_the_render_s_background(generator):
    wants = Wants([0.0, 0.0, 0.0])
    judge, scene = objective(wants), SurfaceScene(BALL, seed=0)
    assert isinstance(judge, Objective) and judge.name == "normals"
    scene.update(0, 1, generator)
    shot = judge.shot(0, 10, generator, torch.device("cpu"))
    rendering = scene.render(shot)
    _, metrics = judge.loss(rendering, shot, 0, 10, generator)
    (picture,) = wants.shown[0][0]
    assert rendering.normal is not None and picture[0, 8, 8] > 0.9, "the middle faces the camera on +x"
    opacity, behind = rendering.opacity[0, 0], rendering.background[0, 0]
    expected = opacity * (rendering.normal[0, 0] * 0.5 + 0.5) + (1 - opacity) * behind
    torch.testing.assert_close(picture, expected.movedim(-1, 0))
    assert 0.2 < float(opacity.detach().mean()) < 0.8
    assert "eikonal" in metrics


def test_the_shape_learns_from_them(tmp_path):
    before = SurfaceScene(BALL, seed=0)
    with Run.open(tmp_path / "run", quiet=True) as run:
        after = run.stage(
            "sculpting", fit, before, [objective(Wants([0.5, 0.5, 1.0]))], FitConfig(steps=4, weight_decay=0.0)
        )
    changed = {n for n, v in before.state_dict().items() if not torch.equal(v, after.state_dict()[n])}
    assert any(name.startswith("field.distance_network") for name in changed)
    assert not any(name.startswith("field.rgb_network") for name in changed), "colour has no say"


def test_without_normals_there_is_nothing_to_show():
    flat = torch.zeros(2, 2, 3)
    with pytest.raises(ValueError, match="normals=True"):
        picture_normals(Rendering(flat, flat[..., :1], flat[..., :1], flat))
