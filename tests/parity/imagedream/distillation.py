"""Score distillation: loss, gradient and gradient norm of every form, and the exact call of the network."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from maquette.cameras import Cameras
from maquette.guidance.base import Draws, Noised
from maquette.guidance.recon import ReconConfig, ReconGuidance
from maquette.images import ImagePrompt, Prompt
from maquette.priors.base import Condition
from maquette.priors.codecs import SpaceToDepth
from maquette.priors.multiview import MultiViewPrior
from tests.parity.golden import EXACT, LOOP, NETWORK, Checks, Golden, Kind, has, needs
from tests.parity.imagedream.models import load_autoencoder, load_unet
from tests.parity.imagedream.priors import kl_codec, recorded_prior


@dataclass(frozen=True)
class WithPromptNoise:
    """A prior whose prompt latents are the recorded sample of the posterior instead of its mean."""

    prior: MultiViewPrior
    prompt_noise: Tensor | None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.prior, name)

    def condition(self, prompt: Prompt, background: Tensor) -> Condition:
        return self.prior.condition(prompt, background, latent_noise=self.prompt_noise)


def run(golden: Golden, checks: Checks) -> None:
    """Each form of the guidance on the same noisy latents, from latents or from rendered pixels."""
    facts, given = golden.metadata, golden.under("in.")
    views, scenes = int(facts["n_view"]), int(facts["scenes"])
    model = load_unet(golden, facts["model"])
    pixels = facts["mode"] == "pixel" or "rgb" in given
    codec = kl_codec(load_autoencoder(golden), int(facts["image_size"])) if pixels else SpaceToDepth()
    prior = recorded_prior(
        model, codec, views=views, mode=facts["mode"], caption=needs(given, "context"),
        negative=needs(given, "uncond_context"), ip=given.get("clip_features"),
    )  # fmt: skip
    # Only pixel control looks at the picture itself; what the encoder makes of it is recorded.
    any_picture = ImagePrompt(torch.zeros(3, 8, 8), torch.ones(1, 8, 8))
    image = any_picture if facts["mode"] != "pixel" else prompt_picture(golden)
    prompt = Prompt(None if facts["mode"] == "none" else image, caption="a recorded caption")
    cameras = Cameras(given["c2w"].unflatten(0, (scenes, views)), torch.full((scenes, views), 40.0), 1, 1)
    background = torch.full((3,), float(facts["bg"]))
    noise = needs(given, "noise").unflatten(0, (scenes, views))
    draws = Draws(torch.full((scenes,), int(facts["t"])), noise)

    forms = sorted({_form(name) for name in checks.expected if name.startswith("out.")})
    for form in forms:
        match = re.fullmatch(r"recon_rescale([0-9.]+)", form)
        if match is None and form != "eps":
            continue  # stays uncompared, and says so
        config = ReconConfig(
            guidance_scale=float(facts["guidance_scale"]),
            rescale=float(match[1]) if match else 0.0,
            form="x0" if match else "eps",
            alignment="grey",
            background_step=0.0,
        )
        guidance = ReconGuidance(WithPromptNoise(prior, given.get("prompt_vae_noise")), prompt, config)  # type: ignore[arg-type]
        source = (given["rgb"] if "rgb" in given else needs(given, "latents")).clone().requires_grad_()
        grouped = source.unflatten(0, (scenes, views))
        if "rgb" in given:
            latents = prior.codec.encode(grouped.movedim(-1, -3), given["vae_noise"].unflatten(0, (scenes, views)))
        else:
            latents = grouped
        with watched(model.network) as calls:
            result = guidance.on_latents(latents, cameras, background, draws)
        result.loss.backward()
        assert source.grad is not None
        # The released code logs the norm of the undivided gradient in its classic form.
        norm = result.metrics["grad_norm"] * (1 if match else views * scenes)
        checks.compare(f"out.{form}.loss", result.loss[None], LOOP)
        checks.compare(f"out.{form}.grad", source.grad, LOOP)
        checks.compare(f"out.{form}.grad_norm", torch.tensor([norm]), LOOP)
        if config.guidance_scale == 1.0:
            calls = both_halves(guidance, model.network, calls, cameras, background, draws)
        assembly(calls, checks, views, pixel=facts["mode"] == "pixel")


def both_halves(
    guidance: ReconGuidance,
    network: nn.Module,
    calls: list[tuple[tuple[Any, ...], dict[str, Any], Tensor]],
    cameras: Cameras,
    background: Tensor,
    draws: Draws,
) -> list[tuple[tuple[Any, ...], dict[str, Any], Tensor]]:
    """The call with the half that has no weight at scale 1: ours leaves it out, recordings have it all the same."""
    latents_t, schedule = calls[0][0][0][:, : cameras.batch_shape[-1]], guidance.prior.noise_schedule
    noised = Noised(latents_t, draws.eps, latents_t, draws.t, cameras, schedule)
    with torch.no_grad(), watched(network) as found:
        guidance.condition.predict(noised, background)
    return found


def _form(name: str) -> str:
    """recon_rescale0.2 of out.recon_rescale0.2.grad, whose number has a dot of its own."""
    return name.removeprefix("out.").rsplit(".", 1)[0]


def prompt_picture(golden: Golden) -> ImagePrompt:
    """The picture of the folder's image prompt case."""
    path = golden.folder / "image_prompt.safetensors"
    if not path.exists():
        raise ValueError(f"{golden.path.name} needs {path.name} beside it")
    picture = Golden(path).tensors["in.rgba"].permute(2, 0, 1).float() / 255
    return ImagePrompt(picture[:3], picture[3:])


@contextmanager
def watched(network: nn.Module) -> Iterator[list[tuple[tuple[Any, ...], dict[str, Any], Tensor]]]:
    """Arguments and results of every call of the network."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any], Tensor]] = []

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        calls.append((args, kwargs, output))

    handle = network.register_forward_hook(hook, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def assembly(
    calls: list[tuple[tuple[Any, ...], dict[str, Any], Tensor]], checks: Checks, views: int, pixel: bool
) -> None:
    """The recorded call of the network: conditional scenes, then unconditional ones, frames within a scene."""
    if len(calls) != 1:
        raise ValueError(f"the guidance called the network {len(calls)} times, expected once with both halves")
    (x, t, context, camera), kwargs, output = calls[0]
    frames = x.shape[1]
    shown = x
    if pixel:
        checks.compare_if_expected("asm.unet.ip_img", lambda: x[:, views], NETWORK)
        # The recording hands the prompt's latents over separately and leaves zeros in their slot, which the network
        # replaces.
        shown = torch.cat([x[:, :views], torch.zeros_like(x[:, views:])], dim=1)

    def per_frame(condition: Tensor) -> Tensor:
        return condition.repeat_interleave(frames, dim=0)

    ip = kwargs.get("local_features")
    ip = kwargs.get("global_feature") if ip is None else ip
    checks.compare_if_expected("asm.unet.x", lambda: shown.flatten(0, 1), NETWORK)
    checks.compare_if_expected("asm.unet.t", lambda: per_frame(t), EXACT)
    checks.compare_if_expected("asm.unet.context", lambda: per_frame(context), NETWORK)
    checks.compare_if_expected("asm.unet.camera", lambda: camera.flatten(0, 1), NETWORK)
    if ip is not None:
        checks.compare_if_expected("asm.unet.ip", lambda: per_frame(ip), NETWORK)
    checks.compare_if_expected("asm.unet.out", lambda: output.flatten(0, 1), NETWORK)


KIND = Kind("distillation", has("in.c2w", "in.noise"), run)
