"""How an image prompt becomes tokens that the U-Net's cross-attention can read (ImageDream, arXiv:2312.02201, 3.3).

Local control: all hidden tokens of an image encoder, condensed by a Perceiver-style `Resampler` to a few queries.
Global control: one pooled embedding, projected to a few tokens by `GlobalProjection`.
"""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


class PerceiverAttention(nn.Module):
    """Queries attend to the image tokens and to themselves; only the queries are updated."""

    def __init__(self, dim: int, heads: int, head_width: int) -> None:
        super().__init__()
        inner = heads * head_width
        self.heads = heads
        self.scale = head_width**-0.25  # on q and on k, which keeps half-precision products in range
        self.norm_image, self.norm_queries = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)

    def forward(self, image: Tensor, queries: Tensor) -> Tensor:
        image, queries = self.norm_image(image), self.norm_queries(queries)
        q = self.to_q(queries)
        k, v = self.to_kv(torch.cat([image, queries], dim=-2)).chunk(2, dim=-1)
        q, k, v = (rearrange(t, "n t (heads d) -> n heads t d", heads=self.heads) for t in (q, k, v))
        weights = ((q * self.scale) @ (k * self.scale).transpose(-2, -1)).float().softmax(dim=-1).to(v.dtype)
        return self.to_out(rearrange(weights @ v, "n heads t d -> n t (heads d)"))


class Resampler(nn.Module):
    """Image features [N, T, feature_dim] -> prompt tokens [N, num_queries, out_dim] (reference table of section
    2.3)."""

    def __init__(
        self,
        feature_dim: int,
        out_dim: int,
        *,
        dim: int | None = None,
        depth: int = 4,
        heads: int = 12,
        head_width: int = 64,
        num_queries: int = 16,
        ff_mult: int = 4,
    ) -> None:
        super().__init__()
        dim = dim or out_dim
        self.queries = nn.Parameter(torch.randn(1, num_queries, dim) / dim**0.5)
        self.proj_in = nn.Linear(feature_dim, dim)
        self.attentions = nn.ModuleList(PerceiverAttention(dim, heads, head_width) for _ in range(depth))
        self.feed_forwards = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(dim),
                nn.Linear(dim, dim * ff_mult, bias=False),
                nn.GELU(),
                nn.Linear(dim * ff_mult, dim, bias=False),
            )
            for _ in range(depth)
        )
        self.proj_out = nn.Linear(dim, out_dim)
        self.norm_out = nn.LayerNorm(out_dim)

    def forward(self, features: Float[Tensor, "n t f"]) -> Float[Tensor, "n q d"]:
        image = self.proj_in(features)
        queries = self.queries.expand(len(features), -1, -1)
        for attention, feed_forward in zip(self.attentions, self.feed_forwards, strict=True):
            queries = attention(image, queries) + queries
            queries = feed_forward(queries) + queries
        return self.norm_out(self.proj_out(queries))


class GlobalProjection(nn.Module):
    """Pooled image embedding [N, feature_dim] -> [N, num_tokens, out_dim]: one Linear, then LayerNorm.

    `# Differs from paper:` the paper calls it an MLP; the released code path is a single Linear and a LayerNorm.
    """

    def __init__(self, feature_dim: int, out_dim: int, num_tokens: int = 4) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.proj = nn.Linear(feature_dim, num_tokens * out_dim)
        self.norm = nn.LayerNorm(out_dim)

    def forward(self, embedding: Float[Tensor, "n f"]) -> Float[Tensor, "n q d"]:
        return self.norm(rearrange(self.proj(embedding), "n (q d) -> n q d", q=self.num_tokens))


class LinearTokens(nn.Module):
    """All image tokens projected one by one, without resampling: the paper's ablation that over-exposes at high CFG."""

    def __init__(self, feature_dim: int, out_dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(feature_dim, out_dim)
        self.norm = nn.LayerNorm(out_dim)

    def forward(self, features: Float[Tensor, "n t f"]) -> Float[Tensor, "n t d"]:
        return self.norm(self.proj(features))
