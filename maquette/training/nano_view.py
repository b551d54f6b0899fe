"""The recipe of the nano Zero-1-to-3: packed renders and the nano image encoder -> novel-view prior -> weights, card.

`maquette train zero123` runs it. The image encoder is that of a nano multi-view package and stays as it is, as CLIP's
did in the paper.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from maquette.diffusion.unet import UNetConfig
from maquette.errors import UserError
from maquette.priors.cards import Card
from maquette.priors.codecs import SpaceToDepth
from maquette.priors.hub import load_prior, load_view_prior, save_prior
from maquette.priors.nano.encoders import NanoImageEncoder
from maquette.priors.nano.novel_view import NanoViewConfig, build_nano_view, view_parts
from maquette.run.settings import plain
from maquette.training.chunks import this_chunk, training_facts
from maquette.training.data import PackedObjects
from maquette.training.loop import run_training
from maquette.training.novel_view import NovelViewTrainer, NovelViewTraining
from maquette.training.weights import saved_average


def train_nano_view(
    packed: Path,
    out: Path,
    recipe: NovelViewTraining,
    *,
    encoder: Path | None = None,
    device: str = "cpu",
    initial: Path | None = None,
    seconds: float | None = None,
    log: Callable[[dict[str, Any]], None] = lambda entry: print(json.dumps(entry), flush=True),
) -> Card:
    """Train on a packed folder and write `out/package` (weights and card); everything resumes from `out`.

    `encoder` is a nano multi-view package whose image encoder is taken (the shipped one if none); `initial` continues
    from the package or the folder `out` of an earlier chunk. `seconds` bounds the time of the loop. Raises UserError if
    the packed folder is not there.
    """
    if not (packed / "meta.jsonl").exists():
        raise UserError(
            f"{packed} holds no packed renders; make them with `maquette render OBJECTS --pack --out {packed}`"
        )
    started, data = time.monotonic(), PackedObjects.open(packed)
    eyes = load_prior("nano", encoder).image_encoder
    assert isinstance(eyes, NanoImageEncoder)
    out.mkdir(parents=True, exist_ok=True)
    trainer = NovelViewTrainer(recipe, eyes, device, None if initial is None else _networks_of(initial))
    run_training(data, out, trainer, log, stage="novel view", seconds=seconds)
    config = NanoViewConfig(recipe.unet, eyes.config, SpaceToDepth(recipe.size, recipe.unet.patch))
    prior = build_nano_view(config)
    prior.image_encoder.load_state_dict({f"encoder.{name}": value for name, value in eyes.state_dict().items()})
    for name in ("network", "projection"):
        part = {k.removeprefix(f"{name}."): v for k, v in trainer.average.state.items() if k.startswith(f"{name}.")}
        view_parts(prior)[name].load_state_dict(part)
    card = {
        "name": "nano-zero123",
        "licence": "Apache-2.0",
        "training_objects": {"count": len(data), "licences": sorted({meta["licence"] for meta in data.meta})},
        "recipe": plain(replace(recipe, unet=UNetConfig())) | {"unet": "see config"},
        "training": training_facts(
            initial,
            "pairs",
            trainer.step * recipe.batch,
            this_chunk(started, trainer.step, device, recipe) | {"same": recipe.same, "turned": recipe.turned},
        ),
    }
    return save_prior(out / "package", prior, config, card)


def _networks_of(initial: Path) -> dict[str, Tensor]:
    """Network and projection of an earlier chunk (their average), or of a weights package."""
    if (initial / "card.json").exists():
        prior = load_view_prior("nano-zero123", initial)
        return {
            f"{part}.{name}": value
            for part in ("network", "projection")
            for name, value in view_parts(prior)[part].state_dict().items()
        }
    path = initial / "trainer.safetensors"
    if not path.exists():
        raise UserError(
            f"{initial} has no trainer.safetensors or card.json; give an earlier chunk's folder or a weights package"
        )
    return saved_average(path)
