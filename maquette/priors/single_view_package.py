"""Zero-1-to-3 and Stable Diffusion as packages: a card, one safetensors file under our names, and the tokeniser's list.

A published Zero-1-to-3 holds its U-Net twice and its trainer's state; a package holds what is used, in half precision
but for the autoencoder, and is verified by sha256 whenever it is loaded.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from maquette.diffusion.autoencoder import Autoencoder, AutoencoderConfig
from maquette.diffusion.clip import TextConfig, TextTower, VisionConfig, VisionTower
from maquette.diffusion.schedule import NoiseSchedule, Parametrisation
from maquette.diffusion.unet import MultiViewUNet, UNetConfig
from maquette.errors import UserError
from maquette.priors.cards import CARD_FILE, Card, parse_config, read_card, verify_file
from maquette.priors.checkpoints import Entry, KeyTable
from maquette.priors.clip_encoders import ClipTextEncoder, PooledImageEncoder
from maquette.priors.clip_tokenizer import ClipTokenizer, Padding, read_tokenizer
from maquette.priors.codecs import SD_LATENT_SCALE, KLCodec
from maquette.priors.placement import current_placement
from maquette.priors.single_view import STABLE_DIFFUSION_MODELS, ZERO123_MODELS, load_single_view
from maquette.priors.single_view_files import filled, outline
from maquette.priors.stable_diffusion import StableDiffusionPrior
from maquette.priors.tensor_files import StoredTensor, open_tensors, write_safetensors
from maquette.priors.weights_folder import FoundWeights
from maquette.priors.zero123 import Zero123Prior
from maquette.run.files import atomic_path, write_json
from maquette.run.fingerprints import file_sha256
from maquette.run.settings import plain

PACKAGED = "published-single-view"
"""The kind of such a package."""


@dataclass(frozen=True)
class SingleViewConfig:
    """What a packaged model is made of; either the image tower or the text tower is there."""

    network: UNetConfig
    autoencoder: AutoencoderConfig
    vision: VisionConfig | None = None
    text: TextConfig | None = None
    skip_last: int = 0
    """Blocks of the text tower that are not used."""
    padding: Padding = "zero"
    """Of the tokeniser."""
    predicts: Parametrisation = "eps"
    image_size: int = 256
    scale: float = SD_LATENT_SCALE
    """Of the latents."""

    def __post_init__(self) -> None:
        if (self.vision is None) == (self.text is None):
            raise ValueError("a single-view model reads a picture or words: set one of `vision` and `text`")

    def makers(self) -> dict[str, Callable[[], nn.Module]]:
        """Its networks by the names that they have in a package."""
        found: dict[str, Callable[[], nn.Module]] = {
            "network": lambda: MultiViewUNet(self.network),
            "autoencoder": lambda: Autoencoder(self.autoencoder),
        }
        if (vision := self.vision) is not None:
            # Zero-1-to-3's projection of [embedding, pose].
            inputs, context = vision.embed_dim + 4, self.network.context_dim
            found |= {"vision": lambda: VisionTower(vision), "projection": lambda: nn.Linear(inputs, context)}
        elif (text := self.text) is not None:
            found["text"] = lambda: TextTower(text)
        return found


def pack_single_view(found: FoundWeights, folder: Path, dtype: torch.dtype | None = torch.float16) -> Card:
    """Convert a published model into a package in `folder`; numbers become `dtype` (None: float32), but the
    autoencoder's stay. The networks are in memory once. UserError naming what does not fit.
    """
    model, words = found.model, found.model.name in STABLE_DIFFUSION_MODELS
    if (folder / CARD_FILE).exists():
        raise UserError(f"{folder} holds a weights package already; choose another folder with --out")
    merges = found.merges() if words else None
    prior = load_single_view(model.name, found.root, dtype=dtype or torch.float32, merges=merges)
    config, networks = describe(prior)
    listed = [
        (f"{name}.{key}", StoredTensor(tensor.dtype, tuple(tensor.shape), tensor.detach))
        for name, module in networks.items()
        for key, tensor in module.state_dict().items()
    ]
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{model.name}.safetensors"
    with atomic_path(target) as temporary:
        write_safetensors(temporary, listed, {"card": CARD_FILE})
    card: dict[str, Any] = {
        "name": model.name, "kind": PACKAGED, "licence": model.licence.name,
        "commercial": model.licence.commercial, "terms": model.licence.terms, "role": model.role,
        "source": model.source.repo, "source_sha256": prior.weights["sha256"], "averaged": prior.weights["averaged"],
        "config": plain(config), "files": [_entry(target)],
    }  # fmt: skip
    if merges is not None:
        kept = folder / ("merges.txt" if merges.suffix == ".txt" else merges.name)
        if kept.resolve() != merges.resolve():
            with atomic_path(kept) as temporary:
                shutil.copyfile(merges, temporary)
        card["tokenizer"] = _entry(kept)
    write_json(folder / CARD_FILE, card)
    return read_card(folder)


def describe(prior: Zero123Prior | StableDiffusionPrior) -> tuple[SingleViewConfig, dict[str, nn.Module]]:
    """What a loaded prior is made of, and its networks. UserError for a noise schedule that no package has."""
    codec, schedule = prior.codec, prior.noise_schedule
    assert isinstance(codec, KLCodec)
    if not torch.allclose(schedule.alphas_cumprod, NoiseSchedule.scaled_linear().alphas_cumprod, atol=1e-6):
        raise UserError("this model has a noise schedule of its own, which packages do not hold; keep its folder")
    shared: dict[str, Any] = {
        "network": prior.network.config, "autoencoder": codec.autoencoder.config, "predicts": schedule.predicts,
        "image_size": codec.image_size, "scale": codec.scale,
    }  # fmt: skip
    networks: dict[str, nn.Module] = {"network": prior.network, "autoencoder": codec.autoencoder}
    if isinstance(prior, Zero123Prior):
        assert isinstance(prior.image_encoder, PooledImageEncoder)
        tower = prior.image_encoder.tower
        networks |= {"vision": tower, "projection": prior.projection}
        return SingleViewConfig(vision=tower.config, **shared), networks
    encoder, tokenizer = prior.text_encoder, prior.tokenizer
    assert isinstance(encoder, ClipTextEncoder) and isinstance(tokenizer, ClipTokenizer)
    networks["text"] = encoder.tower
    config = SingleViewConfig(
        text=encoder.tower.config, skip_last=encoder.skip_last, padding=tokenizer.padding, **shared
    )
    return config, networks


def unpack_single_view(
    card: Card,
    name: str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Zero123Prior | StableDiffusionPrior:
    """The prior of a package, every file verified, filled one tensor at a time. UserError naming what does not fit."""
    if card.name != name:
        raise UserError(f"{card.path} holds the prior {card.name!r}, not {name!r}; ask for it by that name")
    if card.kind != PACKAGED:
        raise UserError(f"{card.path} holds a prior of kind {card.kind!r}, not a converted {name!r} ({PACKAGED})")
    config = parse_config(SingleViewConfig, card.config, f"{card.path}: config")
    files = [verify_file(card, entry) for entry in card.values["files"]]
    if len(files) != 1:
        raise UserError(f"{card.path} is not a card of a published single-view model: it names one file")
    file, dtype = open_tensors(files[0]), dtype or current_placement().dtype(device)
    networks: dict[str, Any] = {}
    for part, make in config.makers().items():
        module = outline(make)
        own = KeyTable(tuple(Entry(key, (key,)) for key in module.state_dict()))
        kind = torch.float32 if part == "autoencoder" else dtype
        networks[part] = filled(module, file, own, f"{part}.", device=device, dtype=kind)
    told = {key: value for key, value in card.values.items() if key not in ("config", "files", "tokenizer", "kind")}
    weights = {**told, **(facts or {}), "sha256": card.sha256, "precision": str(dtype).removeprefix("torch.")}
    codec = KLCodec(networks["autoencoder"], config.image_size, config.scale, chunk=1).eval().requires_grad_(False)
    schedule = NoiseSchedule.scaled_linear(predicts=config.predicts)
    if config.vision is not None:
        return Zero123Prior(
            networks["network"], codec, schedule, PooledImageEncoder(networks["vision"]).eval(),
            networks["projection"], ZERO123_MODELS[name], weights,
        )  # fmt: skip
    assert config.text is not None  # one of both is there
    merges = verify_file(card, card.values["tokenizer"])
    tokenizer = read_tokenizer(merges, config.text.vocabulary, config.text.context_length, config.padding)
    return StableDiffusionPrior(
        networks["network"], codec, schedule, tokenizer,
        ClipTextEncoder(networks["text"], config.skip_last).eval(), STABLE_DIFFUSION_MODELS[name][0], weights,
    )  # fmt: skip


def _entry(path: Path) -> dict[str, object]:
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": file_sha256(path)}
