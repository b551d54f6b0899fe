"""ImageDream's own camera ranges, and the prompt's camera among them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from maquette.cameras import orbit
from maquette.images import CameraEstimate, Prompt, Views
from maquette.methods import imagedream as module
from maquette.methods.imagedream import PromptView, imagedream, judged_from, nano, paper
from maquette.priors.hub import save_prior
from maquette.rendering import OccupancyConfig, VolumeConfig
from maquette.run import Run, read_log
from maquette.schedules import Constant
from maquette.stages.fit import FitConfig
from maquette.stages.locate import LocateConfig, Located
from maquette.stages.objectives import PhotometricConfig, RandomRays
from tests.priors.tiny import prompt, tiny_config, tiny_prior


def found(elevation, reliable=True):
    """A camera that was found, with no picture to speak of."""
    view = Views(torch.zeros(1, 3, 8, 8), torch.ones(1, 1, 8, 8), orbit(1, height=8, width=8))
    return Located(CameraEstimate(0.0, elevation, 1.0, 0.1, reliable), view, 0.0)


TOLD = Prompt(None, camera=CameraEstimate(0.0, 35.0, 1.0, 0.0, True))
UNTOLD = Prompt(None)


@pytest.mark.parametrize(
    ("cover", "prompt", "located", "high"),
    [
        ("told", TOLD, found(35.0), 35.0),
        ("told", TOLD, found(35.0, reliable=False), 30.0),
        ("told", TOLD, found(70.0), 40.0),
        ("told", UNTOLD, found(35.0), 30.0),
        ("found", UNTOLD, found(35.0), 35.0),
        ("found", UNTOLD, found(35.0, reliable=False), 30.0),
        ("found", UNTOLD, found(5.0), 30.0),
        ("found", UNTOLD, None, 30.0),
        ("none", TOLD, found(35.0), 30.0),
    ],
)
def test_only_a_camera_that_is_believed_widens_the_range(tmp_path, cover, prompt, located, high):
    config = replace(nano(), prompt_view=PromptView(cover=cover))
    with Run.open(tmp_path / "run", quiet=True) as run:
        cameras = judged_from(prompt, located, config, run)
    assert cameras == replace(config.cameras, elevation=(-5.0, high))
    lines = [line for line in read_log(tmp_path / "run") if line.get("event") == "camera_range"]
    if located is None or not located.estimate.reliable:
        assert lines == []
    else:
        own = located.estimate.elevation
        said = {name: lines[0][name] for name in ("low", "high", "own", "widened")}
        assert said == {"low": -5.0, "high": high, "own": own, "widened": high > 30}


def test_the_paper_s_range_is_the_paper_s(tmp_path):
    with Run.open(tmp_path / "run", quiet=True) as run:
        assert judged_from(TOLD, found(35.0), paper(), run) == paper().cameras


@pytest.mark.parametrize("reliable_overlap", [0.0, 1.01])
def test_the_distillation_looks_from_where_the_picture_was_taken(tmp_path, monkeypatch, reliable_overlap):
    """With a tiny prior, whose fields fit no picture: what is called reliable is forced either way."""
    save_prior(tmp_path / "weights", tiny_prior(), tiny_config(), {"name": "nano", "licence": "Apache-2.0"})
    nothing, draft = FitConfig(steps=2), nano("draft")
    rays = PhotometricConfig(pixels=RandomRays(16), mask=Constant(0.5))
    config = replace(
        draft, weights=tmp_path / "weights", fit=nothing, keep_views=rays,
        scene=VolumeConfig(occupancy=OccupancyConfig(resolution=16), samples=Constant(24)),
        sampling=replace(draft.sampling, steps=1, draws=1),
        warm_start=replace(draft.warm_start, fit=nothing, photometric=rays),
        prompt_view=PromptView(
            locate=LocateConfig(4, (5.0,), size=16, refine=0, reliable_overlap=reliable_overlap), photometric=rays
        ),
        distillation=replace(draft.distillation, resolution=Constant(16)),
        mesh=replace(draft.mesh, resolution=16, texture_size=64, unwrap_seconds=0),
    )  # fmt: skip
    judged, real = [], module.Distillation
    monkeypatch.setattr(module, "Distillation", lambda g, cameras, c: judged.append(cameras) or real(g, cameras, c))
    told = Prompt(prompt().image, camera=CameraEstimate(0.0, 38.0, 1.0, 0.0, True))
    with Run.open(tmp_path / "run", config=config, quiet=True) as run:
        imagedream(told, config, run)
    assert [cameras.elevation for cameras in judged] == [(-5.0, 38.0 if reliable_overlap == 0 else 30.0)]
