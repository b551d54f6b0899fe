"""The KL-regularised autoencoder of latent diffusion (arXiv:2112.10752): images at an eighth of their side, and back.

Images are [N, 3, H, W] in [-1, 1], latents [N, c, H/f, W/f] and *unscaled*: the factor 0.18215 that brings them to
unit variance belongs to the codec which wraps this network. Numbers that matter for parity with the published
weights: GroupNorm of 32 groups with eps 1e-6, stride-2 convolutions padded by one on the right and below only, one
attention head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class AutoencoderConfig:
    """Shape of the autoencoder. The defaults are the KL-f8 of Stable Diffusion, MVDream, ImageDream, Zero-1-to-3."""

    image_channels: int = 3
    channels: int = 128
    """Width of the finest level."""
    channel_mult: tuple[float, ...] = (1, 2, 4, 4)
    """Width of each level over `channels`, whole numbers in all published networks; every level but the last halves
    the side."""
    res_blocks: int = 2
    """Residual blocks per level of the encoder; the decoder has one more."""
    attention: tuple[bool, ...] = (False, False, False, False)
    """Attention after each residual block of a level; the middle always has one."""
    inner_channels: int = 4
    """Channels of the latents inside, before the last 1x1 convolution."""
    latent_channels: int = 4
    """Channels of the latents that others see."""
    groups: int = 32

    def __post_init__(self) -> None:
        if len(self.channel_mult) != len(self.attention):
            raise ValueError(
                "channel_mult and attention need one entry per level, "
                f"got {len(self.channel_mult)} and {len(self.attention)}"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, the finest first."""
        return tuple(round(self.channels * mult) for mult in self.channel_mult)

    @property
    def downsampling(self) -> int:
        """Image side over latent side."""
        return 2 ** (len(self.channel_mult) - 1)


class Autoencoder(nn.Module):
    """Encoder to a Gaussian over latents, and decoder back to images."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.to_moments = nn.Conv2d(2 * config.inner_channels, 2 * config.latent_channels, 1)
        self.from_latents = nn.Conv2d(config.latent_channels, config.inner_channels, 1)
        self.decoder = Decoder(config)

    @property
    def downsampling(self) -> int:
        """Image side over latent side: 8 for the published models."""
        return self.config.downsampling

    @property
    def latent_channels(self) -> int:
        """Channels of the latents: 4 for the published models."""
        return self.config.latent_channels

    def moments(self, images: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n c2 h w"]:
        """Mean and log-variance of the posterior, stacked on the channel axis, as the network puts them out."""
        factor = self.downsampling
        if images.shape[-2] % factor or images.shape[-1] % factor:
            raise ValueError(
                f"this autoencoder shrinks by {factor}, so image sides must be multiples of {factor}; got "
                f"{images.shape[-2]} x {images.shape[-1]}, resize first."
            )
        return self.to_moments(self.encoder(images))

    def encode(self, images: Float[Tensor, "n 3 H W"]) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n c h w"]]:
        """(mean, std) of the posterior of images in [-1, 1]; a sample is mean + std * noise. Differentiable."""
        mean, log_variance = self.moments(images).chunk(2, dim=1)
        # The published bounds: beyond them exp over- or underflows in half precision.
        return mean, (0.5 * log_variance.clamp(-30.0, 20.0)).exp()

    def decode(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 H W"]:
        """Images, about [-1, 1] and not clamped, of unscaled latents."""
        return self.decoder(self.from_latents(latents))


class Encoder(nn.Module):
    """Stem, levels of residual blocks that halve the side in between, middle, head."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = config.widths
        self.stem = nn.Conv2d(config.image_channels, config.channels, 3, padding=1)
        self.down = nn.ModuleList()
        width = config.channels
        for i, out in enumerate(widths):
            self.down.append(Level(config, width, out, config.res_blocks, config.attention[i]))
            width = out
        self.shrink = nn.ModuleList(Shrink(out) for out in widths[:-1])
        self.middle = Middle(width, config.groups)
        self.norm_out = norm(width, config.groups)
        self.head = nn.Conv2d(width, 2 * config.inner_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for i, level in enumerate(self.down):
            h = level(h)
            if i < len(self.shrink):
                h = self.shrink[i](h)
        return self.head(F.silu(self.norm_out(self.middle(h))))


class Decoder(nn.Module):
    """Stem, middle, levels of residual blocks that double the side in between (coarsest first), head."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = config.widths[::-1]
        width = widths[0]
        self.stem = nn.Conv2d(config.inner_channels, width, 3, padding=1)
        self.middle = Middle(width, config.groups)
        self.up = nn.ModuleList()
        for i, out in enumerate(widths):
            self.up.append(Level(config, width, out, config.res_blocks + 1, config.attention[-1 - i]))
            width = out
        self.grow = nn.ModuleList(Grow(out) for out in widths[:-1])
        self.norm_out = norm(width, config.groups)
        self.head = nn.Conv2d(width, config.image_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.middle(self.stem(z))
        for i, level in enumerate(self.up):
            h = level(h)
            if i < len(self.grow):
                h = self.grow[i](h)
        return self.head(F.silu(self.norm_out(h)))


class Level(nn.Module):
    """Residual blocks of one resolution, each followed by attention where the level has it."""

    def __init__(
        self, config: AutoencoderConfig, channels: int, out_channels: int, count: int, attention: bool
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Residual(channels if i == 0 else out_channels, out_channels, config.groups) for i in range(count)
        )
        self.attentions = nn.ModuleList(
            Attention(out_channels, config.groups) for _ in range(count if attention else 0)
        )

    def forward(self, h: Tensor) -> Tensor:
        for i, block in enumerate(self.blocks):
            h = block(h)
            if len(self.attentions):
                h = self.attentions[i](h)
        return h


class Middle(nn.Module):
    """Residual block, attention, residual block at the coarsest resolution."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.residual_in = Residual(channels, channels, groups)
        self.attention = Attention(channels, groups)
        self.residual_out = Residual(channels, channels, groups)

    def forward(self, h: Tensor) -> Tensor:
        return self.residual_out(self.attention(self.residual_in(h)))


class Residual(nn.Module):
    """GN-SiLU-conv twice, + skip (identity or 1x1 convolution)."""

    def __init__(self, channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm_in = norm(channels, groups)
        self.conv_in = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm_out = norm(out_channels, groups)
        self.conv_out = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(F.silu(self.norm_in(x)))
        return self.skip(x) + self.conv_out(F.silu(self.norm_out(h)))


class Attention(nn.Module):
    """Single-head self-attention over all pixels of a map, with a residual."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = norm(channels, groups)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        tokens = rearrange(self.norm(x), "n c h w -> n 1 (h w) c")
        h = F.scaled_dot_product_attention(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        return x + rearrange(self.to_out(h), "n 1 (h w) c -> n c h w", h=x.shape[-2])


class Shrink(nn.Module):
    """Half the side: a stride-2 convolution whose one pixel of padding lies on the right and below."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Grow(nn.Module):
    """Twice the side: nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def norm(channels: int, groups: int) -> nn.GroupNorm:
    """The normalisation that all of the autoencoder uses."""
    return nn.GroupNorm(groups, channels, eps=1e-6)
