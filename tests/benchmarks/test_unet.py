"""The U-Net's benchmark: a row for each contender, and one sentence where there is no GPU."""

from __future__ import annotations

import sys

import pytest
import torch

from benchmarks import unet


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["unet.py", *words])
    unet.main()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_one_sentence(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "--device", "cuda")
    assert stop.value.code == 2 and "this PyTorch finds no GPU" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_every_contender_has_a_row(monkeypatch, capsys):
    pytest.importorskip("diffusers", reason="needs diffusers: pip install 'maquette[published]'")
    threads = torch.get_num_threads()
    try:
        run(monkeypatch, "--device", "cpu", "--widths", "64", "--depth", "2", "--side", "4", "--rounds", "1")
    finally:
        torch.set_num_threads(threads)
    out = capsys.readouterr().out
    rows = [line for line in out.splitlines() if line.startswith("| 64 |")]
    assert len(rows) == 5 and all(row.count("|") == 10 and row.endswith("| - |") for row in rows)
    assert float(out.rsplit("at most ", 1)[1].split()[0]) < 1e-4, "plain networks agree"
