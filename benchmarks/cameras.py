"""Whether multi-view priors use their cameras: `python benchmarks/cameras.py PACKED [WEIGHTS...]`.

PACKED is a folder of packed renders (`maquette render --pack`), WEIGHTS are packages of nano priors; without them it is
the shipped one. All views of a scene get the same noise, and at the last step they are nothing but noise, so that
whatever differs there between the predictions of a scene comes from the cameras. Two tables in Markdown, mean squares
of x0 in [-1, 1] times 1000, canonical views of objects with a front:

    spread    how far predictions (and the truth) lie from their mean over the views
    errors    of the prediction in each view, and of the prompt copied to all views

with prompts that show the exact front, and with prompts from random front-facing cameras. PACKED may be the training
objects: a network that has learned what an object looks like from the side tells so there first.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from denoising import cameras_of, conditions_of
from torch import Tensor

from maquette.priors.cards import read_card
from maquette.priors.hub import load_prior
from maquette.priors.multiview import MultiViewPrior
from maquette.training.batches import ThreeDBatch, draw_3d
from maquette.training.data import PackedObjects

LEVELS = (999, 600)
PROMPTS = {"the exact front": 1.0, "from random cameras": 0.0}


@dataclass(frozen=True)
class Use:
    """Means over scenes, one figure a view."""

    spread: Tensor
    error: Tensor


def scenes_of(data: PackedObjects, prior: MultiViewPrior, count: int, fronts: float, seed: int = 5) -> ThreeDBatch:
    """Canonical views with prompts of which a share `fronts` shows the exact front."""
    rows = [index for index, meta in enumerate(data.meta) if meta["has_canonical_front"]]
    if not rows:
        raise SystemExit(f"{data.folder} has no object with a canonical front")
    return draw_3d(
        data, np.random.default_rng(seed), count, prior.config.num_views, prior.codec.image_size,
        front_share=1.0, front_prompts=fronts, rows=rows,
    )  # fmt: skip


def use_of(x0: Tensor, truth: Tensor) -> Use:
    """Spread over views and error of predictions [B, V, C, h, w]."""
    spread = (x0 - x0.mean(dim=1, keepdim=True)).square().mean(dim=(0, 2, 3, 4))
    return Use(spread, (x0 - truth).square().mean(dim=(0, 2, 3, 4)))


@torch.no_grad()
def predicted(prior: MultiViewPrior, scenes: ThreeDBatch, level: int, at_once: int = 8) -> Tensor:
    """x0 [B, V, C, h, w] at step `level`, all views of a scene under one noise; at the last step from noise alone."""
    latents = prior.codec.encode(scenes.targets)
    noise = torch.randn(latents[:, :1].shape, generator=torch.Generator().manual_seed(3)).expand_as(latents)
    t = torch.full((len(latents),), level)
    last = level == prior.noise_schedule.num_steps - 1
    noisy = noise if last else prior.noise_schedule.add_noise(latents, noise, t)
    found = []
    for first in range(0, len(latents), at_once):
        part = slice(first, first + at_once)
        some = scenes.part(part)
        found.append(prior.predict(noisy[part], t[part], conditions_of(some, prior), cameras_of(some)).x0)
    return torch.cat(found)


def row(*cells: object) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def thousandths(values: Tensor) -> str:
    return " / ".join(f"{1000 * float(value):.1f}" for value in values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packed", type=Path)
    parser.add_argument("weights", type=Path, nargs="*", help="packages; by default the shipped one")
    parser.add_argument("--scenes", type=int, default=64)
    options = parser.parse_args()
    data = PackedObjects.open(options.packed)
    spreads = [row("weights", "prompt", f"spread at t = {LEVELS[0]}", "of the truth"), row(*4 * ["---"])]
    errors = [row("weights", "prompt", *(f"error at t = {level}" for level in LEVELS)), row(*4 * ["---"])]
    copied = []
    for index, place in enumerate(options.weights or [None]):
        prior = load_prior("nano" if place is None else read_card(place).name, place)
        name = "shipped" if place is None else str(place)
        for prompt, fronts in PROMPTS.items():
            scenes = scenes_of(data, prior, options.scenes, fronts)
            truth = prior.codec.encode(scenes.targets)
            found = [use_of(predicted(prior, scenes, level), truth) for level in LEVELS]
            spreads.append(row(name, prompt, thousandths(found[0].spread), thousandths(use_of(truth, truth).spread)))
            errors.append(row(name, prompt, *(thousandths(use.error) for use in found)))
            if index == 0:
                copy = use_of(prior.codec.encode(scenes.prompts[:, None]).expand_as(truth), truth)
                copied.append(row("the prompt copied", prompt, *len(LEVELS) * [thousandths(copy.error)]))
    print("\n".join([*spreads, "", *errors, *copied]))


if __name__ == "__main__":
    main()
