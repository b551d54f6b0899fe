"""The prompt among the sampled views: found, placed to a fraction of a pixel, and not found where it is not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from maquette.cameras import orbit
from maquette.errors import UserError
from maquette.images import ImagePrompt, Views
from maquette.rendering.raster import MeshRenderer
from maquette.run import Run
from maquette.stages.locate import Located
from maquette.stages.match import MatchConfig, match_prompt
from tests.stages.test_locate import camera, chair, photograph

GREY = torch.full((3,), 0.5)


def canonical(first: float = 0.0, elevation: float = 5.0) -> Views:
    """Four small true views of the chair before grey, as a prior would draw them."""
    cameras = orbit(4, elevation=elevation, azimuth=first, fovy=40.0, height=32, width=32)
    return MeshRenderer(chair()).render(cameras, samples=4).views()


def matched(views: Views, prompt: ImagePrompt, folder: Path, tolerance: float = 0.1) -> Located:
    with Run.open(folder, config={}, seed=0, device="cpu", quiet=True) as run:
        found: Located = run.stage("match", match_prompt, views, prompt, GREY, MatchConfig(tolerance))
    return found


@pytest.mark.parametrize("azimuth", [0.0, 90.0])
def test_the_view_that_is_the_prompt_is_found(azimuth: float, tmp_path: Path) -> None:
    found = matched(canonical(), photograph(chair(), azimuth, 5.0), tmp_path / "run")
    estimate = found.estimate
    assert (estimate.azimuth, estimate.elevation) == pytest.approx((azimuth, 5.0), abs=1e-3)
    assert estimate.reliable and estimate.error < 0.05 and found.colour_error == estimate.error
    assert found.view.images.shape == (1, 3, 256, 256)
    truth = MeshRenderer(chair()).render(camera(azimuth, 5.0, 256), samples=2).opacity[0, ..., 0]
    ours = found.view.masks[0, 0]
    overlap = torch.minimum(truth, ours).sum() / torch.maximum(truth, ours).sum()
    assert overlap > 0.95, "the prompt does not lie where the view's camera sees it"


def test_another_side_is_no_match(tmp_path: Path) -> None:
    found = matched(canonical(), photograph(chair(), 45.0, 30.0), tmp_path / "run")
    assert not found.estimate.reliable


def test_nothing_matches_without_tolerance(tmp_path: Path) -> None:
    prompt = photograph(chair(), 0.0, 5.0)
    assert not matched(canonical(), prompt, tmp_path / "run", tolerance=0.0).estimate.reliable


def test_of_equal_views_the_front_is_taken(tmp_path: Path) -> None:
    views = canonical()
    same = Views(views.images[[0, 0, 0, 0]], views.masks[[0, 0, 0, 0]], views.cameras.turned(90.0))
    found = matched(same, photograph(chair(), 0.0, 5.0), tmp_path / "run")
    assert found.estimate.reliable and found.estimate.azimuth == pytest.approx(0.0, abs=1e-3)


def test_a_prompt_without_an_object_is_no_match(tmp_path: Path) -> None:
    empty = ImagePrompt(torch.zeros(3, 64, 64), torch.zeros(1, 64, 64))
    assert not matched(canonical(), empty, tmp_path / "run").estimate.reliable


def test_views_without_masks_are_refused(tmp_path: Path) -> None:
    views = canonical()
    with pytest.raises(ValueError, match="needs views with masks"):
        matched(Views(views.images, None, views.cameras), photograph(chair(), 0.0, 5.0), tmp_path / "run")


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(UserError, match="tolerance >= 0"):
        MatchConfig(tolerance=-1.0)
