"""The training step of Zero-1-to-3 (arXiv:2303.11328): noise a target view, drop conditions at random, predict the
noise.

One uniform number a sample decides what is dropped, so that the two drops overlap: with p = 0.05 the embedding alone in
[0, p), both in [p, 2p), the picture's latents alone in [2p, 3p).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from maquette.diffusion.losses import denoising_loss
from maquette.priors.zero123 import Zero123Prior


def dropped(uniform: Float[Tensor, " b"], probability: float = 0.05) -> tuple[Bool[Tensor, " b"], Bool[Tensor, " b"]]:
    """(embedding dropped, latents dropped) for uniform numbers in [0, 1); ValueError unless 0 <= p <= 1/3."""
    if not 0.0 <= probability <= 1 / 3:
        raise ValueError(f"three drops of this probability must fit into 1, so it is at most 1/3, got {probability}")
    return uniform < 2 * probability, (uniform >= probability) & (uniform < 3 * probability)


@dataclass(frozen=True)
class TrainingBatch:
    """What one step learns from, and its random numbers."""

    latents: Float[Tensor, "b c h w"]
    """Scaled latents of the view to learn, a sample of the posterior."""
    picture: Float[Tensor, "b c h w"]
    """*Unscaled* latents of the view to learn it from, the posterior's mean."""
    embedding: Float[Tensor, "b g"]
    """CLIP embedding of that picture."""
    pose: Float[Tensor, "b 4"]
    """Pose of the view relative to the picture (`maquette.priors.zero123_pose`)."""
    t: Int[Tensor, " b"]
    eps: Float[Tensor, "b c h w"]
    """Diffusion noise."""
    uniform: Float[Tensor, " b"]
    """Decides what is dropped."""


@dataclass(frozen=True)
class TrainingStep:
    """What the network was shown, and how far off it was."""

    latents_t: Float[Tensor, "b c h w"]
    context: Float[Tensor, "b 1 d"]
    picture: Float[Tensor, "b c h w"]
    """The picture's latents, zero where they were dropped."""
    loss: Float[Tensor, ""]


def training_step(prior: Zero123Prior, batch: TrainingBatch, probability: float = 0.05) -> TrainingStep:
    """The mean squared error of the prediction, with conditions dropped.

    A dropped embedding is zero *before* the projection, and the pose stays: this null is not the one that the released
    samplers use. Differentiable in network and projection.
    """
    no_embedding, no_picture = dropped(batch.uniform, probability)
    picture = torch.where(no_picture[:, None, None, None], 0.0, batch.picture)
    context = prior.context(torch.where(no_embedding[:, None], 0.0, batch.embedding), batch.pose)
    schedule = prior.noise_schedule
    latents_t = schedule.add_noise(batch.latents, batch.eps, batch.t)
    output = prior.denoise(latents_t[:, None], batch.t, context, picture[:, None])[:, 0]
    loss = denoising_loss(pred=output, target=schedule.target(batch.latents, batch.eps, batch.t))
    return TrainingStep(latents_t, context, picture, loss)
