"""Single calls of Zero-1-to-3's networks, its preprocessing, and stores of weights read and written back."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from maquette.diffusion.blocks import timestep_embedding
from maquette.diffusion.clip_pixels import clip_pixels_aligned
from maquette.priors.codecs import KLCodec
from tests.parity.golden import EXACT, Checks, Golden, Kind, has, needs
from tests.parity.usd.models import Part, diffusers_parts, ldm_parts, small_zero123

NETWORK = 1e-4
"""README of these goldens: single network calls and formulas."""
LOOP = 1e-3
"""Sampling loops, losses, gradients through the autoencoder."""


def all_but(*inputs: str) -> Callable[[Golden], Checks]:
    """Everything in the file but its inputs is expected."""
    return lambda golden: Checks({name: value for name, value in golden.tensors.items() if name not in inputs})


@torch.no_grad()
def run_unet(golden: Golden, checks: Checks) -> None:
    """Projection, time embedding, and the U-Net with a token, with none, and with several."""
    given = golden.tensors
    prior = small_zero123(golden)
    t, x = needs(given, "timesteps"), needs(given, "x_noisy")[:, None]
    picture = needs(given, "c_concat")[:, None]
    context = prior.context(needs(given, "clip_token")[:, 0], needs(given, "pose_T"))
    nothing = torch.zeros_like(context)

    def call(tokens: Tensor, beside: Tensor) -> Tensor:
        return prior.denoise(x, t, tokens, beside)[:, 0]

    checks.compare("context", context, NETWORK)
    checks.compare("timestep_embedding", timestep_embedding(t, prior.network.config.channels), NETWORK)
    checks.compare("eps_cond", call(context, picture), NETWORK)
    checks.compare("eps_uncond", call(nothing, torch.zeros_like(picture)), NETWORK)
    for name in given:
        if name.startswith("context_seq"):
            checks.compare(name.replace("context_", "eps_"), call(given[name], picture), NETWORK)


@torch.no_grad()
def run_autoencoder(golden: Golden, checks: Checks) -> None:
    """Posterior, its mode as the unscaled latents of a picture, scaled sample, and the way back."""
    given = golden.tensors
    codec = small_zero123(golden).codec
    assert isinstance(codec, KLCodec)
    module, scale = codec.autoencoder, codec.scale
    mean, std = module.encode(needs(given, "image"))
    sample = scale * (mean + std * needs(given, "eps"))
    checks.compare("mean", mean, NETWORK)
    checks.compare("mode", mean, NETWORK)
    checks.compare("logvar", 2 * std.log(), NETWORK)
    checks.compare("latent_scaled", sample, NETWORK)
    checks.compare("decoded", module.decode(sample / scale), NETWORK)


def run_preprocess(golden: Golden, checks: Checks) -> None:
    """Pixels for the image tower, stored in two excerpts."""
    for name, picture in golden.tensors.items():
        if name.startswith("in"):
            pixels = clip_pixels_aligned((picture + 1) / 2)
            checks.compare("out224", pixels[..., ::3, ::3], NETWORK)
            checks.compare("out224_corner", pixels[..., :24, :24], NETWORK)


def run_store(read: Callable[[Golden], dict[str, Part]]) -> Callable[[Golden, Checks], None]:
    """Read a store into our networks and write it back: the same names, the same numbers."""

    def run(golden: Golden, checks: Checks) -> None:
        written: dict[str, Tensor] = {}
        for part in read(golden).values():
            written |= part.write()
        for name in written.keys() - golden.tensors.keys():
            raise ValueError(f"writing the networks back gives {name!r}, which the file does not have")
        for name, tensor in written.items():
            checks.compare(name, tensor, EXACT)

    return run


def _is_diffusers_store(golden: Golden) -> bool:
    parts = {tuple(name.split(".")[:2]) for name in golden.tensors if name.count(".") > 1}
    return any("_".join(part) in golden.metadata for part in parts)


KINDS = [
    Kind("zero123 weights", has("cc_projection.weight"), run_store(ldm_parts), all_but()),
    Kind("diffusers weights", _is_diffusers_store, run_store(diffusers_parts), all_but()),
    Kind(
        "zero123 network", has("x_noisy", "clip_token", "pose_T", "timesteps"), run_unet,
        lambda g: Checks({
            n: v for n, v in g.tensors.items()
            if n not in ("x_noisy", "c_concat", "clip_token", "pose_T", "timesteps")
            and not n.startswith("context_seq")
        }),
    ),
    Kind("zero123 autoencoder", has("image", "eps", "latent_scaled"), run_autoencoder, all_but("image", "eps")),
    Kind(
        "clip preprocessing", lambda g: "out224" in g.tensors, run_preprocess,
        lambda g: Checks({n: v for n, v in g.tensors.items() if n.startswith("out")}),
    ),
]  # fmt: skip
