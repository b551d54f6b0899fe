"""Zero-1-to-3 and Stable Diffusion as priors, from their published files.

Each loader takes what a person has: a checkpoint in the original (ldm) layout, or a folder in the diffusers layout.
Names and shapes are checked before anything is read, then every network is filled one tensor at a time on its device
and in its precision, so that a model is in memory once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from maquette.diffusion.autoencoder import Autoencoder, AutoencoderConfig
from maquette.diffusion.clip import CLIP, TextConfig, TextTower, VisionConfig, VisionTower, vit_h14, vit_l14
from maquette.diffusion.schedule import NoiseSchedule, Parametrisation
from maquette.diffusion.unet import MultiViewUNet, UNetConfig
from maquette.errors import UserError
from maquette.priors import layout_diffusers, layout_ldm
from maquette.priors.checkpoints import KeyTable
from maquette.priors.clip_encoders import ClipTextEncoder, PooledImageEncoder
from maquette.priors.clip_tokenizer import Padding, find_merges, read_tokenizer
from maquette.priors.codecs import SD_LATENT_SCALE, KLCodec
from maquette.priors.placement import current_placement
from maquette.priors.published import Part
from maquette.priors.single_view_files import (
    AUTOENCODER,
    IMAGE_TOWER,
    PROJECTION,
    TEXT_SD1,
    TEXT_SD2,
    UNET,
    DiffusersFolder,
    averaged,
    filled,
    hashed,
    is_average,
    looks_like,
    outline,
    understood,
    weights_path,
)
from maquette.priors.stable_diffusion import StableDiffusionConfig, StableDiffusionPrior
from maquette.priors.tensor_files import TensorFile
from maquette.priors.zero123 import Zero123Config, Zero123Prior
from maquette.priors.zero123_pose import POSE_LENGTH

SD1_UNET = UNetConfig(head_width=None, num_heads=8, linear_projection=False, context_dim=768, camera_dim=None)
"""Stable Diffusion 1; Zero-1-to-3 has twice the input channels."""


@dataclass(frozen=True)
class LdmConfig:
    """What an ldm checkpoint is made of, which its names do not say. The defaults are those of all Zero-1-to-3s."""

    network: UNetConfig = replace(SD1_UNET, in_channels=8)
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    vision: VisionConfig | None = vit_l14()[0]
    """The image tower, if there is one."""
    text: TextConfig | None = None
    """The text tower, if there is one: with a projection in OpenCLIP's layout (2.x), else Hugging Face's (1.x)."""
    image_size: int = 256


def ldm_parts(ldm: LdmConfig) -> dict[str, Part]:
    """The networks of an ldm checkpoint, small ones first, so that a wrong file is refused early."""
    found: dict[str, Part] = {}
    vision, text, context = ldm.vision, ldm.text, ldm.network.context_dim
    if vision is not None:
        table = layout_ldm.openai_image_tower(vision)
        inputs = vision.embed_dim + POSE_LENGTH
        found["projection"] = Part(PROJECTION, layout_ldm.camera_projection(), lambda: nn.Linear(inputs, context))
        found["vision"] = Part(IMAGE_TOWER, table, lambda: VisionTower(vision))
    if text is not None and text.embed_dim is None:
        found["text"] = Part(TEXT_SD1, layout_ldm.clip_text_huggingface(text), lambda: TextTower(text))
    elif text is not None:
        found["clip"] = Part(TEXT_SD2, layout_ldm.openclip(None, text), lambda: CLIP(None, text))
    autoencoder = layout_ldm.autoencoder(ldm.autoencoder)
    found["autoencoder"] = Part(AUTOENCODER, autoencoder, lambda: Autoencoder(ldm.autoencoder))
    found["network"] = Part(UNET, layout_ldm.unet(ldm.network), lambda: MultiViewUNet(ldm.network))
    return found


ZERO123 = LdmConfig()
SD15 = LdmConfig(SD1_UNET, vision=None, text=replace(vit_l14()[1], embed_dim=None), image_size=512)
SD21 = LdmConfig(UNetConfig(camera_dim=None), vision=None, text=vit_h14()[1], image_size=512)

Facts = dict[str, Any]


def load_zero123(
    path: Path,
    config: Zero123Config | None = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    ldm: LdmConfig = ZERO123,
    facts: Mapping[str, Any] | None = None,
) -> Zero123Prior:
    """Zero-1-to-3, XL or Stable, from a checkpoint or a folder; `config.pose` must say which convention it speaks.

    `dtype` is for all networks but the autoencoder, which overflows in half precision (default: float16 on a GPU, else
    float32). `ldm` describes a checkpoint, a folder describes itself. `facts` (name, licence) go to the prior's card,
    beside which files were read and whether the U-Net is the running average. UserError naming what does not fit.
    """
    source, dtype = weights_path(path), _precision(device, dtype)
    place: Facts = {"device": device, "dtype": dtype}
    schedule, scale, size = NoiseSchedule.scaled_linear(), SD_LATENT_SCALE, ldm.image_size
    if isinstance(source, TensorFile):
        networks, found = _ldm_networks(source, ldm, place)
        if not {"projection", "vision"} <= networks.keys():
            raise ValueError("Zero-1-to-3 reads its picture with an image tower; give ldm.vision")
        network, codec_net = networks["network"], networks["autoencoder"]
        vision, projection = networks["vision"], networks["projection"]
    else:
        component = next((name for name in layout_diffusers.CAMERA_PROJECTIONS if source.has(name)), None)
        if component is None:
            raise UserError(
                f"{source.path} has none of the folders {', '.join(layout_diffusers.CAMERA_PROJECTIONS)}, one of which "
                "holds Zero-1-to-3's projection of poses, so it is another model"
            )
        file = source.file(component)
        table = layout_diffusers.camera_projection(layout_diffusers.CAMERA_PROJECTIONS[component])
        projection = _projection(file, table, place)
        vision, vision_file = _image_encoder(source, place)
        network, codec_net, found, scale, size = _diffusers_networks(source, place)
        found["files"] |= {"image_encoder": vision_file, "projection": file.path}
        schedule = _schedule(source)
    return Zero123Prior(
        network=network,
        codec=KLCodec(codec_net, size, scale, chunk=1).eval().requires_grad_(False),
        noise_schedule=schedule,
        image_encoder=PooledImageEncoder(vision).eval(),
        projection=projection,
        config=config or Zero123Config(),
        weights={**(facts or {}), **_told(found), "precision": str(dtype).removeprefix("torch.")},
    )


def load_stable_diffusion(
    path: Path,
    config: StableDiffusionConfig | None = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    merges: Path | None = None,
    predicts: Parametrisation | None = None,
    image_size: int | None = None,
    ldm: LdmConfig | None = None,
    facts: Mapping[str, Any] | None = None,
) -> StableDiffusionPrior:
    """Stable Diffusion 1.x or 2.x from a checkpoint or a folder, for images of 512 px unless told otherwise.

    `merges` is the tokeniser's list (default: in the folder, or beside the file). `predicts` is needed for checkpoints
    that do not predict eps: nothing in their files tells 2.1, which predicts v, from 2.1-base. The rest as for
    `load_zero123`.
    """
    source, dtype = weights_path(path), _precision(device, dtype)
    place: Facts = {"device": device, "dtype": dtype}
    schedule, scale = NoiseSchedule.scaled_linear(predicts=predicts or "eps"), SD_LATENT_SCALE
    padding: Padding
    if isinstance(source, TensorFile):
        ldm = ldm or _which(source)
        networks, found = _ldm_networks(source, ldm, place)
        if not networks.keys() & {"text", "clip"}:
            raise ValueError("Stable Diffusion reads words with a text tower; give ldm.text")
        network, codec_net = networks["network"], networks["autoencoder"]
        text = networks["text"] if "text" in networks else networks["clip"].text
        # OpenCLIP's tower has one block that Stable Diffusion 2 does not look at.
        skip_last, padding = (0, "end") if "text" in networks else (1, "zero")
        size = ldm.image_size
    else:
        text_settings = source.config("text_encoder")
        text_config = understood(layout_diffusers.text_config, text_settings, source.path / "text_encoder")
        text, skip_last, file = outline(TextTower, text_config), 0, source.file("text_encoder")
        filled(text, file, layout_ldm.clip_text_huggingface(text_config), "text_model.", **place)
        network, codec_net, found, scale, size = _diffusers_networks(source, place)
        found["files"]["text_encoder"] = file.path
        # Stable Diffusion 1 was trained with OpenAI's padding, 2 with OpenCLIP's; their towers differ in activation.
        padding = "end" if text_config.activation == "quick_gelu" else "zero"
        schedule = _schedule(source)
        if predicts is not None:
            schedule = NoiseSchedule(schedule.alphas_cumprod, predicts)
    listed = merges or find_merges(path if path.is_dir() else path.parent)
    if listed is None:
        raise UserError(f"{path} has no list of merges of its tokeniser beside it (merges.txt); put it there")
    tower = text.config
    return StableDiffusionPrior(
        network=network,
        codec=KLCodec(codec_net, image_size or size, scale, chunk=1).eval().requires_grad_(False),
        noise_schedule=schedule,
        tokenizer=read_tokenizer(listed, tower.vocabulary, tower.context_length, padding),
        text_encoder=ClipTextEncoder(text, skip_last).eval(),
        config=config or StableDiffusionConfig(),
        weights={**(facts or {}), **_told(found), "precision": str(dtype).removeprefix("torch.")},
    )


def load_single_view(
    name: str,
    path: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    merges: Path | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Zero123Prior | StableDiffusionPrior:
    """The prior of a name of `ZERO123_MODELS` or `STABLE_DIFFUSION_MODELS`, used as its authors trained it.

    UserError for another name.
    """
    if name in ZERO123_MODELS:
        return load_zero123(path, ZERO123_MODELS[name], device=device, dtype=dtype, facts=facts)
    if name not in STABLE_DIFFUSION_MODELS:
        known = ", ".join((*ZERO123_MODELS, *STABLE_DIFFUSION_MODELS))
        raise UserError(f"there is no published single-view prior {name!r}; known are {known}")
    use, kind = STABLE_DIFFUSION_MODELS[name]
    return load_stable_diffusion(path, use, device=device, dtype=dtype, merges=merges, predicts=kind, facts=facts)


ZERO123_MODELS: Mapping[str, Zero123Config] = {
    "zero123": Zero123Config(),
    "zero123-xl": Zero123Config(name="Zero-1-to-3 XL"),
    "stable-zero123": Zero123Config(name="Stable Zero123", pose="stable-zero123"),
    "stable-zero123-c": Zero123Config(name="Stable Zero123 C", pose="stable-zero123"),
}
"""Registry name -> how the model is used."""
STABLE_DIFFUSION_MODELS: Mapping[str, tuple[StableDiffusionConfig, Parametrisation]] = {
    "stable-diffusion-1.5": (StableDiffusionConfig(name="Stable Diffusion 1.5"), "eps"),
    "stable-diffusion-2.1-base": (StableDiffusionConfig(name="Stable Diffusion 2.1-base"), "eps"),
}
"""Registry name -> how the model is used, and what it predicts."""


def _precision(device: torch.device | str, dtype: torch.dtype | None) -> torch.dtype:
    return dtype or current_placement().dtype(device)


def _which(file: TensorFile) -> LdmConfig:
    """Whether a checkpoint is Stable Diffusion 1 or 2."""
    if any(name.startswith(TEXT_SD1) for name in file.tensors):
        return SD15
    if any(name.startswith(TEXT_SD2 + "transformer.") for name in file.tensors):
        return SD21
    raise UserError(f"{file.path} has no text encoder of Stable Diffusion 1 or 2; it looks like {looks_like(file)}")


def _ldm_networks(file: TensorFile, ldm: LdmConfig, place: Facts) -> tuple[dict[str, Any], Facts]:
    """The networks by the names of `ldm_parts`, and what was read."""
    parts = ldm_parts(ldm)
    source, is_average = averaged(file, parts["network"].table)
    networks = {
        name: filled(outline(part.make), source, part.table, part.prefix, **_kept_exact(name, place))
        for name, part in parts.items()
    }
    return networks, {"layout": "ldm", "averaged": is_average, "files": {"all": file.path}}


def _kept_exact(name: str, place: Facts) -> Facts:
    """Where and how precisely a network is kept; the autoencoder overflows in half precision."""
    return {**place, "dtype": torch.float32} if name == "autoencoder" else place


def _diffusers_networks(folder: DiffusersFolder, place: Facts) -> tuple[MultiViewUNet, Autoencoder, Facts, float, int]:
    """U-Net, autoencoder, what was read, the latents' scale, and the side of images."""
    settings = folder.config("unet")
    unet_config = understood(layout_diffusers.unet_config, settings, folder.path / "unet")
    unet_file = folder.file("unet")
    network = filled(outline(MultiViewUNet, unet_config), unet_file, layout_diffusers.unet(unet_config), **place)
    vae_settings, vae_file = folder.config("vae"), folder.file("vae")
    vae_config = understood(layout_diffusers.autoencoder_config, vae_settings, folder.path / "vae")
    old_names = any(name.endswith(".query.weight") for name in vae_file.tensors)
    codec_net = filled(
        outline(Autoencoder, vae_config), vae_file, layout_diffusers.autoencoder(vae_config, old_names=old_names),
        **_kept_exact("autoencoder", place),
    )  # fmt: skip
    assert isinstance(network, MultiViewUNet) and isinstance(codec_net, Autoencoder)
    found = {
        "layout": "diffusers", "averaged": is_average(unet_file),
        "files": {"unet": unet_file.path, "autoencoder": vae_file.path},
    }  # fmt: skip
    scale = float(vae_settings.get("scaling_factor", SD_LATENT_SCALE))
    return network, codec_net, found, scale, int(settings.get("sample_size", 64)) * codec_net.downsampling


