"""Weights packages: what is saved is loaded, and every fault is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from maquette.errors import UserError
from maquette.priors.cards import CARD_FILE, parse_config, read_card, read_tensors, write_package
from maquette.priors.hub import NANO, SHIPPED, find_card, load_prior, load_view_prior, prior_names, save_prior
from maquette.priors.nano.assembly import NanoConfig
from maquette.run.settings import plain
from tests.priors.tiny import four_cameras, noisy, prompt, tiny_config, tiny_prior

FACTS = {"name": "tiny", "licence": "Apache-2.0", "recipe": {"seed": 3}}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package of one file."""
    save_prior(tmp_path / "tiny", tiny_prior(), tiny_config(), FACTS, dtype=None)
    return tmp_path / "tiny"


def answer(prior):
    cond = prior.condition(prompt(), torch.ones(3))
    return prior.predict(noisy(prior), torch.tensor([300, 700]), cond, four_cameras()).x0


def test_saved_is_loaded(package):
    prior = load_prior("tiny", package)
    assert torch.equal(answer(prior), answer(tiny_prior()))
    assert prior.config == tiny_config().use
    assert not any(parameter.requires_grad for parameter in prior.network.parameters())
    assert not prior.network.training
    card = prior.card()
    assert card["name"] == "tiny" and card["recipe"] == {"seed": 3} and len(card["sha256"]) == 64
    changed = tiny_prior().network
    with torch.no_grad():
        next(changed.parameters()).add_(1)
    other = prior.with_network(changed)
    assert other.fingerprint() != prior.fingerprint() and "sha256" not in other.card()
    assert prior.fingerprint() == load_prior("tiny", package / CARD_FILE).fingerprint()
    assert prior.fingerprint() == load_prior("tiny", package / "tiny.safetensors").fingerprint()


def test_half_precision_files_hold_half_precision_numbers(tmp_path):
    save_prior(tmp_path, tiny_prior(), tiny_config(), FACTS)
    assert all(tensor.dtype == torch.float16 for tensor in read_tensors(read_card(tmp_path)).values())
    loaded = load_prior("tiny", tmp_path)
    assert next(loaded.network.parameters()).dtype == torch.float32
    torch.testing.assert_close(answer(loaded), answer(tiny_prior()), atol=2e-2, rtol=2e-2)


def test_large_states_are_spread_over_files(tmp_path):
    state = {f"part.{i}": torch.full((1000,), float(i)) for i in range(10)}
    card = write_package(tmp_path, state, {**FACTS, "kind": "k", "config": {}}, dtype=None, max_bytes=14_000)
    files = card.values["files"]
    assert [entry["file"] for entry in files] == [f"tiny-{i}-of-4.safetensors" for i in (1, 2, 3, 4)]
    assert all((tmp_path / entry["file"]).stat().st_size <= 14_000 for entry in files)
    tensors = read_tensors(read_card(tmp_path))
    assert tensors.keys() == state.keys() and all(torch.equal(tensors[name], state[name]) for name in state)
    with pytest.raises(ValueError, match=r"part\.0 alone takes"):
        write_package(tmp_path, state, {**FACTS, "kind": "k", "config": {}}, dtype=None, max_bytes=3000)


def test_same_weights_same_bytes(package, tmp_path):
    save_prior(tmp_path / "again", tiny_prior(), tiny_config(), FACTS, dtype=None)
    for name in ("tiny.safetensors", CARD_FILE):
        assert (package / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_loading_draws_no_random_numbers(package):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_prior("tiny", package)
    assert torch.equal(torch.rand(3), expected)


def test_faulty_files_are_named(package):
    file = package / "tiny.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"tiny\.safetensors is truncated: it has \d+ of \d+ bytes"):
        load_prior("tiny", package)
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match=r"tiny\.safetensors is not the file that card\.json describes: its sha256"):
        load_prior("tiny", package)
    file.unlink()
    with pytest.raises(UserError, match=r"'tiny' are not complete: .*tiny\.safetensors is missing"):
        load_prior("tiny", package)


