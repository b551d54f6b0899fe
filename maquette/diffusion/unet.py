"""One multi-view U-Net for MVDream, ImageDream, Zero-1-to-3, Stable Diffusion and the nano priors.

It is the latent-diffusion U-Net; what makes it multi-view is small: self-attention sees all views of a scene at once
(views folded into tokens), and a camera embedding is added to the time embedding. With V = 1 and no camera it is
exactly a 2D text-to-image network. ImageDream adds image tokens beside the text and feeds the prompt's latent as one
more view; that extra view is appended by the caller (the prior), here it is a view like any other.

Layout: stem | down levels | middle | up levels | head. Level i has `res_blocks[i]` residual blocks on the way down
and one more on the way up, each followed by a transformer where `attention[i]`; every up block first concatenates the
matching skip (current features first, skip second).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn

from maquette.diffusion.blocks import (
    Downsample,
    EmbeddingMLP,
    PixelHead,
    ResidualBlock,
    SpatialTransformer,
    Upsample,
    timestep_embedding,
)
from maquette.diffusion.image_prompt import GlobalProjection, LinearTokens, Resampler
from maquette.diffusion.schedule import NoiseSchedule


@dataclass(frozen=True)
class ImagePromptConfig:
    """Image-token controllers of the U-Net. A dimension of 0 leaves that controller out."""

    local_dim: int = 1280
    """Width of the image encoder's hidden tokens (local control)."""
    global_dim: int = 0
    """Width of the pooled image embedding (global control)."""
    resample: bool = True
    """Condense the local tokens by a resampler; False projects them one by one (the paper's ablation)."""
    num_queries: int = 16
    """Tokens that the resampler returns."""
    depth: int = 4
    heads: int = 12
    head_width: int = 64
    ff_mult: int = 4
    num_global: int = 4
    """Tokens made from the pooled embedding."""


