"""Scores from embeddings and logits: bounds, recorded values, intervals."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from maquette.evaluation import quality


def test_recorded_scores(goldens):
    data = {k: torch.from_numpy(v) for k, v in np.load(goldens / "metrics" / "retrieval_inception.npz").items()}
    expected = json.loads((goldens / "metrics" / "retrieval_inception.json").read_text())
    image, text, logits = data["image_embeddings"], data["text_embeddings"], data["class_logits"]
    assert float(quality.text_score(image, text).mean()) == pytest.approx(
        expected["clip_text_score_mean_x100"], rel=1e-9
    )
    scores = quality.quality_score(logits)
    np.testing.assert_allclose(scores.numpy(), expected["qis_per_image"], rtol=1e-9)
    assert quality.Spread.of(scores).std == pytest.approx(expected["qis_std_of_exp"], rel=1e-9)
    assert float(quality.inception_score(logits)[0]) == pytest.approx(expected["inception_score_one_split"], rel=1e-9)
    hits = quality.view_hits(image, text).double()
    np.testing.assert_allclose(hits.mean(1).numpy(), expected["r_precision_each_view"])


def test_quality_score_lies_between_one_and_the_number_of_classes():
    certain = torch.zeros(1, 7)
    certain[0, 3] = 100
    assert float(quality.quality_score(torch.zeros(1, 7))) == pytest.approx(1)
    assert float(quality.quality_score(certain)) == pytest.approx(7)


def test_inception_score_of_equal_and_of_distinct_confident_images():
    assert float(quality.inception_score(torch.randn(1, 5).expand(10, 5))[0]) == pytest.approx(1, abs=1e-5)
    distinct = 100 * torch.eye(5)
    assert float(quality.inception_score(distinct)[0]) == pytest.approx(5, rel=1e-5)
    assert quality.inception_score(torch.randn(10, 5), splits=3).shape == (3,)
    with pytest.raises(ValueError, match="splits"):
        quality.inception_score(distinct, splits=6)


def test_retrieval_by_view_and_by_object_can_differ():
    text = torch.eye(3)
    image = torch.tensor([[[0.8, 0.6, 0.0], [0.0, 1.0, 0.0]], [[0.6, 0.0, 0.8], [0.0, 1.0, 0.0]]])
    assert quality.view_hits(image, text).tolist() == [[True, True], [False, True]]
    assert quality.mean_similarity_hits(image, text).tolist() == [True, True]
    assert quality.mean_embedding_hits(image, text).tolist() == [True, True]
    with pytest.raises(ValueError, match="captions"):
        quality.view_hits(image, text[:1])


def test_captions_are_normalised_as_in_dream_fields():
    assert quality.normalise_caption(" A dog, sleeping. ") == "a dog, sleeping."


def test_wilson_interval_against_its_quadratic():
    """The bounds solve (p - share)^2 = z^2 p (1 - p) / n."""
    z = 1.959963984540054
    for successes, trials in ((7, 10), (1, 3), (29, 40)):
        for bound in quality.wilson_interval(successes, trials):
            share = successes / trials
            assert (bound - share) ** 2 == pytest.approx(z * z * bound * (1 - bound) / trials, rel=1e-9)
    assert quality.wilson_interval(0, 0) == (0.0, 1.0)
    low, high = quality.wilson_interval(5, 5)
    assert low < 1 and high == pytest.approx(1)
    with pytest.raises(ValueError, match="successes"):
        quality.wilson_interval(3, 2)


def test_bootstrap_interval_covers_and_is_repeatable(generator):
    values = torch.randn(400, generator=generator)
    low, high = quality.bootstrap_interval(values)
    half = 1.96 * float(values.std()) / math.sqrt(400)
    assert low == pytest.approx(float(values.mean()) - half, abs=0.15 * half)
    assert high == pytest.approx(float(values.mean()) + half, abs=0.15 * half)
    assert (low, high) == quality.bootstrap_interval(values)
    assert quality.bootstrap_interval(torch.tensor([2.0])) == (2.0, 2.0)


def test_a_spread_needs_cases():
    assert quality.Spread.of(torch.tensor([1.0, 3.0])) == quality.Spread(2.0, 1.0, 2)
    with pytest.raises(ValueError, match="one value per case"):
        quality.Spread.of(torch.zeros(0))
