"""Key tables: round trips against the published listings, and refusals that say what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from maquette.diffusion.autoencoder import Autoencoder, AutoencoderConfig
from maquette.diffusion.clip import CLIP, TextConfig, TextTower, VisionConfig, vit_h14, vit_l14
from maquette.diffusion.image_prompt import Resampler
from maquette.diffusion.unet import ImagePromptConfig, MultiViewUNet, UNetConfig
from maquette.priors import layout_ldm
from maquette.priors.checkpoints import Entry, KeyTable, load
from maquette.priors.tensor_files import StoredTensor, write_safetensors, write_torch

FULL = "_full_checkpoint"
UNETS = [
    ("mvdream_sd21_4view_unet", ""),
    ("mvdream_sd15_4view_unet", ""),
    ("imagedream_local_unet", ""),
    ("imagedream_pixel_unet", ""),
    ("imagedream_global_unet_unpublished", ""),
]
TEXT_L = replace(vit_l14()[1], embed_dim=None)
OTHERS = {
    ("vae_kl_f8", ""): (lambda: Autoencoder(AutoencoderConfig()), layout_ldm.autoencoder(AutoencoderConfig())),
    ("mvdream_sd21_4view" + FULL, "first_stage_model."): (
        lambda: Autoencoder(AutoencoderConfig()), layout_ldm.autoencoder(AutoencoderConfig()),
    ),
    ("imagedream_pixel" + FULL, "vae_model."): (
        lambda: Autoencoder(AutoencoderConfig()), layout_ldm.autoencoder(AutoencoderConfig()),
    ),
    ("openclip_vit_h14", "model."): (lambda: CLIP(*vit_h14()), layout_ldm.openclip(*vit_h14())),
    ("imagedream_local" + FULL, "clip_model.model."): (lambda: CLIP(*vit_h14()), layout_ldm.openclip(*vit_h14())),
    ("mvdream_sd21_4view" + FULL, "cond_stage_model.model."): (
        lambda: CLIP(None, vit_h14()[1]), layout_ldm.openclip(None, vit_h14()[1]),
    ),
    ("mvdream_sd15_4view" + FULL, "cond_stage_model.transformer.text_model."): (
        lambda: TextTower(TEXT_L), layout_ldm.clip_text_huggingface(TEXT_L),
    ),
    ("imagedream_resampler", "image_embed."): (lambda: Resampler(1280, 1024), layout_ldm.resampler(4)),
}  # fmt: skip


def listing(shared, name):
    """(meta, published name -> tensor without memory) of a published listing."""
    content = json.loads(shared("reference", "manifests", f"{name}.json").read_text())
    return content["meta"], {k: torch.empty(v, device="meta") for k, v in content["tensors"].items()}


def assert_round_trip(module, table, published, prefix):
    """Published -> ours has exactly the module's names and shapes; ours -> published gives the listing back."""
    ours = table.read(published, prefix)
    expected = {name: tensor.shape for name, tensor in module.state_dict().items()}
    assert {name: tensor.shape for name, tensor in ours.items()} == expected
    back = table.write(module.state_dict(), prefix)
    listed = {name: tensor.shape for name, tensor in published.items() if name.startswith(prefix)}
    for name in [name for name in listed if name.endswith("position_ids")]:
        del listed[name]
    assert {name: tensor.shape for name, tensor in back.items()} == listed


@pytest.mark.parametrize(("name", "prefix"), UNETS)
def test_published_unets(shared, name, prefix):
    meta, published = listing(shared, name)
    config = layout_ldm.unet_config(meta["unet_config"])
    assert config == layout_ldm.unet_config(meta["unet_config"], {k: tuple(v.shape) for k, v in published.items()})
    with torch.device("meta"):
        network = MultiViewUNet(config)
    assert_round_trip(network, layout_ldm.unet(config), published, prefix)
    assert sum(p.numel() for p in network.parameters()) == meta["num_elements"]


