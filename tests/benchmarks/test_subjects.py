"""The comparison of variants of DreamBooth3D: commands are understood, cases exist, tables mean what they say."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from maquette.asset import Asset
from maquette.commands.dreambooth3d import read_options
from maquette.evaluation.baselines import read_index
from maquette.priors.nano.vocabulary import unknown_words
from maquette.wording import require_subject, without_subject
from tests.support.finished_run import pawn

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "subjects.py"
spec = importlib.util.spec_from_file_location("subjects_benchmark", FILE)
subjects = importlib.util.module_from_spec(spec)
sys.modules["subjects_benchmark"] = subjects  # its dataclasses look their module up
spec.loader.exec_module(subjects)


@pytest.mark.parametrize("name", subjects.VARIANTS)
def test_every_variant_is_a_setting_of_the_command(name):
    words = ["photos", "--subject", "kite", "--caption", "a [v] kite", *subjects.VARIANTS[name].split()]
    _, config = read_options(words)
    _, plain = read_options(words[:5])
    assert (config == plain) == (name == "full")


def test_cases_are_objects_of_the_pack_in_words_that_nano_knows(objects_val):
    known = {row["id"] for row in read_index(objects_val)}
    for case in subjects.SUBJECTS:
        assert case.id in known and subjects.PLAIN.fullmatch(case.prompts[0]) and len(case.prompts) == 2
        assert not subjects.PLAIN.fullmatch(case.prompts[1])
        for prompt in case.prompts:
            require_subject(prompt)
            assert unknown_words(without_subject(prompt)) == []


def test_a_broken_off_comparison_goes_on_and_learns_a_subject_once(tmp_path, monkeypatch):
    Asset(pawn()).save(tmp_path / "pawn.glb")
    (tmp_path / "index.jsonl").write_text(json.dumps({"id": "pawn", "file": "pawn.glb", "caption": "a pawn"}) + "\n")
    case = subjects.Case("pawn", "pawn", "white pawn", ("a [v] pawn", "a red [v] pawn"))
    monkeypatch.setattr(subjects, "SUBJECTS", (case,))
    calls = []

    def fake(*words):
        calls.append(words)
        out = Path(words[words.index("--out") + 1])
        if words[0] == "evaluate":
            out.write_text(json.dumps({"runs": [{"figures": {"janus": 1.0, "saturation": 0.25}}]}))
            if len(calls) == 2:
                raise KeyboardInterrupt
            return
        out.mkdir(parents=True)
        (out / "asset.glb").write_bytes(b"")
        (out / "provenance.json").write_text(json.dumps({"stages": {"a": {"seconds": 1.5}, "b": {"seconds": 2.0}}}))

    monkeypatch.setattr(subjects, "maquette", fake)
    words = [str(tmp_path), "--out", str(tmp_path / "out"), "--variants", "full", "one-stage", "--", "--steps", "3"]
    with pytest.raises(KeyboardInterrupt):
        subjects.main(words)
    subjects.main(words)
    made = [call for call in calls if call[0] == "dreambooth3d"]
    assert len(made) == 4 and all(call[-2:] == ("--steps", "3") for call in made)
    assert "--subject" in made[0] and all("--subject-from" in call for call in made[1:])
    # The true object is compared only where the caption leaves its looks alone.
    assert ["--photos" in call for call in calls if call[0] == "evaluate"] == [True, True, False, False]
    rows = json.loads((tmp_path / "out" / "subjects.json").read_text())
    assert [(row["variant"], row["seconds"]) for row in rows] == [("full", 3.5), ("one-stage", 3.5)] * 2
    text = (tmp_path / "out" / "subjects.md").read_text()
    assert "| full | 1 (1 to 1) | 0.25 (0.25 to 0.25) | 3.5 (3.5 to 3.5) |" in text
    before = len(calls)
    subjects.main(words)
    assert len(calls) == before


def test_a_cell_is_a_mean_with_its_interval():
    assert subjects.cell([], False) == "–" and subjects.cell([2.0], False) == "2"
    assert subjects.cell([1.0, 3.0], True) == "2" and subjects.cell([1.0, 3.0], False) == "2 (1 to 3)"
