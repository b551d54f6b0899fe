"""The diffusers layout: round trips against the published listings, agreement with the ldm layout, refusals."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from maquette.diffusion.autoencoder import Autoencoder
from maquette.diffusion.clip import TextConfig, TextTower, VisionTower, vit_l14
from maquette.diffusion.unet import MultiViewUNet, UNetConfig
from maquette.priors import layout_diffusers, layout_ldm
from maquette.priors.checkpoints import KeyTable
from tests.priors.tiny import randomised

ZERO123_UNET = {
    "in_channels": 8, "out_channels": 4, "model_channels": 320, "attention_resolutions": [4, 2, 1], "num_res_blocks": 2,
    "channel_mult": [1, 2, 4, 4], "num_heads": 8, "use_spatial_transformer": True, "transformer_depth": 1,
    "context_dim": 768, "use_checkpoint": True, "legacy": False,
}  # fmt: skip
"""`unet_config.params` of the published yaml file."""
AUTOENCODER = {
    "embed_dim": 4,
    "ddconfig": {
        "double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
        "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0,
    },
}  # fmt: skip
# The config.json files of Stable Diffusion, which leave most defaults out.
SD15_UNET = {
    "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.6.0", "act_fn": "silu", "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280], "center_input_sample": False, "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2,
    "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 32, "out_channels": 4, "sample_size": 64,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}  # fmt: skip
SD21_UNET = {
    **SD15_UNET, "attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "use_linear_projection": True,
    "dual_cross_attention": False, "num_class_embeds": None, "only_cross_attention": False, "upcast_attention": False,
}  # fmt: skip
MAKERS = {
    "unet": (layout_diffusers.unet_config, MultiViewUNet, layout_diffusers.unet),
    "vae": (layout_diffusers.autoencoder_config, Autoencoder, layout_diffusers.autoencoder),
    "image_encoder": (layout_diffusers.vision_config, VisionTower, layout_diffusers.image_encoder),
}


def manifest(shared, name):
    return json.loads(shared("reference", "manifests", f"zero123_{name}.json").read_text())


def empty(shapes):
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def on_meta(make, config):
    with torch.device("meta"):
        return make(config)


def assert_round_trip(module: nn.Module, table: KeyTable, published, prefix=""):
    """Published -> ours has exactly the module's names and shapes; ours -> published gives the listing back."""
    ours = table.read(published, prefix)
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in module.state_dict().items()}
    listed = {n: t.shape for n, t in published.items() if n.startswith(prefix) and n.removeprefix(prefix) in
              set(table.published())}  # fmt: skip
    assert {n: t.shape for n, t in table.write(module.state_dict(), prefix).items()} == listed


@pytest.mark.parametrize("component", MAKERS)
@pytest.mark.parametrize("settings", ["essential_config", "full_config_with_defaults"])
def test_published_components(shared, component, settings):
    listing = manifest(shared, f"diffusers_{component}")
    to_config, make, to_table = MAKERS[component]
    config = to_config(listing[settings] if settings in listing else listing["config"])
    published = empty(listing["tensors"])
    assert set(to_table(config).published()) == set(published)
    assert_round_trip(on_meta(make, config), to_table(config), published)


def test_camera_projections(shared):
    for variant in manifest(shared, "diffusers_camera_projection")["variants"]:
        layer = layout_diffusers.CAMERA_PROJECTIONS[variant["component"]]
        assert_round_trip(
            on_meta(lambda _: nn.Linear(772, 768), None),
            layout_diffusers.camera_projection(layer), empty(variant["tensors"]),
        )  # fmt: skip


