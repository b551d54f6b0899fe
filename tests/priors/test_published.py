"""Published files through the public path: loaded, converted, converted back; every fault is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from maquette.errors import UserError
from maquette.images import Prompt
from maquette.priors import hub, identify, published
from maquette.priors.cards import CARD_FILE, read_card
from maquette.priors.convert import to_package, to_published
from maquette.priors.hub import load_image_prior, load_prior, load_view_prior
from maquette.priors.identify import compare
from maquette.priors.published import SCHEDULE, outline, parts
from maquette.priors.registry import find_model
from maquette.priors.tensor_files import open_tensors
from maquette.priors.weights_folder import find_published, weights_folder
from tests.priors.published_files import (
    CONFIGS,
    FILES,
    networks,
    published_state,
    write_merges,
    write_published,
)
from tests.priors.tiny import four_cameras, noisy, picture

WHITE = torch.ones(3)


@pytest.fixture(autouse=True)
def small_models(monkeypatch, tmp_path):
    """The released models are small here, and nothing is looked for in the person's own folders."""
    identify.candidates.cache_clear()
    monkeypatch.setattr(identify, "CHECKPOINTS", {})  # those of full size take a while
    for name, config in CONFIGS.items():
        monkeypatch.setitem(published.MODELS, name, lambda config=config: config)
    monkeypatch.setenv("MAQUETTE_WEIGHTS", str(tmp_path / "weights"))
    yield
    identify.candidates.cache_clear()


def shown(name: str) -> Prompt:
    return Prompt(picture() if "imagedream" in name else None, "the red cat", "the cat")


def answer(prior, name):
    cond = prior.condition(shown(name), WHITE)
    both = {"cond": cond, "uncond": prior.unconditional(cond)}
    out = prior.predict_each(noisy(prior), torch.tensor([300, 700]), both, four_cameras())
    return torch.cat([out["cond"].x0, out["uncond"].x0])


@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_released_file_is_loaded(tmp_path, name):
    path = write_published(tmp_path / "weights" / name, name)
    prior = load_prior(name)
    filled = networks(CONFIGS[name])
    for ours, theirs in ((prior.network, filled["network"]), (prior.codec.autoencoder, filled["autoencoder"])):
        for key, tensor in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[key], tensor), key
    text = filled["text"] if "text" in filled else filled["clip"].text
    tokens = prior.tokenizer(["the red cat"])
    skip = 0 if name == "mvdream-sd15" else 1
    assert torch.equal(prior.encode_text("the red cat"), text.context(tokens, skip_last=skip))
    if name == "mvdream-sd15":
        assert tokens[0, -1] == prior.tokenizer.ids["<|endoftext|>"]
    else:
        assert tokens[0, -1] == 0
    assert answer(prior, name).isfinite().all()
    card = prior.card()
    assert card["name"] == name and card["commercial"] == "with restrictions" and len(card["sha256"]) == 64
    assert card["file"] == FILES[name] and card["precision"] == "float32"
    for wanted in (path, path.parent, tmp_path / "weights"):
        assert load_prior(name, wanted).fingerprint() == prior.fingerprint()
    assert not any(parameter.requires_grad for parameter in prior.network.parameters())


def test_control_that_a_file_was_not_trained_with_is_refused(tmp_path):
    """Local and pixel ImageDream hold the same tensors, so nothing but the name can tell."""
    write_published(tmp_path / "weights" / "imagedream-local", "imagedream-local")
    write_published(tmp_path / "weights" / "mvdream", "mvdream")
    prior = load_prior("imagedream-local")
    assert prior.with_config(control="none").config.control == "none"
    with pytest.raises(UserError, match="trained with control 'local', not with pixel; use --control local$"):
        prior.with_config(control="local+pixel")
    with pytest.raises(UserError, match="trained with control 'none', not with local and pixel"):
        load_prior("mvdream").with_config(control="local+pixel")


def test_the_image_encoder_is_the_file_s(tmp_path):
    write_published(tmp_path / "weights" / "imagedream", "imagedream")
    prior = load_prior("imagedream")
    vision = networks(CONFIGS["imagedream"])["clip"].vision
    for key, tensor in vision.state_dict().items():
        assert torch.equal(prior.image_encoder.tower.state_dict()[key], tensor), key
    tokens, embedding = prior.image_encoder(picture().composite(WHITE)[None])
    assert tokens.shape == (1, 5, 20) and embedding.shape == (1, 12)


