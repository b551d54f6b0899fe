"""Preprocessing for published encoders, against Pillow and against torch's antialiased interpolation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from maquette.diffusion.clip_pixels import (
    CLIP_MEAN,
    CLIP_STD,
    clip_pixels,
    clip_pixels_aligned,
    resize_levels,
    to_levels,
    vae_pixels,
)


def picture(generator, height, width):
    """Smooth random colours, in which resampling filters agree up to their rounding."""
    small = torch.rand(1, 3, 6, 6, generator=generator)
    return torch.nn.functional.interpolate(small, (height, width), mode="bicubic", align_corners=False)[0].clamp(0, 1)


def test_levels_of_a_file_survive():
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).expand(3, -1, -1)
    assert torch.equal(to_levels(levels.float() / 255), levels)
    assert torch.equal(to_levels(levels.double() / 255), levels)


def test_levels_are_truncated_and_clamped():
    image = torch.tensor([0.999, -0.5, 1.5]).reshape(3, 1, 1)
    assert to_levels(image).flatten().tolist() == [254, 0, 255]


@pytest.mark.parametrize("size", [(96, 80), (80, 96), (37, 91), (224, 224)])
def test_clip_pixels_are_pillow_s(size, generator):
    levels = to_levels(picture(generator, *size))
    ours = clip_pixels(levels.float() / 255, 56)
    image = Image.fromarray(levels.permute(1, 2, 0).numpy())
    width, height = image.size
    short = min(width, height)
    image = image.resize((int(56 * width / short), int(56 * height / short)), Image.Resampling.BICUBIC)
    left, top = round((image.width - 56) / 2), round((image.height - 56) / 2)
    cropped = np.asarray(image.crop((left, top, left + 56, top + 56))).astype(np.float32) / 255
    expected = (cropped - np.array(CLIP_MEAN, np.float32)) / np.array(CLIP_STD, np.float32)
    np.testing.assert_allclose(ours.permute(1, 2, 0).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("bicubic", [False, True])
@pytest.mark.parametrize("size", [(32, 32), (150, 60)])
def test_resizing_is_antialiased_to_within_two_levels_of_torch(bicubic, size, generator):
    image = picture(generator, 96, 80)
    ours = resize_levels(to_levels(image), *size, bicubic=bicubic).float() / 255
    mode = "bicubic" if bicubic else "bilinear"
    theirs = torch.nn.functional.interpolate(image[None], size, mode=mode, align_corners=False, antialias=True)[0]
    assert float((ours - theirs.clamp(0, 1)).abs().max()) <= 2.01 / 255


def test_the_autoencoder_s_input_ignores_the_aspect(generator):
    image = torch.zeros(3, 40, 80)
    image[:, :, 40:] = 1.0
    small = vae_pixels(image, 16)
    assert small.shape == (3, 16, 16)
    assert small[:, :, :7].max() == 0.0
    assert small[:, :, 9:].min() == 1.0


def test_aligned_pixels_keep_the_corners_and_whole_steps(generator):
    """From n to 2 n - 1 pixels between corners, every second one is an old one."""
    images = torch.rand(2, 3, 8, 8, generator=generator)
    pixels = clip_pixels_aligned(images, 15)
    mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    torch.testing.assert_close(pixels[..., ::2, ::2] * std + mean, images, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(clip_pixels_aligned(images[0], 15), pixels[0])


def test_aligned_pixels_are_differentiable_and_not_antialiased(generator):
    image = torch.rand(3, 64, 64, generator=generator).requires_grad_()
    clip_pixels_aligned(image, 4).sum().backward()
    untouched = (image.grad == 0).all(dim=0)
    assert untouched.float().mean() > 0.5, "most pixels of a large image are never looked at"
