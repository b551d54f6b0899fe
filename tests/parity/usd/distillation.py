"""The whole step of USD with small networks behind the priors that people use: both losses, and every call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maquette.cameras import Cameras, from_angles
from maquette.guidance.base import Draws, Noised
from maquette.guidance.unbiased import ReferenceGuidance, UnbiasedGuidance
from maquette.images import ImagePrompt, Prompt
from maquette.priors.base import Condition, Prior
from maquette.priors.usd_cameras import input_camera
from maquette.priors.zero123 import Zero123Prior
from maquette.priors.zero123_pose import camera_angles, relative_pose
from tests.parity.golden import Checks, Golden, Kind, has, needs
from tests.parity.usd.cameras import number
from tests.parity.usd.models import beside, codec_of, diffusers_parts, stable_diffusion_of, zero123_of
from tests.parity.usd.zero123_networks import LOOP, NETWORK

RESULTS = ("cap.", "loss", "grad_", "image_latent_unscaled")
"""How the names of results begin; everything else is an input."""
INPUT_SIZE = 128
"""Pixels of the picture before either autoencoder saw it, where the case's note does not say."""


@dataclass(frozen=True)
class WithCondition:
    """A prior with its condition made: the recording samples the picture's latents, and knows the picture's camera."""

    prior: Zero123Prior
    made: Condition

    def __getattr__(self, name: str) -> Any:
        return getattr(self.prior, name)

    def condition(self, prompt: Prompt, background: Tensor) -> Condition:
        return self.made


def run(golden: Golden, checks: Checks) -> None:
    """Random draws in the order of the recording: posterior, t, noise of the view; two posteriors, t, noise."""
    given, white = golden.tensors, torch.ones(3)
    parts = diffusers_parts(beside(golden, "zero123.clip_camera_projection.proj.weight"))
    view_codec = codec_of(parts["zero123.vae"], _pixels(parts["zero123.vae"].module, given["rand_0_randn"]))
    free_codec = codec_of(parts["sd.vae"], _pixels(parts["sd.vae"].module, given["rand_3_randn"]))
    view = zero123_of(
        parts["zero123.unet"].module, view_codec, parts["zero123.clip_camera_projection"].module, given["clip_embed"]
    )
    # Texts with words for views took the plain ones' place where the view is judged, for the null as well.
    unet = parts["sd.unet"].module
    free_of_view = stable_diffusion_of(unet, free_codec, needs(given, "text_emb_vd"))
    free = stable_diffusion_of(unet, free_codec, needs(given, "text_emb"))
    size = int(number(golden.metadata.get("note", ""), r"upsample of input_low\d+ to (\d+)", INPUT_SIZE))
    shown = F.interpolate(only(given, "input_low"), (size, size), mode="bilinear", align_corners=False)
    prompt = Prompt(ImagePrompt(shown[0], torch.ones(1, size, size)))
    assert prompt.image is not None

    picture_camera = input_camera()
    cameras = moved(picture_camera, needs(given, "delta"))
    cond = view.condition(prompt, white, camera=picture_camera, latent_noise=needs(given, "image_latent_eps"))
    assert cond.image_latents is not None
    checks.compare("image_latent_unscaled", cond.image_latents, NETWORK)

    rgb, ref_rgb = (needs(given, name).clone().requires_grad_() for name in ("rgb", "ref_rgb"))
    usd = UnbiasedGuidance(WithCondition(view, cond), free_of_view, prompt)  # type: ignore[arg-type]
    draws = Draws(given["rand_1_randint"], given["rand_2_randn_like"][:, None], given["rand_0_randn"][:, None])
    latents = view.codec.encode(rgb.movedim(-1, -3)[:, None], draws.codec_noise)
    usd_term = usd.on_latents(latents, cameras[:, None], white, draws).loss

    reference = ReferenceGuidance(free, prompt.image)
    ref_draws = Draws(given["rand_5_randint"], given["rand_6_randn_like"][:, None], given["rand_3_randn"][:, None])
    ref_latents = free.codec.encode(ref_rgb.movedim(-1, -3)[:, None], ref_draws.codec_noise)
    target = reference.target(white, needs(given, "rand_4_randn")[:, None])
    ref_term = reference.on_latents(ref_latents, target, ref_draws).loss

    (usd_term + ref_term).backward()
    assert rgb.grad is not None and ref_rgb.grad is not None
    checks.compare("loss_usd_term", usd_term[None], LOOP)
    checks.compare("loss_ref_term", ref_term[None], LOOP)
    checks.compare("loss", (usd_term + ref_term)[None], LOOP)
    checks.compare("grad_rgb", rgb.grad, LOOP)
    checks.compare("grad_ref_rgb", ref_rgb.grad, LOOP)

    with torch.no_grad():
        noised = noise(view, latents, draws, cameras[:, None])
        compare_view(checks, view, cond, noised, usd)
        ref_noised = (noise(free, clean, ref_draws) for clean in (ref_latents, target))
        for index, (prior, seen) in enumerate(((free_of_view, noised), *((free, n) for n in ref_noised))):
            both = {"text": "a text", "empty": ""}
            texts = {name: prior.condition(Prompt(None, words)) for name, words in both.items()}
            found = prior.predict_each(seen.latents_t, seen.t, texts)
            checks.compare(f"cap.sd_out_{index}", torch.cat([found[name].eps[:, 0] for name in both]), NETWORK)


