"""Priors small enough for tests, with every parameter random, so that no branch hides behind a zero."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from maquette.cameras import Cameras, orbit
from maquette.diffusion.autoencoder import Autoencoder, AutoencoderConfig
from maquette.diffusion.schedule import NoiseSchedule, Parametrisation
from maquette.diffusion.unet import ImagePromptConfig, MultiViewUNet, UNetConfig
from maquette.images import ImagePrompt, Prompt
from maquette.priors.codecs import KLCodec, SpaceToDepth
from maquette.priors.multiview import MultiViewConfig, MultiViewPrior
from maquette.priors.nano.assembly import NanoConfig, NoiseConfig, build_nano, parts
from maquette.priors.nano.encoders import ImageEncoderConfig, TextEncoderConfig

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


PRIORS: dict[str, Callable[[], MultiViewPrior]] = {
    "nano (x0)": tiny_prior,
    "nano (eps)": lambda: tiny_prior("eps"),
    "nano (v)": lambda: tiny_prior("v"),
    "nano (prompt beside)": lambda: tiny_prior(beside=True),
    "nano (text only)": lambda: tiny_prior(control="none"),
    "published pixel": tiny_published,
    "published local": lambda: tiny_published("local"),
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


def noisy(prior: MultiViewPrior, scenes: int = 2, views: int = 4, seed: int = 0) -> Tensor:
    """Random latents of the prior's shape."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(scenes, views, *prior.codec.latent_shape, generator=generator)
