"""Views by every kind of prior: named, picked from candidates, from a picture, from words, and from given views."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from maquette.errors import UserError
from maquette.images import Prompt, Views
from maquette.methods import imagedream, views
from maquette.priors.hub import save_prior
from maquette.priors.multiview import MultiViewPrior
from maquette.run import Run
from maquette.stages.look import SamplingConfig, view_names
from maquette.wording import Additional
from tests.priors.tiny import (
    prompt,
    tiny_config,
    tiny_prior,
    tiny_published,
    tiny_view_config,
    tiny_view_prior,
    tiny_zero123,
)

QUICK = SamplingConfig(steps=3, guidance_scale=2.0, eta=1.0, spacing="exact")
WORDS = Prompt(None, caption="a wooden barrel")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Packages of tiny random priors, by their names."""
    folder = tmp_path_factory.mktemp("weights")
    save_prior(folder / "nano", tiny_prior(), tiny_config(), {"name": "nano", "licence": "Apache-2.0"})
    save_prior(folder / "nano-zero123", tiny_view_prior(), tiny_view_config(), {"name": "nano-zero123", "licence": "0"})
    return folder


def config_of(weights: Path, name: str, **changes) -> views.Config:
    start = views.configure("nano", "draft", name)
    return replace(start, weights=weights / name, sampling=QUICK, **changes)


def draw(config: views.Config, folder: Path, shown: Prompt | None = None, seed: int = 0) -> list[Views]:
    with Run.open(folder, config=config, seed=seed, method="views", quiet=True) as run:
        return views.sample_any_views(shown or prompt(), config, run)


@pytest.mark.parametrize("name", ["nano", "nano-zero123"])
def test_views_come_in_the_order_in_which_they_are_named(tmp_path, weights, name):
    (all_four,) = draw(config_of(weights, name), tmp_path / "all")
    assert view_names(all_four.cameras) == ["front", "left", "back", "right"] and all_four.masks is not None
    (two,) = draw(config_of(weights, name, views=("back", "front")), tmp_path / "two")
    assert view_names(two.cameras) == ["back", "front"]
    if name == "nano":  # the same ring is drawn, so these are its views
        assert torch.equal(two.images, all_four.images[[2, 0]])
    (diagonal,) = draw(config_of(weights, name, views=("front-left", "back right")), tmp_path / "diagonal")
    assert view_names(diagonal.cameras) == ["front left", "back right"]


def test_a_novel_view_prior_sees_from_anywhere(tmp_path, weights):
    config = config_of(weights, "nano-zero123", views=("front", "front left", "overhead", "underneath"))
    (drawn,) = draw(config, tmp_path / "run")
    assert view_names(drawn.cameras) == list(config.views)
    with pytest.raises(UserError, match="four views at right angles.*front, overhead"):
        draw(config_of(weights, "nano", views=("front", "overhead")), tmp_path / "other")
    with pytest.raises(UserError, match="no view 'frnt'"):
        config_of(weights, "nano", views=("frnt",))


@pytest.mark.parametrize("name", ["nano", "nano-zero123"])
def test_a_candidate_is_the_same_alone_and_in_company(tmp_path, weights, name):
    config = config_of(weights, name)
    several = draw(replace(config, seeds=3), tmp_path / "several")
    (alone,) = draw(replace(config, sampling=replace(QUICK, pick=2)), tmp_path / "alone")
    assert len(several) == 3 and torch.equal(several[2].images, alone.images)
    assert not torch.equal(several[0].images, several[1].images)


@pytest.mark.parametrize("name", ["nano", "nano-zero123"])
def test_given_views_are_revised(tmp_path, weights, name):
    config = config_of(weights, name)
    (first,) = draw(config, tmp_path / "first")
    first.save(tmp_path / "given")
    near, far = (
        draw(replace(config, init=tmp_path / "given", strength=strength), tmp_path / f"{strength}", seed=1)[0]
        for strength in (0.0, 1.0)
    )
    torch.testing.assert_close(near.composite(torch.ones(3)), first.composite(torch.ones(3)), atol=0.35, rtol=0)
    assert not torch.equal(near.images, far.images)
    torch.testing.assert_close(near.cameras.c2w, first.cameras.c2w, atol=1e-5, rtol=1e-5)


