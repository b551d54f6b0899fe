"""The recorded numbers of MVDream and ImageDream are met, and the runner notices when they are not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from maquette.diffusion.autoencoder import Autoencoder
from maquette.diffusion.unet import ImagePromptConfig, MultiViewUNet
from maquette.priors import layout_ldm
from tests.parity.golden import Golden, read_tensors, relative_error
from tests.parity.imagedream.models import load_unet
from tests.parity.runner import find_cases, main, run_case

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(goldens, tmp_path):
    """A copy of the goldens in which files may be changed."""
    return Path(shutil.copytree(goldens / "imagedream", tmp_path / "imagedream", copy_function=shutil.copyfile))


def change(path, **tensors):
    """Rewrite a data file with some tensors replaced or added."""
    old, metadata = read_tensors(path)
    save_file({**old, **{name.replace("__", "."): value for name, value in tensors.items()}}, path, metadata)


def test_every_case_is_met(goldens, capsys):
    assert main([str(goldens / "imagedream")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"{len(lines) - 1} cases: {len(lines) - 1} ok, 0 FAIL, 0 unknown"
    assert len(lines) - 1 == len(find_cases(goldens / "imagedream")) >= 29


@pytest.mark.parametrize(
    "case",
    ["imagedream_small.case_pixel", "ddim.pixel", "camera", "schedules", "vae_small", "openclip_small",
     "resampler_small", "sds.imagedream_pixel_rgb", "image_prompt", "image_proj"],
)  # fmt: skip
def test_a_changed_number_is_seen_in_every_expected_tensor(folder, case):
    """Each floating-point result in turn is moved at one entry by a hundredth of its largest value."""
    path = folder / f"{case}.safetensors"
    tensors, metadata = read_tensors(path)
    inputs = ("in.", "weights.", "elevation", "azimuth", "fovy", "camera_distances")
    results = [n for n in tensors if not n.startswith(inputs) and n.split(".")[-1] not in inputs and tensors[n].numel()]
    # Files with dozens of alike matrices: every seventh stands for the others.
    for name in results if len(results) < 40 else results[::7]:
        wrong = tensors[name].clone()
        flat = wrong.view(-1)
        flat[-1] += 2 if not wrong.is_floating_point() else 0.01 * float(wrong.abs().max()) + 1e-6
        save_file({**tensors, name: wrong}, path, metadata)
        outcome = run_case(path)
        assert outcome.verdict == "FAIL", f"{name} was changed and nobody saw it: {outcome}"
    save_file(tensors, path, metadata)
    assert run_case(path).verdict == "ok"


def test_a_number_that_is_none_fails(folder):
    path = folder / "image_proj.safetensors"
    wrong = read_tensors(path)[0]["out.y"].clone()
    wrong[0, 0, 0] = float("nan")
    change(path, out__y=wrong)
    assert run_case(path).verdict == "FAIL"


def test_another_shape_fails(folder):
    path = folder / "image_proj.safetensors"
    change(path, out__y=read_tensors(path)[0]["out.y"][:1].contiguous())
    assert run_case(path).verdict == "FAIL"


@pytest.mark.parametrize("case", ["vae_small", "ddim.local", "sds.mvdream", "mvdream_sd21_small.case_2d", "camera"])
def test_a_result_that_nothing_is_compared_with_is_unknown(folder, case):
    path = folder / f"{case}.safetensors"
    change(path, out__another=torch.zeros(3))
    outcome = run_case(path)
    assert outcome.verdict == "unknown"
    assert "out.another" in outcome.why


def test_a_file_of_another_kind_is_unknown_and_fails_the_run(folder, capsys):
    save_file({"out.y": torch.zeros(3)}, folder / "novelty.safetensors")
    (folder / "other.json").write_text(json.dumps({"rows": []}))
    assert main([str(folder)]) == 1
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert [line.split()[0] for line in lines if line.endswith(" unknown") and "cases:" not in line] == [
        "novelty",
        "other",
    ]
    assert lines[-1].endswith("29 ok, 0 FAIL, 2 unknown")


def test_a_missing_companion_fails(folder):
    (folder / "vae_small.config.json").unlink()
    outcome = run_case(folder / "vae_small.safetensors")
    assert outcome.verdict == "FAIL"
    assert "vae_small.config.json" in outcome.why


def test_wrong_weights_fail(folder):
    config = json.loads((folder / "imagedream_small.config.json").read_text())
    config["weights"] = config["weights"][:1]
    (folder / "imagedream_small.config.json").write_text(json.dumps(config))
    outcome = run_case(folder / "imagedream_small.case_2d.safetensors")
    assert outcome.verdict == "FAIL"
    assert "lacks" in outcome.why


def test_no_case_is_no_success(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    assert capsys.readouterr().out == "0 cases: 0 ok, 0 FAIL, 0 unknown\n"
    assert main([str(tmp_path / "nowhere")]) == 2
    assert main([]) == 2


def test_the_command(goldens, tmp_path):
    for name in ("image_proj.safetensors", "image_proj.config.json"):
        shutil.copyfile(goldens / "imagedream" / name, tmp_path / name)
    command = [sys.executable, "-m", "tests.parity", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, last = done.stdout.splitlines()
    assert first.split()[0] == "image_proj"
    assert first.split()[2] == "ok"
    assert last == "1 cases: 1 ok, 0 FAIL, 0 unknown"


def test_companions_are_no_cases(folder):
    names = {path.name for path in find_cases(folder)}
    assert "anneal.json" in names
    assert not names & {
        "camera.json",
        "noise_floor.json",
        "vae_small.config.json",
        "mvdream_sd21_small.weights.safetensors",
    }


def test_the_error_is_relative_to_the_largest_reference():
    reference = torch.tensor([0.0, -4.0])
    assert relative_error(torch.tensor([1.0, -4.0]), reference) == pytest.approx(0.25)
    assert relative_error(torch.zeros(2), torch.zeros(2)) == 0.0
    assert relative_error(torch.ones(2), torch.zeros(2)) == float("inf")
    assert relative_error(torch.zeros(3), reference) == float("inf")
    nan = relative_error(torch.tensor([float("nan"), 0.0]), reference)
    assert nan != nan


def test_a_case_reads_its_facts(folder):
    assert Golden(folder / "anneal.json").facts["rows"][0]["step"] == 0
    with pytest.raises(ValueError, match=r"vae_small\.json"):
        _ = Golden(folder / "vae_small.safetensors").facts


def test_other_sizes_and_settings_are_read_from_the_files(tmp_path, generator):
    """A folder of our own making, nothing of which has the size, depth or placement of the recorded ones."""
    settings = {
        "in_channels": 4, "out_channels": 4, "model_channels": 32, "channel_mult": [1, 2, 1, 2],
        "num_res_blocks": [1, 2, 1, 1], "attention_resolutions": [2, 8], "num_heads": 2, "context_dim": 20,
        "transformer_depth": 1, "camera_dim": 16, "with_ip": True, "ip_dim": 5, "ip_mode": "local_resample",
        "ip_weight": 0.7, "legacy": False,
    }  # fmt: skip
    config = replace(
        layout_ldm.unet_config(settings), image_prompt=ImagePromptConfig(24, num_queries=5, depth=3, heads=2, ff_mult=2)
    )
    torch.manual_seed(4)
    network = MultiViewUNet(config).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save_file(layout_ldm.unet(config).write(network.state_dict()), tmp_path / "other.weights.safetensors")
    (tmp_path / "other.config.json").write_text(
        json.dumps({"unet": settings, "weights": ["other.weights.safetensors"]})
    )

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    x, context, camera, ip = normal(3, 3, 4, 16, 8), normal(3, 3, 6, 20), normal(3, 3, 16), normal(3, 3, 7, 24)
    t, ip_img = torch.tensor([3, 500, 999])[:, None].expand(3, 3), normal(3, 4, 16, 8)
    with torch.no_grad():
        shown = torch.cat([x[:, :2], ip_img[:, None]], dim=1)
        out = {
            f"out.{name}": network(shown, t, context, camera, features, image_weight=weight).flatten(0, 1)
            for name, features, weight in (
                ("eps", ip, 0.7), ("eps_ipweight1.5", ip, 1.5), ("eps_zero_ip", torch.zeros_like(ip), 0.7),
            )
        }  # fmt: skip
    given = {"in.x": x, "in.context": context, "in.camera": camera, "in.ip": ip, "in.timesteps": t}
    given = {name: value.flatten(0, 1).contiguous() for name, value in given.items()} | {"in.ip_img": ip_img}
    path = tmp_path / "other.case_anything.safetensors"
    save_file({**given, **out}, path, {"num_frames": "3"})
    assert run_case(path).verdict == "ok"
    change(path, out__eps_zero_ip=out["out.eps"])
    assert run_case(path).verdict == "FAIL"


def test_an_autoencoder_with_attention_elsewhere(tmp_path, generator):
    shape = {"double_z": True, "z_channels": 3, "resolution": 16, "in_channels": 3, "out_ch": 3, "ch": 32,
             "ch_mult": [1, 2, 1], "num_res_blocks": 2, "attn_resolutions": [8], "dropout": 0.0}  # fmt: skip
    (tmp_path / "kl.config.json").write_text(json.dumps({"ddconfig": shape, "embed_dim": 5}))
    config = layout_ldm.autoencoder_config({"ddconfig": shape, "embed_dim": 5})
    assert config.attention == (False, True, False)
    autoencoder = Autoencoder(config).eval()
    image, z = torch.randn(1, 3, 16, 16, generator=generator), torch.randn(1, 5, 4, 4, generator=generator)
    with torch.no_grad():
        mean, std = autoencoder.encode(image)
        weights = layout_ldm.autoencoder(config).write(autoencoder.state_dict(), "weights.")
        out = {"out.mean": mean, "out.std": std, "out.decoded": autoencoder.decode(z)}
    out = {name: value.contiguous() for name, value in out.items()}
    save_file({"in.image": image, "in.z": z, **weights, **out}, tmp_path / "kl.safetensors")
    assert run_case(tmp_path / "kl.safetensors").verdict == "ok"


def test_a_step_without_guidance_is_compared_with_both_halves(folder):
    """At scale 1 the conditional half decides; it is in the recording of the guided step."""
    path = folder / "sds.imagedream_local.safetensors"
    tensors, metadata = read_tensors(path)
    recorded = tensors["asm.unet.out"]
    latents, noise, t = tensors["in.latents"], tensors["in.noise"], int(metadata["t"])
    eps_cond = recorded[: len(latents)]
    clean = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    kept = torch.cumprod(1 - clean, 0)[t]
    alpha, sigma = float(kept.sqrt()), float((1 - kept).sqrt())
    classic, rebuilt = (1 - float(kept)) * (eps_cond - noise), sigma / alpha * (eps_cond - noise)
    found = {}
    for form, gradient, norm in (
        ("eps", classic, classic.norm()),
        ("recon_rescale0", rebuilt, rebuilt.norm() / len(latents)),
        ("recon_rescale0.2", rebuilt, rebuilt.norm() / len(latents)),
    ):
        found |= {
            f"out.{form}.grad": gradient / len(latents), f"out.{form}.grad_norm": norm[None],
            f"out.{form}.loss": 0.5 * gradient.square().sum()[None] / len(latents),
        }  # fmt: skip
    save_file({**tensors, **found}, path, {**metadata, "guidance_scale": "1.0"})
    outcome = run_case(path)
    assert outcome.verdict == "ok", outcome.why
    change(path, asm__unet__out=recorded.roll(1, 0))
    assert run_case(path).verdict == "FAIL"


def test_a_loop_of_single_images_without_cameras(folder):
    """The released sampler on the 2D model, written out."""
    given, _ = read_tensors(folder / "ddim.mvdream_eta.safetensors")
    path = folder / "ddim.mvdream_2d.safetensors"
    network = load_unet(Golden(folder / "any.safetensors"), "mvdream_sd21_small").network
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    kept, x = torch.cumprod(1 - betas, 0), given["in.x_T"]
    out = {}
    for k, t in enumerate((751, 501, 251, 1)):
        before = kept[t - 250] if t > 1 else kept[0]
        with torch.no_grad():
            cond, uncond = (
                network(x[:, None], torch.full((4,), t), given[f"in.{name}"].expand(4, -1, -1))[:, 0]
                for name in ("context", "uncond_context")
            )
        eps = uncond + 3.0 * (cond - uncond)
        x0 = (x - (1 - kept[t]).sqrt().float() * eps) / kept[t].sqrt().float()
        x = before.sqrt().float() * x0 + (1 - before).sqrt().float() * eps
        out |= {f"out.step{k}.t": torch.full((4,), t), f"out.step{k}.x": x, f"out.step{k}.pred_x0": x0}
    given = {name: given[name] for name in ("in.context", "in.uncond_context", "in.x_T")}
    facts = {"model": "mvdream_sd21_small", "mode": "none", "num_frames": "1", "steps": "4", "eta": "0.0"}
    save_file({**given, **out, "out.final": x.clone()}, path, {**facts, "guidance_scale": "3.0"})
    outcome = run_case(path)
    assert outcome.verdict == "ok", outcome.why


def test_a_folder_of_two_autoencoders(folder):
    """The case says whose latents it has, or it is the one that the README names."""
    for suffix in ("safetensors", "config.json"):
        shutil.copyfile(folder / f"vae_small.{suffix}", folder / f"vae_wide.{suffix}")
    change(folder / "vae_wide.safetensors", weights__quant_conv__bias=torch.ones(8))
    path = folder / "sds.imagedream_pixel_rgb.safetensors"
    assert run_case(path).verdict == "ok"
    tensors, metadata = read_tensors(path)
    save_file(tensors, path, {**metadata, "vae": "vae_wide"})
    assert run_case(path).verdict == "FAIL"
    save_file(tensors, path, {**metadata, "vae": "vae_none"})
    assert "needs one autoencoder beside it" in run_case(path).why