def test_what_the_image_prompt_adds_to_the_u_net(shared):
    """The listing of those parameters alone is what ImageDream's table has and MVDream's has not."""
    meta, published = listing(shared, "imagedream_ip_parameters")
    config = UNetConfig(image_prompt=ImagePromptConfig())
    whole, words = layout_ldm.unet(config), set(layout_ldm.unet(UNetConfig()).published())
    table = KeyTable(tuple(entry for entry in whole.entries if not words.issuperset(entry.published)))
    with torch.device("meta"):
        state = MultiViewUNet(config).state_dict()
    ours = table.read(published)
    assert {name: tensor.shape for name, tensor in ours.items()} == {name: state[name].shape for name in table.ours()}
    back = table.write({name: state[name] for name in table.ours()})
    assert {name: tensor.shape for name, tensor in back.items()} == {n: t.shape for n, t in published.items()}
    assert sum(tensor.numel() for tensor in ours.values()) == meta["num_elements"]


LISTINGS = {
    *(name for name, _ in UNETS), *(name for name, _ in OTHERS), "imagedream_ip_parameters",
    # Whole files: tests/priors/test_published.py and tests/benchmarks/test_rehearsal.py.
    "imagedream_pixel_full_checkpoint", "imagedream_local_full_checkpoint", "mvdream_sd21_4view_full_checkpoint",
    "mvdream_sd15_4view_full_checkpoint", "zero123_ldm_original",
    # Folders: tests/priors/test_layout_diffusers.py.
    "zero123_diffusers_unet", "zero123_diffusers_vae", "zero123_diffusers_image_encoder",
    "zero123_diffusers_camera_projection", "zero123_diffusers_layout", "zero123_ldm_to_diffusers_map",
}  # fmt: skip


def test_no_listing_is_left_out(shared):
    """A new listing needs a round trip of its own."""
    assert {path.stem for path in shared("reference", "manifests").glob("*.json")} == LISTINGS


@pytest.mark.parametrize("name", ["mvdream_sd21_4view", "mvdream_sd15_4view", "imagedream_local", "imagedream_pixel"])
def test_unets_inside_complete_checkpoints(shared, name):
    meta, _ = listing(shared, f"{name}_unet")
    _, published = listing(shared, name + FULL)
    config = layout_ldm.unet_config(meta["unet_config"])
    with torch.device("meta"):
        network = MultiViewUNet(config)
    assert_round_trip(network, layout_ldm.unet(config), published, meta["prefix_in_checkpoint"])


@pytest.mark.parametrize(("name", "prefix"), OTHERS)
def test_published_encoders_and_autoencoders(shared, name, prefix):
    make, table = OTHERS[name, prefix]
    _, published = listing(shared, name)
    with torch.device("meta"):
        module = make()
    assert_round_trip(module, table, published, prefix)


SMALL = UNetConfig(
    channels=32, channel_mult=(1, 2, 2), res_blocks=(1, 2, 1), attention=(True, False, True), head_width=16,
    context_dim=24, transformer_depth=2,
)  # fmt: skip
SMALL_PROMPT = ImagePromptConfig(local_dim=20, num_queries=3, depth=2, heads=2)
SMALL_VISION = VisionConfig(image_size=28, patch_size=7, width=32, layers=2, heads=4, mlp_width=64, embed_dim=12)
SMALL_TEXT = TextConfig(vocabulary=50, context_length=9, width=24, layers=2, heads=3, mlp_width=48, embed_dim=12)
SMALL_AUTOENCODER = AutoencoderConfig(
    channels=32, channel_mult=(1, 2, 1), res_blocks=1, attention=(False, True, False), inner_channels=4,
)  # fmt: skip
SMALL_NETWORKS = {
    "text only": (lambda: MultiViewUNet(SMALL), layout_ldm.unet(SMALL)),
    "no cameras, convolutions around transformers": (
        lambda: MultiViewUNet(replace(SMALL, camera_dim=None, linear_projection=False)),
        layout_ldm.unet(replace(SMALL, camera_dim=None, linear_projection=False)),
    ),
    "local control": (
        lambda: MultiViewUNet(replace(SMALL, image_prompt=SMALL_PROMPT)),
        layout_ldm.unet(replace(SMALL, image_prompt=SMALL_PROMPT)),
    ),
    "global control": (
        lambda: MultiViewUNet(replace(SMALL, image_prompt=ImagePromptConfig(local_dim=0, global_dim=12))),
        layout_ldm.unet(replace(SMALL, image_prompt=ImagePromptConfig(local_dim=0, global_dim=12))),
    ),
    "autoencoder": (lambda: Autoencoder(SMALL_AUTOENCODER), layout_ldm.autoencoder(SMALL_AUTOENCODER)),
    "openclip": (lambda: CLIP(SMALL_VISION, SMALL_TEXT), layout_ldm.openclip(SMALL_VISION, SMALL_TEXT)),
    "split q, k, v": (
        lambda: TextTower(replace(SMALL_TEXT, embed_dim=None)),
        layout_ldm.clip_text_huggingface(replace(SMALL_TEXT, embed_dim=None)),
    ),
}


