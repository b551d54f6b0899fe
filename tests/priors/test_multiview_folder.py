"""Exports of ImageDream and MVDream in diffusers' layout say what the checkpoint says that they were made from."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from maquette import cli
from maquette.diffusion.autoencoder import Autoencoder, AutoencoderConfig
from maquette.diffusion.clip import CLIP, TextTower, VisionTower
from maquette.diffusion.unet import ImagePromptConfig, MultiViewUNet, UNetConfig
from maquette.errors import UserError
from maquette.images import Prompt
from maquette.priors import hub, layout_diffusers, layout_ldm, published
from maquette.priors.clip_tokenizer import read_tokenizer
from maquette.priors.convert import to_package, to_published
from maquette.priors.hub import load_prior
from maquette.priors.layout_diffusers import unet as diffusers_unet
from maquette.priors.multiview import MultiViewConfig
from maquette.priors.multiview_folder import open_folder
from maquette.priors.published import PublishedConfig
from maquette.priors.registry import find_model
from maquette.priors.weights_folder import find_published
from tests.priors.published_files import TEXT, VISION, networks, published_state, write_merges
from tests.priors.tiny import four_cameras, noisy, picture

UNET = UNetConfig(
    channels=32, channel_mult=(1, 2), res_blocks=(1, 1), attention=(True, False), head_width=16, context_dim=16,
)  # fmt: skip
VAE = AutoencoderConfig(channels=8, channel_mult=(1, 2), res_blocks=1, attention=(False, False), groups=4)
CONFIGS = {
    "imagedream": PublishedConfig(
        "imagedream", replace(UNET, image_prompt=ImagePromptConfig(local_dim=20, num_queries=3, depth=1, heads=2)),
        VAE, TEXT, VISION, MultiViewConfig(name="ImageDream"), 16,
    ),
    "mvdream": PublishedConfig(
        "mvdream-sd21", UNET, VAE, TEXT, None, MultiViewConfig(name="MVDream", control="none"), 16
    ),
}  # fmt: skip
SETTINGS = {
    "_class_name": "MultiViewUNetModel", "_diffusers_version": "0.25.0", "attention_resolutions": [1],
    "camera_dim": 16, "channel_mult": [1, 2], "context_dim": 16, "image_size": 8, "in_channels": 4,
    "model_channels": 32, "num_head_channels": 16, "num_res_blocks": 1, "out_channels": 4, "transformer_depth": 1,
}  # fmt: skip
"""The keys of the exports' unet/config.json; ImageDream's has ip_dim as well."""
VAE_SETTINGS = {
    "block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 16,
    "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2,
}  # fmt: skip
TEXT_SETTINGS = {
    "vocab_size": TEXT.vocabulary, "max_position_embeddings": 10, "hidden_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 2, "intermediate_size": 32, "hidden_act": "gelu",
}  # fmt: skip
VISION_SETTINGS = {
    "hidden_size": 20, "intermediate_size": 40, "projection_dim": 12, "num_hidden_layers": 3, "image_size": 28,
    "num_attention_heads": 2, "patch_size": 14, "hidden_act": "gelu",
}  # fmt: skip
SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
WHITE = torch.ones(3)


@pytest.fixture(autouse=True)
def small_models(monkeypatch, tmp_path):
    """The released models are small here, and nothing is looked for in the person's own folders."""
    for name, config in CONFIGS.items():
        monkeypatch.setitem(published.MODELS, name, lambda config=config: config)
    monkeypatch.setenv("MAQUETTE_WEIGHTS", str(tmp_path / "weights"))


def part_of(tower: nn.Module, smaller: nn.Module) -> nn.Module:
    """The first blocks of a tower, without what the smaller one lacks."""
    smaller.load_state_dict({name: tower.state_dict()[name] for name in smaller.state_dict()})
    return smaller


def write(path, settings, tensors, stem="diffusion_pytorch_model"):
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(settings))
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path / f"{stem}.safetensors")


def export(folder, name, old_names=False):
    """The folder, and the original checkpoint beside it as a file of its own."""
    config = CONFIGS[name]
    filled = networks(config)
    (folder.parent / "original").mkdir(parents=True, exist_ok=True)
    torch.save(published_state(config, filled), folder.parent / "original" / "checkpoint.pt")
    write_merges(folder.parent / "original")
    clip, prompt = filled["clip"], {"ip_dim": 3} if name == "imagedream" else {}
    assert isinstance(clip, CLIP)
    write(folder / "unet", SETTINGS | prompt, layout_ldm.unet(config.network).write(filled["network"].state_dict()))
    vae = layout_diffusers.autoencoder(VAE, old_names=old_names)
    write(folder / "vae", VAE_SETTINGS, vae.write(filled["autoencoder"].state_dict()))
    text = part_of(clip.text, TextTower(replace(TEXT, layers=1, embed_dim=None)))
    table = layout_ldm.clip_text_huggingface(text.config)
    numbers = {"text_model.embeddings.position_ids": torch.arange(10)[None]}
    write(folder / "text_encoder", TEXT_SETTINGS, table.write(text.state_dict(), "text_model.") | numbers, "model")
    if name == "imagedream":
        vision = part_of(clip.vision, VisionTower(replace(VISION, embed_dim=0)))
        written = layout_diffusers.image_encoder(vision.config).write(vision.state_dict())
        write(folder / "image_encoder", VISION_SETTINGS, written, "model")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    write_merges(folder / "tokenizer")
    tokenizer = read_tokenizer(folder / "tokenizer" / "merges.txt", TEXT.vocabulary)
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(dict(tokenizer.ids)))
    return folder


