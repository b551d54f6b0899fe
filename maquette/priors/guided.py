"""A guided prior as the plain callable that samplers take."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from maquette.cameras import Cameras
from maquette.diffusion.cfg import guide, rescale_std
from maquette.diffusion.sampling import Predict
from maquette.priors.base import Condition, Prior, predict_pair


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
