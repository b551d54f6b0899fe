"""The parity runner on the metrics goldens: all pass; a changed number fails; a number it does not know is said."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from tests.parity.runner import main


@pytest.fixture
def folder(goldens, tmp_path):
    target = tmp_path / "metrics"
    target.mkdir()
    for path in (goldens / "metrics").iterdir():
        if path.name.startswith(("image_", "retrieval_", "sds_")):
            shutil.copyfile(path, target / path.name)
    return target


def rewrite(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_every_recorded_case_is_met(goldens, capsys):
    assert main([str(goldens / "metrics")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"{len(lines) - 1} cases: {len(lines) - 1} ok, 0 FAIL, 0 unknown"


def test_a_wrong_number_fails(folder, capsys):
    rewrite(folder / "image_metrics.json", lambda values: values["blur"].update(psnr_db=38.6161))
    assert main([str(folder)]) == 1
    assert "image_pairs" in next(line for line in capsys.readouterr().out.splitlines() if line.endswith("FAIL"))


def test_a_wrong_tensor_fails(folder, capsys):
    with np.load(folder / "sds_examples.npz") as file:
        arrays = dict(file)
    arrays["grad_ism"][0, 0, 0, 0] += 1e-3
    np.savez(folder / "sds_examples.npz", **arrays)
    assert main([str(folder)]) == 1
    assert any(
        line.startswith("sds_examples") and line.endswith("FAIL") for line in capsys.readouterr().out.splitlines()
    )


def test_a_number_that_nothing_is_compared_with_is_unknown(folder, capsys):
    rewrite(folder / "retrieval_inception.json", lambda values: values.update(another_score=1.0))
    assert main([str(folder)]) == 1
    captured = capsys.readouterr()
    assert any(line.startswith("retrieval") and line.endswith("unknown") for line in captured.out.splitlines())
    assert "another_score" in captured.err
