"""Views from a prior: reproducible, independent of their batch, and cut out of their known background."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from maquette.cameras import Cameras, orbit
from maquette.errors import UserError
from maquette.images import ImagePrompt, Views
from maquette.run import Run, Stage
from maquette.stages.look import (
    KEY_COLOURS,
    SamplingConfig,
    border_colour,
    draw_scenes,
    key_colour,
    key_views,
    revise_views,
    sample_candidates,
    sample_from_words,
    sample_views,
    view_names,
)
from tests.guidance.oracle import oracle
from tests.priors.tiny import four_cameras, prompt, tiny_prior, tiny_published

QUICK = SamplingConfig(steps=5)
WHITE = torch.ones(3)


@pytest.fixture
def stage(tmp_path: Path):
    with Run.open(tmp_path / "run", device="cpu", quiet=True) as run:
        yield Stage(run, "views", "")


@pytest.mark.parametrize("make", [tiny_prior, tiny_published])
@pytest.mark.parametrize("changes", [{}, {"eta": 1.0}, {"spacing": "exact"}, {"guidance_scale": 1.0}])
def test_a_scene_does_not_depend_on_its_batch(make, changes, stage):
    prior = make()
    cond, config = prior.condition(prompt(), WHITE), replace(QUICK, **changes)

    def draw(*seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return draw_scenes(prior, cond, four_cameras(), config, generators, stage)

    together = draw(3, 1, 4)
    assert together.shape == (3, 4, 3, 16, 16)
    torch.testing.assert_close(draw(1), together[1:2], atol=2e-4, rtol=0)
    assert torch.equal(draw(4), draw(4))
    assert (together[0] - together[1]).abs().max() > 0.05


def test_the_oracle_is_reproduced(stage):
    prior = oracle(dtype=torch.float32)
    cond = prior.condition(prompt(), WHITE)
    for scale in (1.0, 2.0):
        config = SamplingConfig(steps=10, guidance_scale=scale, spacing="exact")
        (images,) = draw_scenes(prior, cond, four_cameras(), config, [torch.Generator()], stage)
        guided = prior.x_uncond + scale * (prior.x_cond - prior.x_uncond)
        torch.testing.assert_close(images, prior.codec.decode(guided)[0], atol=1e-4, rtol=0)


def test_rescaling_and_clipping_tame_strong_guidance(stage):
    prior = oracle(dtype=torch.float32)
    cond = prior.condition(prompt(), WHITE)

    def contrast(**changes):
        config = SamplingConfig(steps=4, guidance_scale=3.0, spacing="exact", **changes)
        (images,) = draw_scenes(prior, cond, four_cameras(), config, [torch.Generator()], stage)
        return float(images.std())

    assert contrast(rescale=1.0) < contrast(rescale=0.5) < contrast()
    config = SamplingConfig(steps=4, guidance_scale=9.0, spacing="exact", clip=True)
    (images,) = draw_scenes(prior, cond, four_cameras(), config, [torch.Generator()], stage)
    guided = prior.x_uncond + 9.0 * (prior.x_cond - prior.x_uncond)
    torch.testing.assert_close(images, prior.codec.decode(guided)[0], atol=1e-4, rtol=0)
    published = tiny_published()
    with pytest.raises(UserError, match="latents are pixels"):
        draw_scenes(published, published.condition(prompt(), WHITE), four_cameras(), config, [torch.Generator()], stage)


def test_candidates_are_the_same_alone_and_in_company(stage):
    prior = tiny_prior()
    cond = prior.condition(prompt(), WHITE)
    several = sample_candidates(prior, cond, four_cameras(), QUICK, 3, stage)
    for pick in range(3):
        alone = sample_views(prior, cond, four_cameras(), replace(QUICK, pick=pick), stage)
        assert torch.equal(alone.images, several[pick].images)
    assert not torch.equal(several[0].images, several[1].images)


def test_views_carry_their_cameras_and_masks(stage):
    prior = tiny_prior()
    cameras = orbit(4, elevation=5.0, height=512, width=512)
    views = sample_views(prior, prior.condition(prompt(), WHITE), cameras, QUICK, stage)
    assert views.images.shape == (4, 3, 16, 16) and views.masks is not None
    assert (views.cameras.height, views.cameras.width) == (16, 16)
    assert torch.equal(views.cameras.c2w, cameras.c2w)
    words = prior.condition(replace(prompt(), image=None), WHITE)
    assert sample_views(prior, words, cameras, QUICK, stage).masks is None, "words have no known background"


def test_views_are_remembered_by_a_run(tmp_path):
    prior, calls = tiny_prior(), []
    cond = prior.condition(prompt(), WHITE)
    handle = prior.network.register_forward_hook(lambda *_: calls.append(1))
    shown = []
    for _ in range(2):
        with Run.open(tmp_path / "run", device="cpu", quiet=True) as run:
            shown.append(run.stage("views", sample_views, prior, cond, four_cameras(), QUICK))
    handle.remove()
    assert len(calls) == 5
    assert isinstance(shown[1], Views) and torch.equal(shown[0].images, shown[1].images)
    with Run.open(tmp_path / "run", device="cpu", quiet=True) as run:
        other = run.stage("views", sample_views, prior.with_config(control="none"), cond, four_cameras(), QUICK)
    assert not torch.equal(other.images, shown[0].images)


def test_single_images_without_cameras(stage):
    prior = tiny_prior()
    words = prior.condition(replace(prompt(), image=None), WHITE)
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    images = draw_scenes(prior, words, None, QUICK, generators, stage)
    assert images.shape == (2, 1, 3, 16, 16)
    assert images.min() >= 0 and images.max() <= 1


def test_previews_and_interrupts(stage, monkeypatch):
    prior, shown = tiny_prior(), []
    monkeypatch.setattr(Stage, "preview", lambda self, step, make: shown.append((step, make())))
    monkeypatch.setattr(Stage, "keep_going", lambda self: len(shown) < 3)
    with pytest.raises(KeyboardInterrupt):
        sample_views(prior, prior.condition(prompt(), WHITE), four_cameras(), QUICK, stage)
    assert [step for step, _ in shown] == [0, 1, 2]
    assert shown[0][1].shape == (1, 4, 3, 16, 16) and not torch.equal(shown[0][1], shown[1][1])


def disc(size: int = 64, hole: bool = False) -> torch.Tensor:
    """Coverage [1, size, size] of an antialiased disc, perhaps with a hole."""
    y, x = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    radius = ((x - size / 2) ** 2 + (y - size / 2) ** 2).sqrt()
    mask = (size * 0.35 - radius + 0.5).clamp(0, 1)
    if hole:
        mask = mask * (1 - (size * 0.12 - radius + 0.5).clamp(0, 1))
    return mask[None]


@pytest.mark.parametrize("background", KEY_COLOURS)
@pytest.mark.parametrize("hole", [False, True])
def test_objects_are_cut_out_of_their_background(background, hole, generator):
    colour, mask = torch.tensor([0.75, 0.2, 0.1])[:, None, None], disc(hole=hole)
    flat = torch.tensor(background)
    image = mask * colour + (1 - mask) * flat[:, None, None]
    image = (image + 0.005 * torch.randn(image.shape, generator=generator)).clamp(0, 1)
    colours, masks = key_views(image[None], flat)
    assert float((masks[0] - mask).abs().mean()) < 0.01
    assert float((masks[0] - mask).abs().max()) < 0.5
    inside = mask[0] > 0.9
    assert float((colours[0] - colour).abs()[:, inside].mean()) < 0.02


def test_an_image_of_nothing_but_background_has_an_empty_mask():
    flat = torch.tensor([0.3, 0.4, 0.5])
    colours, masks = key_views(flat[None, :, None, None].expand(1, 3, 32, 32), flat)
    assert not masks.any() and colours.shape == (1, 3, 32, 32)


def test_the_key_colour_is_far_from_the_object():
    def chosen(*colour):
        picture = torch.tensor(colour)[:, None, None].expand(3, 64, 64)
        return tuple(key_colour(ImagePrompt(picture, disc())).tolist())

    assert chosen(0.8, 0.1, 0.1) == (1.0, 1.0, 1.0), "white, where it will do"
    assert chosen(0.97, 0.97, 0.95) == (0.5, 0.5, 0.5)
    half = torch.ones(3, 64, 64)
    half[:, :, 32:] = 0.5
    assert tuple(key_colour(ImagePrompt(half, disc())).tolist()) == (0.0, 0.0, 0.0)
    assert tuple(key_colour(ImagePrompt(half, torch.zeros(1, 64, 64))).tolist()) == (1.0, 1.0, 1.0)


def test_names_of_views():
    assert view_names(orbit(4)) == ["front", "left", "back", "right"]
    assert view_names(orbit(4, azimuth=-90.0)) == ["right", "front", "left", "back"]
    assert view_names(orbit(2, azimuth=40.0, elevation=-10.0)) == ["front left", "back right"]
    assert view_names(orbit(2, elevation=75.0)) == ["overhead", "overhead (2)"]
    assert view_names(orbit(1, elevation=-75.0)) == ["underneath"]
    assert view_names(orbit(3, span=30.0)) == ["front", "front (2)", "front (3)"]
    # An object that faces +x has +y on its own left.
    assert isinstance(orbit(4)[1], Cameras) and orbit(4).position[1, 1] > 0.9 * orbit(4).distance[1]


def test_settings_are_validated():
    for wrong, match in (
        ({"steps": 0}, "at least one step"),
        ({"guidance_scale": -1.0}, "guidance_scale"),
        ({"rescale": 2.0}, "rescale"),
        ({"eta": 1.5}, "eta"),
        ({"pick": -1}, "counted from 0"),
    ):
        with pytest.raises(UserError, match=match):
            SamplingConfig(**wrong)


def test_a_frame_is_held_and_names_the_background(stage):
    """A prior without a picture paints what it likes; held borders tell which colour is behind."""
    prior = tiny_prior()
    words, cameras = replace(prompt(), image=None), four_cameras()
    views = sample_from_words(prior, words, cameras, replace(QUICK, spacing="exact"), [(0.0, 1.0, 0.0)], stage)
    assert views.masks is not None
    config = replace(QUICK, spacing="exact", frame=(0.0, 1.0, 0.0))
    (images,) = draw_scenes(prior, prior.condition(words, WHITE), cameras, config, [torch.Generator()], stage)
    green = torch.tensor([0.0, 1.0, 0.0])[:, None]
    for edge in (images[..., 0, :], images[..., -1, :], images[..., 0], images[..., -1]):
        torch.testing.assert_close(edge, green.expand_as(edge), atol=1e-5, rtol=0)
    published = tiny_published()
    with pytest.raises(UserError, match="frame needs a codec whose latents are pixels"):
        draw_scenes(published, published.condition(words, WHITE), cameras, config, [torch.Generator()], stage)


def test_the_next_frame_is_tried_where_nothing_shows(stage, monkeypatch):
    from maquette.stages import look

    shown = torch.ones(4, 3, 16, 16)  # a white object on white, then on black
    shown[..., :2], shown[..., -2:], shown[..., :2, :], shown[..., -2:, :] = 0, 0, 0, 0
    asked = []

    def sample(prior, condition, cameras, config, run):
        asked.append(config.frame)
        return Views(torch.ones(4, 3, 16, 16) if config.frame == (1.0, 1.0, 1.0) else shown, None, cameras)

    monkeypatch.setattr(look, "sample_views", sample)
    cameras = orbit(4, height=16, width=16)
    views = sample_from_words(
        tiny_prior(), replace(prompt(), image=None), cameras, QUICK, [(1.0, 1.0, 1.0), (0.0, 0.0, 0.0)], stage
    )
    assert asked == [(1.0, 1.0, 1.0), (0.0, 0.0, 0.0)]
    assert views.masks is not None and float(views.masks[:, :, 8, 8].min()) == 1.0 and not views.masks[..., 0].any()


def test_the_colour_of_borders():
    flat = torch.full((4, 3, 16, 16), 0.25)
    flat[..., 4:12, 4:12] = 1.0
    torch.testing.assert_close(border_colour(flat), torch.full((3,), 0.25))
    noise = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert border_colour(noise) is None


@pytest.mark.parametrize("make", [tiny_prior, tiny_published])
def test_views_are_revised_from_what_is_given(make, stage):
    prior = make()
    cond = prior.condition(prompt(), WHITE)
    size = prior.codec.image_size
    picture = prompt().image.resized(size)
    cameras = orbit(4, height=size, width=size)
    given = Views(picture.image.expand(4, -1, -1, -1), picture.mask.expand(4, -1, -1, -1), cameras)
    kept = revise_views(prior, cond, given, 0.0, QUICK, stage)
    expected = prior.codec.decode(prior.codec.encode(given.composite(WHITE)[None]))[0]
    torch.testing.assert_close(kept.composite(WHITE), expected, atol=0.3, rtol=0)
    assert torch.equal(kept.cameras.c2w, cameras.c2w)
    revised = [revise_views(prior, cond, given, strength, QUICK, stage).images for strength in (0.4, 1.0)]
    assert not torch.equal(*revised)
    with pytest.raises(UserError, match="strength"):
        revise_views(prior, cond, given, 1.5, QUICK, stage)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
def test_a_sampler_of_diffusers_draws_the_same_kind_of_views(stage):
    pytest.importorskip("diffusers", reason="needs diffusers: pip install 'maquette[published]'")
    prior = oracle(dtype=torch.float32)
    cond = prior.condition(prompt(), WHITE)
    config = SamplingConfig(steps=6, guidance_scale=2.0, spacing="exact", sampler="euler")
    (images,) = draw_scenes(prior, cond, four_cameras(), config, [torch.Generator()], stage)
    guided = prior.x_uncond + 2.0 * (prior.x_cond - prior.x_uncond)
    torch.testing.assert_close(images, prior.codec.decode(guided)[0], atol=2e-2, rtol=0)
    with pytest.raises(UserError, match="eta is a setting of ddim"):
        replace(config, eta=1.0)


def test_the_averaged_sampler_finds_what_the_prior_wants(stage):
    prior = oracle(dtype=torch.float32)
    cond = prior.condition(prompt(), WHITE)
    config = SamplingConfig(steps=4, guidance_scale=2.0, spacing="exact", sampler="averaged", draws=2)
    (images,) = draw_scenes(prior, cond, four_cameras(), config, [torch.Generator()], stage)
    guided = prior.x_uncond + 2.0 * (prior.x_cond - prior.x_uncond)
    torch.testing.assert_close(images, prior.codec.decode(guided)[0], atol=1e-4, rtol=0)
    with pytest.raises(UserError, match="draws are at least 1"):
        replace(config, draws=0)
