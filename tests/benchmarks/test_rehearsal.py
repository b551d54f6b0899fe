"""Rehearsals: files of random numbers have the released names and shapes, and every kind of model goes its way."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import rehearsal
from maquette.priors import published, random_files, single_view
from maquette.priors.layout_diffusers import CAMERA_PROJECTIONS
from maquette.priors.random_files import FOLDERS, multi_view, write_model, zero123
from maquette.priors.tensor_files import open_tensors
from tests.priors.published_files import CONFIGS
from tests.priors.test_single_view import SCHEDULER, TEXT_SETTINGS, UNET_SETTINGS, VAE, VAE_SETTINGS, VISION
from tests.priors.test_single_view import VISION_SETTINGS as SMALL_VISION
from tests.priors.tiny import single_view_unet

FULL = {"imagedream": "imagedream_pixel", "imagedream-local": "imagedream_local", "mvdream": "mvdream_sd21_4view",
        "mvdream-sd15": "mvdream_sd15_4view"}  # fmt: skip


def manifest(shared, name):
    return json.loads(shared("reference", "manifests", f"{name}.json").read_text())["tensors"]


def shapes(listed):
    return {name: list(stored.shape) for name, stored in listed}


@pytest.mark.parametrize("name", list(FULL))
def test_checkpoints_hold_exactly_the_published_names(shared, name):
    listed = shapes(multi_view(published.MODELS[name](), torch.float16))
    assert listed == manifest(shared, f"{FULL[name]}_full_checkpoint")


def test_zero123_s_average_and_leftovers_too(shared):
    assert shapes(zero123(single_view.ZERO123, torch.float16)) == manifest(shared, "zero123_ldm_original")


@pytest.mark.parametrize("component", list(CAMERA_PROJECTIONS))
def test_folders_hold_exactly_the_published_names(shared, tmp_path, monkeypatch, component):
    """At full size, with the numbers left out."""
    written = {}
    monkeypatch.setattr(
        random_files, "write_safetensors",
        lambda path, listed, metadata: (written.update({path.parent.name: shapes(listed)}), path.write_bytes(b"")),
    )  # fmt: skip
    write_model(tmp_path, "zero123-xl", component=component)
    for part in ("unet", "vae", "image_encoder"):
        assert written[part] == manifest(shared, f"zero123_diffusers_{part}"), part
    variants = json.loads(shared("reference", "manifests", "zero123_diffusers_camera_projection.json").read_text())
    assert written[component] == next(v["tensors"] for v in variants["variants"] if v["component"] == component)


@pytest.fixture
def small_models(monkeypatch):
    """Every released model in miniature."""
    for name, config in CONFIGS.items():
        monkeypatch.setitem(published.MODELS, name, lambda config=config: config)
    small = single_view.LdmConfig(single_view_unet(8).config, VAE, VISION, image_size=16)
    monkeypatch.setattr(random_files, "ZERO123", small)
    monkeypatch.setattr(single_view, "load_zero123", partial(single_view.load_zero123, ldm=small))
    folders = {
        "stable-diffusion-1.5": {"unet": UNET_SETTINGS | {"in_channels": 4}, "vae": VAE_SETTINGS,
                                 "text_encoder": TEXT_SETTINGS},
        "zero123-xl": {"unet": UNET_SETTINGS, "vae": VAE_SETTINGS, "image_encoder": SMALL_VISION},
    }  # fmt: skip
    monkeypatch.setattr(random_files, "FOLDERS", folders)
    assert set(SCHEDULER) == set(random_files._SCHEDULER)


CASES = [*((name, None) for name in (*CONFIGS, "zero123", "stable-diffusion-1.5")),
         *(("zero123-xl", component) for component in CAMERA_PROJECTIONS)]  # fmt: skip


@pytest.mark.parametrize(("name", "component"), CASES)
def test_every_kind_of_model_goes_its_way(tmp_path, small_models, capsys, name, component):
    count, size = write_model(tmp_path, name, component=component)
    assert size == sum(f.stat().st_size for f in tmp_path.rglob("*") if f.suffix in (".pt", ".ckpt", ".safetensors"))
    found = [open_tensors(f) for f in tmp_path.rglob("*") if f.suffix in (".pt", ".ckpt", ".safetensors")]
    assert count == sum(len(file.tensors) for file in found)
    threads = torch.get_num_threads()
    try:
        rehearsal.use(name, tmp_path, torch.float32)
    finally:
        torch.set_num_threads(threads)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(rows) == 5 and rows[-1].startswith("| one distillation step")


def test_another_component_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["rehearsal.py", "mvdream", "--component", "cc_projection"])
    with pytest.raises(SystemExit):
        rehearsal.main()
    assert "--component is for zero123" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [[name] for name in ("imagedream", "mvdream", "mvdream-sd15", "zero123", *(n for n in FOLDERS if "stable-d" in n))]
    + [["zero123-xl", "--component", component] for component in CAMERA_PROJECTIONS],
    ids=" ".join,
)
def test_at_full_size(words, tmp_path):
    """Needs 10 GB of memory, 5 of disk, and some minutes of one core."""
    command = [sys.executable, rehearsal.__file__, *words, "--scratch", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(rehearsal.__file__).parents[1])
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("\n| ") == 5 and "one distillation step" in done.stdout
