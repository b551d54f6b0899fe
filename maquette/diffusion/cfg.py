"""Classifier-free guidance: two predictions of one network, or of two, combined.

Which of the two halves comes first in a batch differs between published samplers and published losses, and a mistake
there still gives pictures. So nothing here takes a stacked batch: both halves are keyword arguments and have names.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def guide(
    *, eps_cond: Float[Tensor, "*shape"], eps_uncond: Float[Tensor, "*shape"], guidance_scale: float
) -> Float[Tensor, "*shape"]:
    """eps = eps_uncond + s (eps_cond - eps_uncond), arXiv:2207.12598; s = 1 is the conditional prediction itself.

    eps, x0 and v of one x_t and t are affine in each other, and the two weights add up to one, so guiding x0_pred or
    v_pred with the same scale is the same guidance: pass whichever the network puts out.
    """
    if guidance_scale == 1.0:
        return eps_cond
    return eps_uncond + guidance_scale * (eps_cond - eps_uncond)


def guide_rectified(
    *, eps_cond: Float[Tensor, "*shape"], eps_free: Float[Tensor, "*shape"], guidance_scale: float
) -> Float[Tensor, "*shape"]:
    """eps = eps_free + s (eps_cond - eps_free): the null is another network's, arXiv:2312.06198, supplement 1.

    `eps_free` is the unconditional prediction of the free prior at the same x_t and t. A finetuned network's own null
    is biased where it saw few empty conditions; guided by the free one, sampled views keep shape and style better. x0
    and v can be guided so too, as in `guide`, if both networks share one noise schedule.
    """
    return guide(eps_cond=eps_cond, eps_uncond=eps_free, guidance_scale=guidance_scale)


def rescale_std(
    x0_pred: Float[Tensor, "*b v c h w"], *, x0_cond: Float[Tensor, "*b v c h w"], strength: float
) -> Float[Tensor, "*b v c h w"]:
    """Pull the standard deviation of a guided x0 back to that of the conditional one, per scene.

        k = (std(x0_cond) + 1e-8) / (std(x0_pred) + 1e-8),      x0' = strength k x0 + (1 - strength) x0

    The standard deviation (unbiased) runs over the views, channels and pixels of a scene together. Large guidance
    scales blow up the contrast of x0; this is the cure of arXiv:2305.08891, section 3.4, as the distillation losses
    of MVDream and ImageDream apply it (`recon_std_rescale`: 0.5 and 0.2). A strength of 0 changes nothing.
    """
    if not 0.0 <= strength <= 1.0:
        raise ValueError(f"strength mixes the rescaled x0 with the plain one and must lie in [0, 1], got {strength}.")
    if strength == 0.0:
        return x0_pred
    dims = (-4, -3, -2, -1)
    k = (x0_cond.std(dims, keepdim=True) + 1e-8) / (x0_pred.std(dims, keepdim=True) + 1e-8)
    return strength * (k * x0_pred) + (1.0 - strength) * x0_pred
