"""Training of the nano Zero-1-to-3: pairs obey the geometry, a resumed run is the same run, the package loads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from maquette.cameras import orbit
from maquette.errors import UserError
from maquette.images import ImagePrompt, Prompt
from maquette.priors.hub import load_prior, load_view_prior
from maquette.training.data import PackedObjects
from maquette.training.loop import run_training
from maquette.training.nano_view import train_nano_view
from maquette.training.novel_view import NovelViewTrainer, NovelViewTraining, view_network
from maquette.training.pairs import draw_pairs
from tests.support.packed_bars import bar_centres, pack_bars


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_bars(tmp_path_factory.mktemp("packed"))


def tiny(steps: int = 6) -> NovelViewTraining:
    network = replace(view_network(), channels=32, attention=(False, True), groups=8, head_width=32)
    return NovelViewTraining(network, steps=steps, batch=4, warmup=2)


def encoder():
    return load_prior("nano").image_encoder


def test_the_pose_leads_from_the_picture_to_the_view(packed: Path) -> None:
    data = PackedObjects.open(packed)
    errors = []
    for seed in range(8):
        batch = draw_pairs(data, np.random.default_rng(seed), 8, 64)
        shown = ((1 - batch.pictures).abs().sum(1) > 0.02).float()
        # A bar stands at the sine of its azimuth; of the two azimuths that fit, one must explain the view.
        sine = ((bar_centres(shown) - 32) / 20).clamp(-1, 1)
        turn = torch.atan2(batch.pose[:, 1], batch.pose[:, 2])
        seen = bar_centres(batch.masks[:, 0])
        fits = [32 + 20 * torch.sin(start + turn) for start in (torch.asin(sine), torch.pi - torch.asin(sine))]
        errors.append(torch.stack([(seen - fit).abs() for fit in fits]).min(dim=0).values)
        assert (batch.pose[:, 3] == 0).all()
    assert torch.cat(errors).median() < 1.0
    assert torch.equal(batch.targets[:, :, 0, 0], torch.ones(8, 3))


def test_shares_of_the_pairs_are_easy_ones(packed: Path) -> None:
    data = PackedObjects.open(packed)
    same = draw_pairs(data, np.random.default_rng(1), 16, 64, same=1.0)
    assert torch.equal(same.targets, same.pictures)
    torch.testing.assert_close(same.pose, torch.tensor([0.0, 0.0, 1.0, 0.0]).expand(16, 4))
    turned = draw_pairs(data, np.random.default_rng(1), 64, 64, turned=1.0)
    assert (turned.pose[:, 0] == 0).all()  # never up or down
    turns = torch.rad2deg(torch.atan2(turned.pose[:, 1], turned.pose[:, 2])).round().remainder(360).unique()
    assert len(turns) == data.canonical.shape[1]


def test_a_resumed_run_is_the_same_run(packed: Path, tmp_path: Path) -> None:
    data, log = PackedObjects.open(packed), lambda entry: None
    whole = run_training(data, tmp_path / "whole", NovelViewTrainer(tiny(), encoder()), log)
    first = NovelViewTrainer(tiny(), encoder())
    for _ in range(3):
        first.train_step(data)
    first.save(tmp_path / "parts")
    second = run_training(data, tmp_path / "parts", NovelViewTrainer(tiny(), encoder()), log)
    assert second.step == whole.step == 6
    assert all(torch.equal(value, second.average.state[name]) for name, value in whole.average.state.items())


def test_it_learns_what_it_saw(packed: Path) -> None:
    data = PackedObjects.open(packed)
    config = replace(tiny(60), learning_rate=2e-3, drop=0.0, recolour=0.0, batch=8)
    trainer = NovelViewTrainer(config, encoder())
    losses = [trainer.train_step(data)["loss"] for _ in range(60)]
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:10])


def test_the_recipe_ends_in_a_package_that_loads_and_goes_on(packed: Path, tmp_path: Path) -> None:
    entries: list[dict[str, object]] = []
    card = train_nano_view(packed, tmp_path / "out", tiny(2), log=entries.append)
    assert {entry["stage"] for entry in entries} == {"novel view"}
    prior = load_view_prior("nano-zero123", card.path.parent)
    picture = ImagePrompt(torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)), torch.ones(1, 64, 64))
    condition = prior.condition(Prompt(picture, ""), torch.ones(3))
    latents = torch.randn(1, 1, *prior.codec.latent_shape, generator=torch.Generator().manual_seed(0))
    out = prior.predict(latents, torch.tensor([500]), condition, orbit(1, azimuth=90.0))
    assert out.x0.shape == latents.shape and bool(torch.isfinite(out.x0).all())
    ours, theirs = prior.image_encoder.encoder.state_dict(), encoder().state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    for start in (tmp_path / "out", card.path.parent):
        more = train_nano_view(packed, tmp_path / f"from_{start.name}", tiny(1), initial=start, log=entries.append)
        assert more.sha256 != card.sha256
        assert [chunk["steps"] for chunk in more.values["training"]["chunks"]] == [2, 1]
        assert more.values["training"]["pairs"] == 3 * tiny(1).batch
    with pytest.raises(UserError, match="nano-multiview"):
        load_prior("nano-zero123", card.path.parent)
    with pytest.raises(UserError, match="no trainer.safetensors or card.json"):
        train_nano_view(packed, tmp_path / "x", tiny(1), initial=tmp_path, log=entries.append)
    with pytest.raises(UserError, match="no packed renders"):
        train_nano_view(tmp_path, tmp_path / "x", tiny(1))
