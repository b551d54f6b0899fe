"""The blinded comparison: what the page gives away (nothing), and what votes add up to."""

from __future__ import annotations

import json
import re

import pytest
import torch

from maquette.asset import Asset
from maquette.errors import UserError
from maquette.evaluation.compare import Comparison, build_comparison, describe, tally
from maquette.images import save_image
from tests.evaluation.conftest import OBJECTS

SMALL = Comparison(frames=3, size=24)


@pytest.fixture
def runs(tmp_path):
    """Two folders of runs, three cases in common."""
    for run, names in (
        ("ours-secret", ("tower", "plank", "drum")),
        ("theirs-secret", ("tower", "plank", "drum", "pebble")),
    ):
        for name in names:
            folder = tmp_path / run / name
            folder.mkdir(parents=True)
            Asset(OBJECTS[name if run == "ours-secret" else "pebble"]).save(folder / "asset.glb")
            save_image(folder / "prompt.png", torch.rand(4, 16, 16))
    return tmp_path / "ours-secret", tmp_path / "theirs-secret"


@pytest.fixture
def page(runs, tmp_path):
    key = build_comparison(*runs, tmp_path / "compare.html", SMALL)
    return tmp_path / "compare.html", key


def content(page):
    found = re.search(r"const content = (\{.*?\});\n", page.read_text(), re.DOTALL)
    return json.loads(found[1].replace("<\\/", "</"))


def test_the_page_is_self_contained_and_blind(page):
    html = page[0].read_text()
    for word in ("secret", "tower", "plank", "asset.glb", "http://", "https://", "first", "second"):
        assert word not in html.replace("application/json", ""), word
    cases = content(page[0])["cases"]
    assert len(cases) == 3
    for prompt, left, right in cases:
        assert prompt.startswith("data:image/png;base64,")
        assert left.startswith("data:image/webp;base64,") and right.startswith("data:image/webp;base64,")


def test_turntables_move_and_are_alike_in_size(page):
    import base64
    import io

    from PIL import Image

    for _, left, right in content(page[0])["cases"]:
        pictures = [Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))) for uri in (left, right)]
        assert {picture.size for picture in pictures} == {(24, 24)}
        assert {picture.n_frames for picture in pictures} == {3}


def test_sides_are_shuffled_by_the_seed_and_only_the_key_knows(runs, tmp_path):
    keys = []
    for seed in range(6):
        path = build_comparison(*runs, tmp_path / f"{seed}.html", Comparison(frames=1, size=16, seed=seed))
        keys.append(json.loads(path.read_text()))
    assert len({tuple(entry["left"] for entry in key["cases"]) for key in keys}) > 1
    assert len({tuple(entry["case"] for entry in key["cases"]) for key in keys}) > 1
    assert (keys[0]["first"], keys[0]["second"]) == ("ours-secret", "theirs-secret")
    again = build_comparison(*runs, tmp_path / "again.html", Comparison(frames=1, size=16, seed=3))
    assert json.loads(again.read_text()) == keys[3]


def vote(tmp_path, key, voter, choose):
    """A file of votes in which `choose(case, question)` names first, second or equal."""
    known = json.loads(key.read_text())
    votes = []
    for index, entry in enumerate(known["cases"]):
        for question in ("geometry", "likeness"):
            wanted = choose(entry["case"], question)
            if wanted is not None:
                choice = "equal" if wanted == "equal" else "left" if wanted == entry["left"] else "right"
                votes.append({"case": index, "question": question, "choice": choice})
    path = tmp_path / f"votes-{voter}.json"
    path.write_text(json.dumps({"page": known["page"], "voter": voter, "votes": votes}))
    return path


def test_votes_become_shares_with_intervals(page, tmp_path):
    files = [
        vote(tmp_path, page[1], "anna", lambda case, question: "first"),
        vote(tmp_path, page[1], "ben", lambda case, question: "second" if question == "geometry" else "equal"),
        vote(tmp_path, page[1], "cem", lambda case, question: "first" if case == "tower" else None),
    ]
    report = tally(page[1], files)
    assert report["voters"] == 3
    geometry, likeness = report["geometry"], report["likeness"]
    assert (geometry["first"], geometry["equal"], geometry["second"]) == (4, 0, 3)
    assert geometry["share"] == pytest.approx(4 / 7) and likeness["share"] == pytest.approx((4 + 1.5) / 7)
    low, high = geometry["interval"]
    assert 0 < low < 4 / 7 < high < 1
    assert geometry["by_case"] == {"tower": "first", "plank": "equal", "drum": "equal"}
    lines = describe(report)
    assert lines[1].startswith("geometry: 57 % prefer the first (95 % interval ") and "7 votes" in lines[1]
    empty = describe(tally(page[1], []))
    assert empty[1:] == ["geometry: no votes", "likeness: no votes"]


def test_foreign_and_doubled_votes_are_refused(page, tmp_path):
    good = vote(tmp_path, page[1], "anna", lambda case, question: "first")
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**json.loads(good.read_text()), "page": "another"}))
    with pytest.raises(UserError, match="another page"):
        tally(page[1], [other])
    twin = tmp_path / "twin.json"
    twin.write_text(good.read_text())
    with pytest.raises(UserError, match="both of the voter 'anna'"):
        tally(page[1], [good, twin])
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    with pytest.raises(UserError, match="JSON"):
        tally(page[1], [broken])
    values = json.loads(good.read_text())
    values["votes"][0]["case"] = 99
    twin.write_text(json.dumps(values))
    with pytest.raises(UserError, match="cannot give"):
        tally(page[1], [twin])


def test_single_runs_are_one_case(runs, tmp_path):
    key = build_comparison(runs[0] / "tower", runs[1] / "tower", tmp_path / "one.html", SMALL)
    assert [entry["case"] for entry in json.loads(key.read_text())["cases"]] == ["asset"]


def test_nothing_to_compare_is_said(runs, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"3 in .* and 0 in"):
        build_comparison(runs[0], tmp_path / "empty", tmp_path / "c.html", SMALL)
    with pytest.raises(UserError, match="not a folder"):
        build_comparison(runs[0], tmp_path / "absent", tmp_path / "c.html", SMALL)
    for run in runs:
        (run / "tower" / "prompt.png").unlink()
    with pytest.raises(UserError, match=r"no prompt\.png|has a prompt"):
        build_comparison(runs[0] / "tower", runs[1] / "tower", tmp_path / "c.html", SMALL)