@dataclass(frozen=True)
class UNetConfig:
    """Shape of the network. The defaults are MVDream on Stable Diffusion 2.1 without image prompt."""

    in_channels: int = 4
    out_channels: int = 4
    channels: int = 320
    channel_mult: tuple[float, ...] = (1, 2, 4, 4)
    """Width of each level over `channels`; whole numbers in all published networks."""
    res_blocks: tuple[int, ...] = (2, 2, 2, 2)
    attention: tuple[bool, ...] = (True, True, True, False)
    """Transformers at each level; the middle block always has one."""
    head_width: int | None = 64
    """Fixed width of an attention head (SD 2); none where the number of heads is given (SD 1)."""
    num_heads: int | None = None
    level_heads: tuple[int, ...] | None = None
    """Number of heads at each level where neither is fixed; the middle has the last level's."""
    linear_projection: bool = True
    """Linear (SD 2) or 1x1 convolution (SD 1) around a transformer."""
    transformer_depth: int = 1
    context_dim: int = 1024
    camera_dim: int | None = 16
    """Length of the camera vector; none leaves the camera embedding out."""
    image_prompt: ImagePromptConfig | None = None
    groups: int = 32
    ff_mult: int = 4
    patch: int = 1
    """Pixels per latent side of an exact space-to-depth codec; used only by `pixel_head`."""
    pixel_head: int = 0
    """Width of the full-resolution output head for space-to-depth latents; 0 is the published convolution."""
    pixel_copy: bool = False
    """The pixel head may take pixels from the prompt that lies beside every view (see `PixelHead`)."""
    data_deviation: float | None = None
    """Standard deviation of clean latents, where the network predicts x0 as a mixture of what it sees and what it adds
    (see `mixture_table`); it needs a pixel head. None is the plain prediction of all published networks."""

    def __post_init__(self) -> None:
        if not len(self.channel_mult) == len(self.res_blocks) == len(self.attention):
            raise ValueError(
                "channel_mult, res_blocks and attention need one entry per level, got "
                f"{len(self.channel_mult)}, {len(self.res_blocks)} and {len(self.attention)}"
            )
        if [self.head_width, self.num_heads, self.level_heads].count(None) != 2:
            raise ValueError(
                "give one of head_width (Stable Diffusion 2), num_heads (Stable Diffusion 1) and level_heads, "
                "and none for the others"
            )
        if self.level_heads is not None and len(self.level_heads) != len(self.channel_mult):
            raise ValueError(
                f"level_heads needs one entry per level, got {len(self.level_heads)} for {len(self.channel_mult)}"
            )
        if self.data_deviation is not None and (self.data_deviation <= 0 or not self.pixel_head):
            raise ValueError(
                "data_deviation is the positive deviation of clean latents and needs a pixel head, got "
                f"{self.data_deviation} with pixel_head={self.pixel_head}"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(round(self.channels * mult) for mult in self.channel_mult)

    def heads(self, width: int, level: int) -> tuple[int, int]:
        """(number of heads, width of a head) for `width` channels at a level; -1 is the last level, and the middle."""
        if self.head_width is not None:
            return width // self.head_width, self.head_width
        count = self.num_heads if self.level_heads is None else self.level_heads[level]
        assert count is not None
        return count, width // count


class Block(nn.Module):
    """A residual block, followed by a transformer where the level has attention."""

    def __init__(self, config: UNetConfig, channels: int, out_channels: int, level: int) -> None:
        super().__init__()
        self.residual = ResidualBlock(channels, out_channels, 4 * config.channels, config.groups)
        self.transformer = transformer(config, out_channels, level) if config.attention[level] else None

    def forward(self, h: Tensor, state: _State) -> Tensor:
        h = self.residual(h, state.embedding)
        return h if self.transformer is None else state.attend(self.transformer, h)


class DownLevel(nn.Module):
    def __init__(self, config: UNetConfig, channels: int, level: int) -> None:
        super().__init__()
        width = config.widths[level]
        self.blocks = nn.ModuleList(
            Block(config, channels if i == 0 else width, width, level) for i in range(config.res_blocks[level])
        )
        last = level == len(config.channel_mult) - 1
        self.downsample = None if last else Downsample(width if self.blocks else channels)

    def forward(self, h: Tensor, state: _State) -> list[Tensor]:
        """The maps after every block and after the downsampling: what the way up takes back."""
        maps = []
        for block in self.blocks:
            h = block(h, state)
            maps.append(h)
        return maps if self.downsample is None else [*maps, self.downsample(h)]


class UpLevel(nn.Module):
    def __init__(self, config: UNetConfig, channels: int, skips: list[int], level: int) -> None:
        super().__init__()
        width = config.widths[level]
        self.blocks = nn.ModuleList(
            Block(config, (channels if i == 0 else width) + skip, width, level) for i, skip in enumerate(skips)
        )
        self.upsample = None if level == 0 else Upsample(width)

    def forward(self, h: Tensor, skips: list[Tensor], state: _State) -> Tensor:
        """Features one level up; takes the maps that it joins off the end of `skips`."""
        for block in self.blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), state)
        return h if self.upsample is None else self.upsample(h, (skips[-1].shape[-2], skips[-1].shape[-1]))


class Middle(nn.Module):
    def __init__(self, config: UNetConfig, channels: int) -> None:
        super().__init__()
        self.residual_in = ResidualBlock(channels, channels, 4 * config.channels, config.groups)
        self.transformer = transformer(config, channels, -1)
        self.residual_out = ResidualBlock(channels, channels, 4 * config.channels, config.groups)

    def forward(self, h: Tensor, state: _State) -> Tensor:
        h = state.attend(self.transformer, self.residual_in(h, state.embedding))
        return self.residual_out(h, state.embedding)


