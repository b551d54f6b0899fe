"""`maquette models`: which priors are here, whether their files are whole, and what they may be used for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from maquette.commands.arguments import choose, parse
from maquette.errors import UserError
from maquette.priors.cards import Card, read_card
from maquette.priors.hub import SHIPPED, find_card, load_prior


@dataclass(frozen=True)
class ListOptions:
    json: bool = False
    """Print the cards as JSON."""


@dataclass(frozen=True)
class CheckOptions:
    weights: Annotated[Positional[Path | None], arg(metavar="PACKAGE")] = None
    """A weights package: its folder, its card.json, or a weights file beside that; the embedded priors by default."""


def run(arguments: list[str]) -> int:
    """Do with the priors what the first word says."""
    choices = {
        "list": (list_models, "the embedded priors, with licence and size"),
        "check": (check_models, "verify files against their card and load them strictly"),
    }
    return choose(choices, arguments, "maquette models")


def list_models(arguments: list[str]) -> int:
    """Print the cards of the embedded priors."""
    options = parse(ListOptions, arguments, "maquette models list", about="The priors that need no download.")
    cards = {name: _find(name) for name in SHIPPED}
    if options.json:
        print(json.dumps({name: _facts(card) for name, card in cards.items()}, indent=2))
        return 0
    for name, card in cards.items():
        if isinstance(card, str):
            print(f"{name:<12} {card}")
        else:
            facts = _facts(card)
            print(f"{name:<12} {facts['bytes'] / 1e6:.1f} MB, {facts['licence']}, sha256 {facts['sha256'][:16]}")
    return 0


def check_models(arguments: list[str]) -> int:
    """Load what is named, strictly; one line each, and exit code 2 at the first that cannot be used."""
    options = parse(CheckOptions, arguments, "maquette models check", about="Verify weights and load them strictly.")
    if options.weights is None:
        for name in SHIPPED:
            load_prior(name)
            print(f"{name}: whole, and every tensor has its place")
        return 0
    path = options.weights
    if not path.exists():
        raise UserError(f"there is nothing at {path}; name a weights package.")
    card = read_card(path if path.is_dir() or path.suffix == ".json" else path.with_name("card.json"))
    load_prior(card.name, path)
    print(f"{path}: {card.name!r}, whole, and every tensor has its place")
    return 0


def _find(name: str) -> Card | str:
    try:
        return find_card(name)
    except UserError as error:
        return f"not usable: {error}"


def _facts(card: Card | str) -> dict[str, Any]:
    if isinstance(card, str):
        return {"error": card}
    values = {key: value for key, value in card.values.items() if key != "config"}
    return {**values, "sha256": card.sha256, "bytes": sum(entry["bytes"] for entry in card.values["files"])}