@pytest.mark.parametrize("kind", SMALL_NETWORKS)
def test_values_survive_the_way_out_and_back(kind):
    make, table = SMALL_NETWORKS[kind]
    torch.manual_seed(1)
    first, second = make(), make()
    written = table.write(first.state_dict(), "some.prefix.")
    load(second, {**written, "another.network": torch.zeros(3)}, table, "some.prefix.")
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def test_concatenated_parts_keep_their_order():
    table = KeyTable((Entry("qkv", ("q", "k", "v")),))
    parts = {name: torch.full((2, 3), float(i)) for i, name in enumerate(("q", "k", "v"))}
    joined = table.read(parts)["qkv"]
    assert joined[:, 0].tolist() == [0.0, 0.0, 1.0, 1.0, 2.0, 2.0]
    assert all(torch.equal(table.write({"qkv": joined})[name], part) for name, part in parts.items())


@pytest.fixture
def small_file():
    """A small autoencoder, its table, and its published tensors."""
    torch.manual_seed(2)
    autoencoder = Autoencoder(SMALL_AUTOENCODER)
    table = layout_ldm.autoencoder(SMALL_AUTOENCODER)
    return autoencoder, table, table.write(autoencoder.state_dict())


def test_missing_and_unknown_names_are_listed(small_file):
    autoencoder, table, published = small_file
    published["encoder.conv_inn.weight"] = published.pop("encoder.conv_in.weight")
    with pytest.raises(ValueError, match=r"kitchen.ckpt is not .*encoder\.conv_in\.weight.*encoder\.conv_inn\.weight"):
        load(autoencoder, published, table, source="kitchen.ckpt")


def test_another_size_is_named_and_leaves_the_network_alone(small_file):
    autoencoder, table, published = small_file
    before = {name: tensor.clone() for name, tensor in autoencoder.state_dict().items()}
    published = {name: tensor + 1 for name, tensor in published.items()}
    published["quant_conv.weight"] = torch.zeros(6, 8, 1, 1)
    with pytest.raises(ValueError, match=r"another size.*to_moments\.weight is \(6, 8.*expected \(8, 8"):
        load(autoencoder, published, table)
    assert all(torch.equal(tensor, before[name]) for name, tensor in autoencoder.state_dict().items())


def test_a_table_of_another_network_is_refused(small_file):
    autoencoder, table, published = small_file
    with pytest.raises(ValueError, match="does not describe this network"):
        load(autoencoder.encoder, published, table)
    with pytest.raises(ValueError, match="does not describe these tensors"):
        table.write(autoencoder.encoder.state_dict())
    with pytest.raises(ValueError, match="twice"):
        KeyTable((Entry("a", ("x",)), Entry("b", ("x",))))