def test_words_are_enough_for_a_multi_view_prior(tmp_path, weights):
    config = config_of(weights, "nano", seeds=2)
    barrels = draw(config, tmp_path / "barrel", WORDS)
    chairs = draw(config, tmp_path / "chair", Prompt(None, caption="a red chair"))
    assert not torch.equal(barrels[0].images, chairs[0].images)
    assert not torch.equal(barrels[0].images, barrels[1].images)
    with pytest.raises(UserError, match="cannot read words; name IMAGE"):
        draw(config_of(weights, "nano-zero123"), tmp_path / "novel", WORDS)
    with pytest.raises(UserError, match="need a picture, or words"):
        draw(config, tmp_path / "nothing", Prompt(None))


def test_published_priors_follow_their_own_settings(tmp_path, monkeypatch):
    asked = []

    def load(name, *_):
        asked.append(name)
        return replace(tiny_published("none"), weights={"name": name, "licence": "MIT"})

    monkeypatch.setattr(views, "load_prior", load)
    monkeypatch.setattr(views, "load_view_prior", lambda *_: tiny_zero123())
    mvdream = views.configure("paper", "default", "mvdream")
    assert (mvdream.control, mvdream.sampling.guidance_scale, mvdream.view_elevation) == ("none", 10.0, 15.0)
    (drawn,) = draw(replace(mvdream, sampling=QUICK), tmp_path / "mvdream", WORDS)
    assert view_names(drawn.cameras) == ["front", "left", "back", "right"] and asked == ["mvdream"]
    local = views.configure("paper", "default", "imagedream-local")
    assert local.control == "local" and local.sampling.guidance_scale == 5.0
    zero123 = views.configure("nano", "default", "zero123-xl")
    assert (zero123.background, zero123.sampling.guidance_scale, zero123.sampling.eta) == ("white", 3.0, 1.0)
    assert len(draw(replace(zero123, sampling=QUICK), tmp_path / "zero123")[0]) == 4


def test_the_null_of_another_prior_guides(tmp_path, weights):
    config = config_of(weights, "nano-zero123")
    (own,) = draw(config, tmp_path / "own")
    (free,) = draw(replace(config, free="nano", free_weights=weights / "nano"), tmp_path / "free")
    assert not torch.equal(own.images, free.images)


def test_single_images_are_no_views(tmp_path):
    with pytest.raises(UserError, match="makes single images of words.*maquette text"):
        draw(views.configure("nano", "draft", "sd"), tmp_path / "run")
    with pytest.raises(UserError, match="there is no prior 'nanno'"):
        draw(views.configure("nano", "draft", "nanno"), tmp_path / "other")


def test_views_are_asked_for_with_further_words(tmp_path, weights, monkeypatch):
    asked = []
    true_condition = MultiViewPrior.condition

    def remember(self, prompt, *rest):
        asked.append((prompt.caption, prompt.negative))
        return true_condition(self, prompt, *rest)

    monkeypatch.setattr(MultiViewPrior, "condition", remember)
    config = config_of(weights, "nano", view_words=Additional("a lamp", ", 3d asset"))
    silent = replace(prompt(), negative="")
    draw(config, tmp_path / "picture", silent)
    assert asked[-1] == (prompt().caption + ", 3d asset", "a lamp")
    draw(config, tmp_path / "words", WORDS)
    assert asked[-1] == ("a wooden barrel, 3d asset", "a lamp")
    method = replace(imagedream.nano("draft"), weights=weights / "nano", sampling=QUICK)
    with Run.open(tmp_path / "method", config=method, quiet=True) as run:
        for words in (Additional(), Additional("a lamp", ", 3d asset")):
            told = replace(method, view_words=words)
            imagedream.canonical_views(imagedream.prior_of(told, run), silent, told, run)
            assert asked[-1] == (prompt().caption + words.suffix, words.negative)
