"""Licences of several weights together: the strictest counts, and what is unknown is not taken as free."""

from __future__ import annotations

import numpy as np
import pytest

from maquette.asset import Asset, Mesh
from maquette.run import Run
from maquette.run.record import read_json
from maquette.run.terms import effective_terms

NANO = {"name": "nano", "licence": "Apache-2.0"}
RAIL = {"name": "imagedream", "licence": "OpenRAIL", "commercial": "with restrictions", "terms": "Restrictions apply."}
CLOSED = {"name": "stable-zero123", "licence": "research", "commercial": "no", "terms": "Research only."}


@pytest.mark.parametrize(
    ("cards", "commercial"),
    [
        ([], "yes"), ([NANO], "yes"), ([RAIL, NANO], "with restrictions"), ([NANO, CLOSED, RAIL], "no"),
        ([{"name": "mine", "licence": "my own"}], "with restrictions"), ([{"name": "mine"}, NANO], "with restrictions"),
    ],
)  # fmt: skip
def test_the_strictest_counts(cards, commercial):
    terms = effective_terms(cards)
    assert terms.commercial == commercial
    for card in cards:
        assert any(card["name"] in sentence for sentence in terms.sentences)


def test_weights_of_one_licence_share_a_sentence():
    (sentence,) = effective_terms([RAIL, {**RAIL, "name": "mvdream"}]).sentences
    assert sentence == "imagedream, mvdream: OpenRAIL. Restrictions apply."


def test_terms_are_part_of_the_provenance(tmp_path):
    with Run.open(tmp_path / "run", quiet=True) as run:
        run.record_prior(RAIL)
        run.record_prior(CLOSED)
        assert run.terms().commercial == "no"
        provenance = run.provenance()
    said = read_json(tmp_path / "run" / "provenance.json")["terms"]
    assert said.startswith("no commercial use. imagedream: OpenRAIL. Restrictions apply. stable-zero123: research")
    # And the file that people pass on says so itself.
    triangle = Mesh(np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]), np.array([[0, 1, 2]]))
    (glb,) = Asset(triangle, provenance=provenance).save(tmp_path / "asset.glb")
    assert said.encode() in glb.read_bytes()