def test_the_original_checkpoint(shared):
    published = empty(manifest(shared, "ldm_original")["tensors"])
    unet, autoencoder = layout_ldm.unet_config(ZERO123_UNET), layout_ldm.autoencoder_config(AUTOENCODER)
    for module, table, prefix in (
        (on_meta(MultiViewUNet, unet), layout_ldm.unet(unet), "model.diffusion_model."),
        (on_meta(Autoencoder, autoencoder), layout_ldm.autoencoder(autoencoder), "first_stage_model."),
        (
            on_meta(VisionTower, vit_l14()[0]),
            layout_ldm.openai_image_tower(vit_l14()[0]),
            "cond_stage_model.model.",
        ),
    ):
        assert_round_trip(module, table, published, prefix)


def test_both_layouts_lead_to_the_same_parameters(shared):
    """The recorded map from ldm names to diffusers names is the composition of our two tables."""
    recorded = manifest(shared, "ldm_to_diffusers_map")
    unet, autoencoder = layout_ldm.unet_config(ZERO123_UNET), layout_ldm.autoencoder_config(AUTOENCODER)
    # Heads of the published U-Net: 8 of them at each level, in both layouts.
    listing = manifest(shared, "diffusers_unet")
    assert layout_diffusers.unet_config(listing["essential_config"]) == unet
    assert layout_diffusers.autoencoder_config(manifest(shared, "diffusers_vae")["essential_config"]) == autoencoder
    assert layout_diffusers.vision_config(manifest(shared, "diffusers_image_encoder")["config"]) == vit_l14()[0]
    for part, prefix, ldm, diffusers in (
        ("unet", "model.diffusion_model.", layout_ldm.unet(unet), layout_diffusers.unet(unet)),
        ("vae", "first_stage_model.", layout_ldm.autoencoder(autoencoder), layout_diffusers.autoencoder(autoencoder)),
        (
            "image_encoder",
            "cond_stage_model.model.",
            layout_ldm.openai_image_tower(vit_l14()[0]),
            layout_diffusers.image_encoder(vit_l14()[0]),
        ),
    ):
        theirs = {e.ours: e.published for e in diffusers.entries}
        composed = {prefix + e.published[0]: theirs[e.ours] for e in ldm.entries}
        listed = {
            name: tuple(n.removesuffix(" (transpose)") for n in ([target] if isinstance(target, str) else target))
            for name, target in recorded[part].items()
        }
        assert composed == listed
    for i, layer in enumerate(layout_diffusers.CAMERA_PROJECTIONS.values()):
        theirs = {e.ours: e.published[0] for e in layout_diffusers.camera_projection(layer).entries}
        composed = {"cc_projection." + e.published[0]: theirs[e.ours] for e in layout_ldm.camera_projection().entries}
        variants = {name: value.split(" / ")[i].split(" ")[0] for name, value in recorded["camera_projection"].items()}
        assert composed == variants


@pytest.mark.parametrize(
    ("published", "listing"), [(SD15_UNET, "mvdream_sd15_4view_unet"), (SD21_UNET, "mvdream_sd21_4view_unet")]
)
def test_stable_diffusion_is_mvdream_without_cameras(shared, published, listing):
    ldm = json.loads(shared("reference", "manifests", f"{listing}.json").read_text())["meta"]["unet_config"]
    assert layout_diffusers.unet_config(published) == replace(layout_ldm.unet_config(ldm), camera_dim=None)


def test_text_towers_of_stable_diffusion():
    sd15 = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
            "hidden_act": "quick_gelu", "projection_dim": 768, "vocab_size": 49408}  # fmt: skip
    assert layout_diffusers.text_config(sd15) == replace(vit_l14()[1], embed_dim=None)
    sd21 = {"hidden_size": 1024, "num_hidden_layers": 23, "num_attention_heads": 16, "intermediate_size": 4096,
            "hidden_act": "gelu", "projection_dim": 512, "vocab_size": 49408}  # fmt: skip
    assert layout_diffusers.text_config(sd21) == replace(TextConfig(), layers=23, embed_dim=None)
    table = layout_ldm.clip_text_huggingface(replace(layout_diffusers.text_config(sd15), layers=1))
    tower = on_meta(TextTower, replace(layout_diffusers.text_config(sd15), layers=1))
    assert_round_trip(tower, table, table.write(tower.state_dict(), "text_model."), "text_model.")


