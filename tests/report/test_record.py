"""What a run folder tells: stages of the last opening, finite figures, the newest line of a kind."""

from __future__ import annotations

import json

import pytest

from maquette.errors import UserError
from maquette.report.record import RunRecord
from maquette.run import Run


def test_a_finished_run(reported):
    run = RunRecord.read(reported)
    assert [stage.name for stage in run.stages] == [
        "views", "views_1", "warm_start", "locate", "radiance_field", "mesh",
    ]  # fmt: skip
    assert all(stage.done and stage.seconds is not None for stage in run.stages)
    assert run.seconds == pytest.approx(sum(stage.seconds for stage in run.stages))
    fitted = run.stages[4]
    assert fitted.steps == 60 and [step for step, _ in fitted.figures["views.psnr"]] == list(range(60))
    assert "seconds" not in fitted.figures and run.stages[0].figures == {}
    assert run.method == "imagedream" and run.setting("fit.steps") == 60 and run.setting("fit.no.such") is None
    assert run.results("maquette.images:Views")[1] == ("views_1", reported / "stages" / "views_1" / "result")
    assert run.last("azimuth", "reliable")["azimuth"] == 38.0 and run.last("nothing") is None
    assert run.last_event("cutout")["method"] == "plain" and run.last_event("nothing") is None
    assert len(run.views()) == 4 and run.peak_memory > 1e6


def test_a_working_run_has_an_unfinished_stage_and_only_its_own(tmp_path):
    with Run.open(tmp_path, method="sketch", quiet=True) as run:
        run.stage("first", count)
    with Run.open(tmp_path, method="sketch", quiet=True) as run:
        run.log(stage="second", event="started")
        run.log(stage="second", step=0, loss=1.0, note="text", flag=True)
        run.log(stage="second", step=1, loss=float("nan"))
        run.log(stage="second", step=1, event="checkpoint")
        record = RunRecord.read(tmp_path)
    (stage,) = record.stages  # of the last opening; `first` was not asked for this time
    assert (stage.name, stage.done, stage.seconds, stage.steps) == ("second", False, None, 2)
    assert stage.figures == {"loss": [(0, 1.0)]}
    assert record.seconds == 0 and record.views() is None and record.provenance["method"] == "sketch"


def count(run):
    return 1


@pytest.mark.parametrize("missing", ["config.json", "log.jsonl"])
def test_other_folders_are_no_runs(run_folder, missing):
    (run_folder / missing).unlink()
    with pytest.raises(UserError, match=f"{run_folder} is not a run folder"):
        RunRecord.read(run_folder)


def test_half_a_line_of_a_killed_run_is_left_out(run_folder):
    with open(run_folder / "log.jsonl", "a") as log:
        log.write(json.dumps({"seconds": 1, "stage": "mesh", "step": None})[:-5])
    assert len(RunRecord.read(run_folder).stages) == 6
