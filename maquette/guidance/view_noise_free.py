"""Noise-free score distillation of single views with words for their sides (arXiv:2310.17590).

An ordinary guidance scale in place of SDS's 100, which over-exposes: what SDS has to shout down, the residual of the
noise, is left out. The rule itself is `nfsd.direction`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from maquette.cameras import Cameras
from maquette.errors import UserError
from maquette.guidance.base import Draws, GuidanceLoss, Noised, distill
from maquette.guidance.nfsd import NEGATIVE_TEXT, direction
from maquette.guidance.view_text import SingleViewGuidance, ViewTextConfig, ViewTextGuidance, predict_views
from maquette.images import Prompt
from maquette.priors.base import Prior


@dataclass(frozen=True)
class NoiseFreeConfig:
    """Settings of the guidance; the defaults are the paper's."""

    guidance_scale: float = 7.5
    """Classifier-free guidance."""
    threshold: int = 200
    """Timestep below which the unconditional prediction itself corrects the domain."""
    bad: str = NEGATIVE_TEXT
    """What pictures outside the domain are like; above the threshold they cancel the noise."""
    front: float = 45.0
    """Degrees of azimuth around the front that count as front, and around the back as back."""
    overhead: float = 60.0
    """Degrees of elevation above which a view is overhead."""
    sample_posterior: bool = True
    """Encode renders to a sample of the autoencoder's posterior, not its mean."""

    def __post_init__(self) -> None:
        if self.guidance_scale < 0 or self.threshold < 0:
            raise UserError(
                f"guidance_scale and threshold are at least 0, got {self.guidance_scale} and {self.threshold}"
            )


class NoiseFreeGuidance(SingleViewGuidance[NoiseFreeConfig]):
    """sigma_t^2 (delta_D + s (eps_text - eps_null)), each view with its own words; three evaluations a view."""

    def __init__(self, prior: Prior, prompt: Prompt, config: NoiseFreeConfig = NoiseFreeConfig()) -> None:
        super().__init__(prior, prompt, config)
        settings = ViewTextConfig(front=config.front, overhead=config.overhead)
        self.words = ViewTextGuidance(prior, prompt, settings)
        self.bad = prior.condition(Prompt(None, config.bad), torch.ones(3))

    def on_latents(self, latents: Float[Tensor, "b v c h w"], cameras: Cameras | None, draws: Draws) -> GuidanceLoss:
        """The same for latents and given random numbers."""
        condition = self.words.at(cameras, *latents.shape[:2])
        conditions = {"text": condition, "null": self.prior.unconditional(condition), "bad": self.bad}

        def along(noised: Noised) -> Tensor:
            eps = predict_views(self.prior, noised, conditions)
            return direction(
                eps_cond=eps["text"],
                eps_uncond=eps["null"],
                eps_neg=eps["bad"],
                t=noised.t.reshape(-1, 1, 1, 1, 1),
                weight=noised.sigma_t.square(),
                guidance_scale=self.config.guidance_scale,
                threshold=self.config.threshold,
            )

        return distill(latents, cameras, self.prior.noise_schedule, draws, along)
