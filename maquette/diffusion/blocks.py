"""Building blocks of the latent-diffusion U-Net: residual blocks, attention over tokens, resampling.

Shapes: maps are [N, C, h, w] with N = B * V (scene-major: index = scene * V + view), tokens [N, T, C].
Numbers that matter for parity with the published networks: GroupNorm eps is 1e-5 in residual blocks and in the output
head but 1e-6 at the entrance of a transformer; LayerNorm eps 1e-5; exact (erf) GELU; q, k, v without bias.
"""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class ResidualBlock(nn.Module):
    """GN-SiLU-conv, + Linear(SiLU(embedding)), GN-SiLU-conv, + skip (identity or 1x1 convolution)."""

    def __init__(self, channels: int, out_channels: int, embedding_dim: int, groups: int = 32) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(groups, channels, eps=1e-5)
        self.conv_in = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.embedding = nn.Linear(embedding_dim, out_channels)
        self.norm_out = nn.GroupNorm(groups, out_channels, eps=1e-5)
        self.conv_out = zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv_in(F.silu(self.norm_in(x)))
        h = h + self.embedding(F.silu(embedding))[:, :, None, None]
        h = self.conv_out(F.silu(self.norm_out(h)))
        return self.skip(x) + h


class Attention(nn.Module):
    """Multi-head attention of `x` on `context` (itself if none), optionally decoupled image attention.

    With `image_dim`, extra key/value projections read image tokens and their result is added per head, before the
    output projection (ImageDream, arXiv:2312.02201 section 3.3)::

        h = softmax(q K_text^T / sqrt(d)) V_text + weight * softmax(q K_image^T / sqrt(d)) V_image

    `image_weight` is one number, or one for each image token [T, 1]. `bias` is added to the logits of the first
    softmax.
    """

    def __init__(
        self, dim: int, heads: int, head_width: int, context_dim: int | None = None, image_dim: int | None = None
    ) -> None:
        super().__init__()
        inner, source = heads * head_width, context_dim or dim
        self.heads = heads
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_k = nn.Linear(source, inner, bias=False)
        self.to_v = nn.Linear(source, inner, bias=False)
        self.to_out = nn.Linear(inner, dim)
        self.to_k_image = nn.Linear(image_dim, inner, bias=False) if image_dim else None
        self.to_v_image = nn.Linear(image_dim, inner, bias=False) if image_dim else None

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        image: Tensor | None = None,
        image_weight: float | Tensor = 1.0,
        bias: Tensor | None = None,
    ) -> Tensor:
        source = x if context is None else context
        q, k, v = (self._split(t) for t in (self.to_q(x), self.to_k(source), self.to_v(source)))
        h = attend(q, k, v, bias)
        if self.to_k_image is not None and self.to_v_image is not None and image is not None:
            k, v = self._split(self.to_k_image(image)), self._split(self.to_v_image(image))
            h = h + attend(q, k, image_weight * v)
        return self.to_out(rearrange(h, "n heads t d -> n t (heads d)"))

    def _split(self, x: Tensor) -> Tensor:
        return rearrange(x, "n t (heads d) -> n heads t d", heads=self.heads)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over [N, heads, T, d]; `mask` broadcasts to [N, heads, T, T']: boolean (True: may be
    seen), or numbers added to the logits.

    Fused attention everywhere but for bfloat16 on a CPU, where its backward pass is two to four times slower than two
    matrix products on the matrix units (measured at 65 to 320 tokens).
    """
    if q.dtype is torch.bfloat16 and q.device.type == "cpu":
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype is torch.bool else scores + mask
        return scores.softmax(dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class GatedFeedForward(nn.Module):
    """GEGLU: Linear to twice the hidden width, value * GELU(gate), Linear back."""

    def __init__(self, dim: int, mult: int = 4) -> None:
        super().__init__()
        self.proj_in = nn.Linear(dim, 2 * dim * mult)
        self.proj_out = nn.Linear(dim * mult, dim)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj_in(x).chunk(2, dim=-1)
        return self.proj_out(value * F.gelu(gate))


class TransformerBlock(nn.Module):
    """Joint self-attention over all views of a scene, cross-attention to text and image tokens, feed-forward."""

    def __init__(
        self, dim: int, heads: int, head_width: int, context_dim: int, image_dim: int | None, ff_mult: int = 4
    ) -> None:
        super().__init__()
        self.norm_self, self.norm_cross, self.norm_ff = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.self_attention = Attention(dim, heads, head_width)
        self.cross_attention = Attention(dim, heads, head_width, context_dim, image_dim)
        self.feed_forward = GatedFeedForward(dim, ff_mult)

    def forward(
        self,
        x: Tensor,
        num_views: int,
        context: Tensor,
        image: Tensor | None,
        image_weight: float | Tensor,
        view_weight: Tensor | None = None,
    ) -> Tensor:
        # Only self-attention sees the other views: the view index joins the token axis (view slower than pixel).
        joint = rearrange(self.norm_self(x), "(b v) t c -> b (v t) c", v=num_views)
        # exp(q k + log w) = w exp(q k): a view of weight w counts like w copies of its tokens.
        bias = None if view_weight is None else view_weight.log().repeat_interleave(x.shape[1]).to(x.dtype)[None]
        x = x + rearrange(self.self_attention(joint, bias=bias), "b (v t) c -> (b v) t c", v=num_views)
        x = x + self.cross_attention(self.norm_cross(x), context, image, image_weight)
        return x + self.feed_forward(self.norm_ff(x))


class SpatialTransformer(nn.Module):
    """A map as tokens through `depth` transformer blocks, with a residual around the whole.

    `linear_projection` tells Stable Diffusion 2 (Linear in and out) from 1 (1x1 convolutions): the same arithmetic,
    but different tensor shapes in the published files.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        head_width: int,
        depth: int,
        context_dim: int,
        image_dim: int | None,
        linear_projection: bool,
        groups: int = 32,
        ff_mult: int = 4,
    ) -> None:
        super().__init__()
        inner = heads * head_width
        self.linear_projection = linear_projection
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, inner) if linear_projection else nn.Conv2d(channels, inner, 1)
        self.blocks = nn.ModuleList(
            TransformerBlock(inner, heads, head_width, context_dim, image_dim, ff_mult) for _ in range(depth)
        )
        self.proj_out = zeroed(nn.Linear(inner, channels) if linear_projection else nn.Conv2d(inner, channels, 1))

    def forward(
        self,
        x: Tensor,
        num_views: int,
        context: Tensor,
        image: Tensor | None,
        image_weight: float | Tensor,
        view_weight: Tensor | None = None,
    ) -> Tensor:
        height, width = x.shape[-2:]
        h = self.norm(x)
        if self.linear_projection:
            h = self.proj_in(rearrange(h, "n c h w -> n (h w) c"))
        else:
            h = rearrange(self.proj_in(h), "n c h w -> n (h w) c")
        for block in self.blocks:
            h = block(h, num_views, context, image, image_weight, view_weight)
        if self.linear_projection:
            h = rearrange(self.proj_out(h), "n (h w) c -> n c h w", h=height, w=width)
        else:
            h = self.proj_out(rearrange(h, "n (h w) c -> n c h w", h=height, w=width))
        return x + h


