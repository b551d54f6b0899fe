"""`maquette evaluate` on a tiny prior: settings of the method as options, and results kept under the right weights."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from maquette import cli
from maquette.priors.codecs import SpaceToDepth
from maquette.priors.hub import save_prior
from maquette.priors.nano.assembly import build_nano, parts
from tests.evaluation.conftest import objects_folder  # noqa: F401
from tests.priors.tiny import randomised, tiny_config


@pytest.fixture
def weights(tmp_path):
    def save(number):
        config = replace(tiny_config(), codec=SpaceToDepth(image_size=32, patch=4))  # the least that can be measured
        prior = build_nano(config)
        for index, module in enumerate(parts(prior).values()):
            randomised(module, number + index)
        save_prior(tmp_path / "weights", prior, config, {"name": "nano", "licence": "MIT"})
        return tmp_path / "weights"

    return save


@pytest.fixture
def evaluate(tmp_path, objects_folder, capsys):  # noqa: F811
    def call(*words):
        command = ["evaluate", "objects", str(objects_folder), "--out", str(tmp_path / "v.json"), "--method", "views"]
        code = cli.main([*command, "--limit", "1", "--judges.nano", "off", "--sampling.steps", "1", *map(str, words)])
        return code, capsys.readouterr()

    return call


def test_the_methods_settings_are_options_and_baselines_can_be_left_out(evaluate, weights, tmp_path):
    words = ("--weights", weights(0), "--control", "local", "--background", "grey")
    code, said = evaluate(*words, "--no-baselines")
    assert code == 0, said.err
    report = json.loads((tmp_path / "v.json").read_text())
    config = report["method"]["config"]
    assert (config["control"], config["background"], config["sampling"]["steps"]) == ("local", "grey", 1)
    assert report["baselines"] == {} and len(report["objects"]) == 1
    assert evaluate(*words)[0] == 0  # the answer is kept, a baseline is added
    assert set(json.loads((tmp_path / "v.json").read_text())["baselines"]) == {"copy"}


def test_answers_of_other_weights_of_the_same_name_are_not_taken_for_these(evaluate, weights):
    assert evaluate("--weights", weights(0))[0] == 0
    code, said = evaluate("--weights", weights(1))
    assert code == 2 and "method.weights" in said.err and "--overwrite" in said.err
    assert evaluate("--weights", weights(1), "--overwrite")[0] == 0


def test_a_misspelt_setting_is_answered_with_the_right_one(evaluate):
    code, said = evaluate("--controll", "local")
    assert code == 2 and "did you mean --control?" in said.err


@pytest.mark.parametrize("true_views", [(), ("--true-views", "32")], ids=["the prior's views", "true views"])
def test_a_prompts_camera_is_searched_on_views_of_either_kind(
    weights,
    objects_folder,  # noqa: F811
    tmp_path,
    capsys,
    true_views,
):
    quick = "--sampling.steps 1 --sampling.draws 1 --warm-start.fit.steps 2 --prompt-view.locate.azimuths 4"
    words = ["--weights", str(weights(0)), "--limit", "1", "--prompts", "1", *quick.split(), *true_views]
    out = tmp_path / "cameras.json"
    code = cli.main(["evaluate", "cameras", str(objects_folder), "--out", str(out), *words])
    assert code == 0, capsys.readouterr().err
    report = json.loads(out.read_text())
    assert report["all"]["prompts"] == 1 and report["failures"] == []
