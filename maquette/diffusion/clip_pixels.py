"""From an image to what published image encoders were trained to see: 8-bit Pillow resampling and CLIP's normalisation.

Pillow rounds to 8 bits after each of its two passes, and antialiases when it shrinks; interpolation in torch differs
by up to a few levels. The image prompt is prepared once per background colour, so exactness costs nothing and no
gradient is needed.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def to_levels(image: Float[Tensor, "*b 3 h w"]) -> UInt8[Tensor, "*b 3 h w"]:
    """8-bit levels of an image in [0, 1], truncated like the released code's composites (0.999 becomes 254)."""
    # A hair above the float32 rounding of k / 255, so that a level which came from a file keeps its value.
    return (image.clamp(0, 1) * 255 + 1e-3).floor().to(torch.uint8)


def resize_levels(
    levels: UInt8[Tensor, "3 h w"], height: int, width: int, *, bicubic: bool = False
) -> UInt8[Tensor, "3 {height} {width}"]:
    """Pillow's antialiased bilinear (or bicubic) resize; the aspect is not kept."""
    picture = Image.fromarray(levels.permute(1, 2, 0).cpu().numpy())
    resample = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
    resized = np.array(picture.resize((width, height), resample))
    return torch.from_numpy(resized).permute(2, 0, 1).to(levels.device)


def vae_pixels(image: Float[Tensor, "3 h w"], size: int) -> Float[Tensor, "3 {size} {size}"]:
    """An image in [0, 1], resized straight to a square, as the released code does before its autoencoder; in [0, 1]."""
    return resize_levels(to_levels(image), size, size).to(image.dtype) / 255


def clip_pixels(image: Float[Tensor, "3 h w"], size: int = 224) -> Float[Tensor, "3 {size} {size}"]:
    """An image in [0, 1] for a CLIP image tower: short side to `size` (bicubic), centre crop, CLIP's mean and std."""
    height, width = image.shape[-2:]
    short = min(height, width)
    # The long side is truncated and the crop rounds half to even: the conventions of the published preprocessing.
    scaled = (size * height // short, size * width // short)
    levels = resize_levels(to_levels(image), *scaled, bicubic=True)
    top, left = (round((side - size) / 2) for side in scaled)
    return normalise(levels[:, top : top + size, left : left + size].to(image.dtype) / 255)


def clip_pixels_aligned(images: Float[Tensor, "*b 3 h w"], size: int = 224) -> Float[Tensor, "*b 3 {size} {size}"]:
    """Images in [0, 1] for Zero-1-to-3's image tower: bicubic between corners, no antialiasing, no crop.

    Differentiable. The kernel overshoots a little beyond [0, 1], which the network was trained with.
    """
    flat = images.reshape(-1, *images.shape[-3:])
    resized = F.interpolate(flat, size=(size, size), mode="bicubic", align_corners=True, antialias=False)
    return normalise(resized).reshape(*images.shape[:-2], size, size)


def normalise(images: Float[Tensor, "*b 3 h w"]) -> Float[Tensor, "*b 3 h w"]:
    """Images in [0, 1] with CLIP's mean and standard deviation taken out."""
    mean, std = (images.new_tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    return (images - mean) / std
