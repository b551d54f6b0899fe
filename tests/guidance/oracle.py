"""A prior that knows the answer: its denoised latents are fixed, whatever it is shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from maquette.cameras import Cameras
from maquette.diffusion.schedule import NoiseSchedule
from maquette.images import Prompt
from maquette.priors.base import Condition, Prediction, UnconditionalKind
from maquette.priors.codecs import SpaceToDepth


@dataclass
class OraclePrior:
    """x0 = `x_cond` for the prompt and `x_uncond` for its twin; remembers what it was asked."""

    x_cond: Tensor
    x_uncond: Tensor
    codec: SpaceToDepth = field(default_factory=lambda: SpaceToDepth(8, 2))
    noise_schedule: NoiseSchedule = field(default_factory=NoiseSchedule.scaled_linear)
    num_views: int | None = 4
    backgrounds: list[tuple[float, ...]] = field(default_factory=list)
    """Background of every condition made, in order."""
    twins: int = 0
    """Unconditional conditions made."""
    asked: list[list[str]] = field(default_factory=list)
    """Names of every evaluation."""

    def condition(self, prompt: Prompt, background: Tensor) -> Condition:
        self.backgrounds.append(tuple(background.tolist()))
        return Condition(text=torch.ones(1, 1, 1), negative=torch.zeros(1, 1, 1), background=background)

    def unconditional(self, condition: Condition, kind: UnconditionalKind = "zeros") -> Condition:
        self.twins += 1
        assert condition.negative is not None
        return Condition(text=condition.negative)

    def predict(self, latents_t: Tensor, t: Tensor, condition: Condition, cameras: Cameras | None = None) -> Prediction:
        target = self.x_cond if bool(condition.text.any()) else self.x_uncond
        x0 = target.expand_as(latents_t)
        return Prediction(eps=self.noise_schedule.eps_from_x0(latents_t, x0, t), x0=x0)

    def predict_each(
        self, latents_t: Tensor, t: Tensor, conditions: Mapping[str, Condition], cameras: Cameras | None = None
    ) -> dict[str, Prediction]:
        self.asked.append(list(conditions))
        return {name: self.predict(latents_t, t, condition, cameras) for name, condition in conditions.items()}

    def card(self) -> dict[str, Any]:
        return {"name": "oracle", "sha256": "", "licence": "Apache-2.0"}


def oracle(seed: int = 0, scenes: int = 1, dtype: torch.dtype = torch.float64) -> OraclePrior:
    """Random answers for scenes of four 8 px views."""
    generator = torch.Generator().manual_seed(seed)
    codec = SpaceToDepth(8, 2)
    shape = (scenes, 4, *codec.latent_shape)
    return OraclePrior(
        x_cond=torch.rand(shape, generator=generator, dtype=dtype) - 0.5,
        x_uncond=torch.rand(shape, generator=generator, dtype=dtype) - 0.5,
        codec=codec,
    )
