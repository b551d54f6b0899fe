"""What may be done with a result, by the licences of all weights that made it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Commercial = Literal["yes", "with restrictions", "no"]
FREE = ("Apache-2.0", "MIT", "MIT-0", "BSD-3-Clause", "CC0-1.0")
"""Licences that allow every use for no more than a notice."""


@dataclass(frozen=True)
class Terms:
    """What may be done with the result of several weights together: the strictest of all."""

    commercial: Commercial
    sentences: tuple[str, ...]
    """One for each kind of licence, naming the weights that it covers."""

    def __str__(self) -> str:
        uses = {"yes": "commercial use allowed", "no": "no commercial use"}
        return f"{uses.get(self.commercial, 'commercial use with restrictions')}. {' '.join(self.sentences)}"


def effective_terms(cards: Sequence[Mapping[str, Any]]) -> Terms:
    """The terms of a result made with the weights of these cards (see `Prior.card`).

    A card says `licence`, and `commercial` and `terms` where it is of a published model; without them only licences
    that are free for every use are taken as such.
    """
    if not cards:
        return Terms("yes", ("No weights took part.",))
    order: tuple[Commercial, ...] = ("yes", "with restrictions", "no")
    worst: Commercial = "yes"
    named: dict[tuple[str, str], list[str]] = {}
    for card in cards:
        licence = str(card.get("licence", "unknown"))
        free = licence in FREE
        use: Commercial = card.get("commercial") or ("yes" if free else "with restrictions")
        worst = order[max(order.index(worst), order.index(use))]
        terms = card.get("terms") or ("Free for every use; keep the notice." if free else "Read its licence first.")
        named.setdefault((licence, terms), []).append(str(card.get("name", "weights")))
    listed = (f"{', '.join(names)}: {licence}. {terms}" for (licence, terms), names in named.items())
    return Terms(worst, tuple(listed))