def test_buffers_of_old_versions_are_left_alone():
    config = replace(SMALL_TEXT, embed_dim=None)
    table = layout_ldm.clip_text_huggingface(config)
    tower = TextTower(config)
    published = {**table.write(tower.state_dict()), "embeddings.position_ids": torch.arange(9)[None]}
    load(tower, published, table)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_scale_shift_norm": True}, "use_scale_shift_norm"),
        ({"adm_in_channels": 7}, "unknown setting adm_in_channels"),
        ({"with_ip": True, "ip_dim": 16, "ip_mode": "local"}, "never released"),
        ({"context_dim": [24, 32]}, "several widths"),
    ],
)
def test_settings_that_change_the_network_are_refused(change, message):
    settings = {
        "in_channels": 4, "out_channels": 4, "model_channels": 32, "channel_mult": [1, 2], "num_res_blocks": 1,
        "attention_resolutions": [1], "num_heads": 2, "context_dim": 24,
    }  # fmt: skip
    assert layout_ldm.unet_config(settings).attention == (True, False)
    with pytest.raises(ValueError, match=message):
        layout_ldm.unet_config({**settings, **change})


@pytest.mark.parametrize(
    ("legacy", "expected"), [(True, (1, 96)), (None, (1, 96)), (False, (1, 64))], ids=["legacy", "default", "fixed"]
)
def test_heads_of_the_legacy_way_share_all_channels(legacy, expected):
    """96 channels in heads of 64: one head, of 96 in the released networks' default, of 64 where `legacy` is off."""
    settings = {
        "in_channels": 4, "out_channels": 4, "model_channels": 96, "channel_mult": [1, 2], "num_res_blocks": 1,
        "attention_resolutions": [1, 2], "num_head_channels": 64, "context_dim": 24,
        **({} if legacy is None else {"legacy": legacy}),
    }  # fmt: skip
    config = layout_ldm.unet_config(settings)
    assert config.heads(96, 0) == expected and config.heads(192, 1) == config.heads(192, -1) == (3, 64)
    assert layout_ldm.unet_config({**settings, "model_channels": 64}).head_width == 64


def test_networks_that_are_only_ours_have_no_table():
    both = replace(SMALL, image_prompt=ImagePromptConfig(local_dim=20, global_dim=12))
    with pytest.raises(ValueError, match="only ours"):
        layout_ldm.unet(both)
    with pytest.raises(ValueError, match="only ours"):
        layout_ldm.unet(replace(SMALL, image_prompt=replace(SMALL_PROMPT, resample=False)))


STREAMED = """
import sys
from pathlib import Path

import torch
from torch import nn

from maquette.priors.checkpoints import Entry, KeyTable, stream
from maquette.priors.tensor_files import open_tensors

with torch.device("meta"):
    module = nn.ParameterDict({f"p{i}": nn.Parameter(torch.empty(1 << 21)) for i in range(COUNT)})
table = KeyTable(tuple(Entry(f"p{i}", (f"t{i}",)) for i in range(COUNT)))

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))

before = peak()
stream(module, open_tensors(Path(sys.argv[1])), table, dtype=torch.float16)
print(peak() - before)
assert module["p3"].dtype is torch.float16 and float(module["p3"].detach()[5]) == 3.0
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs a system that tells a process's peak memory")
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_beside_the_network_one_tensor_is_in_memory(tmp_path, suffix):
    """24 tensors of 8 MiB in float32 become 96 MiB of float16, and nothing like the file's 192 MiB stands beside."""
    count, size = 24, 8 << 20
    path = tmp_path / f"a.{suffix}"
    listed = [
        (f"t{i}", StoredTensor(torch.float32, (1 << 21,), lambda i=i: torch.full((1 << 21,), float(i))))
        for i in range(count)
    ]
    if suffix == "pt":
        write_torch(path, listed)
    else:
        write_safetensors(path, listed, {})
    script = STREAMED.replace("COUNT", str(count))
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", script, str(path)], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert count * size / 2 * 0.8 < int(done.stdout) < count * size / 2 + 4 * size
