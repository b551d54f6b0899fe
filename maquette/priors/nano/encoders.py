"""The nano priors' own text and image encoders: CLIP in miniature, trained contrastively on captions and renders.

They stand where OpenCLIP stands for the published models: the text encoder gives context tokens for cross-attention,
the image encoder gives local tokens (its penultimate hidden state, no final norm) and one pooled, normalised embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from maquette.diffusion.blocks import attend
from maquette.priors.nano.vocabulary import END, MAX_TOKENS, PAD, vocabulary


@dataclass(frozen=True)
class TextEncoderConfig:
    width: int = 128
    layers: int = 2
    heads: int = 4
    embedding_dim: int = 128
    """Width of the shared space with images."""


@dataclass(frozen=True)
class ImageEncoderConfig:
    image_size: int = 64
    patch: int = 8
    width: int = 128
    layers: int = 4
    heads: int = 4
    embedding_dim: int = 128


class NanoTextEncoder(nn.Module):
    """Token indices -> context tokens [B, L, width]; `embed` gives the pooled embedding."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(len(vocabulary()), config.width)
        self.position_embedding = nn.Parameter(0.02 * torch.randn(MAX_TOKENS, config.width))
        self.layers = nn.ModuleList(EncoderLayer(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.projection = nn.Linear(config.width, config.embedding_dim, bias=False)
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def forward(self, tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
        h = self.token_embedding(tokens) + self.position_embedding[: tokens.shape[1]]
        seen = (tokens != PAD)[:, None, None, :]  # padding is never attended to, so a text means the same at any length
        for layer in self.layers:
            h = layer(h, seen)
        return self.norm(h)

    def embed(self, tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b e"]:
        """Unit-length embedding, read at the end mark."""
        ends = (tokens == END).int().argmax(dim=1)
        pooled = self(tokens)[torch.arange(len(tokens), device=tokens.device), ends]
        return F.normalize(self.projection(pooled), dim=-1)


class NanoImageEncoder(nn.Module):
    """A small vision transformer: images in [0, 1] -> (local tokens [B, 1 + n^2, width], unit embedding [B, E])."""

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        self.config = config
        side = config.image_size // config.patch
        self.patch_embedding = nn.Conv2d(3, config.width, config.patch, stride=config.patch)
        self.class_embedding = nn.Parameter(0.02 * torch.randn(config.width))
        self.position_embedding = nn.Parameter(0.02 * torch.randn(1 + side**2, config.width))
        self.norm_in = nn.LayerNorm(config.width)
        self.layers = nn.ModuleList(EncoderLayer(config.width, config.heads) for _ in range(config.layers))
        self.norm_out = nn.LayerNorm(config.width)
        self.projection = nn.Linear(config.width, config.embedding_dim, bias=False)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b e"]]:
        size = self.config.image_size
        if images.shape[-2:] != (size, size):
            images = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False, antialias=True)
        images = images.to(self.class_embedding.dtype)  # resized before: CPUs cannot antialias in half precision
        patches = self.patch_embedding(images * 2 - 1).flatten(2).transpose(1, 2)
        h = torch.cat([self.class_embedding.expand(len(images), 1, -1), patches], dim=1) + self.position_embedding
        h = self.norm_in(h)
        for layer in self.layers[:-1]:
            h = layer(h)
        local = h
        pooled = self.norm_out(self.layers[-1](h)[:, 0])
        return local, F.normalize(self.projection(pooled), dim=-1)


class EncoderLayer(nn.Module):
    """Pre-norm transformer layer: self-attention, then a GELU feed-forward of four times the width."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, h: Tensor, seen: Tensor | None = None) -> Tensor:
        batch, length, width = h.shape
        qkv = self.qkv(self.norm_attention(h)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = attend(q, k, v, seen)
        h = h + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return h + self.mlp(self.norm_mlp(h))
