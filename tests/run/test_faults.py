"""What can go wrong around a run, done to a real process: the right exit code, one sentence, state kept."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PIPELINE = [sys.executable, str(Path(__file__).with_name("pipeline.py"))]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals and limits")


def start(folder, *options, limit=None):
    def apply():
        if limit is not None:
            resource.setrlimit(*limit)

    return subprocess.Popen(
        [*PIPELINE, str(folder), *options], env=ENVIRONMENT, preexec_fn=apply if limit else None, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process, timeout=300):
    """Exit code and standard error; every checkpoint is flushed to the disk, which a busy machine makes slow."""
    try:
        _, error = process.communicate(timeout=timeout)
    finally:
        process.kill()
        process.wait()
    return process.returncode, error


def run(folder, *options, limit=None):
    return finish(start(folder, *options, limit=limit))


def message(error):
    """The one sentence; everything else on standard error is progress."""
    lines = [line for line in error.splitlines() if line.startswith("maquette:")]
    assert len(lines) == 1 and "Traceback" not in error, error
    return lines[0]


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the run did not get there"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes that an undisturbed run ends with."""
    folder = tmp_path_factory.mktemp("whole")
    code, error = run(folder / "run")
    assert code == 0, error
    return (folder / "run" / "asset.glb").read_bytes()


@pytest.mark.parametrize("seed", range(2))
def test_kill_9_at_random_moments_then_resume_gives_the_same_bytes(tmp_path, whole, seed):
    dice = random.Random(seed)
    folder = tmp_path / "run"
    kills = 0
    for _ in range(3):
        process = start(folder)
        assert process.stdout.readline() == "open\n"
        time.sleep(dice.uniform(0.0, 0.7))
        process.kill()
        code, _ = finish(process)
        kills += code == -signal.SIGKILL
    assert kills >= 2  # or nothing was tested
    code, error = run(folder)
    assert code == 0, error
    assert (folder / "asset.glb").read_bytes() == whole
    leftovers = [p for p in folder.rglob(".*") if p.name != ".lock"]
    assert leftovers == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_saves_says_so_and_resumes(tmp_path, whole, number):
    folder = tmp_path / "run"
    process = start(folder)
    wait_for(lambda: (folder / "stages" / "anneal" / "checkpoint.safetensors").exists())
    process.send_signal(number)
    code, error = finish(process)
    assert code == 130
    assert message(error) == "maquette: interrupted; the same command goes on from here."
    last = (folder / "log.jsonl").read_text().splitlines()[-2:]
    assert '"event": "checkpoint"' in last[0] and '"event": "interrupted"' in last[1]
    assert run(folder)[0] == 0
    assert (folder / "asset.glb").read_bytes() == whole


def test_an_interrupt_stops_at_once_where_no_loop_listens(tmp_path):
    process = start(tmp_path / "run", "--pause", "90", "--deaf")
    wait_for(lambda: (tmp_path / "run" / "stages" / "anneal" / "checkpoint.safetensors").exists())
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 130
    assert time.monotonic() - began < 60


def test_two_runs_on_one_folder_at_once(tmp_path):
    first = start(tmp_path / "run", "--pause", "5")
    assert first.stdout.readline() == "open\n"
    try:
        code, error = run(tmp_path / "run")
        assert first.poll() is None
    finally:
        first.kill()
        finish(first)
    assert code == 2
    assert f"process {first.pid}" in message(error)


def test_the_lock_dies_with_its_owner(tmp_path, whole):
    process = start(tmp_path / "run")
    assert process.stdout.readline() == "open\n"
    process.kill()
    finish(process)
    assert (tmp_path / "run" / ".lock").exists()
    assert run(tmp_path / "run")[0] == 0
    assert (tmp_path / "run" / "asset.glb").read_bytes() == whole


def test_nan_stops_with_the_step_and_the_last_good_checkpoint(tmp_path):
    code, error = run(tmp_path / "run", "--nan", "30")
    assert code == 1
    assert "NaN at step 30" in message(error)
    from maquette.run.state import read_state

    kept = read_state(tmp_path / "run" / "stages" / "anneal" / "checkpoint.safetensors")
    assert 0 < kept["step"] <= 30 and bool(kept["state"]["x"].isfinite().all())


def test_a_full_disk_ends_in_one_sentence_and_resumes_when_there_is_room(tmp_path, whole):
    """A limit on the size of a file stands in for a full disk: the system refuses in the same call."""
    code, error = run(tmp_path / "run", limit=(resource.RLIMIT_FSIZE, (6000, 6000)))
    assert code == 1
    assert "disk is full or a size limit was reached while writing" in message(error)
    assert not (tmp_path / "run" / "asset.glb").exists()
    assert run(tmp_path / "run")[0] == 0
    assert (tmp_path / "run" / "asset.glb").read_bytes() == whole


def mounted(folder, size):
    """Whether a small file system could be mounted at `folder` (needs privileges)."""
    folder.mkdir()
    mount = shutil.which("mount")
    command = [mount or "", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    return mount is not None and subprocess.run(command, capture_output=True).returncode == 0


def test_a_full_file_system_ends_in_one_sentence_and_resumes_when_there_is_room(tmp_path, whole):
    small = tmp_path / "small"
    if not mounted(small, "64k"):
        pytest.skip("needs the right to mount a small file system; run it as root")
    try:
        filler = small / "filler"
        filler.write_bytes(b"\0" * 44_000)
        code, error = run(small / "run")
        assert code == 1
        assert "disk is full" in message(error)
        filler.unlink()
        assert run(small / "run")[0] == 0
        assert (small / "run" / "asset.glb").read_bytes() == whole
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_an_unwritable_place_is_a_wrong_option(tmp_path):
    (tmp_path / "file").write_text("in the way")
    code, error = run(tmp_path / "file" / "run")
    assert code == 2
    assert "Cannot write to" in message(error) and "--out" in message(error)


def test_too_little_memory_says_how_much_was_asked_for(tmp_path):
    code, error = run(tmp_path / "run", "--fat")
    assert code == 1
    assert "Stage 'overeat' ran out of memory when it asked for another 1024.0 GiB" in message(error)
    assert (tmp_path / "run" / "stages" / "start" / "stage.json").exists()


def test_other_settings_are_refused_by_name(tmp_path):
    assert run(tmp_path / "run", "--steps", "3")[0] == 0
    code, error = run(tmp_path / "run", "--steps", "4")
    assert code == 2
    assert "steps = 3, and this one has 4" in message(error)


def test_progress_off_a_terminal_is_plain_lines(tmp_path):
    _, error = run(tmp_path / "run", "--steps", "3", "--pause", "0")
    assert error.splitlines() == ["anneal: 3 steps", "anneal: done in 0 s"]