def small(**changes):
    return {
        "in_channels": 4, "out_channels": 4, "block_out_channels": [16, 32, 32], "layers_per_block": [1, 2, 1],
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"],
        "attention_head_dim": [2, 4, 8], "cross_attention_dim": 12, "norm_num_groups": 8, **changes,
    }  # fmt: skip


@pytest.mark.parametrize("linear", [False, True])
def test_values_survive_the_way_out_and_back(linear):
    config = layout_diffusers.unet_config(small(use_linear_projection=linear, transformer_layers_per_block=2))
    assert config == UNetConfig(
        channels=16, channel_mult=(1, 2, 2), res_blocks=(1, 2, 1), attention=(True, False, True), head_width=None,
        level_heads=(2, 4, 8), linear_projection=linear, transformer_depth=2, context_dim=12, camera_dim=None, groups=8,
    )  # fmt: skip
    network, table = MultiViewUNet(config), layout_diffusers.unet(config)
    assert network.middle.transformer.blocks[0].self_attention.heads == 8
    assert network.up[2].blocks[0].transformer.blocks[1].self_attention.heads == 2
    back = table.read(table.write(network.state_dict()))
    assert all(torch.equal(tensor, back[name]) for name, tensor in network.state_dict().items())


def test_old_names_of_the_autoencoders_attention():
    listing = {"block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4,
               "down_block_types": ["AttnDownEncoderBlock2D", "DownEncoderBlock2D"],
               "up_block_types": ["UpDecoderBlock2D", "AttnUpDecoderBlock2D"]}  # fmt: skip
    config = layout_diffusers.autoencoder_config(listing)
    assert config.attention == (True, False)
    old, new = layout_diffusers.autoencoder(config, old_names=True), layout_diffusers.autoencoder(config)
    assert "encoder.mid_block.attentions.0.query.weight" in set(old.published())
    assert "encoder.down_blocks.0.attentions.0.to_q.weight" in set(new.published())
    module = Autoencoder(config)
    assert set(old.ours()) == set(new.ours()) == set(module.state_dict())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flip_sin_to_cos": False}, "flip_sin_to_cos = False; only True"),
        ({"class_embed_type": "timestep"}, "unknown setting class_embed_type"),
        ({"up_block_types": ["UpBlock2D"] * 3}, "other levels on the way up"),
        ({"down_block_types": ["DownBlock2D", "DownBlock2D", "SkipDownBlock2D"]}, "SkipDownBlock2D"),
        ({"transformer_layers_per_block": [1, 2, 10]}, "several values of transformer_layers_per_block"),
    ],
)
def test_settings_that_change_the_network_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        layout_diffusers.unet_config(small(**changes))


def test_networks_that_are_only_ours_have_no_table():
    with pytest.raises(ValueError, match="no cameras"):
        layout_diffusers.unet(UNetConfig())


def test_noise_schedules(shared):
    published = manifest(shared, "diffusers_layout")["scheduler_config"]
    schedule = layout_diffusers.noise_schedule(published)
    assert schedule.predicts == "eps" and schedule.num_steps == 1000
    assert float(schedule.alphas_cumprod[999]) == pytest.approx(0.00466, abs=1e-5)
    assert layout_diffusers.noise_schedule({**published, "prediction_type": "v_prediction"}).predicts == "v"
    linear = layout_diffusers.noise_schedule({"num_train_timesteps": 10})
    assert float(linear.betas[0]) == pytest.approx(1e-4) and float(linear.betas[-1]) == pytest.approx(0.02)
    for fault in ({"beta_schedule": "squaredcos_cap_v2"}, {"prediction_type": "flow"}, {"trained_betas": [0.1]}):
        with pytest.raises(ValueError, match="this scheduler"):
            layout_diffusers.noise_schedule({**published, **fault})


