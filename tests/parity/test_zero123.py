"""The recorded numbers of Zero-1-to-3 are met, and the runner notices when they are not."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from maquette.diffusion.autoencoder import Autoencoder
from maquette.diffusion.unet import MultiViewUNet
from maquette.priors import layout_diffusers, layout_ldm
from tests.parity.golden import read_tensors
from tests.parity.runner import run_case

CASES = [
    "clip_preprocess", "relative_pose", "schedules", "stable_zero123_guidance_a", "stable_zero123_guidance_b",
    "usd_small_diffusers", "zero123_ddim", "zero123_guidance_a", "zero123_guidance_b", "zero123_small_ldm",
    "zero123_training", "zero123_unet_io", "zero123_vae_io",
]  # fmt: skip


@pytest.fixture
def folder(goldens, tmp_path):
    """The files of Zero-1-to-3, which may be changed."""
    for name in CASES:
        shutil.copyfile(goldens / "usd" / f"{name}.safetensors", tmp_path / f"{name}.safetensors")
    return tmp_path


def rewrite(path, **changes):
    """Replace some tensors of a file; "__" stands for a dot."""
    tensors, metadata = read_tensors(path)
    save_file({**tensors, **{name.replace("__", "."): value for name, value in changes.items()}}, path, metadata)


@pytest.mark.parametrize("case", CASES)
def test_every_case_is_met(goldens, case):
    outcome = run_case(goldens / "usd" / f"{case}.safetensors")
    assert outcome.verdict == "ok", outcome.why


@pytest.mark.parametrize(
    ("case", "names"),
    [
        ("zero123_unet_io", ["context", "eps_uncond", "eps_seq5"]),
        ("zero123_vae_io", ["mode", "latent_scaled"]),
        ("zero123_training", ["c_concat", "c_crossattn"]),
        ("relative_pose", ["T_zero123", "T_stable_zero123", "T_usd"]),
        ("schedules", ["ldm.timesteps_75", "diffusers.timesteps_75", "posterior_mean_coef1"]),
        ("clip_preprocess", ["out224", "out224_corner"]),
        ("zero123_guidance_b", ["unet.c_crossattn", "grad_rgb"]),
    ],
)
def test_a_changed_number_is_seen(folder, case, names):
    path = folder / f"{case}.safetensors"
    tensors, metadata = read_tensors(path)
    for name in names:
        wrong = tensors[name].clone()
        wrong.view(-1)[-1] += 2 if not wrong.is_floating_point() else 0.01 * float(wrong.abs().max())
        save_file({**tensors, name: wrong}, path, metadata)
        assert run_case(path).verdict == "FAIL", f"{name} was changed and nobody saw it"


def test_a_result_that_nothing_is_compared_with_is_unknown(folder):
    path = folder / "zero123_vae_io.safetensors"
    rewrite(path, another=torch.zeros(3))
    assert run_case(path).verdict == "unknown"


def test_the_weights_must_lie_beside_it(folder):
    (folder / "zero123_small_ldm.safetensors").unlink()
    outcome = run_case(folder / "zero123_unet_io.safetensors")
    assert outcome.verdict == "FAIL" and "cc_projection.weight" in outcome.why


def test_other_sizes_and_placements(tmp_path, generator):
    """A store and a case of our own making, nothing of which has the size of the recorded ones."""
    unet = {
        "in_channels": 8, "out_channels": 4, "model_channels": 64, "attention_resolutions": [1, 4], "legacy": False,
        "num_res_blocks": 2, "channel_mult": [1, 1, 2], "num_heads": 2, "use_spatial_transformer": True,
        "transformer_depth": 2, "context_dim": 20,
    }  # fmt: skip
    autoencoder = {"embed_dim": 4, "ddconfig": {
        "double_z": True, "z_channels": 4, "resolution": 32, "in_channels": 3, "out_ch": 3, "ch": 32,
        "ch_mult": [1, 2, 1], "num_res_blocks": 1, "attn_resolutions": [16], "dropout": 0.0,
    }}  # fmt: skip
    torch.manual_seed(2)
    network = MultiViewUNet(layout_ldm.unet_config(unet))
    vae = Autoencoder(layout_ldm.autoencoder_config(autoencoder))
    projection = torch.nn.Linear(24, 20)
    for module in (network, vae, projection):
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.08)
    store = {
        **layout_ldm.unet(network.config).write(network.state_dict(), "model.diffusion_model."),
        **layout_ldm.autoencoder(vae.config).write(vae.state_dict(), "first_stage_model."),
        "cc_projection.weight": projection.weight.detach(), "cc_projection.bias": projection.bias.detach(),
    }  # fmt: skip
    settings = {
        "scale_factor": 0.3, "unet_config": {"params": unet}, "first_stage_config": {"params": autoencoder},
    }  # fmt: skip
    save_file({k: v.contiguous() for k, v in store.items()}, tmp_path / "other.safetensors",
              {"config": json.dumps(settings)})  # fmt: skip
    assert run_case(tmp_path / "other.safetensors").verdict == "ok"

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    given = {
        "x_noisy": normal(3, 4, 8, 16), "c_concat": normal(3, 4, 8, 16), "clip_token": normal(3, 1, 20),
        "pose_T": normal(3, 4), "timesteps": torch.tensor([0, 10, 999]), "context_seq3": normal(3, 3, 20),
    }  # fmt: skip
    with torch.no_grad():
        x = torch.cat([given["x_noisy"], given["c_concat"]], dim=1)[:, None]
        context = projection(torch.cat([given["clip_token"], given["pose_T"][:, None]], dim=-1))
        out = {"context": context, "eps_cond": network(x, given["timesteps"], context)[:, 0],
               "eps_seq3": network(x, given["timesteps"], given["context_seq3"])[:, 0]}  # fmt: skip
        image, eps = normal(2, 3, 16, 32), normal(2, 4, 4, 8)
        mean, std = vae.encode(image)
    path = tmp_path / "other_io.safetensors"
    save_file({**given, **out}, path)
    assert run_case(path).verdict == "ok"
    rewrite(path, eps_seq3=out["eps_cond"])
    assert run_case(path).verdict == "FAIL"
    save_file({"image": image, "eps": eps, "latent_scaled": 0.3 * (mean + std * eps)}, tmp_path / "vae.safetensors")
    assert run_case(tmp_path / "vae.safetensors").verdict == "ok"


def test_diffusers_modules_of_other_shapes(tmp_path):
    unet = {
        "in_channels": 4, "out_channels": 4, "block_out_channels": [16, 32], "layers_per_block": 2,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"], "attention_head_dim": [2, 8],
        "cross_attention_dim": 12, "norm_num_groups": 8, "use_linear_projection": True,
    }  # fmt: skip
    config = layout_diffusers.unet_config(unet)
    tensors = layout_diffusers.unet(config).write(MultiViewUNet(config).state_dict(), "other.unet.")
    path = tmp_path / "modules.safetensors"
    save_file(tensors, path, {"other_unet": json.dumps(unet)})
    assert run_case(path).verdict == "ok"
    del tensors["other.unet.conv_in.bias"]
    save_file(tensors, path, {"other_unet": json.dumps(unet)})
    outcome = run_case(path)
    assert outcome.verdict == "FAIL" and "conv_in.bias" in outcome.why
