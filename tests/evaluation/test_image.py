"""Image metrics against recorded values, slow twins and laws."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from maquette.evaluation import image as metrics


@pytest.fixture
def pair(generator):
    a = torch.rand(2, 3, 48, 40, generator=generator, dtype=torch.float64)
    b = (a + 0.2 * torch.randn(a.shape, generator=generator, dtype=torch.float64)).clamp(0, 1)
    return a, b


def test_recorded_pairs(goldens):
    pairs = np.load(goldens / "metrics" / "image_pairs.npz")
    expected = json.loads((goldens / "metrics" / "image_metrics.json").read_text())
    functions = {
        "mse": metrics.mean_squared_error,
        "mae": metrics.mean_absolute_error,
        "psnr_db": metrics.psnr,
        "ssim_gauss11_border_cropped": metrics.ssim,
        "ssim_gauss11_reflect_border_included": metrics.ssim_with_border,
        "ssim_uniform7_sample_cov": metrics.ssim_uniform,
    }
    compared = 0
    for name in ("noise", "blur", "constant_offset", "checker_shift", "gray_contrast", "identical"):
        a, b = (torch.from_numpy(pairs[f"{name}_{side}"]).double().permute(2, 0, 1) for side in "ab")
        for key, function in functions.items():
            assert float(function(a, b)) == pytest.approx(float(expected[name][key]), rel=1e-9, abs=1e-12), (name, key)
            compared += 1
    assert compared == 36


def test_ssim_matches_scikit_image(pair):
    from skimage.metrics import structural_similarity

    for a, b, ours in zip(*pair, metrics.ssim(*pair), strict=True):
        theirs = structural_similarity(
            a.permute(1, 2, 0).numpy(), b.permute(1, 2, 0).numpy(), gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False, data_range=1.0, channel_axis=-1,
        )  # fmt: skip
        assert float(ours) == pytest.approx(float(theirs), abs=1e-12)


def test_ssim_in_float32_keeps_its_digits_near_flat_images():
    a = torch.full((1, 3, 32, 32), 0.7) + 1e-3 * torch.sin(torch.arange(32.0))
    assert float(metrics.ssim(a, a + 0.01)) == pytest.approx(
        float(metrics.ssim(a.double(), a.double() + 0.01)), rel=1e-5
    )


def test_every_metric_is_perfect_on_equal_images_and_keeps_the_leading_axes(pair):
    a = pair[0]
    batch = a.reshape(1, 2, 3, 48, 40)
    assert metrics.psnr(batch, batch).isinf().all()
    assert (metrics.psnr(batch, batch, ceiling=metrics.PSNR_CEILING) == metrics.PSNR_CEILING).all()
    for function in (metrics.ssim, metrics.ssim_with_border, metrics.ssim_uniform):
        torch.testing.assert_close(function(batch, batch), torch.ones(1, 2, dtype=torch.float64))
    for function in (
        metrics.mean_squared_error,
        metrics.mean_absolute_error,
        metrics.gmsd,
        metrics.structure_colour_distance,
    ):
        torch.testing.assert_close(function(batch, batch), torch.zeros(1, 2, dtype=torch.float64))


def test_per_image_values_do_not_depend_on_the_batch(pair):
    for function in (metrics.psnr, metrics.ssim, metrics.gmsd, metrics.structure_colour_distance):
        together = function(*pair)
        alone = torch.stack([function(a, b) for a, b in zip(*pair, strict=True)])
        torch.testing.assert_close(together, alone)


def test_over_composites_straight_alpha(generator):
    image, mask = torch.rand(3, 4, 4, generator=generator), torch.rand(1, 4, 4, generator=generator)
    torch.testing.assert_close(metrics.over(image, mask), image * mask + 1 - mask)
    coloured = metrics.over(image, torch.zeros_like(mask), torch.tensor([0.1, 0.2, 0.3]))
    torch.testing.assert_close(coloured[:, 2, 2], torch.tensor([0.1, 0.2, 0.3]))


def test_mask_iou_of_shifted_squares():
    a, b = torch.zeros(1, 16, 16), torch.zeros(1, 16, 16)
    a[:, 2:10, 2:10], b[:, 2:10, 6:14] = 1, 1
    assert float(metrics.mask_iou(a, b)) == pytest.approx(32 / 96)
    assert float(metrics.mask_iou(torch.zeros(1, 4, 4), torch.zeros(1, 4, 4))) == 1.0


def test_gmsd_matches_a_slow_twin(pair):
    a, b = (image[0].mean(0, keepdim=True) for image in pair)

    def magnitude(image):
        small = image[0].numpy().reshape(24, 2, 20, 2).mean((1, 3))
        padded = np.pad(small, 1)
        out = np.zeros_like(small)
        for y in range(24):
            for x in range(20):
                window = padded[y : y + 3, x : x + 3]
                across = (window[:, 0].sum() - window[:, 2].sum()) / 3
                down = (window[0].sum() - window[2].sum()) / 3
                out[y, x] = np.hypot(across, down)
        return out

    m, n = magnitude(a), magnitude(b)
    c = 170 / 255**2
    expected = ((2 * m * n + c) / (m**2 + n**2 + c)).std()
    assert float(metrics.gmsd(a, b)) == pytest.approx(expected, rel=1e-9)


def test_the_perceptual_distance_orders_what_people_order():
    """A slight blur is nearer than a hue change of the object, which is nearer than another shape in another colour."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    disc = ((x - 32) ** 2 + (y - 32) ** 2 < 400).double()
    bar = ((x - 32).abs() < 6).double()

    def paint(mask, colour):
        return metrics.over(torch.tensor(colour, dtype=torch.float64)[:, None, None].expand(3, 64, 64), mask[None])

    red = paint(disc, [0.8, 0.1, 0.1])
    blurred = torch.nn.functional.avg_pool2d(red[None], 3, 1, 1, count_include_pad=False)[0]
    blue, other = paint(disc, [0.1, 0.1, 0.8]), paint(bar, [0.1, 0.1, 0.8])
    distances = [float(metrics.structure_colour_distance(red, image)) for image in (red, blurred, blue, other)]
    assert distances == sorted(distances) and distances[1] > 0


@pytest.mark.parametrize("function", [metrics.psnr, metrics.ssim, metrics.gmsd, metrics.mask_iou])
def test_different_shapes_are_refused(function):
    # With a type checker installed its TypeError comes first.
    with pytest.raises((ValueError, TypeError)):
        function(torch.rand(3, 32, 32), torch.rand(3, 32, 33))


def test_small_images_are_refused():
    with pytest.raises(ValueError, match="at least 11"):
        metrics.ssim(torch.rand(3, 10, 32), torch.rand(3, 10, 32))
    with pytest.raises(ValueError, match="32x32"):
        metrics.structure_colour_distance(torch.rand(3, 16, 16), torch.rand(3, 16, 16))


def test_saturation_is_that_of_the_masks_pixels():
    image, mask = torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 4, 4)
    image[:, :, :2] = torch.tensor([0.8, 0.4, 0.2])[:, None, None]
    image[:, 0, 2:] = 1.0
    mask[0, :, :2], mask[1, :, 3:] = 1, 1
    torch.testing.assert_close(metrics.saturation(image, mask), torch.tensor([0.75, 1.0]))
    torch.testing.assert_close(metrics.saturation(image.mean(1, keepdim=True).expand_as(image), mask), torch.zeros(2))
    torch.testing.assert_close(metrics.saturation(image, torch.zeros_like(mask)), torch.zeros(2))
