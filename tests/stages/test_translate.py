"""Views become the subject: how much is kept, what is refused and why, and that nothing but the seed decides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from maquette.cameras import orbit
from maquette.errors import RunFailed, UserError
from maquette.images import Views
from maquette.run import Run, Stage
from maquette.stages import translate
from maquette.stages.likeness import OwnEncoder, PictureEncoder, diversity, likeness, on_white, sides
from maquette.stages.look import SamplingConfig
from maquette.stages.refine import repaint
from maquette.stages.translate import TranslateConfig, Translated, resized, translate_images, translate_views
from maquette.subjects import CaptionedImages
from maquette.wording import VIEWS, view_captions
from tests.guidance.oracle import oracle
from tests.priors.tiny import tiny_prior, tiny_published, tiny_stable_diffusion

FEW = SamplingConfig(steps=4, guidance_scale=2.0, spacing="exact")
PLAIN = TranslateConfig(sampling=FEW, min_mask_iou=0.0)


@pytest.fixture
def stage(tmp_path: Path):
    with Run.open(tmp_path / "run", device="cpu", quiet=True) as run:
        stage = Stage(run, "pseudo", "")
        # Several calls share it here, and none may go on from where another was.
        stage.checkpoint = lambda *_, **__: None
        yield stage


def disc(views=3, size=32) -> Views:
    """A red disc from all sides."""
    y, x = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    mask = (size * 0.35 - ((x - size / 2) ** 2 + (y - size / 2) ** 2).sqrt() + 0.5).clamp(0, 1)
    colour = torch.tensor([0.8, 0.1, 0.1])[:, None, None].expand(3, size, size)
    return Views(colour.expand(views, -1, -1, -1).clone(), mask.expand(views, 1, -1, -1).clone(),
                 orbit(views, height=size, width=size))  # fmt: skip


CAPTIONS = ("a [v] ball, front view", "a [v] ball, side view", "a [v] ball, back view")


@pytest.mark.parametrize("make", [tiny_prior, tiny_published, tiny_stable_diffusion])
def test_strength_says_how_much_is_kept(make, stage):
    prior, views = make(), disc()
    sources = views.composite(torch.ones(3))

    def painted(strength, seed=0):
        config = replace(PLAIN, strength=strength, sample_posterior=False)
        return translate_images(prior, sources[:1], CAPTIONS[0], config, [seed])

    rendering = prior.codec.decode(prior.codec.encode(sources[:1][:, None]))[:, 0]
    assert torch.equal(painted(0.0), rendering), "nothing but the codec's round trip"
    assert (painted(0.5) - rendering).abs().mean() > 0.01
    other = translate_images(prior, 1 - sources[:1], CAPTIONS[0], replace(PLAIN, strength=1.0), [0])
    assert (painted(1.0) - other).abs().mean() < (painted(0.25) - (1 - painted(0.25))).abs().mean()
    assert torch.equal(painted(0.5), painted(0.5)) and not torch.equal(painted(0.5), painted(0.5, 1))


def test_an_oracle_has_the_last_word(stage):
    """A prior that knows the answer paints it, whatever was rendered, with guidance as in sampling."""
    prior = oracle(dtype=torch.float32)
    prior.x_cond, prior.x_uncond = prior.x_cond[:, :1], prior.x_uncond[:, :1]
    image = translate_images(prior, disc().composite(torch.ones(3))[:1], "a [v] ball", PLAIN, [0])
    guided = prior.x_uncond + 2.0 * (prior.x_cond - prior.x_uncond)
    torch.testing.assert_close(image, prior.codec.decode(guided)[:, 0], atol=1e-4, rtol=0)


def test_a_view_does_not_depend_on_its_company(stage):
    prior, sources = tiny_prior(), disc().composite(torch.ones(3))
    together = translate_images(prior, sources[:1], CAPTIONS[0], PLAIN, [5, 6, 7])
    torch.testing.assert_close(
        translate_images(prior, sources[:1], CAPTIONS[0], PLAIN, [6])[0], together[1], atol=2e-4, rtol=0
    )


class Liking:
    """An encoder that likes red, and takes every picture for the same side."""

    name = "red"

    def __init__(self, shown: str = "side") -> None:
        self.shown = shown

    def embed_images(self, images: torch.Tensor) -> torch.Tensor:
        red = images[:, :1].mean(dim=(1, 2, 3))[:, None]
        return torch.cat([red, (1 - red**2).sqrt(), self.embed_texts([f", {self.shown} view"] * len(images))[:, 2:]], 1)

    def embed_texts(self, texts):
        return torch.tensor([[0.0, 0.0, *(float(text.endswith(f" {word} view")) for word in VIEWS)] for text in texts])

    def fingerprint(self):
        return f"red {self.shown}"


def photos(value: float) -> CaptionedImages:
    return CaptionedImages.from_images(torch.full((2, 3, 8, 8), value), ["a [v] ball"] * 2)


def test_everything_is_recorded_and_survives_the_disk(tmp_path, stage):
    config = replace(PLAIN, candidates=2, retries=1, strength=0.5, keep_likeness=False)
    made = translate_views(tiny_prior(), disc(), CAPTIONS, config, encoder=Liking(), photos=photos(1.0), run=stage)
    assert made.views.masks is not None and made.views.images.shape == (len(made.numbers), 3, 16, 16)
    assert sum(entry.accepted for entry in made.attempts) == len(made.numbers) <= 3
    assert len(made.pictures) == len(made.attempts) and len({entry.seed for entry in made.attempts}) == len(
        made.attempts
    )
    for entry in made.attempts:
        assert entry.caption == CAPTIONS[entry.view] and entry.likeness is not None and entry.reason
    made.save(tmp_path)
    again = Translated.load(tmp_path)
    assert (again.numbers, again.attempts, again.config) == (made.numbers, made.attempts, made.config)
    assert torch.equal(again.pictures, made.pictures) and torch.equal(again.views.images, made.views.images)
    torch.testing.assert_close(again.views.masks, made.views.masks, atol=1 / 255, rtol=0)


def test_the_best_of_several_is_taken(stage):
    config = replace(PLAIN, candidates=3, keep_likeness=False)
    made = translate_views(tiny_prior(), disc(), CAPTIONS, config, encoder=Liking(), photos=photos(1.0), run=stage)
    for view in range(3):
        tried = [entry for entry in made.attempts if entry.view == view]
        best = max(tried, key=lambda entry: entry.likeness)
        assert len(tried) == 3 and best.accepted and sum(entry.accepted for entry in tried) == 1
        assert {entry.reason for entry in tried if entry is not best} == {"another attempt is more alike"}


def test_what_moved_is_refused(stage, monkeypatch):
    views, prior = disc(), tiny_prior()
    config = replace(PLAIN, min_mask_iou=0.6, retries=1, strength=0.0)
    kept = translate_views(prior, views, CAPTIONS, config, run=stage)
    assert kept.numbers == (0, 1, 2) and all(entry.mask_iou > 0.8 for entry in kept.attempts)
    size = prior.codec.image_size

    def elsewhere(prior, images, caption, config, seeds, **options):
        return resized(images.roll(12, dims=-1), size).expand(len(seeds), -1, -1, -1)

    monkeypatch.setattr(translate, "translate_images", elsewhere)
    with pytest.raises(RunFailed, match=r"none of 3 views was accepted \(the object moved: its outline overlaps by 0"):
        translate_views(prior, views, CAPTIONS, config, run=stage)


def test_white_on_white_is_not_refused_for_an_outline_that_nobody_can_see(stage):
    views = disc()
    white = Views(torch.full_like(views.images, 0.97), views.masks, views.cameras)
    config = replace(PLAIN, min_mask_iou=0.6, retries=0, strength=0.0)
    made = translate_views(tiny_prior(), white, CAPTIONS, config, run=stage)
    assert made.numbers == (0, 1, 2) and all(entry.mask_iou < 0.6 for entry in made.attempts)
    cut = made.cut_out()
    torch.testing.assert_close(cut.masks, made.views.masks)
    torch.testing.assert_close(cut.images, made.views.images)


def test_what_lost_likeness_is_refused(stage):
    prior, views, options = tiny_prior(), disc(), {"encoder": Liking(), "photos": photos(1.0), "run": stage}
    config = replace(PLAIN, retries=0, strength=0.75)
    with pytest.raises(RunFailed, match="less like the photos than its rendering"):
        translate_views(prior, views, CAPTIONS, config, **options)
    made = translate_views(prior, views, CAPTIONS, replace(config, keep_likeness=False), **options)
    assert all(entry.likeness < entry.source_likeness and entry.accepted for entry in made.attempts)
    black = Views(torch.zeros_like(views.images), views.masks, views.cameras)
    better = translate_views(prior, black, CAPTIONS, replace(config, background=(0.0, 0.0, 0.0)), **options)
    assert all(entry.likeness > entry.source_likeness and entry.accepted for entry in better.attempts)


def test_a_front_from_behind_is_refused_and_tried_again(stage):
    views = disc(1)
    views = Views(views.images, views.masks, orbit(1, azimuth=170.0, height=32, width=32))
    captions = view_captions("a [v] ball", views.cameras)
    assert captions == ("a [v] ball, back view",)
    config = replace(PLAIN, retries=2)
    with pytest.raises(RunFailed, match="a view from behind shows a front"):
        translate_views(tiny_prior(), views, captions, config, encoder=Liking("front"), run=stage)
    shown = iter(["front", "front", "back"])

    class Changing(Liking):
        def embed_images(self, images):
            self.shown = next(shown)
            return super().embed_images(images)

    made = translate_views(tiny_prior(), views, captions, config, encoder=Changing(), run=stage)
    assert [entry.accepted for entry in made.attempts] == [False, False, True]
    assert [entry.side for entry in made.attempts] == ["front", "front", "back"]
    assert len({entry.seed for entry in made.attempts}) == 3
    assert (made.pictures[0] != made.pictures[2]).any(), "another seed, another picture"


def test_interrupted_it_goes_on(tmp_path, monkeypatch):
    prior = tiny_prior()

    def run_in(folder):
        with Run.open(folder, device="cpu", quiet=True) as run:
            return run.stage("pseudo", translate_views, prior, disc(), CAPTIONS, PLAIN)

    whole = run_in(tmp_path / "whole")
    with monkeypatch.context() as patch:
        calls = iter(range(9))
        patch.setattr(Stage, "keep_going", lambda self: next(calls) < 1)
        with pytest.raises(KeyboardInterrupt):
            run_in(tmp_path / "broken")
    asked = []
    handle = prior.network.register_forward_hook(lambda *_: asked.append(1))
    resumed = run_in(tmp_path / "broken")
    handle.remove()
    assert len(asked) == 2 and torch.equal(resumed.pictures, whole.pictures)
    assert resumed.attempts == whole.attempts


def test_masks_for_losses_are_wider_than_the_object(stage):
    made = translate_views(tiny_prior(), disc(), CAPTIONS, replace(PLAIN, strength=0.0), run=stage)
    wide, narrow = made.loss_masks(0.07), made.loss_masks(0.0)
    assert torch.equal(narrow, made.views.masks) and bool((wide >= narrow).all()) and wide.sum() > 1.2 * narrow.sum()
    cut = made.cut_out()
    inside = made.views.masks[:, 0] > 0.99
    assert (cut.masks[:, 0][inside] > 0.9).all() and cut.masks.mean() < 0.6


def test_what_was_not_learned_changes_nothing(stage):
    """The residual of a prior to itself is the rendering; to another it is their difference, with the same noise."""
    prior, other, views = tiny_prior(), tiny_prior("v"), disc()
    config = replace(PLAIN, residual=True)
    small = resized(views.composite(torch.ones(3)), 16)
    same = translate_views(prior, views, CAPTIONS, config, base=(prior, CAPTIONS), run=stage)
    assert (same.views.images - small).abs().max() < 1 / 255
    # What the caption asks beyond the class is a part of the difference.
    plainly = ("a ball, front view", "a ball, side view", "a ball, back view")
    made = translate_views(prior, views, CAPTIONS, config, base=(other, plainly), run=stage)
    plain, before = (
        translate_views(p, views, words, PLAIN, run=stage).views.images
        for p, words in ((prior, CAPTIONS), (other, plainly))
    )
    wanted = (small + plain - before).clamp(0, 1)
    inside = (plain > 0.01) & (plain < 0.99) & (before > 0.01) & (before < 0.99)
    assert inside.any() and (made.views.images - wanted)[inside].abs().max() < 3 / 255
    # It is added to the rendering, so its outline is the rendering's, though it become white on white.
    strict = replace(config, min_mask_iou=0.99, retries=0)
    kept = translate_views(prior, views, CAPTIONS, strict, base=(other, plainly), run=stage)
    assert kept.numbers == (0, 1, 2) and all(entry.mask_iou is None for entry in kept.attempts)
    torch.testing.assert_close(kept.cut_out().masks, kept.views.masks)
    with pytest.raises(ValueError, match="needs the prior before it learned"):
        translate_views(prior, views, CAPTIONS, config, run=stage)


def test_repainting_adds_the_change_and_nothing_else():
    """A picture that was not changed leaves the rendering as it is, thin parts and fog of odd colours included."""
    rendered = disc()
    rendered.masks[:, :, :, 4:6] = 0.9  # a pole of two pixels, before fog of another colour
    rendered.images[:, :, :, :8] = torch.tensor([0.1, 0.6, 0.2])[:, None, None]
    rendered.masks[:, :, :, :4] = rendered.masks[:, :, :, 6:8] = 0.02
    rendered.images[:, :, :, :4] = rendered.images[:, :, :, 6:8] = 0.5
    small = resized(rendered.composite(torch.ones(3)), 16)
    masks = resized(rendered.masks, 16)

    def repainted(change: float) -> torch.Tensor:
        views = Views((small + change * masks).clamp(0, 1), masks, rendered.cameras.with_size(16, 16))
        return repaint(
            rendered, Translated(views, (0, 1, 2), (), torch.zeros(0, 3, 16, 16, dtype=torch.uint8), PLAIN)
        ).images

    assert torch.equal(repainted(0.0), rendered.images)
    core = (rendered.masks > 0.99).expand_as(rendered.images)
    torch.testing.assert_close(repainted(-0.05)[core], rendered.images[core] - 0.05, atol=1e-3, rtol=0)


def test_a_nano_prior_judges_with_its_own_encoders():
    prior = tiny_prior()
    encoder = OwnEncoder(prior)
    assert isinstance(encoder, PictureEncoder) and encoder.fingerprint() == prior.weights_fingerprint()
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    embedded = encoder.embed_images(images)
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(3))
    assert len(sides(encoder, images, "a photo of a [v] chair")) == 3
    same = CaptionedImages.from_images(images[:1], ["x"])
    close = likeness(encoder, on_white(same), encoder.embed_images(on_white(same)))
    assert float(close) == pytest.approx(1.0, abs=1e-5)
    slow = [1 - float(embedded[i] @ embedded[j]) for i in range(3) for j in range(3) if i != j]
    assert diversity(embedded) == pytest.approx(sum(slow) / 6, abs=1e-5) and diversity(embedded[:1]) == 0.0
    with pytest.raises(UserError, match="no encoders that put pictures and words into one space"):
        OwnEncoder(tiny_published())


def test_settings_are_validated(stage):
    for wrong, match in (
        ({"strength": 1.5}, "strength is the share"),
        ({"candidates": 0}, "candidates is at least 1"),
        ({"min_mask_iou": -1.0}, "min_mask_iou"),
    ):
        with pytest.raises(UserError, match=match):
            replace(PLAIN, **wrong)
    with pytest.raises(ValueError, match="3 views need as many captions, got 1"):
        translate_views(tiny_prior(), disc(), CAPTIONS[:1], PLAIN, run=stage)
