"""Packages of Zero-1-to-3 and Stable Diffusion: what is used of a published model, verified, in half the space."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from maquette import cli
from maquette.diffusion.clip import TextTower
from maquette.errors import UserError
from maquette.priors import hub, single_view
from maquette.priors.hub import load_image_prior, load_view_prior
from maquette.priors.registry import find_model
from maquette.priors.single_view_package import SingleViewConfig, pack_single_view
from maquette.priors.weights_folder import find_published
from tests.priors.test_single_view import (
    SCHEDULER,
    SD_TEXT,
    TEXT_SETTINGS,
    VAE,
    VISION,
    WHITE,
    asked,
    checkpoint,
    folder_of,
    stable_folder,
)
from tests.priors.test_single_view import networks as networks
from tests.priors.tiny import noisy, prompt


@pytest.fixture
def zero123(tmp_path, networks, monkeypatch):
    """A small Zero-1-to-3 XL as it lies after a download."""
    small = single_view.LdmConfig(networks["unet"].config, VAE, VISION, image_size=16)
    monkeypatch.setattr(single_view, "load_zero123", partial(single_view.load_zero123, ldm=small))
    monkeypatch.setenv("MAQUETTE_WEIGHTS", str(tmp_path / "weights"))
    place = tmp_path / "weights" / "zero123-xl"
    place.mkdir(parents=True)
    torch.save({"state_dict": checkpoint(networks), "optimizer_states": [{}]}, place / "zero123-xl.ckpt")
    return find_published(find_model("zero123-xl"))


def test_a_package_holds_what_is_used(tmp_path, zero123, networks):
    original = load_view_prior("zero123-xl")
    card = pack_single_view(zero123, tmp_path / "package")
    assert card.values["averaged"] is True and card.values["licence"] == "MIT"
    package = load_view_prior("zero123-xl", tmp_path / "package")
    assert package.card()["sha256"] == card.sha256 and package.config == original.config
    for ours, theirs in ((package.network, networks["average"]), (package.projection, networks["projection"])):
        for key, tensor in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[key], tensor, atol=2e-3, rtol=1e-3)
    for key, tensor in networks["vae"].state_dict().items():
        assert torch.equal(package.codec.autoencoder.state_dict()[key], tensor), "half precision overflows it"
    torch.testing.assert_close(asked(package), asked(original), atol=0.1, rtol=0.05)
    exact = pack_single_view(zero123, tmp_path / "exact", None)
    assert torch.equal(asked(load_view_prior("zero123-xl", exact.path)), asked(original))
    published, written = zero123.file.stat().st_size, card.values["files"][0]["bytes"]
    assert written < 0.6 * published, "without the second U-Net, in half precision"


def test_stable_diffusion_keeps_its_tokeniser(tmp_path, networks, monkeypatch):
    monkeypatch.setenv("MAQUETTE_WEIGHTS", str(tmp_path / "weights"))
    from tests.priors.tiny import randomised

    text = randomised(TextTower(SD_TEXT), 5)
    stable_folder(tmp_path / "weights" / "stable-diffusion-1.5", networks, text, TEXT_SETTINGS)
    found = find_published(find_model("sd15"))
    original = load_image_prior("sd15")
    pack_single_view(found, tmp_path / "package", None)
    package = load_image_prior("sd15", tmp_path / "package")
    assert package.codec.scale == original.codec.scale and package.codec.image_size == original.codec.image_size
    t = torch.tensor([20, 700])
    answers = [
        prior.predict(noisy(prior), t, prior.condition(prompt("the cat"), WHITE)).x0 for prior in (original, package)
    ]
    assert torch.equal(*answers)
    # Beside the published files the card goes first.
    pack_single_view(found, found.folder)
    assert "source_sha256" in load_image_prior("sd15").card()


def test_what_is_wrong_is_said(tmp_path, zero123, networks):
    package = tmp_path / "package"
    pack_single_view(zero123, package)
    with pytest.raises(UserError, match="holds a weights package already"):
        pack_single_view(zero123, package)
    with pytest.raises(UserError, match="holds the prior 'zero123-xl', not 'zero123'"):
        load_view_prior("zero123", package)
    file = package / "zero123-xl.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match="is not the file that card.json describes"):
        load_view_prior("zero123-xl", package)
    file.write_bytes(content[:-9])
    with pytest.raises(UserError, match="truncated"):
        load_view_prior("zero123-xl", package)
    with pytest.raises(ValueError, match="a picture or words"):
        SingleViewConfig(networks["unet"].config, VAE)
    folder_of(tmp_path / "other", networks)
    odd = SCHEDULER | {"beta_schedule": "linear"}
    (tmp_path / "other" / "scheduler" / "scheduler_config.json").write_text(json.dumps(odd))
    with pytest.raises(UserError, match="a noise schedule of its own"):
        pack_single_view(find_published(find_model("zero123-xl"), tmp_path / "other"), tmp_path / "new")


def test_the_command_converts_and_checks(tmp_path, zero123, capsys):
    assert cli.main(["models", "convert", "zero123-xl", "--out", str(tmp_path / "package")]) == 0
    assert "use it: --prior zero123-xl --weights" in capsys.readouterr().out
    assert cli.main(["models", "check", str(tmp_path / "package")]) == 0
    assert "'zero123-xl', whole" in capsys.readouterr().out
    assert cli.main(["models", "convert", str(tmp_path / "package")]) == 2
    assert "its way back is its published file" in capsys.readouterr().err
    assert hub.package_of(Path(tmp_path / "package" / "card.json")) is not None
