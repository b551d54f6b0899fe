"""CLIP's two towers (arXiv:2103.00020), sized for OpenCLIP's ViT-H/14 and OpenAI's ViT-L/14.

Pre-norm transformers that differ between the two families only in size and activation: exact GELU, or the quick one,
x sigmoid(1.702 x). What priors read from them:

* text context: hidden tokens of the *penultimate* block, then the final norm (Stable Diffusion 2, MVDream, ImageDream),
  or of the last block (Stable Diffusion 1);
* local image tokens: the penultimate block's output *without* the final norm, class token included;
* global embedding: the class token after the final norm, projected, of unit length.

Tokens go in and pixels go in; the published tokeniser is no part of this file, `maquette.diffusion.clip_pixels` is
the way from an image to pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

Activation = Literal["gelu", "quick_gelu"]


@dataclass(frozen=True)
class VisionConfig:
    """Shape of the image tower. The defaults are OpenCLIP ViT-H/14."""

    image_size: int = 224
    """Side of the square input in pixels."""
    patch_size: int = 14
    width: int = 1280
    layers: int = 32
    heads: int = 16
    mlp_width: int = 5120
    embed_dim: int = 1024
    """Length of the global embedding; 0 where a tower was published without its projection."""
    activation: Activation = "gelu"

    @property
    def num_tokens(self) -> int:
        """Patches and the class token: 257 for 224 px and patches of 14."""
        return (self.image_size // self.patch_size) ** 2 + 1


@dataclass(frozen=True)
class TextConfig:
    """Shape of the text tower. The defaults are OpenCLIP ViT-H/14's."""

    vocabulary: int = 49408
    context_length: int = 77
    width: int = 1024
    layers: int = 24
    heads: int = 16
    mlp_width: int = 4096
    embed_dim: int | None = 1024
    """Length of the sentence embedding; none where a published text encoder comes without its projection."""
    activation: Activation = "gelu"


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """What the image tower says about a picture."""

    local_tokens: Float[Tensor, "n k width"]
    """Hidden state after the penultimate block, class token first, not normalised."""
    global_embedding: Float[Tensor, "n embed"]
    """Projected class token of unit length."""
    pooled: Float[Tensor, "n embed"]
    """The same with its own length, as Zero-1-to-3 reads it."""


