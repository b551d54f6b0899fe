"""From a prior's name to the prior: names -> verified files -> networks, ready to be asked.

"nano" is inside the package; every other prior is a weights package that the caller points to. See `cards` for what a
package is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from maquette.errors import UserError
from maquette.priors.cards import Card, load_parts, parse_config, read_card, read_tensors, write_package
from maquette.priors.multiview import MultiViewPrior
from maquette.run.settings import plain

NANO = Path(str(files("maquette.priors.nano"))) / "weights"
"""Where the shipped weights are; one folder a prior."""

SHIPPED = {"nano": "multiview"}
"""Names that need no file: name -> folder below `NANO`."""


def prior_names() -> tuple[str, ...]:
    """Names that `load_prior` knows without a file."""
    return tuple(SHIPPED)


def find_card(name: str, weights: Path | None = None) -> Card:
    """The card of a prior: the shipped one, or that at `weights` (a folder, a card.json, or a file beside it).

    UserError if there is none, or if the package holds a prior of another name than the one asked for.
    """
    if weights is None:
        if name not in SHIPPED:
            raise UserError(
                f"there is no prior {name!r} in the package (it has {', '.join(SHIPPED)}); "
                "give its weights with --weights"
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


def load_prior(name: str = "nano", weights: Path | None = None, device: torch.device | str = "cpu") -> MultiViewPrior:
    """The prior of that name on a device, in float32, in evaluation mode, without gradients for its weights.

    UserError naming the file and what differs where a file is missing, truncated, damaged or of another model.
    """
    card = find_card(name, weights)
    if card.kind not in _KINDS:
        raise UserError(f"{card.path} holds a prior of kind {card.kind!r}; this version knows {', '.join(_KINDS)}")
    prior = _KINDS[card.kind](card)
    return prior.to(device)


def save_prior(
    folder: Path,
    prior: MultiViewPrior,
    config: Any,
    card: Mapping[str, Any],
    *,
    dtype: torch.dtype | None = torch.float16,
) -> Card:
    """Write a trained nano prior as a weights package that `load_prior` reads.

    `config` is the NanoConfig it was built from; `card` has name, licence and whatever the recipe and the measurements
    say.
    """
    from maquette.priors.nano.assembly import parts

    state = {
        f"{part}.{name}": tensor
        for part, module in parts(prior).items()
        for name, tensor in module.state_dict().items()
    }
    return write_package(folder, state, {**card, "kind": "nano-multiview", "config": plain(config)}, dtype=dtype)


def _load_nano(card: Card) -> MultiViewPrior:
    """Build the networks that a card describes and fill them."""
    from maquette.priors.nano.assembly import NanoConfig, build_nano, parts

    config = parse_config(NanoConfig, card.config, f"{card.path}: config")
    tensors = read_tensors(card)
    # The initial values are thrown away; drawing them must not disturb the caller's random numbers.
    with torch.random.fork_rng(devices=[]):
        prior = build_nano(config)
    named = parts(prior)
    load_parts(named, tensors, card.path.parent)
    for module in named.values():
        module.eval().requires_grad_(False)
    facts = {key: value for key, value in card.values.items() if key not in ("config", "files")}
    return replace(prior, weights={**facts, "sha256": card.sha256})


_KINDS: dict[str, Callable[[Card], MultiViewPrior]] = {"nano-multiview": _load_nano}
