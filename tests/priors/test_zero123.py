"""Zero-1-to-3: poses, what the network is shown, both kinds of null, and refusals."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from maquette.cameras import orbit
from maquette.diffusion.clip import VisionConfig, VisionTower
from maquette.errors import UserError
from maquette.images import CameraEstimate, Prompt
from maquette.priors.base import Condition, predict_pair
from maquette.priors.clip_encoders import PooledImageEncoder
from maquette.priors.zero123 import Zero123Config, new_projection
from maquette.priors.zero123_pose import camera_angles, relative_pose
from tests.priors.tiny import noisy, prompt, randomised, tiny_stable_diffusion, tiny_zero123

WHITE = torch.ones(3)


def seen_by(prior, *args):
    """(x, context) of the one call of the network."""
    calls = []
    handle = prior.network.register_forward_pre_hook(lambda module, given: calls.append(given))
    prior.predict(*args)
    handle.remove()
    ((x, _, context),) = calls
    return x, context


# Poses


def test_the_pose_of_the_pictures_own_camera_is_no_turn():
    cameras = orbit(5, elevation=-35.0, azimuth=170.0, distance=2.0)
    pose = relative_pose(camera_angles(cameras), camera_angles(cameras))
    torch.testing.assert_close(pose, torch.tensor([[0.0, 0.0, 1.0, 0.0]]).expand(5, 4))


def test_a_higher_camera_has_a_negative_first_number():
    higher = relative_pose(torch.tensor([50.0, 0.0, 2.0]), torch.tensor([20.0, 0.0, 1.5]))
    torch.testing.assert_close(higher, torch.tensor([-math.pi / 6, 0.0, 1.0, 0.5]))


def test_azimuth_grows_from_x_to_y():
    front, side = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.0, 90.0, 1.0])
    torch.testing.assert_close(relative_pose(side, front), torch.tensor([0.0, 1.0, 0.0, 0.0]))
    torch.testing.assert_close(relative_pose(front, side), torch.tensor([0.0, -1.0, 0.0, 0.0]))


def test_only_the_difference_of_azimuths_counts():
    view, picture = torch.tensor([10.0, 30.0, 2.0]), torch.tensor([0.0, -70.0, 2.0])
    turned = torch.tensor([0.0, 360.0 + 47.0, 0.0])
    torch.testing.assert_close(relative_pose(view + turned, picture + turned), relative_pose(view, picture))


def test_stable_zero123_is_told_the_pictures_height():
    view, picture = torch.tensor([10.0, 30.0, 2.0]), torch.tensor([20.0, 0.0, 1.0])
    assert float(relative_pose(view, picture, "stable-zero123")[3]) == pytest.approx(math.radians(70))
    assert float(relative_pose(view, picture[:2])[3]) == 0.0, "without the picture's distance it is the view's own"


# The condition


def test_the_pictures_latents_are_the_unscaled_mean():
    prior = tiny_zero123()
    cond = prior.condition(replace(prompt(), image=prompt().image.resized(16)), WHITE)
    image = prompt().image.resized(16).composite(WHITE)
    mean, std = prior.codec.autoencoder.encode(image[None] * 2 - 1)
    torch.testing.assert_close(cond.image_latents, mean)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(1))
    sampled = prior.condition(replace(prompt(), image=prompt().image.resized(16)), WHITE, latent_noise=noise)
    torch.testing.assert_close(sampled.image_latents, mean + std * noise)


def test_the_network_sees_noise_beside_the_picture_and_one_token():
    prior = tiny_zero123(Zero123Config(elevation=20.0, azimuth=15.0))
    cond, cameras = prior.condition(prompt(), WHITE), orbit(1, elevation=-10.0, azimuth=60.0, distance=2.0)
    latents_t = noisy(prior)
    x, context = seen_by(prior, latents_t, torch.tensor([3, 700]), cond, cameras)
    assert torch.equal(x[:, :, :4], latents_t)
    assert torch.equal(x[:, :, 4:], cond.image_latents[:, None].expand_as(latents_t))
    pose = relative_pose(torch.tensor([-10.0, 60.0, 2.0]), torch.tensor([20.0, 15.0]))
    expected = prior.projection(torch.cat([cond.image_embedding[0], pose]))
    torch.testing.assert_close(context, expected.expand(2, 1, -1))


@pytest.mark.parametrize(
    ("estimate", "given", "wanted"),
    [
        (None, None, [20.0, 5.0]),
        (CameraEstimate(-30.0, 40.0, 1.0, 0.1, reliable=True), None, [40.0, -30.0]),
        (CameraEstimate(-30.0, 40.0, 1.0, 0.9, reliable=False), None, [20.0, 5.0]),
        (
            CameraEstimate(-30.0, 40.0, 1.0, 0.1, reliable=True),
            orbit(1, elevation=7.0, azimuth=8.0, distance=3.0),
            [7.0, 8.0, 3.0],
        ),
    ],
)
def test_the_pictures_own_camera_is_part_of_the_condition(estimate, given, wanted):
    prior = tiny_zero123(Zero123Config(elevation=20.0, azimuth=5.0))
    cond = prior.condition(prompt().with_camera(estimate), WHITE, camera=given)
    torch.testing.assert_close(cond.camera, torch.tensor([wanted]))
    assert prior.with_config(distance=1.5).condition(prompt(), WHITE).camera[0, 2] == 1.5


def test_angles_keep_their_precision_in_half():
    cond = tiny_zero123(Zero123Config(azimuth=123.456)).condition(prompt(), WHITE).to("cpu", torch.float16)
    assert cond.image_latents.dtype is torch.float16
    assert float(cond.camera[0, 1]) == pytest.approx(123.456, abs=1e-4)


def test_both_nulls():
    prior, cameras = tiny_zero123(), orbit(1, elevation=30.0, azimuth=70.0)
    cond, latents_t, t = prior.condition(prompt(), WHITE), noisy(prior), torch.tensor([500, 20])
    zeros, projected = prior.unconditional(cond), prior.unconditional(cond, "projected")
    for null in (zeros, projected):
        assert null.image_latents.shape == cond.image_latents.shape and not null.image_latents.any()
    x, context = seen_by(prior, latents_t, t, zeros, cameras)
    assert not context.any() and not x[:, :, 4:].any()
    assert torch.equal(prior.predict(latents_t, t, zeros).x0, prior.predict(latents_t, t, zeros, cameras).x0)
    # Training dropped the embedding and kept the pose, so that null knows where the camera is.
    _, context = seen_by(prior, latents_t, t, projected, cameras)
    pose = relative_pose(camera_angles(cameras), projected.camera)
    torch.testing.assert_close(context[0], prior.projection(torch.cat([torch.zeros(1, 12), pose], dim=-1)))
    pair = predict_pair(prior, latents_t, t, cond=cond, uncond=projected, cameras=cameras)
    assert (pair.uncond.x0 - prior.predict(latents_t, t, zeros).x0).abs().max() > 1e-3
    with pytest.raises(ValueError, match="'zeros' or 'projected', got 'flat'"):
        prior.unconditional(cond, "flat")
    with pytest.raises(ValueError, match="without a picture"):
        prior.unconditional(zeros)


def test_the_view_decides_what_is_seen():
    prior, latents_t, t = tiny_zero123(), noisy(tiny_zero123()), torch.tensor([500, 500])
    cond = prior.condition(prompt(), WHITE)
    one, other = (prior.predict(latents_t, t, cond, orbit(1, azimuth=a)).x0 for a in (0.0, 120.0))
    assert (one - other).abs().max() > 1e-3
    near, far = (orbit(1, distance=d) for d in (1.0, 2.0))
    assert torch.equal(prior.predict(latents_t, t, cond, near).x0, prior.predict(latents_t, t, cond, far).x0)
    told = prior.with_config(distance=1.0)
    cond = told.condition(prompt(), WHITE)
    assert not torch.equal(told.predict(latents_t, t, cond, near).x0, told.predict(latents_t, t, cond, far).x0)


def test_what_is_missing_is_said():
    prior, t = tiny_zero123(), torch.tensor([1, 1])
    cond = prior.condition(prompt(), WHITE)
    with pytest.raises(UserError, match="needs a picture and cannot read words"):
        prior.condition(Prompt(None, "a barrel"), WHITE)
    with pytest.raises(ValueError, match="needs cameras of the views"):
        prior.predict(noisy(prior), t, cond)
    with pytest.raises(ValueError, match="the picture's own camera"):
        prior.predict(noisy(prior), t, replace(cond, camera=None), orbit(1))
    with pytest.raises(ValueError, match=r"one camera a view, \[2, 1\] or \[1\], got \[4\]"):
        prior.predict(noisy(prior), t, cond, orbit(4))


def test_networks_that_do_not_belong_together_are_refused():
    zero123, words = tiny_zero123(), tiny_stable_diffusion()
    with pytest.raises(UserError, match="8 channels for this codec; this network reads 4"):
        replace(zero123, network=words.network)
    with pytest.raises(UserError, match="reads latents of 4 channels alone; this network reads 8"):
        replace(words, network=zero123.network)
    with pytest.raises(UserError, match="makes tokens of 20 numbers, and its network reads 16"):
        replace(zero123, projection=nn.Linear(16, 20))
    for wrong in ({"elevation": 100.0}, {"distance": 0.0}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            Zero123Config(**wrong)


def test_a_new_projection_hands_the_embedding_on():
    embedding, pose = torch.randn(3, 12), torch.randn(3, 4)
    assert torch.equal(new_projection(12, 12)(torch.cat([embedding, pose], dim=-1)), embedding)


def test_embeddings_keep_their_length():
    vision = VisionConfig(image_size=28, patch_size=14, width=16, layers=2, heads=2, mlp_width=32, embed_dim=6)
    tower = randomised(VisionTower(vision))
    images = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(3))
    plain, antialiased = PooledImageEncoder(tower)(images), PooledImageEncoder(tower, antialias=True)(images)
    assert plain.shape == antialiased.shape == (2, 6)
    assert not torch.allclose(plain.norm(dim=-1), torch.ones(2), atol=0.1)
    assert 0 < (plain - antialiased).abs().max() < 0.5 * plain.abs().max()


# Stable Diffusion


def test_words_are_all_that_stable_diffusion_knows():
    prior, t = tiny_stable_diffusion(), torch.tensor([500, 500])
    latents_t = noisy(prior)
    cond = prior.condition(prompt("a red barrel", "blue"), WHITE)
    assert torch.equal(cond.text, prior.encode_text("a red barrel"))
    for kind in ("zeros", "flat", "projected"):
        assert torch.equal(prior.unconditional(cond, kind).text, prior.encode_text("blue"))
    other_picture = prior.condition(prompt("a red barrel", "blue", seed=5), torch.zeros(3))
    alone = prior.predict(latents_t, t, cond).x0
    assert torch.equal(prior.predict(latents_t, t, other_picture, orbit(1, azimuth=90.0)).x0, alone)
    assert not torch.equal(prior.predict(latents_t, t, prior.unconditional(cond)).x0, alone)
    with pytest.raises(ValueError, match="without negative text"):
        prior.unconditional(Condition(text=cond.text))


def test_texts_of_several_lengths_are_not_batched():
    prior, t = tiny_stable_diffusion(), torch.tensor([500, 500])
    latents_t, cond = noisy(prior), prior.condition(prompt(), WHITE)
    short = Condition(text=cond.text[:, :2])
    both = prior.predict_each(latents_t, t, {"short": short, "long": cond})
    assert list(both) == ["short", "long"]
    torch.testing.assert_close(both["short"].x0, prior.predict(latents_t, t, short).x0)


def test_another_image_size_shares_the_networks():
    prior = tiny_stable_diffusion()
    larger = prior.with_image_size(32)
    assert larger.codec.image_size == 32 and larger.codec.latent_shape == (4, 16, 16)
    assert larger.codec.autoencoder is prior.codec.autoencoder and larger.network is prior.network
    assert larger.fingerprint() != prior.fingerprint()
