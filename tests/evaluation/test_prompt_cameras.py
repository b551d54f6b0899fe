"""The benchmark of prompt cameras: where its prompts are taken from, what it counts as error, what it keeps."""

from __future__ import annotations

import json

import pytest
import torch

from maquette.cameras import orbit
from maquette.errors import RunFailed, UserError
from maquette.evaluation.prompt_cameras import PromptCameras, camera_errors, evaluate_cameras, summary
from maquette.images import CameraEstimate, read_image

CONFIG = PromptCameras(limit=2, prompts=2, size=48)


def found(azimuth=0.0, elevation=10.0, scale=1.0, reliable=True):
    return CameraEstimate(azimuth, elevation, scale, 0.2, reliable)


class Method:
    """Always says the front, trusts itself every other time, and counts."""

    def __init__(self, fail=()):
        self.seen, self.fail = [], fail

    def __call__(self, prompt, views, folder):
        self.seen.append((prompt, views))
        if len(self.seen) in self.fail:
            raise RuntimeError("lost")
        return found(reliable=len(self.seen) % 2 == 0)


@pytest.mark.parametrize("name", ["limit", "prompts", "size"])
def test_numbers_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        PromptCameras(**{name: 0})


def test_a_prompts_camera_depends_on_seed_object_and_number_alone():
    config = PromptCameras()
    places = [config.draw(id, number) for id in ("cup", "chair") for number in range(20)]
    assert places[25] == config.draw("chair", 5) == PromptCameras(limit=3, prompts=9).draw("chair", 5)
    assert places[25] != PromptCameras(seed=1).draw("chair", 5) and len(set(places)) == 40
    for values, (low, high) in zip(
        zip(*places, strict=True), (config.azimuth, config.elevation, config.fill), strict=True
    ):
        assert low <= min(values) < low + (high - low) / 4 and high - (high - low) / 4 < max(values) <= high


def test_errors_go_the_short_way_round_and_scales_are_factors():
    assert camera_errors(found(175.0, 20.0, 0.5), -170.0, 12.5, 1.0) == {
        "azimuth": pytest.approx(15.0), "elevation": 7.5, "scale": 2.0,
    }  # fmt: skip
    same = camera_errors(found(), 0.0, 10.0, 1.0)
    assert same == {"azimuth": 0.0, "elevation": 0.0, "scale": 1.0}
    cases = [{"error": {"azimuth": a, "elevation": 1.0, "scale": 1.5}} for a in (0.0, 10.0, 20.0, 90.0)]
    figures = summary(cases)
    assert figures["azimuth_median"] == 15 and figures["azimuth_mean"] == 30 and figures["scale_median"] == 1.5
    assert (figures["azimuth_within_15"], figures["azimuth_within_30"]) == (0.5, 0.75)


def test_the_report_says_what_was_true_and_what_was_found(objects_folder, tmp_path):
    method, out = Method(), tmp_path / "c.json"
    report = evaluate_cameras(objects_folder, method, CONFIG, out=out, method={"name": "front"})
    assert json.loads(out.read_text()) == report and len(report["cases"]) == 4
    assert report["all"]["prompts"] == 4 and report["reliable"]["prompts"] == 2
    for case in report["cases"]:
        id, number = case["id"].rsplit(".", 1)
        azimuth, elevation, fill = CONFIG.draw(id, int(number))
        assert (case["truth"]["azimuth"], case["truth"]["elevation"]) == (azimuth, elevation)
        # A nearer camera shows it larger; perspective makes that a little more than the share of the picture.
        assert case["truth"]["scale"] == pytest.approx(fill / 0.8, rel=0.2)
        assert case["error"] == camera_errors(found(), azimuth, elevation, case["truth"]["scale"])
        assert read_image(tmp_path / "c" / case["id"] / "prompt.png").shape == (4, 48, 48)
    for prompt, views in method.seen:
        assert views is None and prompt.camera is None and prompt.caption == ""
    assert out.with_suffix(".png").exists()


def test_true_views_come_from_the_cameras_that_were_asked_for(objects_folder, tmp_path):
    method, cameras = Method(), orbit(3, elevation=5.0, height=16, width=16)
    config = PromptCameras(limit=1, prompts=1, size=48)
    report = evaluate_cameras(objects_folder, method, config, true_views=cameras, out=tmp_path / "c.json")
    ((_, views),) = method.seen
    assert report["true_views"] == 3 and views.images.shape == (3, 3, 16, 16)
    torch.testing.assert_close(views.cameras.c2w, cameras.c2w)
    with pytest.raises(UserError, match="true_views = 3"):
        evaluate_cameras(objects_folder, method, config, out=tmp_path / "c.json")


def test_failures_are_listed_and_tried_again_and_the_rest_is_kept(objects_folder, tmp_path):
    out, method = tmp_path / "c.json", Method(fail=(2,))
    report = evaluate_cameras(objects_folder, method, CONFIG, out=out)
    assert len(report["cases"]) == 3 and report["failures"][0]["error"] == "RuntimeError: lost"
    again = evaluate_cameras(objects_folder, method, CONFIG, out=out)
    assert len(method.seen) == 5 and len(again["cases"]) == 4 and again["failures"] == []
    assert evaluate_cameras(objects_folder, Method(fail=(1,)), CONFIG, out=out) == again
    with pytest.raises(RunFailed, match="lost"):
        evaluate_cameras(objects_folder, Method(fail=(1, 2, 3, 4)), CONFIG, out=tmp_path / "none.json")
    with pytest.raises(ValueError, match="prompts"):
        PromptCameras(prompts=0)
