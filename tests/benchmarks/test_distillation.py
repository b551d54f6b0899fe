"""The benchmark of a distillation step: every part is timed once, and rows are those that estimates look for."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace

import pytest
import torch

from benchmarks import distillation
from benchmarks.distillation import PARTS, Measured, Stopwatch, whole_run
from maquette.commands.cost import Row, describe_cost, needs_of
from maquette.fields import HashGridConfig, RadianceConfig
from maquette.methods import imagedream
from maquette.priors import published
from maquette.rendering import VolumeConfig
from maquette.schedules import Constant, Piecewise
from maquette.stages.objectives import ShadingConfig
from tests.priors.published_files import CONFIGS

CPU = torch.device("cpu")


def test_inner_parts_do_not_count_for_outer_ones(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(time, "process_time", lambda: next(clock))
    watch = Stopwatch(CPU)
    with watch.part("outer"):  # 0
        with watch.part("inner"):  # 1
            watch.timed("innermost", lambda: None)()  # 2, 3
        with watch.part("inner"):  # 4 ... 5, 6
            pass
    assert watch.seconds == {"outer": 3, "inner": 3, "innermost": 1}


@pytest.fixture
def small(monkeypatch):
    """The preset and the network in miniature, with the preset's three sizes of pictures."""
    monkeypatch.setitem(published.MODELS, "imagedream", lambda: CONFIGS["imagedream"])
    field = RadianceConfig(encoding=HashGridConfig(levels=2, table_size_log2=8), hidden=8)
    paper = imagedream.paper()
    config = replace(
        paper,
        scene=VolumeConfig(field=field, samples=Constant(16)),
        distillation=replace(
            paper.distillation, resolution=Piecewise((8, 12, 16), (0.4, 0.8)), shading=ShadingConfig(begin=1.0)
        ),
    )
    monkeypatch.setattr(imagedream, "paper", lambda: config)
    return config


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["distillation.py", "--device", "cpu", "--rounds", "1", *words])
    threads = torch.get_num_threads()
    try:
        distillation.main()
    finally:
        torch.set_num_threads(threads)


def test_its_rows_are_those_that_estimates_look_for(monkeypatch, capsys, small):
    run(monkeypatch, "--pixels", "8", "12", "16")
    out = capsys.readouterr().out
    table = [line for line in out.splitlines() if line.startswith("| ")]
    assert len(table) == 5 and all(line.count("|") == len(PARTS) + 5 for line in table)
    assert table[1].startswith("| sampling | 4 | - | ") and table[2].startswith("| 8 | 8 | ")
    rows = [Row(**json.loads(line)) for line in out.splitlines() if line.startswith("{")]
    assert [(row.stage, row.views, row.pixels) for row in rows] == [
        ("views", 4, 0), ("distillation", 8, 8), ("distillation", 4, 12), ("distillation", 4, 16),
    ]  # fmt: skip
    assert "whole run, without loading and meshing: " in out and "not measured" not in out
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # under which the rows were measured
    try:
        said = describe_cost(small, CPU, rows)
    finally:
        torch.set_num_threads(threads)
    assert [line.strip() for line in said.splitlines() if "not measured" in line and " x " in line] == [
        "load                                    1 x  not measured"
    ]


def test_other_settings_give_no_rows(monkeypatch, capsys, small):
    run(monkeypatch, "--pixels", "8", "--scenes", "1", "--low-memory")
    out = capsys.readouterr().out
    assert "{" not in out and "| 8 | 4 | " in out and "low_memory" in out.splitlines()[0]
    with pytest.raises(SystemExit, match="never renders 9 px"):
        run(monkeypatch, "--pixels", "9")


def test_the_whole_run_needs_every_kind_of_step():
    config = imagedream.paper()
    wanted = [need for need in needs_of(config) if need.stage != "load"]
    found = [Measured(need.pixels, need.views, {"U-Net": 0.1}, 0) for need in wanted]
    assert whole_run(config, found).endswith("20 min 55 s")  # 12 550 tenths of a second
    assert "not measured" in whole_run(config, found[1:])
