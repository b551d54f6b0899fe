"""Impossible values of `maquette imagedream` are refused at the door: no minute of work before one sentence."""

from __future__ import annotations

import pytest

from maquette import cli
from maquette.commands.imagedream import METHOD
from maquette.commands.method import read_options
from maquette.errors import UserError
from maquette.images import Prompt
from maquette.methods import imagedream
from maquette.run import Run
from tests.priors.tiny import prompt, tiny_prior

IMPOSSIBLE = [
    ("--scene.samples.value 0", "VolumeConfig.samples is more than 0"),
    ("--distillation.resolution.value 0", "DistillationConfig.resolution is at least 1"),
    ("--distillation.scenes.value -2", "DistillationConfig.scenes is at least 1"),
    ("--distillation.noise-range.low.first 2", "NoiseRange.low is a fraction"),
    ("--distillation.noise-range.high.last -0.1", "NoiseRange.high is a fraction"),
    ("--distillation.noise-range.low.first 0.9", "NoiseRange.low is at most high"),
    ("--view-elevation 500", "view_elevation is from -90 to 90 degrees, got 500"),
    ("--fovy 180", "fovy is between 0 and 180 degrees, got 180"),
    ("--control locale", "control is 'none' or a combination of"),
    ("--prompt-view.cover-limits 40 -10", "prompt_view.cover_limits is a range (low, high) within -90 and 90"),
    ("--prompt-view.cover always", "--prompt-view.cover: expected one of 'none', 'told', 'found'"),
    ("--warm-start.rings 0", "at least one ring of views, got rings=0"),
    ("--cameras.elevation 50 10", "OrbitSampler.elevation is a range"),
    ("--cameras.num-views 0", "OrbitSampler.num_views is at least 1"),
    ("--mesh.texture-size 1", "MeshConfig.texture_size expects at least 16"),
    ("--fit.encoding-rate -1", "learning rates are at least 0"),
    ("--image-weight.local -1", "image weights are at least 0"),
    ("--guidance.guidance-scale -5", "guidance_scale is at least 0"),
]


@pytest.mark.parametrize(("words", "says"), IMPOSSIBLE, ids=[words for words, _ in IMPOSSIBLE])
def test_an_impossible_value_is_refused_at_the_door(words, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["imagedream", "picture.png", *words.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("maquette: ") and error.count("\n") == 1 and says in error
    assert not any(tmp_path.iterdir())


def test_a_prior_of_four_views_is_not_asked_about_three(tmp_path, monkeypatch):
    """Before anything is sampled or fitted."""
    monkeypatch.setattr(imagedream, "prior_of", lambda config, run: tiny_prior())
    _, config = read_options(METHOD, ["picture.png", "--cameras.num-views", "3"])
    with (
        Run.open(tmp_path / "run", config=config, quiet=True) as run,
        pytest.raises(UserError, match=r"4 views at once, and cameras\.num_views is 3"),
    ):
        imagedream.imagedream(Prompt(prompt().image), config, run)
    assert not (tmp_path / "run" / "stages").exists()
