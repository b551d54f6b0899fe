"""The autoencoder: shapes, its posterior, and where a pixel can reach. Its numbers are checked in tests/parity."""

from __future__ import annotations

import pytest
import torch

from maquette.diffusion.autoencoder import Autoencoder, AutoencoderConfig

SMALL = AutoencoderConfig(
    channels=8, channel_mult=(1, 2, 2), res_blocks=1, attention=(False, True, False), inner_channels=3,
    latent_channels=5, groups=4,
)  # fmt: skip


@pytest.fixture
def autoencoder(generator):
    torch.manual_seed(0)
    return Autoencoder(SMALL).eval().requires_grad_(False)


def test_shapes(autoencoder, generator):
    images = torch.randn(2, 3, 16, 24, generator=generator)
    mean, std = autoencoder.encode(images)
    assert autoencoder.downsampling == 4
    assert mean.shape == std.shape == (2, 5, 4, 6)
    assert autoencoder.decode(mean).shape == images.shape


def test_published_size_without_allocating_it():
    with torch.device("meta"):
        autoencoder = Autoencoder(AutoencoderConfig())
    assert sum(p.numel() for p in autoencoder.parameters()) == 83_653_863
    assert autoencoder.downsampling == 8


def test_posterior_is_bounded(autoencoder, generator):
    autoencoder.to_moments.bias.copy_(torch.tensor([0.0] * 5 + [1e4, -1e4, 0.0, 0.0, 0.0]))
    _, std = autoencoder.encode(torch.randn(1, 3, 16, 16, generator=generator))
    assert float(std[:, 0].max()) == pytest.approx(torch.tensor(10.0).exp().item())
    assert float(std[:, 1].max()) == pytest.approx(torch.tensor(-15.0).exp().item())


def test_encode_is_differentiable_in_the_images(autoencoder, generator):
    images = torch.randn(1, 3, 16, 16, generator=generator).requires_grad_()
    mean, std = autoencoder.encode(images)
    (mean.square().sum() + std.sum()).backward()
    assert images.grad is not None
    assert (images.grad != 0).all()


def test_images_of_a_batch_do_not_mix(autoencoder, generator):
    images = torch.randn(3, 3, 16, 16, generator=generator)
    mean, _ = autoencoder.encode(images)
    alone, _ = autoencoder.encode(images[1:2])
    torch.testing.assert_close(mean[1:2], alone)


def test_a_side_that_does_not_divide_is_refused(autoencoder):
    with pytest.raises(ValueError, match="multiples of 4"):
        autoencoder.encode(torch.zeros(1, 3, 18, 16))


def test_levels_must_agree():
    with pytest.raises(ValueError, match="one entry per level"):
        AutoencoderConfig(channel_mult=(1, 2))
