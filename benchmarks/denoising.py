"""How well multi-view priors denoise objects they never saw: `python benchmarks/denoising.py PACKED [WEIGHTS...]`.

PACKED is a folder of packed renders (`maquette render --pack`), WEIGHTS are packages of nano priors; without them it is
the shipped one. The scenes, the noise and its levels are those of `training/validation.py`, so a row agrees with what
`maquette train nano --val PACKED` logged for the same weights. The last row predicts the prompt in every view, whatever
the noise: what a prior reaches that knows the picture and nothing else. Mean squared errors of x0 in [-1, 1] times
1000; the table is Markdown.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from maquette.cameras import Cameras, fit_distance, from_angles
from maquette.images import ImagePrompt, Prompt
from maquette.priors.base import Condition, stack_conditions
from maquette.priors.cards import read_card
from maquette.priors.hub import load_prior
from maquette.priors.multiview import MultiViewPrior
from maquette.training.batches import ThreeDBatch, draw_3d
from maquette.training.data import PackedObjects
from maquette.training.validation import LEVELS


def scenes_of(
    data: PackedObjects, prior: MultiViewPrior, count: int, seed: int = 5, relative: bool = False
) -> ThreeDBatch:
    """The scenes of `Validation.of`; `relative` for priors whose azimuths count from the prompt's."""
    front = [index for index, meta in enumerate(data.meta) if meta["has_canonical_front"]]
    return draw_3d(
        data, np.random.default_rng(seed), count, prior.config.num_views, prior.codec.image_size,
        relative=relative, front_share=1.0, front_prompts=0.5, rows=front,
    )  # fmt: skip


def cameras_of(scenes: ThreeDBatch) -> Cameras:
    """Cameras [B, V]; a multi-view prior is told their directions alone."""
    like = torch.ones_like(scenes.azimuth)
    size = scenes.targets.shape[-1]
    distance, fovy = fit_distance(40.0) * like, 40.0 * like
    return from_angles(scenes.azimuth, scenes.elevation, distance, fovy, height=size, width=size)


def conditions_of(scenes: ThreeDBatch, prior: MultiViewPrior) -> Condition:
    """One row a scene; the prompts stand on their scene's background already."""
    whole = torch.ones_like(scenes.prompts[:, :1])
    prompts = [
        Prompt(ImagePrompt(image, mask), caption)
        for image, mask, caption in zip(scenes.prompts, whole, scenes.captions, strict=True)
    ]
    return stack_conditions([prior.condition(prompt, torch.ones(3)) for prompt in prompts])


@torch.no_grad()
def errors(prior: MultiViewPrior, scenes: ThreeDBatch, copy: bool = False, at_once: int = 8) -> dict[int, float]:
    """Mean squared error of x0 at each level, of the prior or of the prompt copied to all views."""
    latents = prior.codec.encode(scenes.targets)
    generator = torch.Generator().manual_seed(3)
    figures = {}
    for level in LEVELS:
        noisy_by = torch.randn(latents.shape, generator=generator)
        t = torch.full((len(latents),), level)
        latents_t = prior.noise_schedule.add_noise(latents, noisy_by, t)
        found = []
        for first in range(0, len(latents), at_once):
            part = slice(first, first + at_once)
            some = scenes.part(part)
            if copy:
                x0 = prior.codec.encode(some.prompts[:, None]).expand_as(latents[part])
            else:
                x0 = prior.predict(latents_t[part], t[part], conditions_of(some, prior), cameras_of(some)).x0
            found.append((x0 - latents[part]).square().flatten(1).mean(dim=1))
        figures[level] = float(torch.cat(found).mean())
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packed", type=Path)
    parser.add_argument("weights", type=Path, nargs="*", help="packages; by default the shipped one")
    parser.add_argument("--scenes", type=int, default=64)
    options = parser.parse_args()
    data = PackedObjects.open(options.packed)
    print("| weights | " + " | ".join(f"t = {level}" for level in LEVELS) + " |\n" + "| --- " * 5 + "|")

    def row(name: str, figures: dict[int, float]) -> None:
        print(f"| {name} | " + " | ".join(f"{1000 * figures[level]:.1f}" for level in LEVELS) + " |", flush=True)

    for place in options.weights or [None]:
        prior = load_prior("nano" if place is None else read_card(place).name, place)
        scenes = scenes_of(data, prior, options.scenes)
        row("shipped" if place is None else str(place), errors(prior, scenes))
    row("the prompt copied", errors(prior, scenes, copy=True))


if __name__ == "__main__":
    main()
