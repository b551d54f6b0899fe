"""Words in captions: those of the training, the placeholder, and its absence."""

from __future__ import annotations

import pytest

from maquette.cameras import orbit
from maquette.errors import UserError
from maquette.images import Prompt
from maquette.methods import imagedream, text, views
from maquette.priors.nano.vocabulary import PLACEHOLDERS, UNKNOWN, unknown_words, word_index
from maquette.training.data import view_words
from maquette.wording import (
    DEMO_NEGATIVE,
    NEGATIVE,
    SUBJECT,
    VIEWS,
    Additional,
    require_subject,
    view_captions,
    view_word,
    with_view,
    without_subject,
)


def test_the_words_are_those_of_the_training():
    for azimuth in range(-180, 361, 7):
        for elevation in (-20.0, 0.0, 30.0, 59.0, 61.0, 90.0):
            suffix = view_words(azimuth, elevation, True)
            assert with_view("", view_word(azimuth, elevation)) == suffix


def test_nano_reads_all_of_them():
    assert not unknown_words(", ".join(with_view("a photo of a [v] [v2] dog", view) for view in VIEWS))
    assert PLACEHOLDERS[0] == SUBJECT and word_index(SUBJECT) != UNKNOWN


def test_captions_of_cameras():
    captions = view_captions("a [v] dog", orbit(4, height=8, width=8))
    assert captions == ("a [v] dog, front view", "a [v] dog, side view", "a [v] dog, back view", "a [v] dog, side view")
    with pytest.raises(ValueError, match="a view is one of front"):
        with_view("a dog", "left")


def test_the_placeholder():
    assert without_subject("a [v2] [v] dog, back view") == "a dog, back view"
    require_subject("a photo of a [V] dog")
    with pytest.raises(UserError, match=r'"a dog asleep" does not say where the subject is: write \[v\]'):
        require_subject("a dog asleep")


def test_the_released_words_go_with_the_published_prior_alone():
    paper, nano = imagedream.paper(), imagedream.nano()
    cup, own = Prompt(None, "a cup"), Prompt(None, "a cup", negative="blue")
    assert imagedream.worded(cup, paper.words) == Prompt(None, "a cup", NEGATIVE)
    assert imagedream.worded(cup, paper.view_words) == Prompt(None, "a cup, 3d asset", DEMO_NEGATIVE)
    assert imagedream.worded(own, paper.view_words).negative == "blue", "what a person names comes first"
    assert imagedream.worded(Prompt(None), paper.view_words).caption == "3d asset"
    assert imagedream.worded(own, nano.words) == own == imagedream.worded(own, nano.view_words)
    assert NEGATIVE.startswith("ugly, bad anatomy") and NEGATIVE.endswith("bad proportions")
    assert DEMO_NEGATIVE.startswith("uniform low no texture") and text.mvdream().negative == NEGATIVE


@pytest.mark.parametrize(
    ("prior", "words"),
    [
        ("nano", Additional()),
        ("imagedream", Additional(DEMO_NEGATIVE, ", 3d asset")),
        ("mvdream", Additional("", ", 3d asset")),
        ("zero123-xl", Additional()),
        ("nano-zero123", Additional()),
    ],
)
def test_every_prior_is_asked_for_views_in_its_own_words(prior, words):
    assert views.configure("nano", "draft", prior).view_words == words
