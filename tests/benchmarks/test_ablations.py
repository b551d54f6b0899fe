"""The table of ablations: its commands are understood, and its stars mean what they say."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path

import pytest

from maquette.commands.arguments import option_names
from maquette.commands.components import find_choices
from maquette.commands.evaluate import ObjectOptions, _read
from maquette.commands.views import configure_views
from maquette.methods import imagedream

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "ablations.py"
spec = importlib.util.spec_from_file_location("ablations", FILE)
ablations = importlib.util.module_from_spec(spec)
sys.modules["ablations"] = ablations  # its dataclasses look their module up
spec.loader.exec_module(ablations)


def options(**changes):
    values = {"objects": Path("val"), "quality": "draft", "seed": 0, "limit": 2, "more": []}
    return argparse.Namespace(**{**values, **changes})


def read(name, row, **changes):
    words = ablations.command(Path("out"), name, row, options(**changes))
    return _read(ObjectOptions, words[5:], "maquette evaluate objects")


@pytest.mark.parametrize("name", ablations.GROUPS)
def test_the_first_row_is_the_preset_and_the_last_another_setting(name):
    group = ablations.GROUPS[name]
    first, last = (read(name, row, more=["--judges.nano", "off"]) for row in (group.rows[0], group.rows[-1]))
    assert first[1].name == group.method and not first[0].baselines and first[0].limit == 2
    if ablations.PAPER not in group.rows[0].words:
        assert first[2] == first[1].config("nano", "draft")
    assert last[2] != first[2] and last[0].out != first[0].out


def test_every_row_says_something_else_and_names_options_that_there_are():
    for name, group in ablations.GROUPS.items():
        config = imagedream.nano("draft") if group.method == "imagedream" else configure_views("nano", "draft")
        known = {*option_names(type(config), config), *(choice.option for choice in find_choices(config))}
        assert len({row.words for row in group.rows}) == len(group.rows)
        assert len({ablations.file_of(Path(), name, row) for row in group.rows}) == len(group.rows)
        for row in group.rows:
            assert {word for word in row.words.split() if word.startswith("--")} <= known


def made(path, values, floaters=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    objects = [{"id": f"o{k}", "psnr": value, "seconds": 9.0} for k, value in enumerate(values)]
    path.write_text(json.dumps({"objects": objects}))
    for k, share in enumerate(floaters or ()):
        log = path.with_suffix("") / f"o{k}" / "run" / "log.jsonl"
        log.parent.mkdir(parents=True)
        stale = {"event": "mesh_quality", "floater_volume_share": 1.0}
        log.write_text("\n".join(map(json.dumps, (stale, {**stale, "floater_volume_share": share}))))


def test_stars_stand_where_the_difference_has_a_sign(tmp_path):
    rows = ablations.GROUPS["background"].rows
    for row, values in zip(rows, ([10.0, 20.0, 30.0], [11.0, 21.0, 31.0], [9.0, 22.0, 29.0]), strict=True):
        made(ablations.file_of(tmp_path, "background", row), values)
    text = ablations.write(tmp_path, ["background"])
    assert (tmp_path / "ablations.md").read_text() == text
    assert "| key | 20 | 9 |" in text and "| white | 21* | 9 |" in text and "| grey | 20 | 9 |" in text


def test_rows_are_compared_on_the_objects_that_all_of_them_have(tmp_path):
    rows = ablations.GROUPS["rings"].rows
    made(ablations.file_of(tmp_path, "rings", rows[0]), [10.0, 20.0, 60.0], [0.5, 0.25, 0.0])
    made(ablations.file_of(tmp_path, "rings", rows[1]), [10.0, 20.0], [0.0, 0.0])
    text = ablations.write(tmp_path, ["rings"])
    assert "2 objects" in text and "| PSNR | floaters removed | seconds |" in text
    assert f"| {rows[0].name} | 15 | 0.375 | 9 |" in text and f"| {rows[1].name} | 15 | 0 | 9 |" in text
    assert ablations.write(tmp_path, ["alignment"]) == ""
