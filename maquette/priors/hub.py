"""From a prior's name to the prior: names -> verified files -> networks, ready to be asked.

"nano" is inside the package. The published models of `registry` are found in the folder of fetched weights or where the
caller points, as their authors' file or as a converted package. Any other name is that of a weights package; see
`cards` for what a package is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from maquette.errors import UserError
from maquette.priors.cards import (
    CARD_FILE,
    Card,
    parse_config,
    read_card,
    verify_file,
)
from maquette.priors.checkpoints import Entry, KeyTable, stream
from maquette.priors.clip_tokenizer import read_tokenizer
from maquette.priors.identify import compare
from maquette.priors.multiview import MultiViewPrior
from maquette.priors.multiview_folder import open_folder
from maquette.priors.nano.package import NanoPrior, load_nano, save_nano
from maquette.priors.placement import current_placement, placed
from maquette.priors.published import MODELS, PublishedConfig, assemble, completed, load_networks, outline, parts
from maquette.priors.registry import ALIASES, Model, find_model
from maquette.priors.single_view import STABLE_DIFFUSION_MODELS, ZERO123_MODELS, load_single_view
from maquette.priors.single_view_files import looks_like
from maquette.priors.single_view_package import unpack_single_view
from maquette.priors.stable_diffusion import StableDiffusionPrior
from maquette.priors.tensor_files import TensorFile, open_tensors
from maquette.priors.weights_folder import FoundWeights, find_published
from maquette.priors.zero123 import Zero123Prior
from maquette.run.fingerprints import file_sha256

NANO = Path(str(files("maquette.priors.nano"))) / "weights"
"""Where the shipped weights are; one folder a prior."""

SHIPPED = {"nano": "multiview", "nano-zero123": "novel_view"}
"""Names that need no file: name -> folder below `NANO`."""


PUBLISHED = "published-multiview"
"""The kind of a converted package of a released multi-view model."""


def prior_names() -> tuple[str, ...]:
    """Names that `load_prior` knows: those inside the package, and published models whose weights can be fetched."""
    return (*SHIPPED, *MODELS, *ZERO123_MODELS, *STABLE_DIFFUSION_MODELS)


def find_card(name: str, weights: Path | None = None) -> Card:
    """The card of a prior: the shipped one, or that at `weights` (a folder, a card.json, or a file beside it).

    UserError if there is none, or if the package holds a prior of another name than the one asked for.
    """
    if weights is None:
        if name not in SHIPPED:
            raise UserError(
                f"there is no prior {name!r} (known are {', '.join(prior_names())}); "
                "name the package of any other with --weights"
            )
        return read_card(NANO / SHIPPED[name])
    if not weights.exists():
        raise UserError(f"no weights at {weights}")
    if weights.is_file() and weights.suffix != ".json":
        card = weights.with_name("card.json")
        if not card.is_file():
            raise UserError(
                f"{weights} has no card.json beside it, which says what model it is; give a weights package"
            )
        found = read_card(card)
        if weights.name not in [entry["file"] for entry in found.values["files"]]:
            raise UserError(f"{weights.name} is not one of the files that {card} describes")
    else:
        found = read_card(weights)
    if found.name != name:
        raise UserError(f"{found.path} holds the prior {found.name!r}, not {name!r}; ask for it by that name")
    return found


def load_prior(
    name: str = "nano",
    weights: Path | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> MultiViewPrior:
    """The prior of that name on a device, in evaluation mode, without gradients for its weights.

    `dtype` is the precision of its U-Net and encoders: by default float32 on a CPU, and for published models what
    `placement.loading` says, or float16 on a GPU. UserError naming the file and what differs where a file is missing,
    truncated, damaged or of another model.
    """
    if ALIASES.get(name, name) in MODELS:
        return placed(_load_published(find_published(find_model(name), weights), torch.device(device), dtype))
    if (other := ALIASES.get(name, name)) in ZERO123_MODELS or other in STABLE_DIFFUSION_MODELS:
        raise UserError(f"{name} is a {find_model(name).role}, and a multi-view prior is wanted: {', '.join(MODELS)}")
    card = find_card(name, weights)
    if card.kind != "nano-multiview":
        raise UserError(
            f"{card.path} holds a prior of kind {card.kind!r}; a multi-view prior is of kind nano-multiview"
        )
    prior = load_nano(card)
    assert isinstance(prior, MultiViewPrior)
    return prior.to(device, dtype)


def save_prior(
    folder: Path,
    prior: NanoPrior,
    config: Any,
    card: Mapping[str, Any],
    *,
    dtype: torch.dtype | None = torch.float16,
) -> Card:
    """Write a trained nano prior as a weights package that `load_prior` reads; see `save_nano`."""
    return save_nano(folder, prior, config, card, dtype=dtype)


def load_view_prior(
    name: str = "nano-zero123",
    weights: Path | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Zero123Prior:
    """The novel-view prior of that name: one picture, another camera. UserError as `load_prior` raises it."""
    if ALIASES.get(name, name) in ZERO123_MODELS:
        prior = _load_single_view(find_published(find_model(name), weights), device, dtype)
        assert isinstance(prior, Zero123Prior)
        return prior
    card = find_card(name, weights)
    if card.kind != "nano-zero123":
        raise UserError(f"{card.path} holds a prior of kind {card.kind!r}; a novel-view one is nano-zero123")
    nano = load_nano(card)
    assert isinstance(nano, Zero123Prior)
    return nano.to(device, dtype)


def load_image_prior(
    name: str = "stable-diffusion-2.1-base",
    weights: Path | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> StableDiffusionPrior:
    """The prior of that name that makes single images of words. UserError as `load_prior` raises it."""
    if ALIASES.get(name, name) not in STABLE_DIFFUSION_MODELS:
        raise UserError(f"there is no image prior {name!r}; known are {', '.join(STABLE_DIFFUSION_MODELS)}")
    prior = _load_single_view(find_published(find_model(name), weights), device, dtype)
    assert isinstance(prior, StableDiffusionPrior)
    return prior


def load_free_prior(
    name: str = "nano",
    weights: Path | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> MultiViewPrior | StableDiffusionPrior:
    """A prior that makes single pictures of words and can learn a subject: a published Stable Diffusion, or the 2D half
    of a multi-view prior, as which it answers when it is asked about single views without cameras.
    """
    if ALIASES.get(name, name) in STABLE_DIFFUSION_MODELS:
        return load_image_prior(name, weights, device, dtype)
    return load_prior(name, weights, device, dtype)


def _load_single_view(
    found: FoundWeights, device: torch.device | str, dtype: torch.dtype | None
) -> Zero123Prior | StableDiffusionPrior:
    if (card := package_of(found.file)) is not None:
        return placed(unpack_single_view(card, found.model.name, device=device, dtype=dtype))
    words = found.model.name in STABLE_DIFFUSION_MODELS
    return placed(load_single_view(
        found.model.name, found.root, device=device, dtype=dtype, merges=found.merges() if words else None,
        facts=_facts(found.model),
    ))  # fmt: skip


def _facts(model: Model) -> dict[str, Any]:
    """What the registry knows of a model, for the card of its prior."""
    licence = model.licence
    return {"name": model.name, "licence": licence.name, "commercial": licence.commercial, "terms": licence.terms,
            "role": model.role}  # fmt: skip


def _load_published(found: FoundWeights, device: torch.device, dtype: torch.dtype | None) -> MultiViewPrior:
    """A released model from its file or its package, filled one tensor at a time on the device itself."""
    dtype = dtype or current_placement().dtype(device)
    model = found.model
    facts = _facts(model)
    if (card := package_of(found.file)) is not None:
        config, file, merges = open_package(card, model.name)
        facts = {key: value for key, value in card.values.items() if key not in ("config", "files", "tokenizer")}
        networks = {}
        for name, part in parts(config).items():
            module = outline(part)
            own = KeyTable(tuple(Entry(key, (key,)) for key in module.state_dict()))
            kind = torch.float32 if name == "autoencoder" else dtype
            try:
                stream(module, file, own, f"{name}.", device=device, dtype=kind)
            except ValueError as error:
                raise UserError(str(error)) from None
            networks[name] = module
        facts["sha256"] = card.sha256
    else:
        config, file, read = open_released(found)
        merges = found.merges()
        networks = load_networks(file, config, device=device, dtype=dtype)
        facts |= read
    tokenizer = read_tokenizer(
        merges, config.text.vocabulary, config.text.context_length, "end" if config.family == "mvdream-sd15" else "zero"
    )
    prior = assemble(networks, config, tokenizer)
    facts |= {"precision": str(dtype).removeprefix("torch."), "trained_control": config.use.control}
    return replace(prior, weights=facts)


def open_released(found: FoundWeights) -> tuple[PublishedConfig, TensorFile, dict[str, Any]]:
    """Configuration and tensors of a released model, and what is worth noting of its files, with their sha256: the
    authors' checkpoint, or a folder that others exported. UserError naming what does not fit.
    """
    config = MODELS[found.model.name]()
    if found.root.is_dir():
        return open_folder(found.root, config.use)
    file = open_published(found, config)
    facts = {"source": found.model.source.repo, "file": found.file.name, "sha256": file_sha256(found.file)}
    return config, file, facts


def open_published(found: FoundWeights, config: PublishedConfig) -> TensorFile:
    """A released file with all names of its model. UserError saying what it lacks, and which model it looks like."""
    file = open_tensors(found.file)
    try:
        return completed(file, config, found.towers())
    except UserError as error:
        if "is not the model" not in str(error):
            raise  # it is, but for a part that belongs beside it
        likely = next((match for match in compare(file) if match.exact), None)
        if likely is None or found.model.name in likely.models:
            raise UserError(f"{error} It looks like {looks_like(file)}.") from None
        raise UserError(f"{error} It looks like {' or '.join(likely.models)}; ask for it by that name.") from None


def package_of(file: Path) -> Card | None:
    """The card that describes a file, or is it; None for a file that no card beside it names."""
    if file.name == CARD_FILE:
        return read_card(file)
    beside = file.with_name(CARD_FILE)
    if not beside.is_file():
        return None
    card = read_card(beside)
    return card if file.name in [entry["file"] for entry in card.values["files"]] else None


def open_package(card: Card, name: str) -> tuple[PublishedConfig, TensorFile, Path]:
    """Configuration, tensors and list of merges of a released model's package, all of its files verified."""
    if card.name != name:
        raise UserError(f"{card.path} holds the prior {card.name!r}, not {name!r}; ask for it by that name")
    if card.kind != PUBLISHED:
        raise UserError(f"{card.path} holds a prior of kind {card.kind!r}, not a converted {name!r} ({PUBLISHED})")
    config = parse_config(PublishedConfig, card.config, f"{card.path}: config")
    files = [verify_file(card, entry) for entry in card.values["files"]]
    tokenizer = card.values.get("tokenizer")
    if len(files) != 1 or not isinstance(tokenizer, dict) or not {"file", "bytes", "sha256"} <= tokenizer.keys():
        raise UserError(f"{card.path} is not a card of a published model: it names one file and a tokenizer")
    return config, open_tensors(files[0]), verify_file(card, tokenizer)
