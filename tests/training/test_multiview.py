"""Training of the nano prior: batches obey the geometry, a resumed run is the same run, the package loads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from maquette.cameras import orbit
from maquette.errors import RunFailed, UserError
from maquette.images import ImagePrompt, Prompt
from maquette.priors.hub import load_prior
from maquette.training.batches import draw_3d, draw_single
from maquette.training.data import PackedObjects, composite, recolour, to_tensor, view_words
from maquette.training.encoders import Encoders, EncoderTraining, contrast
from maquette.training.loop import chunk_rate, run_training
from maquette.training.multiview import MultiViewTraining, Trainer, camera_vectors
from maquette.training.nano import NanoRecipe, nano_network, train_nano
from maquette.training.validation import Validation
from tests.support.packed_bars import bar_centres, pack_bars


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_bars(tmp_path_factory.mktemp("packed"))


def tiny() -> MultiViewTraining:
    network = replace(
        nano_network(), channels=32, channel_mult=(1, 1), res_blocks=(1, 1), attention=(False, True), groups=8
    )
    return MultiViewTraining(replace(network, head_width=32), steps=6, batch=2, warmup=2)


def encoders() -> Encoders:
    torch.manual_seed(0)
    return Encoders(EncoderTraining().text, EncoderTraining().image)


def test_targets_are_labelled_with_the_azimuth_that_they_show(packed: Path) -> None:
    data = PackedObjects.open(packed)
    for seed in range(12):
        batch = draw_3d(data, np.random.default_rng(seed), 4, 4, 64)
        columns = torch.arange(64) + 0.5
        centre = (batch.masks[:, :, 0] * columns).sum((-1, -2)) / batch.masks[:, :, 0].sum((-1, -2))
        expected = 32 + 20 * torch.sin(torch.deg2rad(batch.azimuth))
        # Mirrored objects mirror their labels, so the bar is where the label says in every scene.
        assert (centre - expected).abs().max() < 1.5


def test_prompt_and_targets_share_the_background(packed: Path) -> None:
    batch = draw_3d(PackedObjects.open(packed), np.random.default_rng(1), 6, 4, 64)
    corners = batch.targets[:, :, :, 0, 0]
    assert torch.equal(corners, batch.prompts[:, None, :, 0, 0].expand_as(corners))
    assert len({tuple(c.tolist()) for c in corners[:, 0]}) > 1


@pytest.mark.parametrize("has_front", [True, False])
def test_relative_cameras_count_from_the_prompt(packed: Path, has_front: bool) -> None:
    data = PackedObjects.open(packed)
    data = replace(data, meta=[{**meta, "has_canonical_front": has_front} for meta in data.meta])
    for share, furthest in ((1.0, 22.5), (0.0, 45.0)):
        rng = np.random.default_rng(2)
        # Objects without a front are always labelled so.
        batch = draw_3d(data, rng, 8, 4, 64, relative=has_front, front_share=share, front_prompts=0.0)
        nearest = ((batch.azimuth + 180) % 360 - 180).abs().min(dim=1).values
        assert (nearest <= furthest).all()
        # Each bar stands where its azimuth, counted from the prompt's, says.
        shown = (batch.prompts - batch.prompts[:, :, :1, :1]).abs().sum(1) > 0.02
        prompt = torch.asin(((bar_centres(shown.float()) - 32) / 20).clamp(-1, 1))
        expected = 32 + 20 * torch.sin(prompt[:, None] + torch.deg2rad(batch.azimuth))
        assert (bar_centres(batch.masks[:, :, 0]) - expected).abs().median() < 2.5


def test_a_share_of_the_prompts_shows_the_exact_front(packed: Path) -> None:
    data = PackedObjects.open(packed)
    for share in (0.0, 1.0):
        batch = draw_3d(data, np.random.default_rng(3), 16, 4, 64, front_share=1.0, front_prompts=share)
        same = [bool(torch.equal(prompt, views[0])) for prompt, views in zip(batch.prompts, batch.targets, strict=True)]
        assert all(same) if share else not all(same)


def test_single_views_name_their_side(packed: Path) -> None:
    batch = draw_single(PackedObjects.open(packed), np.random.default_rng(0), 64, 32)
    assert batch.images.shape == (64, 3, 32, 32)
    endings = {caption.partition(", ")[2] for caption in batch.captions}
    assert {"front view", "side view", "back view"} <= endings
    assert view_words(10, 0, True) == ", front view" and view_words(180, 0, True) == ", back view"
    assert view_words(10, 70, False) == ", overhead view" and view_words(10, 0, False) == ""


def test_averaging_down_keeps_the_colour_of_half_covered_pixels() -> None:
    rgba = np.zeros((1, 4, 4, 4), np.uint8)
    rgba[0, :2, :, :] = (200, 100, 50, 255)
    small = to_tensor(rgba, 1)
    assert torch.allclose(small[0, :3, 0, 0] * 255, torch.tensor([200.0, 100.0, 50.0]), atol=0.5)
    assert float(small[0, 3]) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="whole factor"):
        to_tensor(rgba, 3)


def test_recolouring_leaves_the_silhouette(packed: Path) -> None:
    stack = to_tensor(np.load(packed / "canonical.npy")[0])
    changed = recolour(stack, np.random.default_rng(4))
    assert torch.equal(changed[:, 3], stack[:, 3]) and not torch.allclose(changed[:, :3], stack[:, :3])
    white = composite(stack, torch.ones(3, 1, 1))
    assert torch.equal(white[:, :, 0, 0], torch.ones(8, 3))


def test_contrast_ignores_members_of_a_family() -> None:
    a = torch.nn.functional.normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    allowed = torch.eye(4, dtype=torch.bool)
    assert float(contrast(a, a, torch.tensor(10.0), allowed)) == pytest.approx(0.0, abs=1e-6)
    assert float(contrast(a, a, torch.tensor(10.0), torch.ones(4, 4, dtype=torch.bool))) > 0


def test_camera_vectors_are_those_of_the_prior() -> None:
    from maquette.priors.multiview_cameras import mvdream_camera_condition

    ring = orbit(4, elevation=5.0)
    ours = camera_vectors(torch.tensor([[0.0, 90.0, 180.0, 270.0]]), torch.full((1, 4), 5.0))
    assert torch.allclose(ours[0], mvdream_camera_condition(ring), atol=1e-5)


def test_a_resumed_run_is_the_same_run(packed: Path, tmp_path: Path) -> None:
    data, log = PackedObjects.open(packed), lambda entry: None
    whole = run_training(data, tmp_path / "whole", Trainer(tiny(), encoders()), log)
    first = Trainer(tiny(), encoders())
    for _ in range(3):
        first.train_step(data)
    first.save(tmp_path / "parts")
    second = run_training(data, tmp_path / "parts", Trainer(tiny(), encoders()), log)
    assert second.step == whole.step == 6
    for name, value in whole.average.state.items():
        assert torch.equal(value, second.average.state[name]), name


def test_a_step_lowers_the_loss_on_what_it_saw(packed: Path) -> None:
    data = PackedObjects.open(packed)
    config = replace(tiny(), steps=40, learning_rate=2e-3, probability_2d=0.0, drop_control=0.0, recolour=0.0)
    trainer = Trainer(config, encoders())
    losses = [trainer.train_step(data)["loss"] for _ in range(40)]
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:8])


def test_the_recipe_ends_in_a_package_that_loads(packed: Path, tmp_path: Path) -> None:
    recipe = NanoRecipe(EncoderTraining(steps=2, batch=6, warmup=1), replace(tiny(), steps=2))
    entries: list[dict[str, object]] = []
    card = train_nano(packed, tmp_path / "out", recipe, log=entries.append)
    assert {entry["stage"] for entry in entries} == {"encoders", "prior"}
    prior = load_prior("nano", card.path.parent)
    picture = ImagePrompt(torch.rand(3, 64, 64), torch.ones(1, 64, 64))
    condition = prior.condition(Prompt(picture, "a red box"), torch.ones(3))
    latents = torch.randn(1, 4, *prior.codec.latent_shape, generator=torch.Generator().manual_seed(0))
    out = prior.predict(latents, torch.tensor([500]), condition, orbit(4))
    assert out.x0.shape == latents.shape and bool(torch.isfinite(out.x0).all())
    more = train_nano(packed, tmp_path / "next", recipe, log=entries.append, initial=tmp_path / "out")
    assert more.sha256 != card.sha256
    from_package = train_nano(packed, tmp_path / "last", recipe, log=entries.append, initial=card.path.parent)
    # The card tells every chunk, and nothing of a network that the weights do not have.
    assert card.values["recipe"]["prior"]["unet"] == "see config" and card.values["training"]["scenes"] == 4
    for next_one in (more, from_package):
        training = next_one.values["training"]
        assert [chunk["from"] for chunk in training["chunks"]] == ["new weights", "average"]
        assert (training["steps"], training["scenes"]) == (4, 8)
        assert training["seconds"] == sum(chunk["seconds"] for chunk in training["chunks"])
    ours = load_prior("nano", from_package.path.parent)
    assert torch.equal(
        ours.text_encoder.state_dict()["token_embedding.weight"],
        prior.text_encoder.state_dict()["token_embedding.weight"],
    )


def test_validation_is_repeatable_and_leaves_the_training_alone(packed: Path) -> None:
    data = PackedObjects.open(packed)
    trainer = Trainer(tiny(), encoders())
    check = Validation.of(data, trainer, scenes=6)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    first = check.measure(trainer, trainer.average.state)
    assert first == check.measure(trainer, trainer.average.state, at_once=16)
    worse = {name: torch.zeros_like(value) for name, value in before.items()}
    assert set(first) == {"val_300", "val_600", "val_800", "val_950"}
    assert check.measure(trainer, worse) != first
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    entries: list[dict[str, object]] = []
    run_training(data, packed / "run", trainer, entries.append, validate=check.measure, validate_every=3)
    assert [entry["step"] for entry in entries if entry["stage"] == "validation"] == [3, 6]


def test_validation_needs_objects_with_a_front(packed: Path) -> None:
    data = PackedObjects.open(packed)
    data = replace(data, meta=[{**meta, "has_canonical_front": False} for meta in data.meta])
    with pytest.raises(ValueError, match="canonical front"):
        Validation.of(data, Trainer(tiny(), encoders()))


def test_a_chunk_is_a_whole_schedule() -> None:
    rates = [chunk_rate(step, 1000, 2e-3, 100) for step in range(1001)]
    assert rates[0] == pytest.approx(2e-5, rel=0.01) and max(rates) == pytest.approx(2e-3, rel=0.05)
    assert rates[1000] == pytest.approx(2e-5) and all(a >= b for a, b in zip(rates[100:], rates[101:], strict=False))


def test_a_loss_that_is_no_number_stops_and_names_the_checkpoint(packed: Path, tmp_path: Path) -> None:
    data, trainer = PackedObjects.open(packed), Trainer(tiny(), encoders())
    trainer.train_step(data)
    trainer.save(tmp_path)
    good = {name: value.clone() for name, value in trainer.average.state.items()}
    with torch.no_grad():
        trainer.model.stem.weight.fill_(float("nan"))
    trainer.load = lambda folder: True  # type: ignore[method-assign]  # go on with the broken weights
    with pytest.raises(RunFailed, match=f"loss of step 2 is no number.*{tmp_path}"):
        run_training(data, tmp_path, trainer, lambda entry: None)
    again = Trainer(tiny(), encoders())
    assert again.load(tmp_path) and again.step == 1
    assert all(torch.equal(value, good[name]) for name, value in again.average.state.items())


def test_gradients_that_are_no_numbers_are_counted_and_stop(packed: Path, tmp_path: Path) -> None:
    """A finite loss whose gradient is NaN changes nothing; ten such steps are no accident."""
    data, entries = PackedObjects.open(packed), list[dict]()
    trainer = Trainer(replace(tiny(), steps=30), encoders())
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.model.stem.weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(RunFailed, match=f"NaN or infinite in 10 steps, last in step 10.*{tmp_path}"):
        run_training(data, tmp_path, trainer, entries.append)
    assert [entry["event"] for entry in entries] == ["skipped"] * 10
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


def test_a_missing_pack_is_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no packed renders"):
        train_nano(tmp_path, tmp_path / "out", NanoRecipe())


def test_the_first_steps_may_see_fronts_alone(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares of canonical views and of exact fronts, step by step."""
    seen = []

    def drawn(*arguments, front_share: float, front_prompts: float, **others):
        seen.append((front_share, front_prompts))
        return draw_3d(*arguments, front_share=front_share, front_prompts=front_prompts, **others)

    monkeypatch.setattr("maquette.training.multiview.draw_3d", drawn)
    config = replace(tiny(), probability_2d=0.0, front_only=0.5, front_share=0.7, front_prompts=0.6)
    trainer, data = Trainer(config, encoders()), PackedObjects.open(packed)
    for _ in range(config.steps):
        trainer.train_step(data)
    assert seen == 3 * [(1.0, 1.0)] + 3 * [(0.7, 0.6)]