def test_aliases_and_precision(tmp_path):
    write_published(tmp_path / "weights" / "imagedream", "imagedream", torch.float16)
    whole = load_prior("imagedream-pixel")
    half = load_prior("imagedream", dtype=torch.bfloat16)
    assert whole.dtype is torch.float32 and half.dtype is torch.bfloat16
    assert half.text_encoder.tower.positions.dtype is torch.bfloat16
    # The autoencoder overflows in half precision, and a loss flows back through it.
    assert next(half.codec.parameters()).dtype is torch.float32
    torch.testing.assert_close(answer(half, "imagedream"), answer(whole, "imagedream"), atol=0.2, rtol=0.2)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_to_a_package_and_back_nothing_changes(tmp_path, name):
    path = write_published(tmp_path / "here", name)
    card = to_package(find_published(find_model(name), path), tmp_path / "package", None)
    assert {p.name for p in card.path.parent.iterdir()} == {CARD_FILE, "merges.txt", f"{name}.safetensors"}
    expected = answer(load_prior(name, path), name)
    for weights in (tmp_path / "package", card.path, tmp_path / "package" / f"{name}.safetensors"):
        assert torch.equal(answer(load_prior(name, weights), name), expected)
    to_published(card, tmp_path / "back.pt")
    original = torch.load(path, weights_only=True)
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    ignored = {key for key in original if key.endswith("position_ids")}
    assert back.keys() == original.keys() - ignored
    assert all(torch.equal(back[key], original[key]) for key in back)
    write_merges(tmp_path)
    again = to_package(find_published(find_model(name), tmp_path / "back.pt"), tmp_path / "again", None)
    for file in (f"{name}.safetensors", "merges.txt"):
        assert (again.path.parent / file).read_bytes() == (tmp_path / "package" / file).read_bytes()


def test_packages_are_half_as_large_by_default(tmp_path):
    path = write_published(tmp_path / "here", "imagedream")
    card = to_package(find_published(find_model("imagedream"), path), tmp_path / "package")
    dtypes = open_tensors(tmp_path / "package" / "imagedream.safetensors").tensors
    assert all(
        stored.dtype is (torch.float32 if key.startswith("autoencoder.") else torch.float16)
        for key, stored in dtypes.items()
    )
    assert load_prior("imagedream", tmp_path / "package").card()["sha256"] == card.sha256
    to_published(card, tmp_path / "back.pt", torch.float32)
    assert set(open_tensors(tmp_path / "back.pt").dtypes()) == {"float32"}
    with pytest.raises(UserError, match="there already"):
        to_published(card, tmp_path / "back.pt")
    with pytest.raises(UserError, match="holds a weights package already"):
        to_package(find_published(find_model("imagedream"), path), tmp_path / "package")


def changed(path: Path, change) -> Path:
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)
    return path


def test_an_imagedream_file_without_towers_takes_openclip_s(tmp_path):
    path = write_published(tmp_path / "weights" / "imagedream", "imagedream")
    expected = answer(load_prior("imagedream"), "imagedream")
    towers = {}

    def strip(state):
        for key in [key for key in state if key.startswith("clip_model.model.")]:
            towers[key.removeprefix("clip_model.model.")] = state.pop(key)

    changed(path, strip)
    with pytest.raises(UserError, match=r"holds no CLIP towers; put open_clip_pytorch_model\.bin"):
        load_prior("imagedream")
    place = tmp_path / "weights" / "clip-vit-h14"
    place.mkdir()
    torch.save(towers, place / "open_clip_pytorch_model.bin")
    assert torch.equal(answer(load_prior("imagedream"), "imagedream"), expected)
    to_package(find_published(find_model("imagedream")), tmp_path / "package", None)
    assert torch.equal(answer(load_prior("imagedream", tmp_path / "package"), "imagedream"), expected)


def test_files_of_other_models_are_refused(tmp_path):
    path = write_published(tmp_path / "a", "mvdream")
    lacks = r"sd-v2\.1-base-4view\.pt is not the model .* lacks \d+ tensors \(image_embed.* It looks like mvdream; ask"
    with pytest.raises(UserError, match=lacks):
        load_prior("imagedream", path)
    other = write_published(tmp_path / "b", "imagedream")
    with pytest.raises(UserError, match=r"unknown ones"):
        load_prior("mvdream", other)
    changed(other, lambda state: state.update({"model.diffusion_model.out.2.weight": torch.zeros(4, 32, 3, 3)}))
    with pytest.raises(UserError, match=r"another size of this model: head\.weight is \(4, 32, 3, 3\), expected"):
        load_prior("imagedream", other)
    torch.save({"cc_projection.weight": torch.zeros(2)}, tmp_path / "d.ckpt")
    with pytest.raises(
        UserError, match=r"lacks \d+ tensors .* It looks like Zero-1-to-3 in the original \(ldm\) layout"
    ):
        load_prior("mvdream", tmp_path / "d.ckpt")
    third = write_published(tmp_path / "c", "mvdream")
    changed(third, lambda state: state.update(alphas_cumprod=torch.linspace(1, 0, 1000)))
    with pytest.raises(UserError, match="another noise schedule"):
        load_prior("mvdream", third)


def test_a_missing_tokeniser_is_named_with_its_remedy(tmp_path):
    path = write_published(tmp_path / "a", "mvdream", merges=False)
    with pytest.raises(UserError, match=r"list of merges .* merges\.txt into .* `maquette models fetch clip-tok"):
        load_prior("mvdream", path)
    write_merges(tmp_path / "weights" / "clip-tokenizer")
    assert load_prior("mvdream", path).tokenizer.length == 10