def test_heads_are_said_in_one_way():
    with pytest.raises(ValueError, match="one of head_width"):
        UNetConfig(level_heads=(1, 2, 4, 4))
    with pytest.raises(ValueError, match="one entry per level, got 2 for 4"):
        UNetConfig(head_width=None, level_heads=(1, 2))
    config = UNetConfig(head_width=None, level_heads=(1, 2, 4, 8))
    assert [config.heads(320, level) for level in (0, 1, -1)] == [(1, 320), (2, 160), (8, 40)]


CROSS, PLAIN = "CrossAttn{}Block2D", "{}Block2D"
TWINS = [
    ([64, 96], "x-", {"layers_per_block": 1, "attention_head_dim": 4}),
    ([32, 48, 64], "xx-", {"layers_per_block": [1, 2, 1], "attention_head_dim": [2, 3, 4], "norm_num_groups": 16}),
    ([32, 64], "--", {"layers_per_block": 2, "attention_head_dim": 8, "in_channels": 8}),
    ([32, 32], "-x", {"layers_per_block": 1, "attention_head_dim": [2, 4], "transformer_layers_per_block": 2}),
    ([32], "x", {"layers_per_block": 1, "attention_head_dim": 2, "use_linear_projection": True}),
]
"""Widths, attention by level, and further settings; among them no level with attention, and widths that are no
multiples of the first."""


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("widths", "attention", "settings"), TWINS, ids=lambda value: str(value)[:20])
def test_small_networks_compute_what_diffusers_computes(widths, attention, settings):
    diffusers = pytest.importorskip("diffusers", reason="needs diffusers: pip install 'maquette[published]'")
    kinds = [CROSS if letter == "x" else PLAIN for letter in attention]
    theirs = diffusers.UNet2DConditionModel(
        sample_size=16, block_out_channels=widths, cross_attention_dim=24,
        down_block_types=[kind.format("Down") for kind in kinds],
        up_block_types=[kind.format("Up") for kind in reversed(kinds)], **settings,
    )  # fmt: skip
    randomised(theirs)
    config = layout_diffusers.unet_config(dict(theirs.config))
    ours, table = MultiViewUNet(config).eval(), layout_diffusers.unet(config)
    ours.load_state_dict(table.read(theirs.state_dict()))
    assert table.write(ours.state_dict()).keys() == theirs.state_dict().keys()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, theirs.config.in_channels, 8, 16, generator=generator)
    t, words = torch.tensor([3, 999]), torch.randn(2, 5, 24, generator=generator)
    with torch.no_grad():
        expected = theirs(x, t, words).sample
        torch.testing.assert_close(ours(x[:, None], t, words)[:, 0], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("widths", "latents", "groups"), [([32, 48], 4, 16), ([16, 32, 32], 3, 8)])
def test_small_autoencoders_compute_what_diffusers_computes(widths, latents, groups):
    diffusers = pytest.importorskip("diffusers", reason="needs diffusers: pip install 'maquette[published]'")
    theirs = diffusers.AutoencoderKL(
        block_out_channels=widths, latent_channels=latents, norm_num_groups=groups, layers_per_block=1,
        down_block_types=["DownEncoderBlock2D"] * len(widths), up_block_types=["UpDecoderBlock2D"] * len(widths),
    )  # fmt: skip
    randomised(theirs)
    config = layout_diffusers.autoencoder_config(dict(theirs.config))
    ours = Autoencoder(config).eval()
    ours.load_state_dict(layout_diffusers.autoencoder(config).read(theirs.state_dict()))
    image = torch.rand(1, 3, 16, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        mean = theirs.encode(image).latent_dist.mean
        torch.testing.assert_close(ours.encode(image)[0], mean, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ours.decode(mean), theirs.decode(mean).sample, atol=1e-5, rtol=1e-4)