class MultiViewUNet(nn.Module):
    """Predicts noise (or x0, as the prior says) for V jointly attended views."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        width = config.channels
        self.time_embedding = EmbeddingMLP(width, 4 * width)
        self.camera_embedding = EmbeddingMLP(config.camera_dim, 4 * width) if config.camera_dim else None
        prompt = config.image_prompt
        self.local_tokens = local_tokens(config) if prompt and prompt.local_dim else None
        self.global_tokens = (
            GlobalProjection(prompt.global_dim, config.context_dim, prompt.num_global)
            if prompt and prompt.global_dim
            else None
        )
        self.stem = nn.Conv2d(config.in_channels, width, 3, padding=1)
        skips = [width]  # channels of every map kept for the way up, in order
        self.down = nn.ModuleList()
        for level, blocks in enumerate(config.res_blocks):
            down = DownLevel(config, skips[-1], level)
            self.down.append(down)
            skips += [config.widths[level]] * blocks
            if down.downsample is not None:
                skips.append(skips[-1])
        width = skips[-1]
        self.middle = Middle(config, width)
        self.up = nn.ModuleList()
        for level in reversed(range(len(config.channel_mult))):
            self.up.append(UpLevel(config, width, [skips.pop() for _ in range(config.res_blocks[level] + 1)], level))
            width = config.widths[level]
        self.norm_out = nn.GroupNorm(config.groups, width, eps=1e-5)
        self.head: nn.Module
        self.mixture: Tensor | None
        table = None if config.data_deviation is None else mixture_table(config.data_deviation)
        self.register_buffer("mixture", table, persistent=False)
        if config.pixel_head:
            self.head = PixelHead(
                width, config.in_channels, config.out_channels, config.patch, config.pixel_head, config.pixel_copy
            )
        else:
            self.head = nn.Conv2d(width, config.out_channels, 3, padding=1)
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(
        self,
        x: Float[Tensor, "b v c h w"],
        t: Int[Tensor, "b"] | Int[Tensor, "b v"],
        context: Float[Tensor, "b l d"] | Float[Tensor, "b v l d"],
        camera: Float[Tensor, "b v k"] | None = None,
        local_features: Float[Tensor, "b n f"] | Float[Tensor, "b v n f"] | None = None,
        global_feature: Float[Tensor, "b e"] | Float[Tensor, "b v e"] | None = None,
        image_weight: float | Float[Tensor, "n 1"] = 1.0,
        view_weight: Float[Tensor, " v"] | None = None,
    ) -> Float[Tensor, "b v o h w"]:
        """Prediction for noisy latents `x` at steps `t`, given text tokens and, where trained so, cameras and an image.

        No camera skips the camera term entirely (the 2D mode), which is not the same as a zero camera. Image features
        are those of the encoder, *before* the resampler: zeros give the resampler's response to zeros, the published
        unconditional branch. Conditions without a view axis are shared by all views of a scene. `image_weight` is one
        number or one for each image token; `view_weight` > 0 says how much each view counts in the joint
        self-attention (none: 1).
        """
        views = x.shape[1]
        flat = rearrange(x, "b v c h w -> (b v) c h w")
        t = t if t.ndim == 2 else repeat(t, "b -> b v", v=views)
        embedding = self.time_embedding(timestep_embedding(t.reshape(-1), self.config.channels).to(x.dtype))
        if camera is not None:
            if self.camera_embedding is None:
                raise ValueError("this network has no camera embedding (camera_dim is none); call it without cameras")
            embedding = embedding + self.camera_embedding(rearrange(camera, "b v k -> (b v) k").to(x.dtype))
        image = self.image_tokens(local_features, global_feature, views)
        state = _State(embedding, views, _per_view(context, views, 3), image, image_weight, view_weight)

        skips = [self.stem(flat)]
        for level in self.down:
            skips += level(skips[-1], state)
        h = self.middle(skips[-1], state)
        for level in self.up:
            h = level(h, skips, state)
        h = F.silu(self.norm_out(h))
        out = self.head(h, flat, self._mixture(t, flat)) if isinstance(self.head, PixelHead) else self.head(h)
        return rearrange(out, "(b v) c h w -> b v c h w", v=views)

    def _mixture(self, t: Int[Tensor, "b v"], like: Tensor) -> tuple[Tensor, Tensor] | None:
        """(c_skip, c_out) [B * V, 1, 1, 1] of every view's step."""
        if self.mixture is None:
            return None
        skip, scale = self.mixture[:, t.reshape(-1)].to(like.dtype)[..., None, None, None]
        return skip, scale

    def image_tokens(self, local_features: Tensor | None, global_feature: Tensor | None, views: int) -> Tensor | None:
        """Prompt tokens [B * V, T, D] of the controllers in use: resampled local tokens first, then global ones."""
        tokens = []
        for name, module, features, ndim in (
            ("local", self.local_tokens, local_features, 3),
            ("global", self.global_tokens, global_feature, 2),
        ):
            if features is None:
                continue
            if module is None:
                raise ValueError(
                    f"this network has no {name} image control; its config says {self.config.image_prompt}"
                )
            shared = features.ndim == ndim
            # Condensed once per scene where all views share the prompt, then repeated: 4-5 times less work.
            flat = features if shared else features.flatten(0, 1)
            made = module(flat)
            tokens.append(repeat(made, "b t d -> (b v) t d", v=views) if shared else made)
        return torch.cat(tokens, dim=1) if tokens else None