def test_where_weights_are_looked_for(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"no sd-v2\.1-base-4view\.pt in .*weights.mvdream; `maquette models fetch mv"):
        load_prior("mvdream")
    with pytest.raises(UserError, match="no weights at"):
        load_prior("mvdream", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no sd-v2.*empty"):
        load_prior("mvdream", tmp_path / "empty")
    monkeypatch.delenv("MAQUETTE_WEIGHTS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert weights_folder() == tmp_path / "cache" / "maquette" / "weights"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert weights_folder() == Path.home() / ".cache" / "maquette" / "weights"


def test_packages_are_checked(tmp_path):
    path = write_published(tmp_path / "here", "mvdream")
    folder = to_package(find_published(find_model("mvdream"), path), tmp_path / "package", None).path.parent
    with pytest.raises(UserError, match="holds the prior 'mvdream', not 'imagedream'"):
        load_prior("imagedream", folder)
    values = json.loads((folder / CARD_FILE).read_text())

    def refused(match, **changes):
        (folder / CARD_FILE).write_text(json.dumps({**values, **changes}))
        with pytest.raises(UserError, match=match):
            load_prior("mvdream", folder)

    refused("kind 'nano-multiview', not a converted", kind="nano-multiview")
    refused("names one file and a tokenizer", tokenizer=None)
    refused("unknown settings: sides", config={**values["config"], "sides": 4})
    refused("`vision` accordingly", config={**values["config"], "family": "imagedream"})
    network = {**values["config"]["network"], "channels": 24}
    refused("another size of this model", config={**values["config"], "network": network})
    (folder / CARD_FILE).write_text(json.dumps(values))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(UserError, match=r"merges\.txt is truncated"):
        load_prior("mvdream", folder)
    shutil.copy(path.with_name("merges.txt"), folder / "merges.txt")
    data = (folder / "mvdream.safetensors").read_bytes()
    (folder / "mvdream.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UserError, match=r"mvdream\.safetensors is not the file that card\.json describes"):
        load_prior("mvdream", folder)
    assert hub.package_of(path) is None and read_card(folder).name == "mvdream"


def test_identification_finds_the_likeliest(tmp_path):
    for name, expected in (("imagedream", ("imagedream", "imagedream-local")), ("mvdream-sd15", ("mvdream-sd15",))):
        path = write_published(tmp_path / name, name)
        best = compare(open_tensors(path))[0]
        assert best.models == expected and best.exact and not best.unknown
        assert "every tensor has its place" in str(best)
    changed(path, lambda state: state.pop("first_stage_model.quant_conv.bias"))
    changed(path, lambda state: state.update({"extra": torch.zeros(1)}))
    best = compare(open_tensors(path))[0]
    assert best.models == ("mvdream-sd15",) and not best.exact
    assert best.missing == ("first_stage_model.quant_conv.bias",) and best.unknown == ("extra",)
    assert "lacks 1 (first_stage_model.quant_conv.bias) and has unknown 1 (extra)" in str(best)


def test_each_kind_of_prior_has_its_door(tmp_path):
    with pytest.raises(
        UserError, match="zero123-xl is a novel-view prior, and a multi-view prior is wanted: imagedream"
    ):
        load_prior("zero123-xl")
    with pytest.raises(UserError, match="no image prior 'mvdream'; known are stable-diffusion-1.5"):
        load_image_prior("mvdream")
    with pytest.raises(
        UserError, match=r"no zero123-xl\.ckpt in .*weights.zero123-xl; `maquette models fetch zero123-xl`"
    ):
        load_view_prior("zero123-xl")
    place = tmp_path / "weights" / "zero123-xl"
    place.mkdir(parents=True)
    torch.save({"state_dict": {"model.diffusion_model.out.2.bias": torch.zeros(4)}}, place / "zero123-xl.ckpt")
    with pytest.raises(UserError, match=r"zero123-xl\.ckpt"):
        load_view_prior("zero123-xl")
    write_merges(tmp_path / "weights" / "clip-tokenizer")
    (tmp_path / "weights" / "stable-diffusion-1.5" / "unet").mkdir(parents=True)
    (tmp_path / "weights" / "stable-diffusion-1.5" / "unet" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"not? whole model in the diffusers layout|is missing"):
        load_image_prior("sd15")


FULL = {"imagedream": "imagedream_pixel", "imagedream-local": "imagedream_local", "mvdream": "mvdream_sd21_4view",
        "mvdream-sd15": "mvdream_sd15_4view"}  # fmt: skip


@pytest.mark.parametrize("name", list(FULL))
def test_the_real_files_hold_exactly_what_we_expect(shared, name):
    """Names and shapes of the whole released file, at full size and without memory."""
    listed = json.loads(shared("reference", "manifests", f"{FULL[name]}_full_checkpoint.json").read_text())["tensors"]
    config = {
        "imagedream": published.imagedream(), "imagedream-local": published.imagedream("local"),
        "mvdream": published.mvdream(), "mvdream-sd15": published.mvdream_sd15(),
    }[name]  # fmt: skip
    state = published_state(config, {key: outline(part) for key, part in parts(config).items()})
    assert {key: list(tensor.shape) for key, tensor in state.items() if "position_ids" not in key} == {
        key: shape for key, shape in listed.items() if "position_ids" not in key
    }
    assert set(SCHEDULE) <= set(listed)
