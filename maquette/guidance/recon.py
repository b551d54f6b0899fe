"""Image-prompt score distillation: ImageDream's x0 form with rescaled contrast, and the classic form in eps.

With z the scaled latents of the renders, x_t = alpha_t z + sigma_t eps and the guided prediction
eps_pred = eps_uncond + s (eps_cond - eps_uncond) (arXiv:2312.02201, Eq. 2; arXiv:2308.16512):

    x0       = (x_t - sigma_t eps_pred) / alpha_t
    k        = std(x0_cond) / std(x0)                   per scene, over all its views
    x0'      = rho k x0 + (1 - rho) x0
    direction = z - x0'                                 "x0": the reconstruction form
    direction = (1 - alphas_cumprod_t) (eps_pred - eps) "eps": the classic form

With rho = 0 the first is sigma_t / alpha_t (eps_pred - eps). The authors' code carries the factor 1/2 of the surrogate
and divides by the number of views; so does ours (the papers write neither).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from maquette.cameras import Cameras
from maquette.diffusion.cfg import guide, rescale_std
from maquette.guidance import score
from maquette.guidance.base import (
    AlignedCondition,
    BackgroundAlignment,
    Draws,
    GuidanceLoss,
    Noised,
    distill,
    draw,
)
from maquette.images import Prompt
from maquette.priors.base import PredictionPair, Prior, UnconditionalKind
from maquette.run.fingerprints import fingerprint


@dataclass(frozen=True)
class ReconConfig:
    """Settings of the guidance; the defaults are ImageDream's released ones, with full-colour alignment."""

    guidance_scale: float = 5.0
    """Classifier-free guidance for text and image together; 1 means none. MVDream: 50."""
    rescale: float = 0.2
    """rho: share of x0 whose contrast is pulled back to the conditional one's. MVDream: 0.5."""
    form: Literal["x0", "eps"] = "x0"
    """Reconstruction form, or the classic one weighted by 1 - alphas_cumprod (which ignores `rescale`)."""
    alignment: BackgroundAlignment = "colour"
    """How the prompt's background follows the render's; 'grey' is what the released code does."""
    unconditional: UnconditionalKind = "zeros"
    """Image half of the unconditional branch: zeros (released code) or a flat image (as in training)."""
    sample_posterior: bool = True
    """Encode renders to a sample of the autoencoder's posterior, not its mean."""
    background_step: float = 1 / 16
    """Prompt backgrounds are rounded to multiples of this before encoding, so that encodings can be kept; 0: exact."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.rescale <= 1.0:
            raise ValueError(f"rescale is a share between 0 and 1, got {self.rescale}")
        if self.guidance_scale < 0:
            raise ValueError(f"guidance_scale is at least 0 (1 means none), got {self.guidance_scale}")


class ReconGuidance:
    """Pulls renders towards what a multi-view prior makes of their noised versions (arXiv:2312.02201, 3.4)."""

    def __init__(self, prior: Prior, prompt: Prompt, config: ReconConfig = ReconConfig()) -> None:
        self.prior = prior
        self.prompt = prompt
        self.config = config
        self.condition = AlignedCondition(
            prior, prompt, config.alignment, unconditional=config.unconditional, step=config.background_step
        )

    def __call__(
        self,
        images: Float[Tensor, "b v 3 h w"],
        cameras: Cameras | None,
        background: Float[Tensor, "3"],
        noise_range: tuple[float, float],
        generator: torch.Generator | None = None,
    ) -> GuidanceLoss:
        """Loss of rendered views in [0, 1]; one t and one noise tensor for the step, t shared by all scenes."""
        draws = draw(self.prior, images, noise_range, generator, sample_posterior=self.config.sample_posterior)
        latents = self.prior.codec.encode(images, draws.codec_noise)
        return self.on_latents(latents, cameras, background, draws)

    def fingerprint(self) -> str:
        """Covers the prior with its weights, the prompt and every setting: all that the loss depends on."""
        return fingerprint((self.prior, self.prompt, self.config))

    def on_latents(
        self,
        latents: Float[Tensor, "b v c h w"],
        cameras: Cameras | None,
        background: Float[Tensor, "3"],
        draws: Draws,
    ) -> GuidanceLoss:
        """The same for latents and given random numbers."""

        def direction(noised: Noised) -> Tensor:
            guided = self.config.guidance_scale != 1.0
            return self.direction(noised, self.condition.predict(noised, background, guided=guided))

        return distill(latents, cameras, self.prior.noise_schedule, draws, direction)

    def direction(self, noised: Noised, pair: PredictionPair) -> Float[Tensor, "b v c h w"]:
        """Where the latents should not be: z - x0', or its classic counterpart."""
        scale = self.config.guidance_scale
        if self.config.form == "eps":
            return score.direction(
                eps_cond=pair.cond.eps,
                eps_uncond=pair.uncond.eps,
                eps=noised.eps,
                guidance_scale=scale,
                weight=noised.sigma_t.square(),
            )
        # Guiding x0 is guiding eps with the same scale; for a network that predicts x0 it spares a division by alpha_t.
        x0_pred = guide(eps_cond=pair.cond.x0, eps_uncond=pair.uncond.x0, guidance_scale=scale)
        return noised.latents - rescale_std(x0_pred, x0_cond=pair.cond.x0, strength=self.config.rescale)