def answer(prior, name):
    cond = prior.condition(Prompt(picture() if name == "imagedream" else None, "the red cat", "the cat"), WHITE)
    both = {"cond": cond, "uncond": prior.unconditional(cond)}
    out = prior.predict_each(noisy(prior), torch.tensor([300, 700]), both, four_cameras())
    return torch.cat([out["cond"].x0, out["uncond"].x0])


@pytest.mark.parametrize("old_names", [False, True])
@pytest.mark.parametrize("name", list(CONFIGS))
def test_an_export_says_what_the_checkpoint_says(tmp_path, name, old_names):
    folder = export(tmp_path / "export", name, old_names)
    original, prior = load_prior(name, tmp_path / "original" / "checkpoint.pt"), load_prior(name, folder)
    assert torch.equal(answer(prior, name), answer(original, name))
    images = torch.rand(1, 2, 3, 16, 16)
    assert torch.equal(prior.codec.encode(images), original.codec.encode(images))
    assert prior.tokenizer(["the cat"]).tolist() == original.tokenizer(["the cat"]).tolist()
    card = prior.card()
    assert card["name"] == name and len(card["sha256"]) == 64 and card["trained_control"] == original.config.control
    assert set(card["files"]) == {"unet", "vae", "text_encoder", *(["image_encoder"] if name == "imagedream" else [])}


def test_it_is_found_where_fetched_weights_are_and_becomes_a_package(tmp_path, capsys):
    folder = export(tmp_path / "weights" / "imagedream", "imagedream")
    expected = answer(load_prior("imagedream"), "imagedream")
    assert cli.main(["models", "check", "imagedream"]) == 0
    assert "an ldm U-Net alone" in capsys.readouterr().out
    card = to_package(find_published(find_model("imagedream")), tmp_path / "package", None)
    assert torch.equal(answer(load_prior("imagedream", tmp_path / "package"), "imagedream"), expected)
    assert len(card.values["source_sha256"]) == 64 and hub.package_of(card.path) is not None
    with pytest.raises(UserError, match="which is its way back"):
        to_published(card, tmp_path / "back.pt")
    half = load_prior("imagedream", folder, dtype=torch.bfloat16)
    assert half.dtype is torch.bfloat16 and next(half.codec.parameters()).dtype is torch.float32


def test_other_folders_are_refused(tmp_path):
    folder = export(tmp_path / "export", "imagedream")

    def refused(match, part, settings, name="imagedream", file="config.json"):
        path = folder / part / file
        kept = path.read_text()
        path.write_text(json.dumps(settings))
        with pytest.raises(UserError, match=match):
            load_prior(name, folder)
        path.write_text(kept)

    with pytest.raises(UserError, match="holds ImageDream, not MVDream; ask for it by the name imagedream"):
        load_prior("mvdream", folder)
    kind = SETTINGS | {"_class_name": "UNet2DConditionModel"}
    refused("holds a network of the kind UNet2DConditionModel", "unet", kind)
    refused("lack 'model_channels'", "unet", {})
    refused("holds MVDream, not ImageDream; ask for it by the name mvdream", "unet", SETTINGS)
    refused("use_scale_shift_norm", "unet", SETTINGS | {"ip_dim": 3, "use_scale_shift_norm": True})
    refused(r"another size of this model", "unet", SETTINGS | {"ip_dim": 3, "context_dim": 24})
    refused("scaling_factor is 0.3", "vae", VAE_SETTINGS | {"scaling_factor": 0.3})
    refused("another noise schedule", "scheduler", SCHEDULER | {"beta_end": 0.02}, file="scheduler_config.json")
    (folder / "image_encoder" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="image_encoder has no weights"):
        load_prior("imagedream", folder)


@pytest.mark.parametrize("name", ["imagedream_pixel", "mvdream_sd21_4view"])
def test_the_exports_u_net_has_the_released_names_and_shapes(shared, tmp_path, name):
    """At full size and without memory: the exports' settings lead to the network of the checkpoint."""
    listing = json.loads(shared("reference", "manifests", f"{name}_unet.json").read_text())
    settings = {
        "attention_resolutions": [4, 2, 1], "camera_dim": 16, "channel_mult": [1, 2, 4, 4], "context_dim": 1024,
        "image_size": 32, "in_channels": 4, "model_channels": 320, "num_head_channels": 64, "num_res_blocks": 2,
        "out_channels": 4, "transformer_depth": 1, "use_linear_in_transformer": True,
    }  # fmt: skip
    if name.startswith("imagedream"):
        settings |= {"ip_dim": 16, "with_ip": True, "ip_mode": "local_resample"}
    config = layout_ldm.unet_config(settings)
    assert config == layout_ldm.unet_config(listing["meta"]["unet_config"])
    with torch.device("meta"):
        written = layout_ldm.unet(config).write(MultiViewUNet(config).state_dict())
    assert {key: list(tensor.shape) for key, tensor in written.items()} == listing["tensors"]


def test_a_tower_without_its_projection_has_no_global_embedding():
    tower = VisionTower(replace(VISION, embed_dim=0))
    features = tower(torch.rand(2, 3, 28, 28))
    assert features.pooled.shape == features.global_embedding.shape == (2, 0)
    assert features.local_tokens.shape == (2, 5, 20)
    assert not hasattr(tower.projection, "weight")


def test_the_folder_is_no_stable_diffusion(tmp_path):
    folder = export(tmp_path / "export", "mvdream")
    config, file, _ = open_folder(folder, CONFIGS["mvdream"].use)
    assert config.family == "mvdream-folder" and config.image_size == 16
    assert any(name.startswith("unet.input_blocks.") for name in file.tensors)
    with pytest.raises(ValueError, match="no cameras"):
        diffusers_unet(config.network)
    assert isinstance(networks(config)["autoencoder"], Autoencoder)
