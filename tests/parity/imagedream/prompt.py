"""How an image prompt becomes what the networks see: composites, the autoencoder's input, CLIP's input."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from maquette.diffusion.clip_pixels import CLIP_STD, clip_pixels, to_levels, vae_pixels
from maquette.images import ImagePrompt
from tests.parity.golden import NETWORK, Checks, Golden, Kind, has

ONE_LEVEL = 1 / 255
"""Composites are truncated to 8 bits after float32 arithmetic; rounding may tip a pixel to its neighbour."""
DEFAULT_GREY = 127.5
"""The background level of the networks' inputs."""


def composite(rgba: Tensor, grey: float) -> Tensor:
    """The picture [H, W, 4] uint8 on a grey level of [0, 255], as [3, H, W] in [0, 1]."""
    picture = rgba.permute(2, 0, 1).float() / 255
    return ImagePrompt(picture[:3], picture[3:]).composite(torch.full((3,), grey / 255))


def run(golden: Golden, checks: Checks) -> None:
    """Every grey level of the file, and both networks' inputs on the middle one.

    Truncation makes a composite that lies on a level's edge a matter of float32's last bit, so one level is allowed
    there. What is made from it is compared on the recorded composite, sharply, and on our own, to within the same one
    level.
    """
    rgba = golden.tensors["in.rgba"]
    for name in checks.expected:
        if name.startswith("out.composite_bg"):
            levels = to_levels(composite(rgba, float(name.removeprefix("out.composite_bg"))))
            checks.compare(name, levels.permute(1, 2, 0), ONE_LEVEL)
    ours = composite(rgba, DEFAULT_GREY)
    recorded = checks.expected.get(f"out.composite_bg{DEFAULT_GREY}")
    exact = ours if recorded is None else recorded.permute(2, 0, 1).float() / 255
    makers: dict[str, tuple[Callable[[Tensor, int], Tensor], float]] = {
        "out.vae_input": (lambda image, size: vae_pixels(image, size) * 2 - 1, 2 / 255),
        "out.clip_input": (clip_pixels, 1 / 255 / min(CLIP_STD)),
    }
    for name, (make, one_level) in makers.items():
        if name not in checks.expected:
            continue
        reference = checks.expected[name]
        size = reference.shape[-1]
        scale = float(reference.abs().max())
        checks.compare(name, make(exact, size), one_level / scale if recorded is None else NETWORK)
        off = float((make(ours, size) - reference).abs().max())
        if not off <= 1.001 * one_level:
            raise ValueError(
                f"{name} from our own composite is off by {off:.4f}, more than one level ({one_level:.4f})"
            )


KIND = Kind("image prompt", has("in.rgba"), run)
