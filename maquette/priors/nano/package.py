"""Nano priors as weights packages: networks and card to files, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from maquette.priors.cards import Card, load_parts, parse_config, read_tensors, write_package
from maquette.priors.multiview import MultiViewPrior
from maquette.priors.nano.assembly import NanoConfig, build_nano, parts
from maquette.priors.nano.novel_view import NanoViewConfig, build_nano_view, view_parts
from maquette.priors.zero123 import Zero123Prior
from maquette.run.settings import plain

NanoPrior = MultiViewPrior | Zero123Prior


@dataclass(frozen=True)
class Kind:
    """How one kind of prior is made from its card."""

    config: type[Any]
    build: Callable[[Any], NanoPrior]
    """The prior with fresh weights, from its config."""
    parts: Callable[[Any], dict[str, nn.Module]]
    """Its networks, by the names that their tensors have in a package."""


KINDS = {
    "nano-multiview": Kind(NanoConfig, build_nano, parts),
    "nano-zero123": Kind(NanoViewConfig, build_nano_view, view_parts),
}
"""What `kind` says in a card."""


def save_nano(
    folder: Path,
    prior: NanoPrior,
    config: NanoConfig | NanoViewConfig,
    card: Mapping[str, Any],
    *,
    dtype: torch.dtype | None = torch.float16,
) -> Card:
    """Write a trained nano prior as a weights package.

    `config` is what it was built from; `card` has name, licence and whatever the recipe and the measurements say.
    """
    (kind,) = (name for name, entry in KINDS.items() if isinstance(config, entry.config))
    state = {
        f"{part}.{name}": tensor
        for part, module in KINDS[kind].parts(prior).items()
        for name, tensor in module.state_dict().items()
    }
    return write_package(folder, state, {**card, "kind": kind, "config": plain(config)}, dtype=dtype)


def load_nano(card: Card) -> NanoPrior:
    """Build the networks that a card of one of `KINDS` describes and fill them."""
    kind = KINDS[card.kind]
    config = parse_config(kind.config, card.config, f"{card.path}: config")
    tensors = read_tensors(card)
    # The initial values are thrown away; drawing them must not disturb the caller's random numbers.
    with torch.random.fork_rng(devices=[]):
        prior = kind.build(config)
    named = kind.parts(prior)
    load_parts(named, tensors, card.path.parent)
    for module in named.values():
        module.eval().requires_grad_(False)
    facts = {key: value for key, value in card.values.items() if key not in ("config", "files")}
    return replace(prior, weights={**facts, "sha256": card.sha256})
