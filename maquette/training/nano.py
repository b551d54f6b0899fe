"""The whole recipe of the embedded nano prior: packed renders -> encoders -> multi-view prior -> weights with a card.

`maquette train nano` runs it. A chunk is one whole schedule from warm-up to decay; `--initial` restarts from the
average of an earlier chunk, which is how training goes on over several sessions or machines. This module and
everything it imports need only torch, numpy, pillow and safetensors beside the package itself, so that it runs on a
bare GPU machine from packed renders.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from maquette.diffusion.unet import ImagePromptConfig, UNetConfig
from maquette.errors import UserError
from maquette.priors.cards import Card, read_card
from maquette.priors.codecs import SpaceToDepth
from maquette.priors.hub import load_prior, save_prior
from maquette.priors.nano.assembly import NanoConfig, build_nano
from maquette.run.settings import plain
from maquette.training.chunks import this_chunk, training_facts
from maquette.training.data import PackedObjects
from maquette.training.encoders import Encoders, EncoderTraining, train_encoders
from maquette.training.loop import run_training
from maquette.training.multiview import MultiViewTraining, Trainer
from maquette.training.validation import Validation
from maquette.training.weights import save_weights, saved_average


def nano_network() -> UNetConfig:
    """The network of the nano prior: 7.2 million parameters on space-to-depth latents, 4 px a cell.

    Joint attention at every level: at 32 px they have 8x8, 4x4 and 2x2 tokens a view. Two wide levels instead (128
    channels, 7.2 million parameters) cost half as much again a scene.
    """
    prompt = ImagePromptConfig(
        local_dim=128, global_dim=128, num_queries=16, depth=2, heads=4, head_width=32, ff_mult=2, num_global=4
    )
    return UNetConfig(
        in_channels=96,
        out_channels=48,
        channels=64,
        channel_mult=(1, 2, 2),
        res_blocks=(1, 1, 1),
        attention=(True, True, True),
        head_width=64,
        context_dim=128,
        image_prompt=prompt,
        groups=16,
        ff_mult=2,
        patch=4,
        pixel_head=24,
        pixel_copy=True,
        data_deviation=0.6,
    )


@dataclass(frozen=True)
class NanoRecipe:
    """What `maquette train nano` does."""

    encoders: EncoderTraining = field(default_factory=EncoderTraining)
    """Contrastive training of the text and image encoders."""
    prior: MultiViewTraining = field(
        default_factory=lambda: MultiViewTraining(
            nano_network(),
            size=32,
            steps=5000,
            probability_2d=0.12,
            front_prompts=0.8,
            front_share=0.8,
            front_only=0.1,
            learning_rate=1.4e-3,
            warmup=150,
            ema=0.998,
        )
    )
    """One chunk of the multi-view prior."""


def train_nano(
    packed: Path,
    out: Path,
    recipe: NanoRecipe,
    *,
    device: str = "cpu",
    initial: Path | None = None,
    val: Path | None = None,
    seconds: float | None = None,
    log: Callable[[dict[str, Any]], None] = lambda entry: print(json.dumps(entry), flush=True),
    accelerator: Any = None,
) -> Card:
    """Train on a packed folder and write `out/package` (weights and card); everything resumes from `out`.

    `initial` is a weights package or a folder `out` of an earlier chunk. With `val`, renders of other objects, the log
    has the denoising error on them every 500 steps. `seconds` bounds the time of the prior's loop:
    the state is kept and the same command continues. An `accelerate.Accelerator` spreads the prior's steps over its
    processes, of which the main one trains the encoders, logs and writes. Raises UserError if the packed folder is not
    there, or for `seconds` with several processes, whose clocks differ.
    """
    if accelerator is not None and seconds is not None:
        raise UserError("--seconds would stop each process by its own clock; leave it out, or use one process")
    if not (packed / "meta.jsonl").exists():
        raise UserError(
            f"{packed} holds no packed renders; make them with `maquette render OBJECTS --pack --out {packed}`"
        )
    started = time.monotonic()
    data = PackedObjects.open(packed)
    main = accelerator is None or accelerator.is_main_process
    with nullcontext() if accelerator is None else accelerator.main_process_first():
        encoders = _encoders(data, out, recipe.encoders, device, initial, log)
    trainer = Trainer(recipe.prior, encoders, device, None if initial is None else _network_of(initial), accelerator)
    validate = None if val is None or not main else Validation.of(PackedObjects.open(val), trainer).measure
    run_training(data, out, trainer, log, seconds=seconds, validate=validate)
    if not main:
        accelerator.wait_for_everyone()
        return read_card(out / "package")
    save_weights(out / "average.safetensors", trainer.average.state, {"step": str(trainer.step)})
    own = this_chunk(started, trainer.step, device, recipe.prior) | {
        "front_prompts": recipe.prior.front_prompts, "front_share": recipe.prior.front_share,
    }  # fmt: skip
    if accelerator is not None:
        own["processes"] = accelerator.num_processes
    scenes = trainer.step * recipe.prior.batch * own.get("processes", 1)
    facts = training_facts(initial, "scenes", scenes, own)
    card = package_nano(out, encoders, trainer.average.state, recipe, data, facts)
    if accelerator is not None:
        accelerator.wait_for_everyone()
    return card


def package_nano(
    out: Path,
    encoders: Encoders,
    network: dict[str, Tensor],
    recipe: NanoRecipe,
    data: PackedObjects,
    facts: dict[str, Any],
) -> Card:
    """Write `out/package`: half-precision weights and their card, whose entry `training` is `facts`."""
    config = NanoConfig(
        codec=SpaceToDepth(recipe.prior.size, recipe.prior.unet.patch),
        network=recipe.prior.unet,
        text_encoder=recipe.encoders.text,
        image_encoder=recipe.encoders.image,
    )
    prior = build_nano(config)
    prior.network.load_state_dict(network)
    prior.text_encoder.load_state_dict(encoders.text.state_dict())
    assert prior.image_encoder is not None
    prior.image_encoder.load_state_dict(encoders.image.state_dict())
    licences = sorted({meta["licence"] for meta in data.meta})
    told = plain(recipe)
    told["prior"]["unet"] = "see config"
    card = {
        "name": "nano",
        "licence": "Apache-2.0",
        "training_objects": {"count": len(data), "licences": licences},
        "recipe": told,
        "training": facts,
    }
    return save_prior(out / "package", prior, config, card)


def _encoders(
    data: PackedObjects,
    out: Path,
    config: EncoderTraining,
    device: str,
    initial: Path | None,
    log: Callable[[dict[str, Any]], None],
) -> Encoders:
    """Trained encoders: those of this folder, else those of the chunk before, else newly trained ones."""
    path = out / "encoders.safetensors"
    if not path.exists() and initial is not None and (initial / "encoders.safetensors").exists():
        save_weights(path, load_file(initial / "encoders.safetensors"), {"from": "the chunk before"})
    elif not path.exists() and initial is not None and (initial / "card.json").exists():
        save_weights(path, packaged_encoders(initial, config), {"from": "a package"})
    if not path.exists():
        return train_encoders(data, path, config, device, log)
    encoders = Encoders(config.text, config.image)
    encoders.load_state_dict(load_file(path))
    return encoders


def packaged_encoders(package: Path | None, config: EncoderTraining) -> Encoders:
    """The encoders of a weights package (None: the shipped one), with a new temperature, which only training needs."""
    shipped, copies = load_prior("nano", package), Encoders(config.text, config.image)
    copies.text.load_state_dict(shipped.text_encoder.state_dict())
    assert shipped.image_encoder is not None
    copies.image.load_state_dict(shipped.image_encoder.state_dict())
    return copies


def _network_of(initial: Path) -> dict[str, Tensor]:
    """The averaged network of an earlier chunk, or the network of a weights package."""
    if (initial / "card.json").exists():
        return load_prior("nano", initial).network.state_dict()
    path = initial / "average.safetensors"
    if path.exists():
        return load_file(path)
    path = initial / "trainer.safetensors"
    if not path.exists():
        raise UserError(
            f"{initial} has no average.safetensors, trainer.safetensors or card.json; give an earlier chunk's folder "
            "or a weights package"
        )
    return saved_average(path)
