"""Networks of a USD goldens folder: a small Zero-1-to-3 in the original layout, and small diffusers modules."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from maquette.diffusion.autoencoder import Autoencoder
from maquette.diffusion.schedule import NoiseSchedule
from maquette.diffusion.unet import MultiViewUNet
from maquette.priors import layout_diffusers, layout_ldm
from maquette.priors.base import Codec
from maquette.priors.checkpoints import KeyTable
from maquette.priors.codecs import KLCodec
from maquette.priors.layout_diffusers import CAMERA_PROJECTIONS
from maquette.priors.stable_diffusion import StableDiffusionPrior
from maquette.priors.zero123 import Zero123Config, Zero123Prior
from maquette.priors.zero123_pose import POSE_LENGTH
from tests.parity.golden import Golden
from tests.parity.imagedream.models import filled

UNET, VAE, PROJECTION = "model.diffusion_model.", "first_stage_model.", "cc_projection."
AS_RELEASED = Zero123Config()


@dataclass(frozen=True)
class Part:
    """A network of a store, with where and how it stands there."""

    module: nn.Module
    table: KeyTable
    prefix: str

    def write(self) -> dict[str, Tensor]:
        """Its tensors under their published names."""
        return self.table.write(self.module.state_dict(), self.prefix)


def beside(golden: Golden, name: str) -> Golden:
    """The one file of the folder that holds the tensor `name`; ValueError unless there is exactly one."""
    found = []
    for path in sorted(golden.folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            if name in set(file.keys()):
                found.append(path)
    if len(found) != 1:
        raise ValueError(f"{golden.name} needs one file with {name!r} beside it, found {[p.name for p in found]}")
    return Golden(found[0])


def ldm_parts(store: Golden) -> dict[str, Part]:
    """Network, autoencoder and projection of a Zero-1-to-3 in the original layout."""
    settings = json.loads(store.metadata["config"])
    unet = layout_ldm.unet_config(settings["unet_config"]["params"])
    autoencoder = layout_ldm.autoencoder_config(settings["first_stage_config"]["params"])
    parts = {
        "network": Part(MultiViewUNet(unet), layout_ldm.unet(unet), UNET),
        "autoencoder": Part(Autoencoder(autoencoder), layout_ldm.autoencoder(autoencoder), VAE),
        "projection": _projection(store.tensors, PROJECTION, layout_ldm.camera_projection()),
    }
    for part in parts.values():
        filled(part.module, store.tensors, part.table, store.name, part.prefix)
    return parts


def diffusers_parts(store: Golden) -> dict[str, Part]:
    """The modules of a store in the diffusers layout, by pipeline and component, such as "sd.unet"."""
    parts = {}
    for name in sorted({".".join(key.split(".")[:2]) for key in store.tensors}):
        component = name.split(".")[1]
        if component in CAMERA_PROJECTIONS:
            parts[name] = _projection(
                store.tensors, f"{name}.", layout_diffusers.camera_projection(CAMERA_PROJECTIONS[component])
            )
            continue
        settings = json.loads(store.metadata[name.replace(".", "_")])
        if "cross_attention_dim" in settings:
            unet = layout_diffusers.unet_config(settings)
            parts[name] = Part(MultiViewUNet(unet), layout_diffusers.unet(unet), f"{name}.")
        else:
            autoencoder = layout_diffusers.autoencoder_config(settings)
            parts[name] = Part(Autoencoder(autoencoder), layout_diffusers.autoencoder(autoencoder), f"{name}.")
    for part in parts.values():
        filled(part.module, store.tensors, part.table, store.name, part.prefix)
    return parts


def _projection(tensors: dict[str, Tensor], prefix: str, table: KeyTable) -> Part:
    weight = next(name for name in table.published() if name.endswith("weight"))
    out_features, in_features = tensors[prefix + weight].shape
    return Part(nn.Linear(in_features, out_features), table, prefix)


class RecordedEmbedding(nn.Module):
    """In place of the image encoder: the recorded embedding [N, G], whatever is shown."""

    def __init__(self, embedding: Tensor) -> None:
        super().__init__()
        self.embedding = embedding

    def forward(self, images: Tensor) -> Tensor:
        return self.embedding


def zero123_of(
    network: nn.Module,
    codec: Codec,
    projection: nn.Module,
    embedding: Tensor,
    config: Zero123Config = AS_RELEASED,
    schedule: NoiseSchedule | None = None,
) -> Zero123Prior:
    """The product's prior around small networks, with a recorded image embedding [1, G]."""
    assert isinstance(network, MultiViewUNet) and isinstance(projection, nn.Linear)
    schedule = schedule or NoiseSchedule.scaled_linear()
    return Zero123Prior(network, codec, schedule, RecordedEmbedding(embedding), projection, config)


def small_zero123(
    golden: Golden, latent_side: int = 8, embedding: Tensor | None = None, config: Zero123Config = AS_RELEASED
) -> Zero123Prior:
    """The prior of the folder's Zero-1-to-3 in the original layout, for latents of `latent_side` squared."""
    store = beside(golden, "cc_projection.weight")
    parts = ldm_parts(store)
    settings = json.loads(store.metadata["config"])
    scale = float(settings["scale_factor"])
    schedule = NoiseSchedule.scaled_linear(
        int(settings.get("timesteps", 1000)), settings.get("linear_start", 0.00085), settings.get("linear_end", 0.012)
    )
    autoencoder, projection = parts["autoencoder"].module, parts["projection"].module
    assert isinstance(autoencoder, Autoencoder) and isinstance(projection, nn.Linear)
    codec = codec_of(parts["autoencoder"], latent_side * autoencoder.downsampling, scale=scale)
    if embedding is None:
        embedding = torch.zeros(1, projection.in_features - POSE_LENGTH)
    return zero123_of(parts["network"].module, codec, projection, embedding, config, schedule)


def small_autoencoder(golden: Golden) -> Autoencoder:
    """The autoencoder of that Zero-1-to-3."""
    codec = small_zero123(golden).codec
    assert isinstance(codec, KLCodec)
    return codec.autoencoder


def recorded_words(texts: Sequence[str]) -> Tensor:
    """Row 0 for any text, row 1 for the empty one."""
    return torch.tensor([[0 if text else 1] for text in texts])


class RecordedText(nn.Module):
    """In place of a text encoder: recorded context tokens [2, L, D], of any text and of the empty one."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, tokens: Tensor) -> Tensor:
        return self.rows[tokens[:, 0]]


def stable_diffusion_of(network: nn.Module, codec: Codec, rows: Tensor) -> StableDiffusionPrior:
    """The product's prior around small networks, with recorded texts."""
    assert isinstance(network, MultiViewUNet)
    return StableDiffusionPrior(network, codec, NoiseSchedule.scaled_linear(), recorded_words, RecordedText(rows))


def codec_of(part: Part, image_size: int, **options: Any) -> KLCodec:
    """The codec around an autoencoder of a store."""
    assert isinstance(part.module, Autoencoder)
    return KLCodec(part.module, image_size, **options).eval().requires_grad_(False)
