"""The picture's elevation, found from views that a prior gives relative to it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh

from maquette.asset import Mesh
from maquette.cameras import from_angles, orbit
from maquette.errors import UserError
from maquette.images import CameraEstimate, ImagePrompt, Prompt
from maquette.priors.base import Prediction
from maquette.run import Run
from maquette.stages.elevation import (
    ElevationConfig,
    ElevationEstimate,
    disagreement,
    estimate_elevation,
    parabola_minimum,
    view_cameras,
)
from maquette.stages.look import SamplingConfig
from maquette.stages.novel import sample_novel_views
from tests.priors.tiny import prompt as a_prompt
from tests.priors.tiny import tiny_prior
from tests.stages.relative_prior import WHITE, RelativePrior

ESTIMATE = CameraEstimate(azimuth=0.0, elevation=0.0, scale=1.0, error=0.0, reliable=True)
QUICK = ElevationConfig(
    sampling=SamplingConfig(steps=2, guidance_scale=1.0, spacing="exact"), size=20, samples=24, spacing=10.0
)


def chair() -> Mesh:
    """A seat with one armrest and a back, each side of its own colour."""
    parts = []
    for extents, place, colour in (
        ((0.8, 0.7, 0.15), (0.0, 0.0, 0.0), (0.8, 0.2, 0.2)),
        ((0.15, 0.7, 0.7), (-0.35, 0.0, 0.4), (0.2, 0.3, 0.8)),
        ((0.8, 0.12, 0.35), (0.0, 0.32, 0.2), (0.2, 0.7, 0.3)),
    ):
        box = trimesh.creation.box(extents)
        box.apply_translation(place)
        parts.append((box, np.tile(colour, (len(box.vertices), 1))))
    whole = trimesh.util.concatenate([box for box, _ in parts])
    colours = np.concatenate([colour for _, colour in parts])
    return Mesh(whole.vertices, whole.faces, vertex_colors=colours).normalized()


def ball() -> Mesh:
    whole = trimesh.creation.icosphere(subdivisions=3, radius=0.6)
    return Mesh(whole.vertices, whole.faces, vertex_colors=np.full((len(whole.vertices), 3), 0.4))


def picture_of(prior: RelativePrior) -> Prompt:
    rgba = prior.look(view_cameras(QUICK, prior.elevation)[:1])[0]
    return Prompt(ImagePrompt(rgba[:3], rgba[3:]))


def estimate(prior: RelativePrior, folder, config: ElevationConfig = QUICK) -> ElevationEstimate:
    with Run.open(folder, quiet=True) as run:
        return run.stage("elevation", estimate_elevation, prior, None, picture_of(prior), config)


@pytest.mark.parametrize("elevation", [-10.0, 25.0, 65.0])
def test_the_true_elevation_is_found_whatever_the_guess(elevation, tmp_path):
    prior = RelativePrior(chair(), elevation)
    found = estimate(prior, tmp_path / "run")
    assert found.camera.elevation == pytest.approx(elevation, abs=7.0)
    assert found.camera.reliable and found.camera.error == min(found.disagreements + (found.camera.error,))
    assert len(prior.calls) == 2 * 2, "one sampling serves all candidates, and one the lifted view"
    assert found.rise == pytest.approx(found.lift, abs=QUICK.follow)
    torch.testing.assert_close(
        found.views.cameras.elevation[0], torch.tensor(found.camera.elevation), atol=1e-3, rtol=0
    )


def test_a_ball_has_no_elevation(tmp_path):
    found = estimate(RelativePrior(ball(), 30.0), tmp_path / "run")
    assert not found.camera.reliable and found.rise is None, "what is not clear is not asked again"


class AtEyeLevel(RelativePrior):
    """A prior whose views are those of one height, whatever it is shown."""

    def recognise(self, picture):
        return 0.0


def test_a_prior_that_does_not_look_at_the_picture_s_height_is_not_believed(tmp_path):
    """Its views agree with each other, and so clearly that the minimum alone says nothing."""
    prior = AtEyeLevel(chair(), 30.0)
    found = estimate(prior, tmp_path / "run")
    assert abs(found.camera.elevation) < 10 and found.camera.error < np.median(found.disagreements) - QUICK.clear
    assert found.lift == 30.0 and found.rise is not None and abs(found.rise) < 10
    assert not found.camera.reliable
    believed = estimate(prior, tmp_path / "asked once", replace(QUICK, follow=None))
    assert believed.camera.reliable and (believed.lift, believed.rise) == (None, None)


def test_true_cameras_disagree_least_and_turning_the_world_changes_nothing():
    prior = RelativePrior(chair(), 20.0)
    cameras = view_cameras(QUICK, 20.0)
    pictures = prior.look(cameras)
    cameras = cameras.with_size(32, 32)
    least = float(disagreement(pictures, cameras))
    assert float(disagreement(pictures, cameras.turned(70.0))) == pytest.approx(least, abs=1e-4)
    for wrong in (0.0, 45.0):
        assert float(disagreement(pictures, view_cameras(QUICK, wrong).with_size(32, 32))) > 1.15 * least
    assert float(disagreement(torch.zeros(3, 4, 8, 8), orbit(3, height=8, width=8))) == 1.0


def test_a_parabola_finds_its_vertex_and_ends_stay_ends():
    at = torch.arange(-20.0, 80.0, 10.0)
    place, value = parabola_minimum(at, 0.3 + 0.001 * (at - 13.7).square())
    assert place == pytest.approx(13.7, abs=1e-3) and value == pytest.approx(0.3, abs=1e-4)
    assert parabola_minimum(at, at) == (-20.0, -20.0)
    assert parabola_minimum(at, torch.zeros(10)) == (-20.0, 0.0)


def test_estimates_are_saved_whole(tmp_path):
    found = estimate(RelativePrior(chair(), 10.0), tmp_path / "run", replace(QUICK, spacing=30.0))
    found.save(tmp_path / "estimate")
    again = ElevationEstimate.load(tmp_path / "estimate")
    assert (again.camera, again.candidates, again.disagreements, again.lift, again.rise) == (
        found.camera, found.candidates, found.disagreements, found.lift, found.rise,
    )  # fmt: skip
    assert len(again.views) == len(QUICK.turns) + len(QUICK.lifts)


def test_wrong_questions_are_refused(tmp_path):
    with Run.open(tmp_path / "run", quiet=True) as run:
        with pytest.raises(UserError, match="this prompt has none"):
            run.stage("a", estimate_elevation, RelativePrior(ball(), 0.0), None, Prompt(None), QUICK)
        with pytest.raises(UserError, match="makes 4 at once"):
            run.stage("b", estimate_elevation, tiny_prior(), None, a_prompt(), QUICK)
    with pytest.raises(UserError, match="give some turns"):
        ElevationConfig(turns=())
    with pytest.raises(UserError, match="give some lifts"):
        ElevationConfig(lifts=())
    with pytest.raises(UserError, match="candidate elevations"):
        ElevationConfig(lowest=80.0)


# Novel views


def sampled(prior, cameras, folder, free=None, **changes):
    config = replace(QUICK.sampling, **changes)
    known = replace(picture_of(prior), camera=replace(ESTIMATE, elevation=15.0))
    condition = prior.condition(known, WHITE)
    with Run.open(folder, quiet=True) as run:
        return run.stage("views", sample_novel_views, prior, free, condition, cameras, config)


def test_novel_views_show_what_their_cameras_see(tmp_path):
    prior = RelativePrior(chair(), 30.0)
    cameras = view_cameras(QUICK, 15.0)
    views = sampled(prior, cameras, tmp_path / "run")
    truth = prior.look(view_cameras(QUICK, 30.0))
    assert (views.composite(WHITE) - truth[:, :3]).abs().mean() < 0.02
    assert views.masks is not None and (views.masks - truth[:, 3:]).abs().mean() < 0.05
    assert views.cameras.height == 32


def test_a_view_does_not_depend_on_its_neighbours(tmp_path):
    prior, cameras = RelativePrior(chair(), 30.0), view_cameras(QUICK, 15.0)
    noisy = {"eta": 1.0, "steps": 4, "spacing": "released"}
    whole = sampled(prior, cameras, tmp_path / "whole", **noisy)
    part = sampled(prior, cameras[:2], tmp_path / "part", **noisy)
    torch.testing.assert_close(whole.images[:2], part.images, atol=1e-5, rtol=0)


def test_with_a_free_prior_the_own_null_is_not_asked(tmp_path):
    prior, cameras = RelativePrior(chair(), 30.0), view_cameras(QUICK, 15.0)[:2]
    free = Grey(prior.codec)
    sampled(prior, cameras, tmp_path / "own", guidance_scale=2.0)
    assert prior.calls == [("cond", "uncond")] * 2
    prior.calls.clear()
    views = sampled(prior, cameras, tmp_path / "free", free, guidance_scale=2.0)
    assert prior.calls == [("condition",)] * 2 and free.asked == 2
    # x0 = grey + 2 (view - grey)
    expected = (2 * prior.look(view_cameras(QUICK, 30.0)[:2])[:, :3] - 0.5).clamp(0, 1)
    assert (views.composite(WHITE) - expected).abs().mean() < 0.05


class Grey(RelativePrior):
    """A free prior that sees grey everywhere."""

    def __init__(self, codec) -> None:
        super().__init__(ball(), 0.0, codec)
        self.asked = 0

    def condition(self, prompt, background):
        return super().condition(prompt.with_camera(ESTIMATE), background)

    def predict(self, latents_t, t, condition, cameras=None):
        self.asked += 1
        x0 = self.codec.encode(torch.full((len(latents_t), 1, 3, 32, 32), 0.5))
        return Prediction(eps=self.noise_schedule.eps_from_x0(latents_t, x0, t), x0=x0)


def test_cameras_keep_the_picture_first():
    cameras = view_cameras(QUICK, 25.0)
    assert len(cameras) == 1 + len(QUICK.turns) + len(QUICK.lifts)
    torch.testing.assert_close(
        cameras[0].c2w,
        from_angles(*(torch.tensor(v) for v in (0.0, 25.0, float(cameras[0].distance), 40.0)), height=1, width=1).c2w,
    )
