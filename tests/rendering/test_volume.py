"""Packed volume rendering: the definition, the dense twin, recorded numbers, and derivatives."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from maquette.rendering.volume import (
    accumulate,
    composite,
    dense_weights,
    exclusive_sum,
    packed_weights,
    packed_weights_from_alpha,
    sum_by_ray,
    take_by_ray,
    weights_from_alpha,
)

RAY_INDEX = torch.tensor([0, 0, 0, 2, 2, 5, 5, 5, 5])
NUM_RAYS = 7


def ragged(num_rays: int, longest: int, generator: torch.Generator, dtype=torch.float64):
    """Random thicknesses with a random number of samples a ray (some none), and the same as a padded matrix."""
    counts = torch.randint(0, longest + 1, (num_rays,), generator=generator)
    ray_index = torch.repeat_interleave(counts)
    tau = torch.rand(len(ray_index), generator=generator, dtype=dtype) * 3
    dense = tau.new_zeros(num_rays, longest)
    place = torch.arange(len(ray_index)) - (counts.cumsum(0) - counts)[ray_index]
    return tau, ray_index, dense.index_put((ray_index, place), tau), place


def test_packed_equals_dense_forward_and_backward(generator):
    tau, ray_index, dense, place = ragged(200, 17, generator)
    tau.requires_grad_()
    dense.requires_grad_()
    weights, trans = packed_weights(tau, ray_index, 200)
    dense_w, dense_t = dense_weights(dense, torch.ones_like(dense))
    torch.testing.assert_close(weights, dense_w[ray_index, place])
    torch.testing.assert_close(trans, dense_t[ray_index, place])

    upstream = torch.randn(200, 17, generator=generator, dtype=torch.float64)
    (grad,) = torch.autograd.grad((weights * upstream[ray_index, place]).sum(), tau)
    (dense_grad,) = torch.autograd.grad((dense_w * upstream).sum(), dense)
    torch.testing.assert_close(grad, dense_grad[ray_index, place])


def test_weights_sum_to_opacity(generator):
    tau, ray_index, _, _ = ragged(300, 40, generator)
    weights, _ = packed_weights(tau, ray_index, 300)
    opacity = sum_by_ray(weights[:, None], ray_index, 300)[:, 0]
    thickness = torch.zeros(300, dtype=torch.float64).index_add(0, ray_index, tau)
    torch.testing.assert_close(opacity, 1 - torch.exp(-thickness))
    assert (weights >= 0).all() and (opacity <= 1 + 1e-12).all()


def test_weights_keep_their_precision_behind_many_opaque_rays():
    # A running sum over all rays in single precision would have lost the thin last ray entirely.
    opaque, thin = torch.full((200_000,), 50.0), torch.full((2,), 1e-4)
    ray_index = torch.cat([torch.arange(200_000), torch.full((2,), 200_000)])
    weights, trans = packed_weights(torch.cat([opaque, thin]), ray_index, 200_001)
    torch.testing.assert_close(trans[-1], torch.tensor(1.0) - 1e-4, atol=1e-7, rtol=0)
    torch.testing.assert_close(weights[-2:], torch.tensor([1e-4, 1e-4]), atol=2e-8, rtol=0)


@pytest.mark.parametrize("function", [packed_weights, packed_weights_from_alpha])
def test_gradients_of_weights(function, generator):
    values = torch.rand(9, generator=generator, dtype=torch.float64) * 0.8 + 0.1
    values.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: function(v, RAY_INDEX, NUM_RAYS), values)
    assert torch.autograd.gradgradcheck(lambda v: function(v, RAY_INDEX, NUM_RAYS)[0], values)


def test_gradients_of_sums(generator):
    values = torch.randn(9, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    rows = torch.randn(NUM_RAYS, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: sum_by_ray(v, RAY_INDEX, NUM_RAYS), values)
    assert torch.autograd.gradcheck(lambda r: take_by_ray(r, RAY_INDEX), rows)
    assert torch.autograd.gradgradcheck(lambda v: sum_by_ray(v**3, RAY_INDEX, NUM_RAYS), values)
    assert torch.autograd.gradgradcheck(lambda r: take_by_ray(r**3, RAY_INDEX), rows)


def test_no_samples_at_all():
    nothing, index = torch.zeros(0, requires_grad=True), torch.zeros(0, dtype=torch.long)
    weights, trans = packed_weights(nothing, index, 3)
    assert weights.shape == trans.shape == (0,)
    total = sum_by_ray(weights[:, None], index, 3)
    assert torch.equal(total, torch.zeros(3, 1))
    total.sum().backward()
    assert exclusive_sum(nothing, index, 0).shape == (0,)


def test_results_do_not_depend_on_threads(generator):
    tau, ray_index, _, _ = ragged(3000, 30, generator, torch.float32)
    colour = torch.rand(len(tau), 3, generator=generator)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 4):
            torch.set_num_threads(count)
            leaf = tau.clone().requires_grad_()
            weights, _ = packed_weights(leaf, ray_index, 3000)
            image = sum_by_ray(weights[:, None] * colour, ray_index, 3000)
            image.square().sum().backward()
            results.append((image.detach(), leaf.grad))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_recorded_rays(goldens):
    data = {key: torch.from_numpy(value) for key, value in np.load(goldens / "metrics/shading_orientation.npz").items()}
    assert json.loads((goldens / "metrics/shading_orientation.json").read_text())["n_rays_with_opacity"] == 2
    ray_index = torch.arange(3).repeat_interleave(4)
    tau = (data["sigma"] * data["delta"]).flatten()
    weights, trans = packed_weights(tau, ray_index, 3)
    close = {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(weights, data["weights"].flatten(), **close)
    torch.testing.assert_close(trans, data["transmittance"].flatten(), **close)
    dense, dense_trans = dense_weights(data["sigma"], data["delta"])
    torch.testing.assert_close(dense, data["weights"], **close)
    torch.testing.assert_close(dense_trans, data["transmittance"], **close)
    opacity = dense.sum(-1, keepdim=True)
    torch.testing.assert_close(opacity[:, 0], data["opacity"], **close)
    torch.testing.assert_close((dense * data["t_mid"]).sum(-1), data["depth_unnormalised"], **close)
    for name in ("shaded", "textureless", "albedo"):
        image = composite(accumulate(dense, data[name]), opacity, data["background"])
        torch.testing.assert_close(image, data[f"composited_{name}"], **close)


def test_recorded_compositing(goldens):
    data = load_file(goldens / "usd/volume_render.safetensors")
    weights, trans = weights_from_alpha(data["alpha"])
    torch.testing.assert_close(weights, data["weights"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(trans, data["trans"], rtol=1e-4, atol=1e-6)
    opacity = weights.sum(-1, keepdim=True)
    t_mid = (data["t_starts"] + data["t_ends"]) / 2
    torch.testing.assert_close(opacity, data["opacity"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(accumulate(weights, t_mid[..., None]), data["depth"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(accumulate(weights, data["rgb"]), data["comp_rgb"], rtol=1e-4, atol=1e-6)
    normal = torch.nn.functional.normalize(accumulate(weights, data["normal"]), dim=-1)
    torch.testing.assert_close(normal, data["comp_normal"], rtol=1e-4, atol=1e-5)

    dense, _ = dense_weights(data["sigma"], data["t_ends"] - data["t_starts"])
    torch.testing.assert_close(dense, data["d_weights"], rtol=1e-4, atol=1e-6)

    index = data["packed.ray_indices"]
    packed, _ = packed_weights_from_alpha(data["packed.alpha"], index, 12)
    torch.testing.assert_close(packed, data["packed.weights"], rtol=1e-4, atol=1e-6)
    image = sum_by_ray(packed[:, None] * data["packed.rgb"], index, 12)
    torch.testing.assert_close(image, data["packed.comp_rgb"], rtol=1e-4, atol=1e-6)
