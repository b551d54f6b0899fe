"""`--estimate`: measured steps times their number, and "not measured" wherever a row is missing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from maquette import cli
from maquette.commands.cost import Need, Row, describe_cost, device_name, measured_rows, needs_of
from maquette.methods import imagedream

CPU = torch.device("cpu")


def rows(*stages):
    """Rows for the paper's preset on this machine, a second for each step."""
    here = device_name(CPU)
    listed = {
        "load": (0, 0), "views": (4, 0), "64": (8, 64), "192": (4, 192), "256": (4, 256),
    }  # fmt: skip
    return [
        Row("distillation" if name.isdigit() else name, here, "imagedream", "float32", *listed[name], 1.0,
            (index + 1) << 30, "a test")
        for index, name in enumerate(stages)
    ]  # fmt: skip


def test_the_paper_s_run_is_counted():
    assert needs_of(imagedream.paper()) == [
        Need("load", 0, 0, 1), Need("views", 4, 0, 50), Need("distillation", 8, 64, 5000),
        Need("distillation", 4, 192, 5000), Need("distillation", 4, 256, 2500),
    ]  # fmt: skip


def test_time_adds_up_and_memory_is_the_largest():
    text = describe_cost(imagedream.paper(), CPU, rows("load", "views", "64", "192", "256"))
    assert "time: 3 h 29 min" in text  # 1 + 50 + 12500 seconds
    assert text.splitlines()[-1] == "memory: 5.0 GiB"


@pytest.mark.parametrize("lacking", ["load", "views", "64", "256"])
def test_one_missing_row_is_enough_for_not_measured(lacking):
    names = [name for name in ("load", "views", "64", "192", "256") if name != lacking]
    text = describe_cost(imagedream.paper(), CPU, rows(*names))
    assert "time: not measured" in text and "memory: not measured" in text
    assert sum("not measured" in line for line in text.splitlines()) == 3
    assert "measured elsewhere" in text


def test_rows_of_other_priors_and_devices_do_not_count():
    all_rows = rows("load", "views", "64", "192", "256")
    for change in ({"prior": "imagedream-local"}, {"device": "another GPU"}, {"precision": "bfloat16"}):
        text = describe_cost(imagedream.paper(), CPU, [replace(row, **change) for row in all_rows])
        assert "time: not measured" in text


def test_the_committed_table_can_be_read():
    for row in measured_rows():
        assert row.seconds > 0 and row.bytes > 0 and "benchmarks/" in row.by


def test_the_command_loads_and_writes_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MAQUETTE_WEIGHTS", str(tmp_path / "none"))
    assert cli.main(["imagedream", "--preset", "paper", "--estimate", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "prior imagedream in float32" in out and "distillation (4 views, 256 px)" in out and "2500 x" in out
    assert cli.main(["imagedream", "picture.png", "--estimate", "--device", "cpu"]) == 0
    assert "time: about " in capsys.readouterr().out
    assert cli.main(["views", "--preset", "paper", "--estimate", "--sampling.steps", "7", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    needed = out.partition("measured elsewhere")[0]
    assert "7 x" in needed and "distillation" not in needed
    assert list(tmp_path.iterdir()) == []
    assert cli.main(["imagedream", "a.png", "--estimate", "--stepps", "3"]) == 2
    assert "--stepps" in capsys.readouterr().err
