"""Codecs: exactness, scale, differentiability."""

from __future__ import annotations

import pytest
import torch

from maquette.priors.codecs import SD_LATENT_SCALE, KLCodec, SpaceToDepth, resize_images
from tests.priors.tiny import tiny_published


@pytest.mark.parametrize(("size", "patch", "scale"), [(64, 4, 1.0), (32, 2, 0.5), (16, 1, 2.0), (24, 8, 1.0)])
def test_space_to_depth_is_exact(size, patch, scale, generator):
    codec = SpaceToDepth(size, patch, scale)
    images = torch.rand(2, 3, 3, size, size, generator=generator)
    latents = codec.encode(images)
    assert latents.shape == (2, 3, *codec.latent_shape)
    torch.testing.assert_close(codec.decode(latents), images, atol=1e-6, rtol=0)
    assert float(latents.abs().max()) <= scale


def test_space_to_depth_keeps_neighbours_together():
    codec = SpaceToDepth(4, 2)
    images = torch.zeros(1, 1, 3, 4, 4)
    images[0, 0, 1, 2, 3] = 1.0  # green, third row, last column: patch (1, 1), first row of it, second column
    latents = codec.encode(images)
    assert (latents == 1).nonzero().tolist() == [[0, 0, 4 + 1, 1, 1]]


def test_decoded_images_stay_within_range(generator):
    codec = SpaceToDepth(16, 4)
    images = codec.decode(3 * torch.randn(1, 1, *codec.latent_shape, generator=generator))
    assert float(images.min()) >= 0.0 and float(images.max()) <= 1.0


def test_an_impossible_patch_is_refused():
    with pytest.raises(ValueError, match="divisible by the patch, got 30 px and patch 4"):
        SpaceToDepth(30, 4)


@pytest.mark.parametrize("side", [8, 16, 40])
def test_every_pixel_of_a_render_gets_a_gradient(side, generator):
    images = torch.rand(1, 2, 3, side, side, generator=generator).requires_grad_()
    SpaceToDepth(16, 4).encode(images).square().sum().backward()
    assert (images.grad != 0).all()


def test_resizing_does_nothing_at_the_right_size_and_keeps_constants(generator):
    images = torch.rand(1, 2, 3, 16, 16, generator=generator)
    assert resize_images(images, 16) is images
    flat = torch.full((1, 1, 3, 7, 9), 0.3)
    torch.testing.assert_close(resize_images(flat, 16), torch.full((1, 1, 3, 16, 16), 0.3))


def test_kl_codec_follows_its_formula(generator):
    codec = tiny_published().codec
    assert isinstance(codec, KLCodec) and codec.scale == SD_LATENT_SCALE
    images = torch.rand(2, 3, 3, 16, 16, generator=generator)
    noise = torch.randn(2, 3, *codec.latent_shape, generator=generator)
    mean, std = codec.autoencoder.encode(images.flatten(0, 1) * 2 - 1)
    expected = (mean + std * noise.flatten(0, 1)).unflatten(0, (2, 3)) * 0.18215
    torch.testing.assert_close(codec.encode(images, noise), expected)
    torch.testing.assert_close(codec.encode(images), mean.unflatten(0, (2, 3)) * 0.18215)
    decoded = codec.decode(expected)
    assert decoded.shape == images.shape and float(decoded.min()) >= 0 and float(decoded.max()) <= 1


def test_chunks_change_nothing_but_memory(generator):
    codec = tiny_published().codec
    chunked = KLCodec(codec.autoencoder, codec.image_size, chunk=2)
    images = torch.rand(1, 5, 3, 12, 12, generator=generator).requires_grad_()
    noise = torch.randn(1, 5, *codec.latent_shape, generator=generator)
    whole, parts = codec.encode(images, noise), chunked.encode(images, noise)
    torch.testing.assert_close(whole, parts, atol=1e-6, rtol=1e-5)
    (a,), (b,) = (torch.autograd.grad(x.square().sum(), images) for x in (whole, parts))
    torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(codec.decode(whole.detach()), chunked.decode(whole.detach()), atol=1e-6, rtol=1e-5)
    with pytest.raises(ValueError, match="at least one image"):
        KLCodec(codec.autoencoder, chunk=0)


def test_what_is_computed_again_need_not_be_kept(generator):
    codec = tiny_published().codec
    again = KLCodec(codec.autoencoder, codec.image_size, chunk=1, recompute=True)
    images = torch.rand(1, 4, 3, 12, 12, generator=generator).requires_grad_()
    noise = torch.randn(1, 4, *codec.latent_shape, generator=generator)
    found, kept = [], []
    for one in (KLCodec(codec.autoencoder, codec.image_size, chunk=1), again, again.at(codec.image_size)):
        sizes: list[int] = []

        def keep(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            latents = one.encode(images, noise)
        found.append(torch.cat([latents.flatten(), torch.autograd.grad(latents.square().sum(), images)[0].flatten()]))
        kept.append(sum(sizes))
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])
    assert kept[1] == kept[2] < kept[0] / 5, kept
    torch.testing.assert_close(again.encode(images.detach()), codec.encode(images.detach()))


def test_identities_tell_codecs_apart():
    assert SpaceToDepth(16, 4).identity() == SpaceToDepth(16, 4).identity()
    assert SpaceToDepth(16, 4).identity() != SpaceToDepth(16, 4, 0.5).identity()
    one = tiny_published().codec
    before = one.identity()
    with torch.no_grad():
        list(one.autoencoder.parameters())[-1].add_(1)
    assert one.identity() != before
