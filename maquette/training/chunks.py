"""What a card says of training: every chunk that led to the weights, from new ones on, and their sums.

A chunk is a whole warm-up-to-decay schedule from the averaged weights of the one before. Its package lists those of the
package that it went on from, and its own last, so the last card tells the whole story.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def training_facts(initial: Path | None, shown: str, seen: int, own: Mapping[str, Any]) -> dict[str, Any]:
    """The entry `training` of a card: machine, all chunks, and the sums of their steps, seconds and of `shown`.

    `initial` is what this chunk went on from, a package or the folder of an earlier chunk; `shown` is the word for what
    it saw (scenes, pairs), `seen` how many of them, and `own` its steps, seconds and settings.
    """
    before = _earlier(initial)
    start = "new weights" if initial is None else "average"
    chunks = [*before, {"from": start, shown: seen, **own}]
    if initial is not None and not before:
        chunks[-1]["from"] = "weights of unknown training"
    sums = {name: sum(chunk.get(name, 0) for chunk in chunks) for name in ("steps", shown, "seconds")}
    return {**sums, "torch": torch.__version__, "chunks": chunks}


def this_chunk(started: float, steps: int, device: str, recipe: Any) -> dict[str, Any]:
    """The facts of a chunk that ends now and began at `started` (time.monotonic); seconds are of its last call."""
    return {
        "steps": steps,
        "seconds": round(time.monotonic() - started),
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} thread(s), {device}",
        "batch": recipe.batch,
        "learning_rate": recipe.learning_rate,
        "seed": recipe.seed,
    }


def _earlier(initial: Path | None) -> list[dict[str, Any]]:
    """The chunks that the package of `initial` lists; none where it has no card, or a card without them."""
    if initial is None:
        return []
    card = next((path for path in (initial / "card.json", initial / "package" / "card.json") if path.exists()), None)
    return [] if card is None else list(json.loads(card.read_text(encoding="utf-8"))["training"].get("chunks", []))