def compare_view(
    checks: Checks, view: Zero123Prior, cond: Condition, noised: Noised, guidance: UnbiasedGuidance
) -> None:
    """What the view network was shown and what it said, [conditional; unconditional]."""
    twin = view.unconditional(cond)
    assert noised.cameras is not None and cond.image_embedding is not None and cond.camera is not None
    pose = relative_pose(camera_angles(noised.cameras[:, 0]), cond.camera, view.config.pose)
    checks.compare("cap.zero123_ctx", torch.cat([view.context(cond.image_embedding, pose), twin.text]), NETWORK)
    pictures = [condition.image_latents for condition in (cond, twin)]
    shown = [torch.cat([noised.latents_t[:, 0], picture], dim=1) for picture in pictures if picture is not None]
    checks.compare("cap.zero123_in", torch.cat(shown), NETWORK)
    found = guidance.predict(noised, torch.ones(3), ("cond", "uncond"))
    checks.compare("cap.zero123_out", torch.cat([found[name].eps[:, 0] for name in ("cond", "uncond")]), NETWORK)


def only(tensors: dict[str, Tensor], prefix: str) -> Tensor:
    """The tensor whose name begins so, and goes on with its size; ValueError unless there is exactly one."""
    found = [value for name, value in tensors.items() if name.startswith(prefix)]
    if len(found) != 1:
        raise ValueError(f"the case needs one tensor {prefix}..., found {len(found)}")
    return found[0]


def moved(camera: Cameras, delta: Tensor) -> Cameras:
    """The camera [1] with its polar angle and azimuth changed by (polar, azimuth, 0) degrees."""
    polar, azimuth, _ = delta.unbind()
    angles = (camera.azimuth + azimuth, camera.elevation - polar, camera.distance, camera.fovy)
    return from_angles(*angles, height=camera.height, width=camera.width)


def noise(prior: Prior, latents: Tensor, draws: Draws, cameras: Cameras | None = None) -> Noised:
    """What a step shows its networks."""
    schedule = prior.noise_schedule
    clean = latents.detach()
    return Noised(clean, draws.eps, schedule.add_noise(clean, draws.eps, draws.t), draws.t, cameras, schedule)


def _pixels(autoencoder: Any, latents: Tensor) -> int:
    """Side of the images whose latents these are."""
    return latents.shape[-1] * autoencoder.downsampling


def expects(golden: Golden) -> Checks:
    """Losses, gradients, and calls."""
    return Checks({name: value for name, value in golden.tensors.items() if name.startswith(RESULTS)})


KINDS = [Kind("USD's step", has("loss_usd_term", "rgb", "ref_rgb"), run, expects)]