def mixture_table(data_deviation: float) -> Float[Tensor, "2 T"]:
    """(c_skip, c_out) of every step of the scaled-linear schedule, for x0 = c_skip x_t + c_out F.

    The preconditioning of EDM (arXiv:2206.00364, table 1) for variance-preserving noise: with data of deviation s,

        c_skip = s^2 alpha / (s^2 alpha^2 + sigma^2),    c_out = s sigma / sqrt(s^2 alpha^2 + sigma^2),

    so that F has a target of unit variance at every step and errors of F count least where little is hidden. A network
    that puts out x0 itself must first learn to pass its input on, through a stem narrower than a patch.
    """
    wanted = torch.get_default_device()
    with torch.device("cpu"):  # a schedule checks its numbers, and a network built without any ("meta") has none
        clean = NoiseSchedule.scaled_linear().alphas_cumprod
        alpha, sigma, s = clean.sqrt(), (1 - clean).sqrt(), data_deviation
        total = (s * alpha).square() + sigma.square()
        table = torch.stack([s**2 * alpha / total, s * sigma / total.sqrt()]).float()
    return table.to(wanted)


def concatenate_prompt(
    x: Float[Tensor, "b v c h w"], prompt: Float[Tensor, "b 1 c h w"] | None, in_channels: int
) -> Float[Tensor, "b v k h w"]:
    """Every view with the prompt's latents (zeros without one) beside it, where the network has room for them.

    Zero-1-to-3 reads its image this way (4 + 4 channels); the nano ImageDream prior does so beside the extra view,
    since at its size attention alone carried colours and backgrounds over too slowly. Other networks get `x` as it is.
    """
    if in_channels == x.shape[2]:
        return x
    beside = torch.zeros_like(x) if prompt is None else prompt.to(x).expand_as(x)
    return torch.cat([x, beside], dim=2)


@dataclass
class _State:
    """What every block of one forward pass needs beside the features."""

    embedding: Tensor
    num_views: int
    context: Tensor
    image: Tensor | None
    image_weight: float | Tensor
    view_weight: Tensor | None = None

    def attend(self, module: nn.Module, h: Tensor) -> Tensor:
        return module(h, self.num_views, self.context, self.image, self.image_weight, self.view_weight)


def _per_view(condition: Tensor, views: int, ndim: int) -> Tensor:
    """[B, ...] repeated over views or [B, V, ...] flattened, as [B * V, ...]."""
    return repeat(condition, "b ... -> (b v) ...", v=views) if condition.ndim == ndim else condition.flatten(0, 1)


def transformer(config: UNetConfig, channels: int, level: int) -> SpatialTransformer:
    heads, head_width = config.heads(channels, level)
    return SpatialTransformer(
        channels,
        heads,
        head_width,
        config.transformer_depth,
        config.context_dim,
        config.context_dim if config.image_prompt else None,
        config.linear_projection,
        config.groups,
        config.ff_mult,
    )


def local_tokens(config: UNetConfig) -> nn.Module:
    prompt = config.image_prompt
    assert prompt is not None
    if not prompt.resample:
        return LinearTokens(prompt.local_dim, config.context_dim)
    return Resampler(
        prompt.local_dim,
        config.context_dim,
        depth=prompt.depth,
        heads=prompt.heads,
        head_width=prompt.head_width,
        num_queries=prompt.num_queries,
        ff_mult=prompt.ff_mult,
    )
