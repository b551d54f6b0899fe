"""CLIP's towers in the shape that priors ask for: tokens -> context, pictures -> (local tokens, global embedding)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from maquette.diffusion.clip import TextTower, VisionTower
from maquette.diffusion.clip_pixels import clip_pixels, clip_pixels_aligned


class ClipTextEncoder(nn.Module):
    """Context tokens without the last `skip_last` blocks: 1 for Stable Diffusion 2 and its kin, 0 for 1.x."""

    def __init__(self, tower: TextTower, skip_last: int = 1) -> None:
        super().__init__()
        self.tower, self.skip_last = tower, skip_last

    def forward(self, tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
        return self.tower.context(tokens, self.skip_last)


class ClipImageEncoder(nn.Module):
    """Local tokens and global embedding of pictures in [0, 1] of any size, which are cropped to a centred square."""

    def __init__(self, tower: VisionTower) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b t e"], Float[Tensor, "b g"]]:
        pixels = torch.stack([clip_pixels(image, self.tower.config.image_size) for image in images])
        features = self.tower(pixels.to(self.tower.positions.dtype))
        return features.local_tokens, features.global_embedding


class PooledImageEncoder(nn.Module):
    """The projected class token, of its own length, of pictures in [0, 1]: what Zero-1-to-3 reads.

    `antialias` resizes as the diffusers pipelines do (8-bit, antialiased, centre crop) and not as the network was
    trained; the embeddings differ slightly.
    """

    def __init__(self, tower: VisionTower, antialias: bool = False) -> None:
        super().__init__()
        self.tower, self.antialias = tower, antialias

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b g"]:
        size = self.tower.config.image_size
        if self.antialias:
            pixels = torch.stack([clip_pixels(image, size) for image in images])
        else:
            pixels = clip_pixels_aligned(images, size)
        return self.tower(pixels.to(self.tower.positions.dtype)).pooled
