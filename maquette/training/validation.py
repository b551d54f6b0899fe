"""How well a multi-view prior in training denoises objects that it never saw: the curve against samples seen.

The same scenes, noise and levels at every call, so that two points of a curve differ by the weights alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from maquette.training.batches import ThreeDBatch, draw_3d
from maquette.training.data import PackedObjects
from maquette.training.multiview import Trainer

LEVELS = (300, 600, 800, 950)
"""Noise steps of 1000: at 300 details are missing, at 950 everything but the prompt."""


@dataclass(frozen=True)
class Validation:
    """Fixed scenes of unseen objects: a prompt each, half of them the exact front, and the canonical views."""

    batch: ThreeDBatch

    @classmethod
    def of(cls, data: PackedObjects, trainer: Trainer, scenes: int = 64, seed: int = 5) -> Validation:
        """`scenes` scenes of the packed objects, those without a front left out, at the trainer's size."""
        c = trainer.config
        front = [index for index, meta in enumerate(data.meta) if meta["has_canonical_front"]]
        if not front:
            raise ValueError(f"{data.folder} has no object with a canonical front to validate on")
        batch = draw_3d(
            data, np.random.default_rng(seed), scenes, c.num_views, c.size,
            relative=c.relative_cameras, front_share=1.0, front_prompts=0.5, rows=front,
        )  # fmt: skip
        return cls(batch)

    @torch.no_grad()
    def measure(self, trainer: Trainer, network: dict[str, Tensor], at_once: int = 16) -> dict[str, float]:
        """Mean squared error of x0 in [-1, 1] at each of `LEVELS`, of `network` (an average, say) in place of the
        trainer's own weights, which it has again afterwards.
        """
        mine = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        trainer.model.load_state_dict(network)
        latents = trainer.codec.encode(self.batch.targets)
        generator = torch.Generator().manual_seed(3)
        figures = {}
        for level in LEVELS:
            eps = torch.randn(latents.shape, generator=generator)
            t = torch.full((len(latents),), level)
            noisy = trainer.schedule.add_noise(latents, eps, t)
            errors = []
            for first in range(0, len(latents), at_once):
                part = slice(first, first + at_once)
                x0_pred = trainer.predict(self.batch.part(part), noisy[part], t[part])
                errors.append((x0_pred.cpu() - latents[part]).square().flatten(1).mean(dim=1))
            figures[f"val_{level}"] = float(torch.cat(errors).mean())
        trainer.model.load_state_dict(mine)
        return figures
