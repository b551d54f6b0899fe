"""The rehearsal of DreamBooth3D goes its whole way with a prior of a few thousand weights."""

from __future__ import annotations

import pytest

from benchmarks import rehearsal_subject as rehearsal
from maquette.run import Run
from tests.priors.tiny import tiny_stable_diffusion


@pytest.mark.parametrize("part", [rehearsal.low_rank, rehearsal.all_weights])
def test_every_kind_of_step_is_taken(part, tmp_path, capsys):
    with Run.open(tmp_path / "run", quiet=True, device="cpu") as run:
        part(tiny_stable_diffusion(), run)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == (5 if part is rehearsal.low_rank else 2) and all(line.count("|") == 6 for line in lines)
    assert (tmp_path / "run" / "stages" / "partial" / "result").is_dir()
