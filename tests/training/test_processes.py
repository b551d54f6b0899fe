"""Several processes train one prior, as a launcher starts them."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from maquette.errors import UserError
from maquette.training.processes import find_accelerator
from tests.support.packed_bars import pack_bars

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = (
    "--device cpu --encoders.steps 2 --encoders.batch 6 --encoders.warmup 1 --prior.steps 3 --prior.batch 2 "
    "--prior.warmup 1 --prior.unet.channels 32 --prior.unet.head-width 32 --prior.probability-2d 0.5"
).split()


def train(packed, out, *words, processes=1):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
    environment |= {"OMP_NUM_THREADS": "1"}
    launcher = (
        [] if processes == 1 else ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    )
    command = [sys.executable, "-m", *launcher, "maquette", "train", "nano", "--packed", str(packed), "--out", str(out)]
    return subprocess.run([*command, *SMALL, *words], env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="needs accelerate (the extra `train`)")
def test_two_processes_share_the_steps_and_one_of_them_writes(tmp_path):
    (tmp_path / "packed").mkdir()
    packed = pack_bars(tmp_path / "packed")
    both, alone = tmp_path / "both", tmp_path / "alone"
    for out, processes in ((both, 2), (alone, 1)):
        done = train(packed, out, processes=processes)
        assert done.returncode == 0, done.stderr
    cards = [json.loads((out / "package" / "card.json").read_text())["training"] for out in (both, alone)]
    assert [card["scenes"] for card in cards] == [12, 6] and cards[0]["chunks"][0]["processes"] == 2
    shared, own = (load_file(out / "average.safetensors") for out in (both, alone))
    assert shared.keys() == own.keys() and any(not shared[name].equal(own[name]) for name in own)
    lines = [json.loads(line) for line in (both / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["stage"] == "prior"] == [3], "one of them logs"
    again = train(packed, both, processes=2)
    assert again.returncode == 0, again.stderr
    assert all(shared[name].equal(value) for name, value in load_file(both / "average.safetensors").items())
    timed = train(packed, both, "--seconds", "5", processes=2)
    assert timed.returncode != 0 and "--seconds would stop each process by its own clock" in timed.stderr


def test_one_process_needs_no_launcher(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert find_accelerator("cpu") is None
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(UserError, match="pip install 'maquette\\[train\\]'"):
        find_accelerator("cpu")
