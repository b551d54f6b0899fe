"""Score distillation with Zero-1-to-3 and Stable Zero123: from rendered pixels, or from latents, to their gradient."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from maquette.cameras import from_angles
from maquette.guidance import score
from maquette.guidance.base import Draws, Noised, distill
from maquette.images import ImagePrompt, Prompt
from maquette.priors.base import PredictionPair, predict_pair
from maquette.priors.codecs import resize_images
from maquette.priors.zero123 import Zero123Config
from tests.parity.golden import EXACT, Checks, Golden, Kind, needs
from tests.parity.imagedream.distillation import watched
from tests.parity.usd.models import small_zero123
from tests.parity.usd.zero123_networks import LOOP, NETWORK

INPUTS = (
    "azimuth_deg", "camera_distance", "cond_c_crossattn", "elevation_deg", "noise", "posterior_eps", "rgb_BHWC", "t",
)  # fmt: skip
PICTURE = "cond_rgb"
"""The picture, with its stored size in the rest of the name."""


def run(golden: Golden, checks: Checks) -> None:
    """The condition of the picture, both predictions, the loss and its gradient in the render."""
    given, facts = golden.tensors, golden.metadata
    side = needs(given, "noise").shape[-1]
    config = Zero123Config(
        pose="stable-zero123" if golden.name.startswith("stable") else "zero123",
        elevation=float(facts["cond_elevation_deg"]),
        azimuth=float(facts["cond_azimuth_deg"]),
        distance=float(facts["cond_camera_distance"]),
    )
    prior = small_zero123(golden, side, needs(given, "cond_c_crossattn")[:, 0], config)
    picture = next(value for name, value in given.items() if name.startswith(PICTURE))
    shown = resize_images(picture[None], prior.codec.image_size)[0, 0]
    cond = prior.condition(Prompt(ImagePrompt(shown, torch.ones_like(shown[:1]))), torch.ones(3))
    uncond = prior.unconditional(cond)
    assert cond.image_latents is not None
    checks.compare("cond_c_concat", cond.image_latents, NETWORK)

    cameras = from_angles(
        *(needs(given, name)[:, None] for name in ("azimuth_deg", "elevation_deg", "camera_distance")),
        torch.tensor(40.0), height=1, width=1,
    )  # fmt: skip
    rgb = needs(given, "rgb_BHWC").clone().requires_grad_()
    draws = Draws(needs(given, "t"), given["noise"][:, None])
    if facts["rgb_as_latents"] == "True":
        size = tuple(given["noise"].shape[-2:])
        shrunk = F.interpolate(rgb.movedim(-1, 1), size, mode="bilinear", align_corners=False)
        latents = (shrunk * 2 - 1)[:, None]  # the released code takes four rendered channels for a picture's
    else:
        latents = prior.codec.encode(rgb.movedim(-1, 1)[:, None], needs(given, "posterior_eps")[:, None])
    limit = None if facts["grad_clip"] == "None" else float(facts["grad_clip"])

    def direction(noised: Noised) -> Tensor:
        with watched(prior.network) as calls:
            pair = predict_pair(prior, noised.latents_t, noised.t, cond=cond, uncond=uncond, cameras=noised.cameras)
        compare_call(calls, pair, checks)
        return score.direction(
            eps_cond=pair.cond.eps, eps_uncond=pair.uncond.eps, eps=noised.eps, limit=limit,
            guidance_scale=float(facts["guidance_scale"]), weight=noised.sigma_t.square(),
        )  # fmt: skip

    result = distill(latents, cameras, prior.noise_schedule, draws, direction)
    result.loss.backward()
    assert rgb.grad is not None
    # The released code logs the norm before it divides by the batch.
    checks.compare("grad_norm", torch.tensor([result.metrics["grad_norm"] * len(rgb)]), LOOP)
    checks.compare("loss_sds", result.loss[None], LOOP)
    checks.compare("grad_rgb", rgb.grad, LOOP)


def compare_call(calls: list, pair: PredictionPair, checks: Checks) -> None:
    """The one call of the network; the recording has the unconditional half first."""
    if len(calls) != 1:
        raise ValueError(f"the prior called its network {len(calls)} times, expected once with both halves")
    (x, t, context), _, _ = calls[0]
    channels = x.shape[2] // 2

    def recorded_order(both: Tensor) -> Tensor:
        return torch.cat(both.chunk(2)[::-1])

    checks.compare("unet.x_in", recorded_order(x)[:, 0, :channels], NETWORK)
    checks.compare("unet.c_concat", recorded_order(x)[:, 0, channels:], NETWORK)
    checks.compare("unet.t_in", recorded_order(t), EXACT)
    checks.compare("unet.c_crossattn", recorded_order(context), NETWORK)
    checks.compare("unet.noise_pred", torch.cat([pair.uncond.eps, pair.cond.eps])[:, 0], NETWORK)


def _is_distillation(golden: Golden) -> bool:
    pictures = any(name.startswith(PICTURE) for name in golden.tensors)
    return pictures and {"rgb_BHWC", "elevation_deg", "cond_c_crossattn"} <= golden.tensors.keys()


def expected(golden: Golden) -> Checks:
    """Everything but the inputs."""
    return Checks({n: v for n, v in golden.tensors.items() if n not in INPUTS and not n.startswith(PICTURE)})


KINDS = [Kind("zero123 distillation", _is_distillation, run, expected)]
