"""The shipped nano prior learns an object that it has never seen, from four pictures of it, in seconds."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

from maquette.asset import load_mesh
from maquette.cameras import fit_distance, orbit
from maquette.images import Views
from maquette.priors.adapters import Adapter, Lora
from maquette.priors.base import AdaptablePrior
from maquette.priors.hub import NANO, load_prior
from maquette.rendering.raster import render_mesh
from maquette.run import Run, Stage
from maquette.stages.class_images import ClassImagesConfig, class_images
from maquette.stages.look import SamplingConfig, draw_scenes
from maquette.stages.personalize import PersonalizeConfig, denoising_error, personalize, words
from maquette.stages.translate import TranslateConfig, translate_views
from maquette.subjects import CaptionedImages
from maquette.wording import view_captions

QUICK = SamplingConfig(steps=8, guidance_scale=3.0, spacing="exact", clip=True)
LEARN = PersonalizeConfig(adapter=Lora(rank=8), steps=50, keep=(10,), batch=4, learning_rate=5e-3)
CAPTION = "a photo of a [v] robot"


@dataclass
class Learned:
    """A base prior, what it learned, and from what."""

    prior: AdaptablePrior
    adapters: dict[int, Adapter]
    views: Views
    photos: CaptionedImages
    others: CaptionedImages
    run: Run

    def model(self, step: int) -> AdaptablePrior:
        return self.prior.adapted(self.adapters[step])

    def truth(self) -> torch.Tensor:
        """The renders at the prior's size [4, 3, s, s], on white."""
        size = self.prior.codec.image_size
        return F.interpolate(self.views.composite(torch.ones(3)), (size, size), mode="area")

    def distance(self, prior: AdaptablePrior) -> float:
        """Mean squared difference of samples with the subject's captions from the renders of the same sides."""
        stage = Stage(self.run, "samples", "")
        squared = []
        for caption, truth in zip(self.photos.captions, self.truth(), strict=True):
            generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
            pictures = draw_scenes(prior, words(prior, caption), None, QUICK, generators, stage)[:, 0]
            squared.append((pictures - truth).square().mean())
        return float(torch.stack(squared).mean())


@pytest.fixture(scope="module")
def learned(objects_val, tmp_path_factory):
    """A boxy red robot of the validation set, learned from its four sides."""
    if not (NANO / "multiview" / "card.json").is_file():
        pytest.skip("needs the weights of the nano prior, which are not in this checkout")
    prior = load_prior("nano")
    mesh = load_mesh(objects_val / "kenney_space__robot.glb").normalized(0.75)
    cameras = orbit(4, elevation=15.0, distance=fit_distance(40.0), fovy=40.0, height=64, width=64)
    views = render_mesh(mesh, cameras, samples=2).views()
    photos = CaptionedImages.from_views(views, view_captions(CAPTION, cameras))
    with Run.open(tmp_path_factory.mktemp("nano") / "run", device="cpu", quiet=True) as run:
        some = ClassImagesConfig(count=4, sampling=QUICK)
        others = run.stage("class", class_images, prior, ["a photo of a robot"], some)
        adapters = run.stage("personal", personalize, prior, photos, others, LEARN)
        yield Learned(prior, adapters, views, photos, others, run)


def test_the_subject_is_learned_and_its_class_is_kept(learned):
    errors = [denoising_error(prior, learned.photos) for prior in (learned.prior, learned.model(10), learned.model(50))]
    assert errors[2] < 0.85 * errors[0] and errors[2] < errors[1]
    before, after = (denoising_error(prior, learned.others) for prior in (learned.prior, learned.model(50)))
    assert after < 1.15 * before


def test_samples_of_the_caption_come_closer(learned):
    assert learned.distance(learned.model(50)) < 0.8 * learned.distance(learned.prior)


def test_grey_renderings_gain_the_subjects_colours(learned):
    """DreamBooth3D's second stage: the view stays, the look is the subject's."""
    grey = learned.views.images.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1).contiguous()
    renderings = Views(grey, learned.views.masks, learned.views.cameras)
    config = TranslateConfig(strength=0.75, sampling=QUICK, min_mask_iou=0.0)

    def error(prior):
        stage = Stage(learned.run, "pseudo", prior.fingerprint())
        made = translate_views(prior, renderings, learned.photos.captions, config, run=stage)
        return float((made.views.images - learned.truth()).square().mean())

    assert error(learned.model(50)) < 0.9 * error(learned.prior)
