"""Priors small enough for tests, with every parameter random, so that no branch hides behind a zero."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from maquette.cameras import Cameras, orbit
from maquette.diffusion.autoencoder import Autoencoder, AutoencoderConfig
from maquette.diffusion.schedule import NoiseSchedule, Parametrisation
from maquette.diffusion.unet import ImagePromptConfig, MultiViewUNet, UNetConfig
from maquette.images import ImagePrompt, Prompt
from maquette.priors.base import Prior
from maquette.priors.codecs import KLCodec, SpaceToDepth
from maquette.priors.multiview import MultiViewConfig, MultiViewPrior
from maquette.priors.nano.assembly import NanoConfig, NoiseConfig, build_nano, parts
from maquette.priors.nano.encoders import ImageEncoderConfig, TextEncoderConfig
from maquette.priors.nano.novel_view import NanoViewConfig, build_nano_view, view_parts
from maquette.priors.stable_diffusion import StableDiffusionPrior
from maquette.priors.zero123 import Zero123Config, Zero123Prior

TINY_NETWORK = UNetConfig(
    in_channels=48, out_channels=48, channels=16, channel_mult=(1, 2), res_blocks=(1, 1), attention=(True, True),
    head_width=8, context_dim=16, groups=8, patch=4, pixel_head=4,
    image_prompt=ImagePromptConfig(
        local_dim=16, global_dim=12, num_queries=3, depth=1, heads=2, head_width=8, num_global=2
    ),
)  # fmt: skip


def tiny_config(
    predicts: Parametrisation = "x0", control: str = "global+local+pixel", beside: bool = False
) -> NanoConfig:
    """A nano prior of 16 px images; `beside` puts the prompt beside every view as well."""
    return NanoConfig(
        network=replace(TINY_NETWORK, in_channels=96) if beside else TINY_NETWORK,
        text_encoder=TextEncoderConfig(width=16, layers=1, heads=2, embedding_dim=12),
        image_encoder=ImageEncoderConfig(image_size=16, patch=8, width=16, layers=2, heads=2, embedding_dim=12),
        codec=SpaceToDepth(image_size=16, patch=4),
        noise=NoiseConfig(predicts=predicts),
        use=MultiViewConfig(name="tiny", control=control, missing_picture="zeros", picture_in_2d=False),
    )


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with all parameters drawn anew: matrices N(0, 1 / fan in), norms around 1, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.1 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
    return module.eval().requires_grad_(False)


def tiny_prior(
    predicts: Parametrisation = "x0", control: str = "global+local+pixel", beside: bool = False
) -> MultiViewPrior:
    """A nano prior with random weights."""
    prior = build_nano(tiny_config(predicts, control, beside))
    for index, module in enumerate(parts(prior).values()):
        randomised(module, index)
    return prior


def tiny_view_config() -> NanoViewConfig:
    """A nano Zero-1-to-3 of the same latents as the nano prior above."""
    network = UNetConfig(
        in_channels=96, out_channels=48, channels=16, channel_mult=(1, 2), res_blocks=(1, 1), attention=(True, True),
        head_width=8, context_dim=16, camera_dim=None, groups=8, patch=4, pixel_head=4,
    )  # fmt: skip
    encoder = ImageEncoderConfig(image_size=16, patch=8, width=16, layers=2, heads=2, embedding_dim=12)
    return NanoViewConfig(network, encoder, SpaceToDepth(image_size=16, patch=4))


def tiny_view_prior() -> Zero123Prior:
    """A nano Zero-1-to-3 with random weights."""
    prior = build_nano_view(tiny_view_config())
    for index, module in enumerate(view_parts(prior).values()):
        randomised(module, index)
    return prior


class WordsAsCodes(nn.Module):
    """A text encoder without weights: every character is a token, embedded by its code."""

    @staticmethod
    def tokenize(texts: Sequence[str]) -> Tensor:
        return torch.tensor([[ord(letter) for letter in text[:6].ljust(6)] for text in texts])

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.sin(tokens[..., None] * torch.arange(1, 17) / 7)


class MeanFeatures(nn.Module):
    """An image encoder without weights: coarse means of the picture."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        local = nn.functional.adaptive_avg_pool2d(images, (4, 4)).flatten(1)  # [B, 48]
        return local.unflatten(1, (3, 16)), local[:, :12]