def _image_encoder(folder: DiffusersFolder, place: Facts) -> tuple[VisionTower, Path]:
    config = understood(layout_diffusers.vision_config, folder.config("image_encoder"), folder.path / "image_encoder")
    file = folder.file("image_encoder")
    tower = filled(outline(VisionTower, config), file, layout_diffusers.image_encoder(config), **place)
    assert isinstance(tower, VisionTower)
    return tower, file.path


def _projection(file: TensorFile, table: KeyTable, place: Facts) -> nn.Linear:
    weight = file.tensors.get(next(name for name in table.published() if name.endswith("weight")))
    if weight is None or len(weight.shape) != 2:
        raise UserError(f"{file.path} has no projection of poses; it looks like {looks_like(file)}")
    linear = filled(outline(nn.Linear, weight.shape[1], weight.shape[0]), file, table, **place)
    assert isinstance(linear, nn.Linear)
    return linear


def _schedule(folder: DiffusersFolder) -> NoiseSchedule:
    return understood(
        layout_diffusers.noise_schedule, folder.config("scheduler", "scheduler_config.json"), folder.path / "scheduler"
    )


def _told(found: Facts) -> Facts:
    """What was read, with its sha256, for the card."""
    return {"layout": found["layout"], "averaged": found["averaged"], **hashed(found["files"])}
