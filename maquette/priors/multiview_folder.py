"""MVDream and ImageDream from the third-party exports in diffusers' layout: a folder for each network.

Their U-Net has the names of the original checkpoint without its prefix, and a config.json with the keyword arguments of
the released yaml files; autoencoder and encoders are those of diffusers and transformers. CLIP's towers come without
what nobody reads: the text tower's last block, and both projections. `open_folder` shows such a folder as one file, so
that it is loaded, checked and converted like a checkpoint.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from maquette.diffusion.schedule import NoiseSchedule
from maquette.errors import UserError
from maquette.priors import layout_diffusers, layout_ldm
from maquette.priors.codecs import SD_LATENT_SCALE
from maquette.priors.multiview import MultiViewConfig
from maquette.priors.published import Family, PublishedConfig
from maquette.priors.single_view_files import DiffusersFolder, hashed, understood
from maquette.priors.tensor_files import TensorFile

UNET_CLASS = "MultiViewUNetModel"
"""The kind of U-Net that these folders hold, as their config.json says."""
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""What files of before 2023 call the layers of the autoencoder's attention."""


def open_folder(path: Path, use: MultiViewConfig) -> tuple[PublishedConfig, TensorFile, dict[str, Any]]:
    """What the folder holds, its tensors as those of one file, and the names and sha256 of what was read.

    UserError for a folder of another kind, or where it holds the other of the two models than `use` is made for.
    """
    folder = DiffusersFolder(path)
    settings = folder.config("unet")
    if (kind := settings.get("_class_name", UNET_CLASS)) != UNET_CLASS:
        raise UserError(
            f"{path / 'unet'} holds a network of the kind {kind}; of the exports only those are read whose U-Net is a "
            f"{UNET_CLASS}"
        )
    if "model_channels" not in settings:
        raise UserError(f"the settings in {path / 'unet'} lack 'model_channels'; copy or fetch them again")
    pictured = bool(settings.get("ip_dim"))
    if pictured != bool(use.controls):
        has, other = ("ImageDream", "imagedream") if pictured else ("MVDream", "mvdream")
        raise UserError(f"{path} holds {has}, not {use.name}; ask for it by the name {other}")
    files = {name: folder.file(name) for name in ("unet", "vae", "text_encoder")}
    if pictured:
        files["image_encoder"] = folder.file("image_encoder")
    config = _config(folder, files, settings, use)
    tensors = {
        f"{part}.{_current(name) if part == 'vae' else name}": stored
        for part, file in files.items()
        for name, stored in file.tensors.items()
    }
    whole = replace(files["unet"], path=path, tensors=tensors)
    return config, whole, hashed({part: file.path for part, file in files.items()})


def _config(
    folder: DiffusersFolder, files: dict[str, TensorFile], settings: dict[str, Any], use: MultiViewConfig
) -> PublishedConfig:
    # The config.json leaves out what is the same in all of these exports.
    given = {name: value for name, value in settings.items() if not name.startswith("_") and value is not None}
    given |= {"use_linear_in_transformer": True}
    if settings.get("ip_dim"):
        given |= {"with_ip": True, "ip_mode": "local_resample"}
    shapes = {name: stored.shape for name, stored in files["unet"].tensors.items()}
    network = understood(lambda published: layout_ldm.unet_config(published, shapes), given, folder.path / "unet")
    vae = folder.config("vae")
    autoencoder = understood(layout_diffusers.autoencoder_config, vae, folder.path / "vae")
    text = understood(layout_diffusers.text_config, folder.config("text_encoder"), folder.path / "text_encoder")
    vision = None
    if "image_encoder" in files:
        vision = understood(
            layout_diffusers.vision_config, folder.config("image_encoder"), folder.path / "image_encoder"
        )
        if "visual_projection.weight" not in files["image_encoder"].tensors:
            vision = replace(vision, embed_dim=0)
    _check_numbers(folder, vae)
    size = int(settings.get("image_size", 32)) * autoencoder.downsampling
    family: Family = "mvdream-folder" if vision is None else "imagedream-folder"
    return PublishedConfig(family, network, autoencoder, text, vision, use, size)


def _check_numbers(folder: DiffusersFolder, vae: dict[str, Any]) -> None:
    """UserError for another scale of the latents or another noise schedule than the released models have."""
    if abs(float(vae.get("scaling_factor", SD_LATENT_SCALE)) - SD_LATENT_SCALE) > 1e-6:
        raise UserError(f"{folder.path / 'vae'}: scaling_factor is {vae['scaling_factor']}, not {SD_LATENT_SCALE}")
    if not folder.has("scheduler"):
        return
    where = folder.path / "scheduler"
    schedule = understood(layout_diffusers.noise_schedule, folder.config("scheduler", "scheduler_config.json"), where)
    ours = NoiseSchedule.scaled_linear()
    same = schedule.num_steps == ours.num_steps and schedule.predicts == "eps"
    if not same or not torch.allclose(schedule.alphas_cumprod, ours.alphas_cumprod, atol=1e-6):
        raise UserError(f"{where}: this is another noise schedule than MVDream and ImageDream have")


def _current(name: str) -> str:
    """A name of the autoencoder as files write it today."""
    parts = name.split(".")
    return ".".join([*parts[:-2], _OLD_NAMES.get(parts[-2], parts[-2]), parts[-1]]) if len(parts) > 2 else name
