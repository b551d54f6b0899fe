"""Losses of training and fine-tuning a denoiser: weights by signal-to-noise ratio, and DreamBooth's two terms."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from maquette.diffusion.schedule import Parametrisation


def min_snr_weight(snr: Float[Tensor, "*b"], gamma: float, predicts: Parametrisation) -> Float[Tensor, "*b"]:
    """The weight of a squared error in x0 of min(SNR, gamma), written for what the network predicts (arXiv:2303.09556).

    x0: min(SNR, gamma); eps: min(SNR, gamma) / SNR; v: min(SNR, gamma) / (SNR + 1). gamma = 5 in the paper.
    """
    if gamma <= 0:
        raise ValueError(f"gamma caps the signal-to-noise ratio and must be positive, got {gamma}.")
    divisor = {"x0": torch.ones_like(snr), "eps": snr, "v": snr + 1}[predicts]
    return snr.clamp(max=gamma) / divisor


def denoising_loss(
    *, pred: Float[Tensor, "b *c"], target: Float[Tensor, "b *c"], sample_weight: Float[Tensor, " b"] | None = None
) -> Float[Tensor, ""]:
    """Mean over samples of weight |pred - target|^2_mean; without weights the plain mean squared error."""
    each = (pred - target).square().flatten(1).mean(1)
    return (each if sample_weight is None else sample_weight * each).mean()


def prior_preservation_loss(
    *,
    pred: Float[Tensor, "b *c"],
    target: Float[Tensor, "b *c"],
    prior_pred: Float[Tensor, "k *c"],
    prior_target: Float[Tensor, "k *c"],
    prior_weight: float = 1.0,
    sample_weight: Float[Tensor, " b"] | None = None,
    prior_sample_weight: Float[Tensor, " k"] | None = None,
) -> Float[Tensor, ""]:
    """DreamBooth (arXiv:2208.12242): the subject's loss plus `prior_weight` times that of images of its class.

    The class images were sampled with the model as it was before fine-tuning. `sample_weight` (min-SNR, say) weighs the
    subject's samples alone, as in the recipe that most people run; `prior_sample_weight` weighs the others.
    """
    subject = denoising_loss(pred=pred, target=target, sample_weight=sample_weight)
    return subject + prior_weight * denoising_loss(
        pred=prior_pred, target=prior_target, sample_weight=prior_sample_weight
    )