class Block(nn.Module):
    """Pre-norm self-attention and MLP, each with a residual."""

    def __init__(self, width: int, heads: int, mlp_width: int, activation: Activation, causal: bool) -> None:
        super().__init__()
        self.heads, self.activation, self.causal = heads, activation, causal
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_qkv = nn.Linear(width, 3 * width)
        self.to_out = nn.Linear(width, width)
        self.mlp_in, self.mlp_out = nn.Linear(width, mlp_width), nn.Linear(mlp_width, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = rearrange(self.to_qkv(self.norm_attention(x)), "n t (three h d) -> three n h t d", three=3, h=self.heads)
        q, k, v = qkv.unbind()
        h = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.to_out(rearrange(h, "n h t d -> n t (h d)"))
        h = self.mlp_in(self.norm_mlp(x))
        h = F.gelu(h) if self.activation == "gelu" else h * torch.sigmoid(1.702 * h)
        return x + self.mlp_out(h)


class VisionTower(nn.Module):
    """Patches and a class token through a transformer."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        if config.layers < 2:
            raise ValueError(f"local tokens come from the penultimate of at least 2 layers, got layers={config.layers}")
        self.config = config
        width = config.width
        self.patches = nn.Conv2d(3, width, config.patch_size, stride=config.patch_size, bias=False)
        self.class_token = nn.Parameter(torch.randn(width) / width**0.5)
        self.positions = nn.Parameter(torch.randn(config.num_tokens, width) / width**0.5)
        self.norm_in = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(
            Block(width, config.heads, config.mlp_width, config.activation, causal=False) for _ in range(config.layers)
        )
        self.norm_out = nn.LayerNorm(width)
        self.projection = nn.Linear(width, config.embed_dim, bias=False) if config.embed_dim else None

    def forward(self, pixels: Float[Tensor, "n 3 s s"]) -> ImageFeatures:
        """Features of pixels as `clip_pixels` makes them. Differentiable."""
        size = self.config.image_size
        if pixels.shape[-2:] != (size, size):
            raise ValueError(
                f"this image tower reads {size} x {size} px, got {tuple(pixels.shape[-2:])}; use clip_pixels."
            )
        tokens = rearrange(self.patches(pixels), "n c h w -> n (h w) c")
        tokens = torch.cat([self.class_token.expand(len(tokens), 1, -1), tokens], dim=1) + self.positions
        tokens = local = self.norm_in(tokens)
        for block in self.blocks:
            local, tokens = tokens, block(tokens)
        pooled = self.norm_out(tokens[:, 0])
        pooled = pooled[:, :0] if self.projection is None else self.projection(pooled)
        return ImageFeatures(local, F.normalize(pooled, dim=-1), pooled)


class TextTower(nn.Module):
    """Tokens through a causal transformer: a token knows those before it, the end token knows the sentence."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocabulary, config.width)
        self.positions = nn.Parameter(torch.randn(config.context_length, config.width) * 0.01)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.mlp_width, config.activation, causal=True)
            for _ in range(config.layers)
        )
        self.norm_out = nn.LayerNorm(config.width)
        self.projection = nn.Linear(config.width, config.embed_dim, bias=False) if config.embed_dim else None

    def context(self, tokens: Int[Tensor, "n l"], skip_last: int = 1) -> Float[Tensor, "n l width"]:
        """Hidden states without the last `skip_last` blocks, after the final norm: what cross-attention reads.

        Stable Diffusion 2 and its descendants skip one block, Stable Diffusion 1 none.
        """
        if not 0 <= skip_last < len(self.blocks):
            raise ValueError(f"skip_last must leave at least one of {len(self.blocks)} blocks, got {skip_last}.")
        length = self.config.context_length
        if tokens.shape[-1] > length:
            raise ValueError(
                f"this text tower reads at most {length} tokens, got {tokens.shape[-1]}; truncate the text."
            )
        h = self.tokens(tokens) + self.positions[: tokens.shape[-1]]
        for block in self.blocks[: len(self.blocks) - skip_last]:
            h = block(h)
        return self.norm_out(h)

    def embedding(self, tokens: Int[Tensor, "n l"]) -> Float[Tensor, "n embed"]:
        """Sentence embedding of unit length, read at the end token, which has the largest id of the vocabulary."""
        if self.projection is None:
            raise ValueError("this text tower was published without its projection and gives no sentence embedding.")
        h = self.context(tokens, skip_last=0)
        last = h[torch.arange(len(h), device=h.device), tokens.argmax(dim=-1)]
        return F.normalize(self.projection(last), dim=-1)


class CLIP(nn.Module):
    """Both towers of one model, with the temperature of their similarity; either may be left out."""

    def __init__(self, vision: VisionConfig | None, text: TextConfig | None) -> None:
        super().__init__()
        self.vision = VisionTower(vision) if vision else None
        self.text = TextTower(text) if text else None
        # ln(1 / 0.07), where the published training starts; exp of it multiplies the cosine.
        self.log_temperature = nn.Parameter(torch.tensor(2.6592600369327779))

    def image_features(self, pixels: Float[Tensor, "n 3 s s"]) -> ImageFeatures:
        """`VisionTower.forward`, or a ValueError where this model has no image tower."""
        if self.vision is None:
            raise ValueError(
                "this CLIP has no image tower; load one, for example OpenCLIP ViT-H/14, for image prompts."
            )
        return self.vision(pixels)

    def text_context(self, tokens: Int[Tensor, "n l"], skip_last: int = 1) -> Float[Tensor, "n l width"]:
        """`TextTower.context`, or a ValueError where this model has no text tower."""
        if self.text is None:
            raise ValueError("this CLIP has no text tower; load one for captions.")
        return self.text.context(tokens, skip_last)


def vit_h14() -> tuple[VisionConfig, TextConfig]:
    """OpenCLIP ViT-H/14: the encoders of MVDream (SD 2.1) and ImageDream."""
    return VisionConfig(), TextConfig()


def vit_l14() -> tuple[VisionConfig, TextConfig]:
    """OpenAI CLIP ViT-L/14: the text encoder of Stable Diffusion 1 and the image encoder of Zero-1-to-3."""
    return (
        VisionConfig(width=1024, layers=24, heads=16, mlp_width=4096, embed_dim=768, activation="quick_gelu"),
        TextConfig(width=768, layers=12, heads=12, mlp_width=3072, embed_dim=768, activation="quick_gelu"),
    )
