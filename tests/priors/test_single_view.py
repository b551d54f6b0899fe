"""Published files of Zero-1-to-3 and Stable Diffusion in miniature become the priors that they were made from."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from maquette.cameras import orbit
from maquette.diffusion.autoencoder import Autoencoder, AutoencoderConfig
from maquette.diffusion.clip import CLIP, TextConfig, TextTower, VisionConfig, VisionTower
from maquette.diffusion.unet import MultiViewUNet
from maquette.errors import UserError
from maquette.priors import layout_diffusers, layout_ldm, single_view
from maquette.priors.published import SCHEDULE
from maquette.priors.single_view import LdmConfig, load_single_view, load_stable_diffusion, load_zero123
from maquette.priors.single_view_files import averaged, looks_like
from maquette.priors.tensor_files import StoredTensor, TensorFile
from tests.priors.published_files import TEXT, write_merges
from tests.priors.test_layout_diffusers import AUTOENCODER, ZERO123_UNET
from tests.priors.tiny import noisy, prompt, randomised, single_view_unet

WHITE = torch.ones(3)
VISION = VisionConfig(image_size=28, patch_size=14, width=16, layers=2, heads=2, mlp_width=32, embed_dim=12,
                      activation="quick_gelu")  # fmt: skip
VAE = AutoencoderConfig(channels=8, channel_mult=(1, 2), res_blocks=1, attention=(False, False), groups=4)
UNET_SETTINGS = {
    "in_channels": 8, "out_channels": 4, "block_out_channels": [16, 32], "layers_per_block": 1, "sample_size": 8,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "attention_head_dim": 2, "cross_attention_dim": 16, "norm_num_groups": 8,
}  # fmt: skip
VAE_SETTINGS = {
    "block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4, "scaling_factor": 0.25,
    "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2,
}  # fmt: skip
VISION_SETTINGS = {
    "hidden_size": 16, "intermediate_size": 32, "projection_dim": 12, "num_hidden_layers": 2, "image_size": 28,
    "num_attention_heads": 2, "patch_size": 14, "hidden_act": "quick_gelu",
}  # fmt: skip
SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "epsilon"}


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    """The networks of a small Zero-1-to-3; "average" is another U-Net of the same kind."""
    return {
        "unet": single_view_unet(8), "average": randomised(MultiViewUNet(single_view_unet(8).config), 7),
        "vae": randomised(Autoencoder(VAE), 1), "vision": randomised(VisionTower(VISION), 2),
        "projection": randomised(nn.Linear(16, 16), 3),
    }  # fmt: skip


@pytest.fixture
def ldm(networks) -> LdmConfig:
    return LdmConfig(networks["unet"].config, VAE, VISION, image_size=16)


def checkpoint(networks, average: bool = True):
    """What a released checkpoint holds, in the names of its authors."""
    unet = layout_ldm.unet(networks["unet"].config)
    state = {
        **unet.write(networks["unet"].state_dict(), "model.diffusion_model."),
        **layout_ldm.autoencoder(VAE).write(networks["vae"].state_dict(), "first_stage_model."),
        **layout_ldm.openai_image_tower(VISION).write(networks["vision"].state_dict(), "cond_stage_model.model."),
        **layout_ldm.camera_projection().write(networks["projection"].state_dict(), "cc_projection."),
        "betas": torch.zeros(1000), "cond_stage_model.model.logit_scale": torch.zeros(()),
        "cond_stage_model.model.token_embedding.weight": torch.zeros(5, 4),
    }  # fmt: skip
    if average:
        kept = unet.write(networks["average"].state_dict(), "diffusion_model.")
        state |= {"model_ema." + name.replace(".", ""): tensor for name, tensor in kept.items()}
        state |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(3)}
    return {name: tensor.clone() for name, tensor in state.items()}


def folder_of(path, networks, component="clip_camera_projection", variant="", in_channels=8):
    """A released folder."""
    unet = single_view_unet(in_channels) if in_channels != 8 else networks["unet"]
    parts = {
        "unet": (unet, layout_diffusers.unet(unet.config), UNET_SETTINGS | {"in_channels": in_channels}),
        "vae": (networks["vae"], layout_diffusers.autoencoder(VAE), VAE_SETTINGS),
        "image_encoder": (networks["vision"], layout_diffusers.image_encoder(VISION), VISION_SETTINGS),
        component: (
            networks["projection"],
            layout_diffusers.camera_projection(layout_diffusers.CAMERA_PROJECTIONS[component]),
            {},
        ),
    }
    for name, (module, table, settings) in parts.items():
        (path / name).mkdir(parents=True, exist_ok=True)
        (path / name / "config.json").write_text(json.dumps(settings))
        stem = "model" if name == "image_encoder" else "diffusion_pytorch_model"
        write(path / name / f"{stem}{variant}.safetensors", table.write(module.state_dict()))
    (path / "scheduler").mkdir()
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    return path


def write(path, tensors):
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)


def same(module, other) -> bool:
    mine, theirs = module.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def asked(prior):
    cond = prior.condition(prompt(), WHITE)
    return prior.predict(noisy(prior), torch.tensor([10, 800]), cond, orbit(1, elevation=20.0, azimuth=50.0)).x0


def test_a_checkpoint_with_average_and_a_trainers_leavings(tmp_path, networks, ldm):
    path = tmp_path / "105000.ckpt"
    content = {"epoch": 3, "state_dict": checkpoint(networks), "optimizer_states": [{"state": {}}]}
    torch.save(content, path)
    prior = load_zero123(path, ldm=ldm, facts={"licence": "MIT"})
    assert same(prior.network, networks["average"]), "the running average is what the authors sampled with"
    assert same(prior.codec.autoencoder, networks["vae"])
    assert same(prior.image_encoder.tower, networks["vision"]) and same(prior.projection, networks["projection"])
    card = prior.card()
    assert card["averaged"] and card["layout"] == "ldm" and card["licence"] == "MIT"
    assert card["files"] == {"all": "105000.ckpt"} and len(card["sha256"]) == 64
    assert not any(p.requires_grad for p in prior.network.parameters()) and not prior.network.training


def test_without_an_average_the_plain_weights_are_taken(tmp_path, networks, ldm):
    write(tmp_path / "pruned.safetensors", checkpoint(networks, average=False))
    prior = load_zero123(tmp_path, ldm=ldm)  # a folder with one file
    assert same(prior.network, networks["unet"]) and not prior.card()["averaged"]


@pytest.mark.parametrize("component", ["clip_camera_projection", "cc_projection"])
def test_both_layouts_give_the_same_prior(tmp_path, networks, ldm, component):
    folder = folder_of(tmp_path / "folder", networks, component)
    write(tmp_path / "plain.safetensors", checkpoint(networks, average=False))
    prior, other = load_zero123(folder), load_zero123(tmp_path / "plain.safetensors", ldm=ldm)
    assert prior.codec.scale == 0.25 and other.codec.scale == 0.18215
    assert prior.codec.image_size == other.codec.image_size == 16
    # The picture's latents are not scaled, so the factor does not reach the network's answer.
    torch.testing.assert_close(asked(prior), asked(other), rtol=1e-4, atol=1e-5)
    assert prior.card()["layout"] == "diffusers" and set(prior.card()["files"]) == {
        "unet", "autoencoder", "image_encoder", "projection",
    }  # fmt: skip


def test_half_precision_on_the_way(tmp_path, networks, ldm):
    write(tmp_path / "x.safetensors", checkpoint(networks))
    prior = load_zero123(tmp_path / "x.safetensors", ldm=ldm, dtype=torch.bfloat16)
    assert prior.dtype is torch.bfloat16 and prior.projection.weight.dtype is torch.bfloat16
    assert next(prior.image_encoder.parameters()).dtype is torch.bfloat16
    assert next(prior.codec.parameters()).dtype is torch.float32, "the autoencoder overflows in half precision"
    assert asked(prior).dtype is torch.float32 and asked(prior).isfinite().all()
    assert prior.card()["precision"] == "bfloat16"


def test_files_named_after_an_average_go_first(tmp_path, networks):
    folder = folder_of(tmp_path / "folder", networks, variant=".fp16")
    table = layout_diffusers.unet(networks["unet"].config)
    stem = folder / "unet" / "diffusion_pytorch_model"
    write(stem.with_name(stem.name + ".non_ema.safetensors"), table.write(networks["average"].state_dict()))
    assert load_zero123(folder).card()["files"]["unet"].endswith("model.fp16.safetensors")
    write(stem.with_name(stem.name + ".safetensors"), table.write(networks["unet"].state_dict()))
    assert load_zero123(folder).card()["files"]["unet"] == "diffusion_pytorch_model.safetensors"
    write(stem.with_name(stem.name + ".fp16_ema.safetensors"), table.write(networks["average"].state_dict()))
    prior = load_zero123(folder)
    assert same(prior.network, networks["average"]) and prior.card()["averaged"]


def test_a_file_in_several_parts(tmp_path, networks):
    folder = folder_of(tmp_path / "folder", networks)
    whole = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = list(layout_diffusers.unet(networks["unet"].config).write(networks["unet"].state_dict()).items())
    whole.unlink()
    for i, part in enumerate((tensors[:40], tensors[40:])):
        write(whole.with_name(f"diffusion_pytorch_model-0000{i + 1}-of-00002.safetensors"), dict(part))
    assert same(load_zero123(folder).network, networks["unet"])
    whole.with_name("diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="00002-of-00002.safetensors is missing"):
        load_zero123(folder)


# Stable Diffusion

SD_TEXT = replace(TEXT, embed_dim=None, activation="quick_gelu")
TEXT_SETTINGS = {
    "vocab_size": TEXT.vocabulary, "max_position_embeddings": 10, "hidden_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 32, "hidden_act": "quick_gelu",
}  # fmt: skip


def stable_folder(path, networks, text, settings, scheduler=SCHEDULER):
    unet = single_view_unet(4)
    folder = folder_of(path, networks, in_channels=4)
    table = layout_ldm.clip_text_huggingface(text.config)
    (folder / "text_encoder").mkdir()
    (folder / "text_encoder" / "config.json").write_text(json.dumps(settings))
    write(folder / "text_encoder" / "model.safetensors", {
        **table.write(text.state_dict(), "text_model."), "text_model.embeddings.position_ids": torch.arange(10)[None],
    })  # fmt: skip
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    write_merges(folder / "tokenizer")
    return folder, unet


def test_stable_diffusion_1_in_both_layouts(tmp_path, networks):
    text = randomised(TextTower(SD_TEXT), 5)
    folder, unet = stable_folder(tmp_path / "folder", networks, text, TEXT_SETTINGS)
    state = {
        **layout_ldm.unet(unet.config).write(unet.state_dict(), "model.diffusion_model."),
        **layout_ldm.autoencoder(VAE).write(networks["vae"].state_dict(), "first_stage_model."),
        **layout_ldm.clip_text_huggingface(SD_TEXT).write(
            text.state_dict(), "cond_stage_model.transformer.text_model."
        ),
    }
    write(tmp_path / "file.safetensors", state)
    shape = LdmConfig(unet.config, VAE, None, SD_TEXT, image_size=16)
    one = load_stable_diffusion(folder)
    other = load_stable_diffusion(tmp_path / "file.safetensors", ldm=shape, merges=folder / "tokenizer" / "merges.txt")
    t, latents_t = torch.tensor([20, 700]), noisy(one)
    for prior in (one, other):
        assert prior.codec.image_size == 16 and prior.noise_schedule.predicts == "eps"
        # Stable Diffusion 1 fills up with the end mark, and reads the last block.
        assert prior.tokenizer(["the cat"])[0, -1] == prior.tokenizer.ids["<|endoftext|>"]
        expected = text.context(prior.tokenizer(["the cat"]), skip_last=0)
        torch.testing.assert_close(prior.encode_text("the cat"), expected)
    answers = [prior.predict(latents_t, t, prior.condition(prompt("the cat"), WHITE)).x0 for prior in (one, other)]
    torch.testing.assert_close(*answers)


def test_stable_diffusion_2_in_both_layouts(tmp_path, networks):
    # The released folder leaves the last block out, and its text tower has no projection.
    clip = randomised(CLIP(None, TEXT), 6)
    short = TextTower(replace(TEXT, layers=1, embed_dim=None))
    short.load_state_dict({n: t for n, t in clip.text.state_dict().items() if n in short.state_dict()})
    settings = TEXT_SETTINGS | {"num_hidden_layers": 1, "hidden_act": "gelu"}
    folder, unet = stable_folder(
        tmp_path / "folder", networks, short, settings, SCHEDULER | {"prediction_type": "v_prediction"}
    )
    state = {
        **layout_ldm.unet(unet.config).write(unet.state_dict(), "model.diffusion_model."),
        **layout_ldm.autoencoder(VAE).write(networks["vae"].state_dict(), "first_stage_model."),
        **layout_ldm.openclip(None, TEXT).write(clip.state_dict(), "cond_stage_model.model."),
    }
    write(tmp_path / "folder" / "unrelated.safetensors", state)
    shape = LdmConfig(unet.config, VAE, None, TEXT, image_size=16)
    one = load_stable_diffusion(folder)
    assert one.noise_schedule.predicts == "v"
    assert load_stable_diffusion(folder, predicts="eps", image_size=32).codec.latent_shape == (4, 16, 16)
    write_merges(tmp_path)
    write(tmp_path / "file.safetensors", state)
    other = load_stable_diffusion(tmp_path / "file.safetensors", ldm=shape)
    assert other.noise_schedule.predicts == "eps"
    assert one.tokenizer(["the cat"])[0, -1] == 0
    torch.testing.assert_close(one.encode_text("the cat"), other.encode_text("the cat"))


# Wrong files


def test_wrong_files_say_what_they_look_like(tmp_path, networks, ldm):
    state = checkpoint(networks, average=False)
    path = tmp_path / "x.safetensors"

    def complaint(tensors):
        write(path, tensors)
        with pytest.raises(UserError) as caught:
            load_zero123(path, ldm=ldm)
        return str(caught.value)

    lost = "model.diffusion_model.out.2.bias"
    assert lost.removeprefix("model.diffusion_model.") in complaint({k: v for k, v in state.items() if k != lost})
    cameras = {**state, "model.diffusion_model.camera_embed.0.weight": torch.zeros(64, 16)}
    assert "looks like Zero-1-to-3" in complaint(cameras) and "camera_embed.0.weight" in complaint(cameras)
    words = {k: v for k, v in state.items() if not k.startswith(("cc_", "cond_"))}
    words["cond_stage_model.transformer.text_model.final_layer_norm.bias"] = torch.zeros(3)
    assert "under 'cc_projection.'" in complaint(words) and "Stable Diffusion 1" in complaint(words)
    del cameras["cc_projection.weight"]
    assert "looks like MVDream" in complaint({k: v for k, v in cameras.items() if not k.startswith("cc_")})
    assert "no model that this version knows (it has 'something.else')" in complaint({"something.else": torch.zeros(2)})
    wider = {**state, "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(16, 4, 3, 3)}
    assert "stem.weight is (16, 4, 3, 3), expected (16, 8, 3, 3)" in complaint(wider)
    part = checkpoint(networks)
    del part["model_ema.diffusion_modelout2bias"]
    assert "only a part of the averaged weights" in complaint(part)


def test_wrong_folders_say_what_is_missing(tmp_path, networks):
    folder = folder_of(tmp_path / "folder", networks)
    with pytest.raises(UserError, match="the folder text_encoder is missing|text_encoder/config.json is missing"):
        load_stable_diffusion(folder)
    (folder / "unet" / "config.json").write_text(json.dumps(UNET_SETTINGS | {"flip_sin_to_cos": False}))
    with pytest.raises(UserError, match="flip_sin_to_cos"):
        load_zero123(folder)
    (folder / "unet" / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        load_zero123(folder)
    (folder / "image_encoder" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="image_encoder has no weights"):
        load_zero123(folder)
    (folder / "clip_camera_projection" / "config.json").unlink()
    (folder / "clip_camera_projection" / "diffusion_pytorch_model.safetensors").unlink()
    (folder / "clip_camera_projection").rmdir()
    with pytest.raises(UserError, match="none of the folders clip_camera_projection, cc_projection"):
        load_zero123(folder)
    with pytest.raises(UserError, match="no weights at"):
        load_zero123(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no folder 'unet' and no checkpoint"):
        load_zero123(tmp_path)
    with pytest.raises(UserError, match="known are zero123, .*stable-diffusion-2.1-base"):
        load_single_view("zero124", folder)


def test_a_text_to_image_model_is_no_zero123(tmp_path, networks):
    folder = folder_of(tmp_path / "folder", networks, in_channels=4)
    with pytest.raises(UserError, match="this network reads 4, so it is another model"):
        load_zero123(folder)
    text = randomised(TextTower(SD_TEXT), 5)
    folder, _ = stable_folder(tmp_path / "other", networks, text, TEXT_SETTINGS)
    (folder / "tokenizer" / "merges.txt").unlink()
    with pytest.raises(UserError, match="list of merges"):
        load_stable_diffusion(folder)


# The released files


def outlined(shapes) -> TensorFile:
    def refuse():
        raise AssertionError("names and shapes must do")

    tensors = {n: StoredTensor(torch.float32, tuple(shape), refuse) for n, shape in shapes.items()}
    return TensorFile(Path("released.ckpt"), "torch", tensors)


def test_the_released_checkpoint_has_an_average_of_everything(shared):
    shapes = json.loads(shared("reference", "manifests", "zero123_ldm_original.json").read_text())["tensors"]
    assert single_view.ZERO123.network == layout_ldm.unet_config(ZERO123_UNET)
    assert single_view.ZERO123.autoencoder == layout_ldm.autoencoder_config(AUTOENCODER)
    table = layout_ldm.unet(single_view.ZERO123.network)
    file, found = averaged(outlined(shapes), table)
    assert found and looks_like(file) == "Zero-1-to-3 in the original (ldm) layout"
    listed = [name for name in shapes if name.startswith("model_ema.")]
    used = ["model_ema." + ("diffusion_model." + name).replace(".", "") for name in table.published()]
    assert sorted(listed) == sorted([*used, "model_ema.decay", "model_ema.num_updates"])
    ours = table.read(file.outlines("model.diffusion_model."), "model.diffusion_model.")
    assert sum(math.prod(tensor.shape) for tensor in ours.values()) == 859_532_484


def test_every_name_of_the_released_checkpoint_is_accounted_for(shared):
    """Used, an average, a vector of the schedule, or a leftover of the text tower that nothing reads."""
    shapes = json.loads(shared("reference", "manifests", "zero123_ldm_original.json").read_text())["tensors"]
    parts = single_view.ldm_parts(single_view.ZERO123)
    for part in parts.values():
        file = outlined({n: s for n, s in shapes.items() if n.startswith(part.prefix)})
        with torch.device("meta"):
            expected = part.table.write(part.make().state_dict(), part.prefix)
        assert {n: tuple(t.shape) for n, t in expected.items()}.items() <= {
            n: t.shape for n, t in file.tensors.items()
        }.items()
    used = {part.prefix + name for part in parts.values() for name in part.table.published()}
    rest = {name for name in shapes if name not in used and not name.startswith("model_ema.")} - set(SCHEDULE)
    towers = parts["vision"]
    assert rest == {name for name in shapes if name.startswith(towers.prefix)} - used
    patterns = towers.table.ignored
    assert all(any(re.fullmatch(p, name.removeprefix(towers.prefix)) for p in patterns) for name in rest)
    assert len(rest) == 6


@pytest.mark.parametrize(("ldm", "name"), [("SD15", "mvdream_sd15_4view"), ("SD21", "mvdream_sd21_4view")])
def test_stable_diffusions_own_checkpoints(shared, ldm, name):
    """MVDream's files are theirs and a camera embedding."""
    listing = json.loads(shared("reference", "manifests", f"{name}_full_checkpoint.json").read_text())["tensors"]
    shapes = {key: shape for key, shape in listing.items() if "camera_embed" not in key}
    config, file = getattr(single_view, ldm), outlined(shapes)
    layout_ldm.unet(config.network).read(file.outlines("model.diffusion_model."), "model.diffusion_model.")
    text, prefix = (
        (layout_ldm.clip_text_huggingface(config.text), "cond_stage_model.transformer.text_model.")
        if ldm == "SD15"
        else (layout_ldm.openclip(None, config.text), "cond_stage_model.model.")
    )
    text.read(file.outlines(prefix), prefix)
    assert isinstance(config.text, TextConfig)
    assert looks_like(file) == f"Stable Diffusion {ldm[2]} in the original (ldm) layout"