class Downsample(nn.Module):
    """Stride-2 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """Nearest x2, then a 3x3 convolution; `size` restores maps whose side was odd before the way down."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        if size is None or size == (2 * x.shape[-2], 2 * x.shape[-1]):
            return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.conv(F.interpolate(x, size=size, mode="nearest"))


class PixelHead(nn.Module):
    """Output head for space-to-depth latents that works at full pixel resolution, so that patches join seamlessly.

    A head that predicts each patch from one latent cell leaves a visible lattice. Here the features are spread to
    pixels first, joined with the noisy pixels and refined by two overlapping 3x3 convolutions.

    With `copy` the second half of the input channels are those of a prompt, and the head says for each pixel how much
    of it is the prompt's own: out = g prompt + (1 - g) rgb, g = sigmoid(one more channel). It is for networks that
    predict x0. Without it a small network takes very long to learn that a view may simply be its prompt. A prompt of
    zeros is one that is not there, and nothing is taken from it.
    """

    def __init__(
        self, channels: int, in_channels: int, out_channels: int, patch: int, width: int, copy: bool = False
    ) -> None:
        super().__init__()
        if out_channels % patch**2 or in_channels % patch**2:
            raise ValueError(f"a pixel head needs out_channels divisible by patch^2 = {patch**2}, got {out_channels}")
        if copy and in_channels != 2 * out_channels:
            raise ValueError(
                f"a head that copies needs the prompt beside every view, in_channels = {2 * out_channels}; got "
                f"{in_channels}"
            )
        self.patch, self.copy = patch, copy
        self.pixel_channels = out_channels // patch**2
        self.spread = nn.Conv2d(channels, width * patch**2, 3, padding=1)
        self.mix = nn.Conv2d(width + in_channels // patch**2, 2 * width, 3, padding=1)
        self.out = nn.Conv2d(2 * width, self.pixel_channels + copy, 3, padding=1)

    def forward(
        self,
        h: Float[Tensor, "n c h w"],
        noisy: Float[Tensor, "n i h w"],
        mixture: tuple[Float[Tensor, "n 1 1 1"], Float[Tensor, "n 1 1 1"]] | None = None,
    ) -> Float[Tensor, "n o h w"]:
        """The prediction from features `h` and the network's input; `mixture` is (c_skip, c_out) of every sample, and
        rgb then c_skip noisy + c_out rgb."""
        seen = F.pixel_shuffle(noisy, self.patch)
        pixels = self.out(F.silu(self.mix(torch.cat([F.pixel_shuffle(self.spread(h), self.patch), seen], dim=1))))
        rgb = pixels[:, : self.pixel_channels]
        if mixture is not None:
            skip, scale = mixture
            rgb = skip * seen[:, : self.pixel_channels] + scale * rgb
        if self.copy:
            prompt = seen[:, self.pixel_channels :]
            there = (prompt != 0).flatten(1).any(dim=1).to(prompt)[:, None, None, None]
            rgb = rgb + there * torch.sigmoid(pixels[:, -1:]) * (prompt - rgb)
        return F.pixel_unshuffle(rgb, self.patch)


class EmbeddingMLP(nn.Module):
    """Linear, SiLU, Linear: the embedding of a time step or of a camera."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.linear_in, self.linear_out = nn.Linear(in_dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_out(F.silu(self.linear_in(x)))


def timestep_embedding(t: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """Sinusoids of integer or real time steps `t` [N] as [N, dim], ordered [cos | sin].

    Frequencies exp(-ln(max_period) i / (dim // 2)); an odd `dim` gets a final zero, as in the published networks.
    """
    half = dim // 2
    i = torch.arange(half, dtype=torch.float32, device=t.device)
    angles = t[:, None].float() * torch.exp(-torch.log(t.new_tensor(max_period, dtype=torch.float32)) * i / half)
    embedding = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return F.pad(embedding, (0, dim % 2))


def zeroed(module: M) -> M:
    """The module with its parameters set to zero, so that a residual branch starts as nothing."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
