"""Guided priors as the plain callables that samplers take: one prior, or a view prior with another's null."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from maquette.cameras import Cameras
from maquette.diffusion.cfg import guide, guide_rectified, rescale_std
from maquette.diffusion.sampling import Predict
from maquette.images import Prompt
from maquette.priors.base import Condition, Prediction, Prior, predict_pair


def guided_x0(
    prior: Prior,
    *,
    cond: Condition,
    uncond: Condition,
    cameras: Cameras | None = None,
    guidance_scale: float = 1.0,
    rescale: float = 0.0,
) -> Predict:
    """(x_t [B, V, C, h, w], t [B]) -> guided x0; for a sampler, together with `predicts="x0"`.

    `rescale` pulls the contrast of x0 back to the conditional one's (see `rescale_std`). Without guidance (scale 1)
    only the conditional half is evaluated.
    """

    def predict(x_t: Float[Tensor, "b v c h w"], t: Int[Tensor, " b"]) -> Float[Tensor, "b v c h w"]:
        if guidance_scale == 1.0:
            return prior.predict(x_t, t, cond, cameras).x0
        pair = predict_pair(prior, x_t, t, cond=cond, uncond=uncond, cameras=cameras)
        # x0, eps and v are affine in each other, so guiding x0 is guiding eps with the same scale.
        x0_pred = guide(eps_cond=pair.cond.x0, eps_uncond=pair.uncond.x0, guidance_scale=guidance_scale)
        return rescale_std(x0_pred, x0_cond=pair.cond.x0, strength=rescale)

    return predict


def rectified_x0(
    prior: Prior,
    free: Prior,
    *,
    cond: Condition,
    cameras: Cameras | None = None,
    guidance_scale: float = 3.0,
    rescale: float = 0.0,
) -> Predict:
    """(x_t [B, V, C, h, w], t [B]) -> x0 guided away from the null of another prior (see `guide_rectified`).

    For samplers as `guided_x0`. `free` sees every view for itself, without camera and words. ValueError where the two
    cannot share noisy latents.
    """
    check_shared_latents(prior, free)
    nothing = free_condition(free)

    def predict(x_t: Float[Tensor, "b v c h w"], t: Int[Tensor, " b"]) -> Float[Tensor, "b v c h w"]:
        x0_cond = prior.predict(x_t, t, cond, cameras).x0
        if guidance_scale == 1.0:
            return x0_cond
        x0_free = predict_singly(free, x_t, t, nothing).x0
        x0_pred = guide_rectified(eps_cond=x0_cond, eps_free=x0_free, guidance_scale=guidance_scale)
        return rescale_std(x0_pred, x0_cond=x0_cond, strength=rescale)

    return predict


def free_condition(prior: Prior) -> Condition:
    """A prior's condition for nothing at all: no picture, the empty text. The published null of Stable Diffusion."""
    return prior.condition(Prompt(None, caption="", negative=""), torch.ones(3))


def predict_singly(
    prior: Prior, latents_t: Float[Tensor, "b v c h w"], t: Int[Tensor, " b"], condition: Condition
) -> Prediction:
    """What a prior says of every view for itself, without cameras: B V scenes of one view for the network.

    `condition` has one row, or one for each of the B V views.
    """
    scenes, views = latents_t.shape[:2]
    alone = prior.predict(latents_t.flatten(0, 1)[:, None], t.repeat_interleave(views), condition)
    return Prediction(*(x[:, 0].unflatten(0, (scenes, views)) for x in (alone.eps, alone.x0)))


def check_shared_latents(prior: Prior, other: Prior) -> None:
    """ValueError unless noisy latents of one prior can be shown to the other: channels, pixels a latent, noise levels.

    The codecs themselves may differ, as autoencoders finetuned apart do; where `identity()` agrees they are equal.
    """
    faults = []
    shapes = [(p.codec.latent_shape[0], p.codec.image_size // p.codec.latent_shape[1]) for p in (prior, other)]
    if shapes[0] != shapes[1]:
        faults.append("latents of {} channels for {} px against {} channels for {} px".format(*shapes[0], *shapes[1]))
    ours, theirs = prior.noise_schedule.alphas_cumprod, other.noise_schedule.alphas_cumprod
    if ours.shape != theirs.shape or not torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6):
        faults.append("different noise schedules")
    if faults:
        names = " and ".join(str(p.card().get("name", type(p).__name__)) for p in (prior, other))
        raise ValueError(
            f"{names} cannot judge one another's noisy latents ({', '.join(faults)}); choose a pair that can"
        )