def test_files_that_are_no_safetensors_are_refused(package):
    from maquette.run.fingerprints import file_sha256

    file, card = package / "tiny.safetensors", package / CARD_FILE
    file.write_bytes(b"not tensors at all")
    values = json.loads(card.read_text())
    values["files"][0] |= {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
    card.write_text(json.dumps(values))
    with pytest.raises(UserError, match="is not a safetensors file"):
        load_prior("tiny", package)


def rewritten(package: Path, state: dict[str, torch.Tensor]) -> None:
    card = read_card(package).values
    write_package(package, state, {key: value for key, value in card.items() if key != "files"}, dtype=None)


def test_another_model_is_told_by_its_tensors(package):
    state = read_tensors(read_card(package))
    rewritten(package, {**{f"model.diffusion_model.{i}": torch.zeros(1) for i in range(3)}})
    with pytest.raises(
        UserError, match=r"of another model: it lacks \d+ tensors such as 'image_encoder.*has unknown 3"
    ):
        load_prior("tiny", package)
    rewritten(package, {name: tensor for name, tensor in state.items() if name != "network.stem.weight"})
    with pytest.raises(UserError, match=r"lacks 1 tensors such as 'network\.stem\.weight'$"):
        load_prior("tiny", package)
    rewritten(package, {**state, "network.stem.weight": torch.zeros(16, 12, 3, 3)})
    with pytest.raises(
        UserError, match=r"another size .* network\.stem\.weight is \[16, 12, 3, 3\].* \[16, 48, 3, 3\]"
    ):
        load_prior("tiny", package)


def test_cards_are_checked(package, tmp_path):
    card = package / CARD_FILE
    values = json.loads(card.read_text())

    def refused(match: str, **changes: object) -> None:
        card.write_text(json.dumps({**values, **changes}))
        with pytest.raises(UserError, match=match):
            load_prior("tiny", package)

    refused("kind 'other'; a multi-view prior is of kind nano-multiview", kind="other")
    refused("holds the prior 'small', not 'tiny'", name="small")
    refused("lacks licence", licence=None)
    refused("every entry of 'files'", files=[{"file": "x"}])
    refused("unknown settings: sides", config={**values["config"], "sides": 4})
    refused("config.noise.predicts is one of eps, x0, v, got 'x1'",
            config={**values["config"], "noise": {"predicts": "x1"}})  # fmt: skip
    refused("config.codec.patch is of type int, got '4'", config={**values["config"], "codec": {"patch": "4"}})
    refused("network.in_channels must be 192", config={**values["config"], "codec": {"patch": 8}})
    card.write_text("{")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        load_prior("tiny", package)
    card.unlink()
    with pytest.raises(UserError, match="there are no weights at"):
        load_prior("tiny", package)
    with pytest.raises(UserError, match="no weights at"):
        load_prior("tiny", tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"has no card\.json beside it"):
        load_prior("tiny", package / "tiny.safetensors")


def test_a_file_beside_a_card_of_others(package):
    (package / "other.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"other\.safetensors is not one of the files"):
        find_card("tiny", package / "other.safetensors")


def test_unknown_names_list_the_known_ones():
    with pytest.raises(UserError, match=r"there is no prior 'imagdream' \(known are nano, nano-zero123, imagedream, "):
        load_prior("imagdream")
    assert set(SHIPPED) < set(prior_names())


def test_configurations_survive_json():
    config = tiny_config("v", "local")
    assert parse_config(NanoConfig, json.loads(json.dumps(plain(config))), "config") == config


@pytest.mark.parametrize("name", list(SHIPPED))
def test_shipped_weights_are_what_their_cards_say(name):
    card = NANO / SHIPPED[name] / CARD_FILE
    if not card.exists():
        pytest.skip(f"needs the shipped weights of {name!r} ({card.parent.name}/{CARD_FILE} is absent)")
    if find_card(name).kind == "nano-zero123":
        view_prior = load_view_prior(name)
        latents = noisy(view_prior, scenes=1)[:, :1]
        camera = four_cameras()[:1]
        condition = view_prior.condition(prompt(), torch.ones(3), camera=camera[0])
        out = view_prior.predict(latents, torch.tensor([500]), condition, camera)
    else:
        prior = load_prior(name)
        out = prior.predict(
            noisy(prior, scenes=1), torch.tensor([500]), prior.condition(prompt(), torch.ones(3)), four_cameras()
        )
    assert out.x0.isfinite().all()
    assert sum(entry["bytes"] for entry in find_card(name).values["files"]) < 32 * 2**20
    assert all(entry["bytes"] <= 16 * 2**20 for entry in find_card(name).values["files"])
