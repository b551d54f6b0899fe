"""The workbench's promises: stages are remembered, randomness does not shift, folders are not mixed up."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from maquette.errors import RunFailed, UserError
from maquette.run import Run, derive_seed, read_log, resolve_device

CALLS: list[str] = []


@dataclass(frozen=True)
class Fit:
    steps: int = 5
    learning_rate: float = 0.1


@dataclass(frozen=True)
class Config:
    fit: Fit = field(default_factory=Fit)
    name: str = "plain"


@dataclass
class Cloud:
    """A result that saves itself in eight bits, so what is loaded differs from what was made."""

    points: torch.Tensor

    def save(self, folder: Path) -> None:
        (folder / "points.json").write_text(json.dumps((self.points * 255).round().int().tolist()))

    @classmethod
    def load(cls, folder: Path) -> Cloud:
        return cls(torch.tensor(json.loads((folder / "points.json").read_text())) / 255)


def scatter(count, run):
    CALLS.append("scatter")
    return Cloud(torch.rand(count, 3, generator=run.generator(purpose="points")))


def walk(cloud, steps, run):
    CALLS.append("walk")
    start, points = run.load_checkpoint() or (0, cloud.points)
    for step in run.progress(steps, start=start):
        points = points + torch.randn(points.shape, generator=run.generator(step))
        run.log(step, mean=points.mean())
        run.checkpoint(step + 1, lambda: points, every=0)
    return points


def broken_off(cloud, run):
    run.save_checkpoint(1, cloud.points)
    raise KeyboardInterrupt


def open_run(folder, **changes):
    return Run.open(folder, **{"config": Config(), "device": "cpu", "method": "walk", "quiet": True, **changes})


@pytest.fixture(autouse=True)
def no_calls():
    CALLS.clear()


def story(run, steps=4):
    cloud = run.stage("cloud", scatter, 7)
    return run.stage("walk", walk, cloud, steps)


def test_a_finished_stage_is_loaded_not_run(tmp_path):
    with open_run(tmp_path / "a") as run:
        first = story(run)
        assert [(t.name, t.reused) for t in run.times] == [("cloud", False), ("walk", False)]
    with open_run(tmp_path / "a") as run:
        second = story(run)
        assert [(t.name, t.reused) for t in run.times] == [("cloud", True), ("walk", True)]
    assert CALLS == ["scatter", "walk"]
    assert torch.equal(first, second)


def test_a_changed_input_runs_that_stage_and_shifts_no_randomness(tmp_path):
    with open_run(tmp_path / "a") as run:
        story(run, steps=4)
        longer = story(run, steps=5)
    with open_run(tmp_path / "b") as run:
        straight = story(run, steps=5)
    assert CALLS == ["scatter", "walk", "walk", "scatter", "walk"]
    assert torch.equal(longer, straight)


def test_what_is_handed_on_is_what_was_saved(tmp_path):
    with open_run(tmp_path / "a") as run:
        cloud = run.stage("cloud", scatter, 7)
    assert torch.equal(cloud.points, (cloud.points * 255).round() / 255)


def test_an_interrupted_stage_resumes_and_ends_alike(tmp_path):
    with open_run(tmp_path / "whole") as run:
        whole = story(run, 9)

    class Stop(Exception):
        pass

    def stop_after_three(stage, step, what):
        raise Stop

    with pytest.raises(Stop), open_run(tmp_path / "broken") as run:
        original = run.log

        def log(**entries):
            original(**entries)
            if entries.get("event") == "checkpoint" and entries["step"] == 3:
                raise Stop

        run.log = log
        story(run, 9)
    with open_run(tmp_path / "broken") as run:
        resumed = story(run, 9)
    assert torch.equal(whole, resumed)
    steps = [line["step"] for line in read_log(tmp_path / "broken") if "mean" in line]
    assert steps == list(range(9))  # each once, although steps 3 and on were logged by two attempts
    assert not (tmp_path / "broken" / "stages" / "walk" / "checkpoint.safetensors").exists()


def test_a_checkpoint_of_other_inputs_is_not_used(tmp_path):
    with open_run(tmp_path / "a") as run:
        stage_folder = tmp_path / "a" / "stages" / "walk"
        story(run, 3)
        (stage_folder / "stage.json").unlink()
        from maquette.run.state import write_state

        write_state(
            stage_folder / "checkpoint.safetensors",
            {"fingerprint": "another", "step": 2, "seconds": 0.0, "state": torch.zeros(7, 3)},
        )
        again = story(run, 3)
    with open_run(tmp_path / "b") as run:
        assert torch.equal(again, story(run, 3))


def test_generators_depend_on_seed_stage_step_and_purpose_alone():
    seeds = {derive_seed(s, n, k, p) for s in (0, 1) for n in ("a", "b") for k in (0, 1) for p in ("", "light")}
    assert len(seeds) == 16
    assert all(0 <= seed < 2**63 for seed in seeds)
    # Recorded once: changing the derivation would silently change every published result.
    assert derive_seed(0, "radiance_field", 7, "cameras") == 3853815659582334093


def draw_from_global_generators(run):
    import numpy

    return [float(torch.rand(())), float(numpy.random.rand())]


def test_global_generators_are_fixed_inside_a_stage_and_untouched_outside(tmp_path):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    with open_run(tmp_path / "a") as run:
        first = run.stage("draw", draw_from_global_generators)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    with open_run(tmp_path / "b") as run:
        assert run.stage("draw", draw_from_global_generators) == first


def test_a_folder_with_other_settings_is_refused_naming_the_first(tmp_path):
    with open_run(tmp_path / "a") as run:
        story(run)
    with pytest.raises(UserError, match=r"fit\.learning_rate = 0\.1, and this one has 0\.2; .*--overwrite"):
        open_run(tmp_path / "a", config=Config(fit=Fit(learning_rate=0.2)))
    with pytest.raises(UserError, match=r"seed = 0, and this one has 3 \(and 1 more settings differ\)"):
        open_run(tmp_path / "a", seed=3, config=Config(name="other"))
    with pytest.raises(UserError, match="inputs.image"):
        open_run(tmp_path / "a", inputs={"image": "cat.png"})
    with open_run(tmp_path / "a") as run:  # the refusals left it usable
        story(run)
    assert CALLS == ["scatter", "walk"]


@pytest.mark.parametrize("seed", [-1, 1 << 63])
def test_seeds_that_a_generator_does_not_take_are_refused(tmp_path, seed):
    with pytest.raises(UserError, match="a seed is a whole number"):
        open_run(tmp_path / "a", seed=seed)
    assert not (tmp_path / "a").exists()


def test_a_run_that_made_nothing_is_in_nobodys_way(tmp_path):
    """One that failed at the door, of a misspelt option, must not block the command as it was meant."""
    with pytest.raises(UserError, match="no such prior"), open_run(tmp_path / "a", seed=3):
        raise UserError("no such prior")
    with open_run(tmp_path / "a") as run:
        story(run)
    with pytest.raises(UserError, match="--overwrite"):
        open_run(tmp_path / "a", seed=3)


def test_a_checkpoint_is_worth_keeping(tmp_path):
    with pytest.raises(KeyboardInterrupt), open_run(tmp_path / "a") as run:
        run.stage("walk", broken_off, Cloud(torch.zeros(2, 3)))
    with pytest.raises(UserError, match="seed = 0, and this one has 3"):
        open_run(tmp_path / "a", seed=3)


def test_overwrite_replaces_a_run_and_only_what_a_run_makes(tmp_path):
    folder = tmp_path / "a"
    with open_run(folder) as run:
        story(run)
    (folder / "my notes.txt").write_text("keep")
    with open_run(folder, seed=3, overwrite=True) as run:
        story(run)
    assert CALLS == ["scatter", "walk"] * 2
    assert (folder / "my notes.txt").read_text() == "keep"
    assert json.loads((folder / "config.json").read_text())["seed"] == 3


@pytest.mark.parametrize("content", ["notes.txt", "config.json"])
def test_a_folder_of_other_things_is_refused_even_with_overwrite(tmp_path, content):
    (tmp_path / content).write_text("{}")
    with pytest.raises(UserError, match="choose another"):
        open_run(tmp_path, overwrite=True)
    assert (tmp_path / content).read_text() == "{}"


def test_one_run_per_folder_at_a_time(tmp_path):
    with open_run(tmp_path / "a"):
        with pytest.raises(UserError, match="Another run"):
            open_run(tmp_path / "a")
    with open_run(tmp_path / "a"):
        pass


def test_the_folder_holds_what_it_should(tmp_path):
    with open_run(tmp_path / "a", inputs={"image": "cat.png"}) as run:
        run.record_prior({"name": "nano", "sha256": "0" * 64, "licence": "Apache-2.0"})
        run.cite("ImageDream, arXiv:2312.02201", "ImageDream, arXiv:2312.02201")
        story(run)
        provenance = run.provenance()
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["config"] == {"fit": {"steps": 5, "learning_rate": 0.1}, "name": "plain"}
    assert config["inputs"] == {"image": "cat.png"}
    written = json.loads((tmp_path / "a" / "provenance.json").read_text())
    assert {**written, **provenance} == written
    assert written["citations"] == ["ImageDream, arXiv:2312.02201"]
    assert [prior["name"] for prior in written["priors"]] == ["nano"]
    assert set(written["stages"]) == {"cloud", "walk"}
    assert str(tmp_path) not in json.dumps(provenance) and "seconds" not in json.dumps(provenance)
    for line in (tmp_path / "a" / "log.jsonl").read_text().splitlines():
        assert {"stage", "step"} <= set(json.loads(line))


def test_log_writes_tensors_and_nan_as_valid_json(tmp_path):
    with open_run(tmp_path / "a") as run:
        run.log(stage="x", step=1, loss=torch.tensor(float("nan")), rates=torch.tensor([1.0, 2.0]), none=None)
    line = read_log(tmp_path / "a")[1]
    assert (line["loss"], line["rates"]) == ("nan", [1.0, 2.0])
    assert "none" not in line
    with pytest.raises(ValueError, match="closed"):
        run.log(event="late")


def test_half_a_line_at_the_end_of_the_log_is_survived(tmp_path):
    with open_run(tmp_path / "a") as run:
        run.log(stage="x", step=1)
    with open(tmp_path / "a" / "log.jsonl", "a") as file:
        file.write('{"stage": "x", "st')
    with open_run(tmp_path / "a") as run:
        run.log(stage="x", step=2)
    assert [line["step"] for line in read_log(tmp_path / "a") if line["stage"] == "x"] == [1, 2]


def boom(run):
    raise MemoryError("could not allocate")


def torch_boom(run):
    torch.empty(1 << 62, dtype=torch.uint8)


@pytest.mark.parametrize("function", [boom, torch_boom])
def test_running_out_of_memory_is_one_sentence_with_the_need(tmp_path, function):
    with pytest.raises(RunFailed, match=r"Stage 'big' ran out of memory.*0\.5 GiB are needed"):
        with open_run(tmp_path / "a") as run:
            run.require_memory(1 << 29)
            run.stage("big", function)


def test_needing_more_memory_than_there_is_says_how_much(tmp_path):
    with pytest.raises(RunFailed, match=r"needs about 1048576\.0 GiB"), open_run(tmp_path / "a") as run:
        run.require_memory(1 << 50)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only the GNU C library is asked; run it on Linux")
def test_freed_memory_is_used_again(tmp_path):
    """Blocks that come and go cost new pages of the system each time, and none once freed memory is kept."""
    script = tmp_path / "blocks.py"
    script.write_text(
        "import resource, sys\n"
        "from maquette.run.memory import keep_freed_memory\n"
        "assert keep_freed_memory() if sys.argv[1] == 'keep' else True\n"
        "block = b'x' * (48 << 20)\n"
        "del block\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(4):\n"
        "    block = b'x' * (48 << 20)\n"
        "    del block\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}

    def faults(how):
        words = [sys.executable, str(script), how]
        return int(subprocess.run(words, env=environment, capture_output=True, check=True, text=True).stdout)

    pages = 4 * (48 << 20) // os.sysconf("SC_PAGE_SIZE")
    assert faults("keep") < pages / 20
    assert faults("as ever") > faults("keep")


def test_previews_reach_a_watcher_and_are_not_made_for_nobody(tmp_path):
    with open_run(tmp_path / "a") as run:
        run.stage("quiet", offer_preview)
        assert CALLS == []
        seen = []
        run.watch(lambda *what: seen.append(what))
        run.stage("watched", offer_preview)
    assert seen == [("watched", 3, "picture"), ("watched", None, "result")]  # the second preview came too soon


def offer_preview(run):
    run.preview(3, lambda: CALLS.append("made") or "picture")
    run.preview(4, lambda: "picture")
    return "result"


def test_devices(tmp_path):
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device("auto").type in ("cpu", "cuda")
    with pytest.raises(UserError, match="auto, cpu or cuda"):
        resolve_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no GPU"):
            resolve_device("cuda")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a user that permissions apply to, not root")
def test_an_unwritable_folder_is_refused_in_one_sentence(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="Cannot write"):
        open_run(tmp_path / "a")


def test_a_file_in_the_place_of_the_folder_is_refused_in_one_sentence(tmp_path):
    (tmp_path / "a").write_text("a file")
    with pytest.raises(UserError, match="Cannot write"):
        open_run(tmp_path / "a")
    with pytest.raises(UserError, match="Cannot write"):
        open_run(tmp_path / "a" / "b")


def add_up(run):
    table = torch.zeros(10, requires_grad=True)
    where = torch.randint(0, 10, (400_000,), generator=run.generator())
    weight = torch.rand(400_000, generator=run.generator(1)) * 100
    (table[where] * weight).sum().backward()
    return table.grad


def test_gradients_of_indexed_reads_do_not_depend_on_the_order_of_threads(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        sums = []
        for name in "abcde":
            with open_run(tmp_path / name) as run:
                sums.append(run.stage("add_up", add_up))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(sums[0], other) for other in sums)
    assert not torch.are_deterministic_algorithms_enabled()  # the caller's own setting is back


def test_a_damaged_result_is_named(tmp_path):
    with open_run(tmp_path / "a") as run:
        run.stage("cloud", scatter, 7)
        (tmp_path / "a" / "stages" / "cloud" / "result" / "points.json").write_text("[")
        with pytest.raises(UserError, match="stages/cloud/result is damaged"):
            run.stage("cloud", scatter, 7)


def lambda_result(run):
    return lambda: 0


def test_results_and_inputs_without_a_lasting_form_are_refused(tmp_path):
    with open_run(tmp_path / "a") as run:
        with pytest.raises(ValueError, match="cannot be saved"):
            run.stage("result", lambda_result)
        with pytest.raises(ValueError, match="no lasting name"):
            run.stage("function", lambda run: 0)
        with pytest.raises(ValueError, match="no fingerprint"):
            run.stage("input", scatter, object())


def test_a_result_names_no_foreign_class(tmp_path):
    with open_run(tmp_path / "a") as run:
        run.stage("cloud", scatter, 7)
        record = tmp_path / "a" / "stages" / "cloud" / "stage.json"
        content = json.loads(record.read_text())
        content["result"]["class"] = "subprocess:Popen"
        record.write_text(json.dumps(content))
        with pytest.raises(UserError, match="subprocess:Popen"):
            run.stage("cloud", scatter, 7)
