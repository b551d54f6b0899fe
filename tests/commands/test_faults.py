"""Faults done to the real command with a real, tiny prior: kills, an interrupt, too little memory, damaged weights."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maquette.priors.hub import save_prior
from tests.support.killing import kill_at, lines_of, wait_for_lines

REPOSITORY = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
SETTINGS = (
    "--quality draft --sampling.steps 2 --steps 4 --prompt-view none --mesh.resolution 16 --mesh.texture-size 64 "
    "--fit.checkpoint-seconds 0 --warm-start.fit.checkpoint-seconds 0"
).split()
OWN = (
    "--quality draft --sampling.draws 4 --warm-start.fit.steps 30 --steps 8 --mesh.resolution 32 "
    "--mesh.texture-size 64 --fit.checkpoint-seconds 0 --warm-start.fit.checkpoint-seconds 0"
).split()
"""nano's own settings, with little of everything; nothing is switched off."""

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals and limits")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a picture and the weights of a tiny prior."""
    from tests.priors.tiny import tiny_config, tiny_prior

    folder = tmp_path_factory.mktemp("place")
    save_prior(folder / "weights", tiny_prior(), tiny_config(), {"name": "nano", "licence": "Apache-2.0"})
    y, x = np.mgrid[:64, :64] - 31.5
    rgba = np.zeros((64, 64, 4), np.uint8)
    rgba[..., :3] = np.stack([200 + 0 * x, 100 + 2 * x, 100 + 2 * y], axis=-1)
    rgba[..., 3] = np.where(abs(x) + abs(y) < 28, 255, 0)
    Image.fromarray(rgba).save(folder / "kite.png")
    return folder


def start(place, out, *words, limit=None, threads=1):
    settings = [*SETTINGS, "--weights", str(place / "weights"), *words]
    return launch(place / "kite.png", out, *settings, limit=limit, threads=threads)


def launch(picture, out, *words, limit=None, threads=1):
    command = [sys.executable, "-m", "maquette", "imagedream", str(picture), "--out", str(out), *words]
    prefix = ["bash", "-c", f'ulimit -v {limit} && exec "$@"', "bash"] if limit else []
    return subprocess.Popen(
        [*prefix, *command],
        env=ENVIRONMENT | {"OMP_NUM_THREADS": str(threads)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process):
    try:
        _, error = process.communicate(timeout=600)
    finally:
        process.kill()
        process.wait()
    return process.returncode, error


def message(error):
    lines = [line for line in error.splitlines() if line.startswith("maquette:")]
    assert len(lines) == 1 and "Traceback" not in error, error
    return lines[0]


def test_killed_three_times_and_interrupted_once_the_asset_has_the_same_bytes(tmp_path, place):
    whole = start(place, tmp_path / "whole")
    dice = random.Random(0)
    folder, log = tmp_path / "broken", tmp_path / "broken" / "log.jsonl"
    endings = []
    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGKILL, signal.SIGKILL):
        process = start(place, folder)
        # A random moment of the work, however fast the machine is.
        wait_for_lines(process, log, lines_of(log) + dice.randint(2, 9))
        process.send_signal(number)
        code, error = finish(process)
        endings.append(code)
        if number is signal.SIGINT and code == 130:
            assert message(error) == "maquette: interrupted; the same command goes on from here."
    assert endings == [-signal.SIGKILL, 130, -signal.SIGKILL, -signal.SIGKILL]
    code, error = finish(start(place, folder))
    assert code == 0, error
    code, error = finish(whole)
    assert code == 0, error
    assert (folder / "asset.glb").read_bytes() == (tmp_path / "whole" / "asset.glb").read_bytes()
    resumed = [line for line in map(json.loads, log.read_text().splitlines()) if line.get("event") == "resumed"]
    assert resumed  # or every kill fell between two stages, and the checkpoints were not tested
    assert not [path for path in folder.rglob(".*") if path.name != ".lock"]
    assert (folder / "report.html").exists() and not (folder / "preview.webp").exists()


def test_killed_with_nanos_own_settings_the_asset_has_the_same_bytes(tmp_path):
    """The shipped prior knows its own picture again, so that matching, outline and painting are on, and are killed."""
    picture = REPOSITORY / "examples" / "images" / "lantern.png"
    whole = launch(picture, tmp_path / "whole", *OWN)
    folder, log = tmp_path / "broken", tmp_path / "broken" / "log.jsonl"
    dice = random.Random(1)
    for _ in range(3):
        kill_at(launch(picture, folder, *OWN), log, lines_of(log) + dice.randint(3, 12))
    for process in (whole, launch(picture, folder, *OWN)):
        code, error = finish(process)
        assert code == 0, error
    assert (folder / "asset.glb").read_bytes() == (tmp_path / "whole" / "asset.glb").read_bytes()
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert [entry["reliable"] for entry in entries if entry.get("stage") == "match" and "reliable" in entry][-1]
    assert any("prompt_view.loss" in entry for entry in entries), "the picture took no part"


def test_two_threads_give_the_same_bytes_every_time(tmp_path, place):
    """Sums over threads have no order of their own; what is promised is the same bytes for the same number of them."""
    for number in range(2):
        code, error = finish(start(place, tmp_path / str(number), threads=2))
        assert code == 0, error
    first, second = ((tmp_path / str(number) / "asset.glb").read_bytes() for number in range(2))
    assert first == second
    provenance = json.loads((tmp_path / "0" / "provenance.json").read_text())
    assert provenance["threads"] == 2


@pytest.mark.parametrize(("limit", "need"), [(900_000, "1.0 GiB"), (2_100_000, "1.5 GiB")])
def test_too_little_memory_says_how_much_is_needed(tmp_path, place, limit, need):
    """Too little for the libraries, and enough for them but not for the work."""
    code, error = finish(start(place, tmp_path / "run", limit=limit))
    assert code == 1
    assert f"needs about {need}" in message(error)


def test_damaged_weights_are_named(tmp_path, place):
    import shutil

    weights = tmp_path / "weights"
    shutil.copytree(place / "weights", weights)
    file = next(weights.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1000])
    code, error = finish(start(place, tmp_path / "run", "--weights", str(weights)))
    assert code == 2
    assert file.name in message(error) and "truncated" in message(error)
