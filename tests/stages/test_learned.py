"""Photos become what a prior is shown, and what it learned is found again."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from maquette.errors import UserError
from maquette.priors.adapters import Lora, new_adapter
from maquette.run import Run, Stage
from maquette.stages.learned import (
    LearnedSubject,
    Photos,
    PhotosConfig,
    find_learned,
    keep_learned,
    prepare_photos,
    sample_sides,
)
from maquette.stages.look import SamplingConfig
from maquette.subjects import CaptionedImages, Subject
from maquette.wording import VIEWS
from tests.priors.tiny import tiny_prior
from tests.stages.test_translate import Liking

PLAIN = "a photo of a [v] ball"


@pytest.fixture
def stage(tmp_path):
    with Run.open(tmp_path / "run", device="cpu", quiet=True) as run:
        yield Stage(run, "photos", "")


def discs(masked: bool) -> Subject:
    """A small red disc beside the centre, on grey, three times."""
    y, x = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="ij")
    inside = ((x - 30) ** 2 + (y - 60) ** 2 < 15**2).float()[None]
    image = inside * torch.tensor([0.9, 0.1, 0.1])[:, None, None] + (1 - inside) * 0.55
    masks = inside.expand(3, 1, 96, 96) if masked else None
    return Subject(CaptionedImages.from_images(image.expand(3, 3, 96, 96), [PLAIN] * 3, masks), "ball", tuple("abc"))


class Wandering(Liking):
    """Sees another side in every picture."""

    def embed_images(self, images):
        return torch.stack([self.embed_texts([f", {VIEWS[k % 4]} view"])[0] for k in range(len(images))])


def test_photos_without_masks_are_cut_out_and_framed(stage):
    photos = prepare_photos(discs(False), PhotosConfig("auto", 0.1), 32, None, run=stage)
    mask = photos.pictures.masks[0, 0].float() / 255
    rows = mask.amax(dim=1).gt(0.5).nonzero()
    assert abs(int(rows[0]) - 3) <= 1 and abs(int(rows[-1]) - 28) <= 1  # 0.1 of 32 px free on each side
    assert (photos.pictures.images()[0, :, 16, 16] - torch.tensor([0.9, 0.1, 0.1])).abs().max() < 0.05
    assert photos.sides == () and photos.pictures.captions == (PLAIN,) * 3


def test_masks_that_came_along_are_kept(stage):
    given = discs(True)
    photos = prepare_photos(given, PhotosConfig("auto"), 96, None, run=stage)
    assert torch.equal(photos.pictures.masks, given.photos.masks)
    bare = prepare_photos(discs(False), PhotosConfig("given"), 48, None, run=stage)
    assert bare.pictures.masks is None and bare.pictures.pixels.shape == (3, 3, 48, 48)


def test_one_side_alone_is_told(stage):
    photos = prepare_photos(discs(True), PhotosConfig(), 32, Liking("side"), run=stage)
    assert photos.sides == ("side",) * 3 and "show the side of the ball (judged by red)" in photos.notes[-1]
    several = prepare_photos(discs(True), PhotosConfig(captions="sides"), 32, Wandering(), run=stage)
    assert several.notes == () and several.pictures.captions[1] == f"{PLAIN}, {several.sides[1]} view"
    assert set(several.sides) == {"front", "side", "back"}
    assert several.subject.photos.captions == (PLAIN,) * 3
    with pytest.raises(UserError, match="encoder"):
        prepare_photos(discs(True), PhotosConfig(captions="sides"), 32, None, run=stage)


def test_a_learned_subject_survives_the_disk(tmp_path, stage):
    prior = tiny_prior()
    photos = prepare_photos(discs(True), PhotosConfig(), 16, Liking("front"), run=stage)
    partial, full = (
        replace(new_adapter(prior.networks(), "base", Lora(2), torch.Generator().manual_seed(k)), steps=k)
        for k in (1, 2)
    )
    for others in (photos.pictures.captioned("a photo of a ball"), None):
        learned = keep_learned(photos, partial, full, others, run=stage)
        folder = tmp_path / str(others is None)
        learned.save(folder)
        again = LearnedSubject.load(folder)
        assert again.fingerprint() == learned.fingerprint()
        assert again.photos.sides == ("front",) * 3 and again.full.steps == 2
        assert (again.class_pictures is None) == (others is None)
    with pytest.raises(UserError, match="no subject that was learned"):
        find_learned(tmp_path)


def test_sides_are_sampled_from_the_same_noise(stage):
    prior = tiny_prior()
    few = SamplingConfig(steps=2, guidance_scale=2.0, spacing="exact")
    made = sample_sides({"one": prior, "same": prior}, PLAIN, 2, few, run=stage)
    assert made["one"].captions[::2] == tuple(f"{PLAIN}, {view} view" for view in VIEWS)
    assert torch.equal(made["one"].pixels, made["same"].pixels)
    assert not torch.equal(made["one"].pixels[0], made["one"].pixels[1])


def test_photos_survive_the_disk(tmp_path):
    photos = Photos(discs(True).photos, "ball", tuple("abc"), PLAIN, ("front",) * 3, ("a note",))
    photos.save(tmp_path)
    again = Photos.load(tmp_path)
    assert (again.noun, again.names, again.sides, again.notes) == ("ball", tuple("abc"), ("front",) * 3, ("a note",))
    assert again.prompt == PLAIN and again.class_prompt == "a photo of a ball"
    assert torch.equal(again.pictures.pixels, photos.pictures.pixels)


def test_the_wording_can_be_that_of_the_prior(stage):
    photos = prepare_photos(discs(True), PhotosConfig(prompt="a [v] {noun}"), 32, None, run=stage)
    assert photos.pictures.captions == ("a [v] ball",) * 3 and photos.class_prompt == "a ball"
    with pytest.raises(UserError, match="photos.prompt"):
        PhotosConfig(prompt="a {noun}")


def test_a_margin_is_a_share():
    with pytest.raises(UserError, match="margin"):
        PhotosConfig(margin=0.5)