def tiny_published(control: str = "local+pixel") -> MultiViewPrior:
    """The published models' kind: eps prediction, a KL autoencoder, one kind of image tokens, a plain head."""
    network = UNetConfig(
        channels=16, channel_mult=(1, 2), res_blocks=(1, 1), attention=(True, False), head_width=8, context_dim=16,
        groups=8, image_prompt=ImagePromptConfig(local_dim=16, num_queries=3, depth=1, heads=2, head_width=8),
    )  # fmt: skip
    autoencoder = Autoencoder(AutoencoderConfig(channels=8, channel_mult=(1, 2), res_blocks=1,
                                                attention=(False, False), groups=4))  # fmt: skip
    return MultiViewPrior(
        network=randomised(MultiViewUNet(network)),
        codec=randomised(KLCodec(autoencoder, image_size=16), 1),
        noise_schedule=NoiseSchedule.scaled_linear(),
        tokenizer=WordsAsCodes.tokenize,
        text_encoder=WordsAsCodes(),
        image_encoder=MeanFeatures(),
        config=MultiViewConfig(name="ImageDream", control=control),
    )


def single_view_unet(in_channels: int) -> MultiViewUNet:
    """A network of the published single-view priors' kind."""
    config = UNetConfig(
        in_channels=in_channels, channels=16, channel_mult=(1, 2), res_blocks=(1, 1), attention=(True, False),
        head_width=None, num_heads=2, linear_projection=False, context_dim=16, camera_dim=None, groups=8,
    )  # fmt: skip
    network = randomised(MultiViewUNet(config))
    assert isinstance(network, MultiViewUNet)
    return network


def tiny_codec(image_size: int = 16) -> KLCodec:
    """A small KL autoencoder that halves the side."""
    config = AutoencoderConfig(channels=8, channel_mult=(1, 2), res_blocks=1, attention=(False, False), groups=4)
    codec = randomised(KLCodec(Autoencoder(config), image_size=image_size), 1)
    assert isinstance(codec, KLCodec)
    return codec


class MeanEmbedding(nn.Module):
    """An image encoder without weights that gives one embedding: coarse means of the picture."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images, (2, 2)).flatten(1)  # [B, 12]


def tiny_zero123(config: Zero123Config = Zero123Config()) -> Zero123Prior:  # noqa: B008
    """Zero-1-to-3's kind: eps prediction, a KL autoencoder, the picture beside the noise, one token."""
    projection = randomised(nn.Linear(12 + 4, 16), 2)
    assert isinstance(projection, nn.Linear)
    schedule = NoiseSchedule.scaled_linear()
    return Zero123Prior(single_view_unet(8), tiny_codec(), schedule, MeanEmbedding(), projection, config)


def tiny_stable_diffusion(predicts: Parametrisation = "eps") -> StableDiffusionPrior:
    """Stable Diffusion's kind: words alone."""
    schedule = NoiseSchedule.scaled_linear(predicts=predicts)
    return StableDiffusionPrior(single_view_unet(4), tiny_codec(), schedule, WordsAsCodes.tokenize, WordsAsCodes())


MULTIVIEW: dict[str, Callable[[], MultiViewPrior]] = {
    "nano (x0)": tiny_prior,
    "nano (eps)": lambda: tiny_prior("eps"),
    "nano (v)": lambda: tiny_prior("v"),
    "nano (prompt beside)": lambda: tiny_prior(beside=True),
    "nano (text only)": lambda: tiny_prior(control="none"),
    "published pixel": tiny_published,
    "published local": lambda: tiny_published("local"),
}
"""Every prior of several views."""

PRIORS: dict[str, Callable[[], Any]] = {
    **MULTIVIEW,
    "zero123": tiny_zero123,
    "zero123 (stable)": lambda: tiny_zero123(Zero123Config(pose="stable-zero123", elevation=20.0)),
    "stable diffusion": tiny_stable_diffusion,
    "stable diffusion (v)": lambda: tiny_stable_diffusion("v"),
}
"""Every prior that the contract tests run over; a newcomer adds one line."""


def picture(size: int = 40, seed: int = 0) -> ImagePrompt:
    """A disc with a random texture."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    mask = ((x - size / 2) ** 2 + (y - size / 2) ** 2 < (size / 3) ** 2).float()[None]
    return ImagePrompt(torch.rand(3, size, size, generator=generator), mask)


def prompt(caption: str = "a red barrel", negative: str = "blue", seed: int = 0) -> Prompt:
    """A picture with words."""
    return Prompt(picture(seed=seed), caption, negative)


def four_cameras() -> Cameras:
    """Four orthogonal views from slightly above."""
    return orbit(4, elevation=10.0, azimuth=20.0, height=16, width=16)


def cameras_for(prior: Prior) -> Cameras:
    """As many cameras as the prior wants of a scene, none of them at the front."""
    return orbit(prior.num_views or 1, elevation=10.0, azimuth=20.0, height=16, width=16)


def noisy(prior: Prior, scenes: int = 2, views: int | None = None, seed: int = 0) -> Tensor:
    """Random latents of the prior's shape; its own number of views where none is given."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(scenes, views or prior.num_views or 1, *prior.codec.latent_shape, generator=generator)
