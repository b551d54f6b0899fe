"""The code that README and docs/extend.md show does what they say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pages import ROOT, run_blocks, save_package

from maquette.errors import UserError
from maquette.guidance.base import NoiseRange
from maquette.images import Views
from maquette.methods import imagedream
from maquette.priors.hub import load_prior
from maquette.rendering import OccupancyConfig, VolumeConfig
from maquette.run import Run
from maquette.schedules import Constant
from maquette.stages.fit import FitConfig
from maquette.stages.locate import LocateConfig
from maquette.stages.look import SamplingConfig, sample_views
from maquette.stages.objectives import PhotometricConfig, RandomRays
from tests.priors.tiny import four_cameras, prompt, tiny_prior

DRAFT = imagedream.nano("draft")


@pytest.fixture(scope="module")
def extended() -> dict[str, Any]:
    """Everything that docs/extend.md defines."""
    spaces = run_blocks(ROOT / "docs" / "extend.md")
    assert len(spaces) == 5
    return {name: value for space in spaces for name, value in space.items()}


def test_the_guidance_of_the_page_guides(extended):
    prior = tiny_prior()
    images = torch.rand(1, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    guidance = extended["ClassifierGuidance"](prior, prompt())
    result = guidance(images, four_cameras(), torch.ones(3), (0.5, 0.5), torch.Generator().manual_seed(0))
    result.loss.backward()
    assert images.grad.any() and result.metrics["t"] == 500
    assert guidance.fingerprint() != extended["ClassifierGuidance"](prior, prompt("a blue chair")).fingerprint()


def test_the_prior_of_the_page_can_be_sampled_and_distilled(extended, tmp_path):
    prior, shown = extended["CopyPrior"](), prompt()
    white = torch.ones(3)
    condition = prior.condition(shown, white)
    cameras = four_cameras().with_size(32, 32)
    config = SamplingConfig(steps=4, guidance_scale=1.0, spacing="exact")
    with Run.open(tmp_path / "run", quiet=True) as run:
        views = run.stage("views", sample_views, prior, condition, cameras, config)
    expected = shown.image.resized(32).composite(white).clamp(0, 1)
    assert (views.composite(white) - expected).abs().mean() < 0.1
    images = torch.rand(1, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    guidance = extended["ClassifierGuidance"](prior, shown)
    guidance(images, cameras, white, (0.5, 0.5), torch.Generator().manual_seed(0)).loss.backward()
    assert images.grad.any()


def test_the_field_of_the_page_becomes_a_mesh(extended):
    mesh, quality = extended["mesh"], extended["quality"]
    assert mesh.is_watertight and quality.components == 1
    radius = torch.from_numpy(mesh.vertices).norm(dim=-1)
    assert float((radius - 0.6).abs().max()) < 0.05


def test_the_metric_of_the_page_measures(extended):
    mask = torch.ones(2, 1, 8, 8)
    grey = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)).expand(2, 3, 8, 8)
    colours = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert extended["colourfulness"](grey, mask).max() < 1e-6
    assert extended["colourfulness"](colours, mask).shape == (2,)
    assert extended["colourfulness"](colours, mask).min() > 0.1


def test_the_method_of_the_page_is_a_method(extended, package, tmp_path, monkeypatch):
    method = extended["METHOD"]
    monkeypatch.setitem(method.make.__globals__, "load_prior", lambda *arguments: load_prior("nano", package))
    config = method.config("nano", "draft")
    with Run.open(tmp_path / "run", config=config, method=method.name, quiet=True) as run:
        views = method.make(prompt(), config, run)
    assert isinstance(views, Views) and len(views) == 4
    torch.testing.assert_close(views.cameras.elevation, torch.full((4,), 20.0), atol=1e-3, rtol=0)
    with pytest.raises(UserError, match="IMAGE is missing"):
        extended["run"]([])


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    return save_package(tmp_path_factory.mktemp("package"))


def quick(package: Path) -> imagedream.Config:
    """ImageDream's draft preset with next to no work."""
    nothing = FitConfig(steps=2)
    rays = PhotometricConfig(pixels=RandomRays(16), mask=Constant(0.5))
    whole = DRAFT
    assert whole.warm_start is not None and whole.prompt_view is not None
    return replace(
        whole, weights=package, fit=nothing, keep_views=rays,
        scene=VolumeConfig(occupancy=OccupancyConfig(resolution=16), samples=Constant(24)),
        sampling=replace(whole.sampling, steps=2),
        warm_start=replace(whole.warm_start, fit=nothing, photometric=rays),
        prompt_view=replace(whole.prompt_view, locate=LocateConfig(4, (5.0,), size=16, refine=0), photometric=rays),
        distillation=replace(whole.distillation, resolution=Constant(16), noise_range=NoiseRange()),
        mesh=replace(whole.mesh, resolution=16, texture_size=64, unwrap_seconds=0),
    )  # fmt: skip


def test_the_readme_s_python_makes_an_asset(package, tmp_path, monkeypatch):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(imagedream, "nano", lambda quality="default": quick(package))
    (space,) = run_blocks(ROOT / "README.md")
    assert len(space["asset"].mesh.faces) > 0
    assert (tmp_path / "first.glb").read_bytes()[:4] == b"glTF"
    assert (tmp_path / "runs" / "first" / "provenance.json").is_file()
