"""DreamBooth3D itself: presets against the paper's numbers, and every variant with a tiny prior, through to a mesh."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from maquette.errors import UserError
from maquette.fields.encodings import TriPlanesConfig
from maquette.fields.radiance import RadianceConfig
from maquette.fields.surface import SurfaceFieldConfig
from maquette.guidance.recon import ReconConfig
from maquette.guidance.view_noise_free import NoiseFreeConfig
from maquette.guidance.view_perp_neg import PerpNegConfig
from maquette.images import Views
from maquette.methods import dreambooth3d as method
from maquette.methods.dreambooth3d import Config, MultiviewConfig, PseudoViews, dreambooth3d, nano, paper
from maquette.priors.adapters import Full, Lora
from maquette.priors.hub import save_prior
from maquette.rendering.sampling import OccupancyConfig
from maquette.rendering.scene import VolumeConfig
from maquette.rendering.surface import SurfaceConfig
from maquette.run import Run
from maquette.schedules import Constant
from maquette.stages.choose import ChooseConfig
from maquette.stages.first_views import FirstViews, photo_prompt
from maquette.stages.fit import FitConfig
from maquette.stages.learned import find_learned
from maquette.stages.look import SamplingConfig
from maquette.stages.match import MatchConfig
from maquette.stages.objectives import PhotometricConfig
from maquette.stages.personalize import PersonalizeConfig
from maquette.stages.pseudo_views import Refinement
from maquette.subjects import CaptionedImages, Subject
from tests.priors.tiny import tiny_config, tiny_prior

LEARNING = {"photos", "class_pictures", "dreambooth", "subject"}
STAGE_1 = {"initial_field"}
STAGE_2 = {"renderings", "pseudo_views"}
STAGE_3 = {"multiview_model", "final_field"}


def test_the_papers_preset_has_the_papers_numbers():
    config = paper()
    assert config.personal.keep == (150,) and config.personal.steps == 800
    assert config.multiview.personal.steps == 150 and config.personal.adapter == Full()
    assert config.pseudo_views is not None and config.pseudo_views.count == 20
    assert config.guidance.omega == 101 and config.guidance.lambda_ == 1  # DreamFusion's 100
    assert (config.distillation.noise_range.at(5, 10)) == (0.02, 0.98)
    assert config.distillation.resolution.at(0, 10) == 64
    shading = config.distillation.shading
    assert (shading.albedo, shading.textureless, shading.soft) == (0.25, 0.5, False)
    assert not config.warm_start
    # Recommended where the paper is silent.
    assert config.personal.learning_rate == 5e-6 and config.personal.prior_weight == 1
    translate = config.pseudo_views.translate
    assert (translate.strength, translate.sampling.steps, translate.sampling.guidance_scale) == (0.5, 50, 7.5)
    assert config.reconstruction is not None and config.reconstruction.compare.norm == 1
    assert config.balance is not None and 0.1 <= config.balance.share.at(0, 10) <= 0.3
    assert config.balance.share.at(10, 10) == pytest.approx(0.05)


def test_twenty_views_without_the_first_again():
    cameras = PseudoViews().cameras()
    azimuth = cameras.azimuth.double() % 360
    turned = torch.arange(20) * 18.0
    torch.testing.assert_close(azimuth, turned.double(), atol=1e-3, rtol=0)
    torch.testing.assert_close(cameras.elevation[:4], torch.tensor([0.0, 15.0, 30.0, 0.0]), atol=1e-4, rtol=0)


def test_what_contradicts_itself_is_refused():
    with pytest.raises(UserError, match="warm_start"):
        replace(nano(), warm_start=True, final_scene=SurfaceConfig())
    with pytest.raises(UserError, match="adapter"):
        replace(nano(), multiview=MultiviewConfig(PersonalizeConfig(adapter=Full(text_encoder=True))))
    with pytest.raises(UserError, match="encoder"):
        replace(paper(), choose=ChooseConfig())
    with pytest.raises(UserError, match="latent-nerf is a baseline"):
        replace(nano(), variant="latent-nerf", guidance=ReconConfig())
    with pytest.raises(UserError, match="quality"):
        method.configure("nano", "best")


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    save_prior(folder, tiny_prior(), tiny_config(), {"name": "nano", "licence": "Apache-2.0"})
    return folder


@pytest.fixture(scope="module")
def subject() -> Subject:
    """Three pictures of a square in different colours."""
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(3, 1, 32, 32)
    masks[:, :, 8:26, 6:24] = 1
    plain = Subject(CaptionedImages.from_images(images, [""] * 3, masks), "kite", ("a", "b", "c"))
    return replace(plain, photos=plain.photos.captioned(plain.instance_prompt))


def quick(package: Path) -> Config:
    """The draft preset with next to no work."""
    whole = nano("draft")
    assert whole.pseudo_views and whole.reconstruction and whole.class_pictures
    few = replace(whole.sampling, steps=2)
    scene = VolumeConfig(
        field=RadianceConfig(encoding=TriPlanesConfig((8,), 4), hidden=8),
        occupancy=OccupancyConfig(resolution=16), samples=Constant(24),
    )  # fmt: skip
    fit = replace(whole.fit, steps=2, checkpoint_seconds=0.0)
    learning = replace(whole.personal, steps=2, keep=(1,), batch=1, checkpoint_seconds=0.0)
    return replace(
        whole, weights=package, samples=0, first_views=None, sampling=few, personal=learning,
        scene=scene, final_scene=scene,
        class_pictures=replace(whole.class_pictures, count=2, sampling=few), initial_fit=fit, fit=fit,
        distillation=replace(whole.distillation, resolution=Constant(16)),
        pseudo_views=replace(
            whole.pseudo_views, count=3, size=16,
            translate=replace(whole.pseudo_views.translate, sampling=few, retries=0, residual=True,
                              min_mask_iou=0.0, keep_likeness=False, refuse_fronts=False),
        ),
        multiview=replace(whole.multiview, personal=replace(learning, steps=1, keep=())),
        reconstruction=replace(whole.reconstruction, resolution=Constant(16)),
        mesh=replace(whole.mesh, resolution=16, texture_size=64, unwrap_seconds=0),
    )  # fmt: skip


SURFACE = SurfaceConfig(
    field=SurfaceFieldConfig(encoding=TriPlanesConfig((8,), 4), hidden=8),
    occupancy=OccupancyConfig(resolution=16), samples=Constant(24),
)  # fmt: skip
VARIANTS = {
    "the method": ({}, STAGE_1 | STAGE_2 | STAGE_3),
    "stage 1 alone": ({"variant": "initial"}, STAGE_1),
    "DreamBooth+Fusion": ({"variant": "one-stage"}, STAGE_1),
    "Latent-NeRF": ({"variant": "latent-nerf"}, {"latent_field", "decoded_views", "coloured_field"}),
    "without stage 2": ({"pseudo_views": None}, STAGE_3),
    "without reconstruction": ({"reconstruction": None}, STAGE_1 | STAGE_2 | STAGE_3),
    "warm start": ({"warm_start": True}, STAGE_1 | STAGE_2 | STAGE_3),
    "first views": (
        {"first_views": FirstViews(SamplingConfig(steps=2), fit=FitConfig(steps=2))},
        STAGE_1 | STAGE_2 | STAGE_3 | {"initial_views", "initial_start", "final_views", "final_start"},
    ),
    "first views of a photo": (
        {
            "first_views": FirstViews(
                SamplingConfig(steps=2), photo=2, fit=FitConfig(steps=2), keep=PhotometricConfig(rgb=Constant(0.5))
            )
        },
        STAGE_1 | STAGE_2 | STAGE_3 | {"initial_views", "initial_start", "final_views", "final_start"},
    ),
    "a photo in the place of its view": (
        {
            "first_views": FirstViews(
                SamplingConfig(steps=2),
                photo=2,
                fit=FitConfig(steps=2),
                keep=PhotometricConfig(rgb=Constant(0.5)),
                match=MatchConfig(tolerance=9.0),
            )
        },
        STAGE_1
        | STAGE_2
        | STAGE_3
        | {f"{part}_{what}" for part in ("initial", "final") for what in ("views", "match", "start")},
    ),
    "a surface": ({"final_scene": SURFACE}, STAGE_1 | STAGE_2 | STAGE_3),
    "a multi-view prior": ({"guidance": ReconConfig()}, STAGE_1 | STAGE_2 | STAGE_3),
    "without noise": ({"guidance": NoiseFreeConfig()}, STAGE_1 | STAGE_2 | STAGE_3),
    "not the other sides": ({"guidance": PerpNegConfig(guidance_scale=2.0)}, STAGE_1 | STAGE_2 | STAGE_3),
    "one more round": (
        {"refinement": Refinement()},
        STAGE_1 | STAGE_2 | STAGE_3 | {"final_renderings", "final_pseudo_views", "refined_field"},
    ),
    "low rank": ({"personal": Lora(rank=2)}, STAGE_1 | STAGE_2 | STAGE_3),
    "chosen checkpoints": (
        {"choose": ChooseConfig(images=1)},
        STAGE_1 | STAGE_2 | STAGE_3 | {"choice"},
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_makes_an_object(name, package, subject, tmp_path):
    changes, stages = VARIANTS[name]
    config = quick(package)
    if "choose" in changes:
        changes = {"choose": replace(changes["choose"], sampling=config.sampling)}
    if "personal" in changes:
        changes = {"personal": replace(config.personal, adapter=changes["personal"])}
    config = replace(config, **changes)
    with Run.open(tmp_path / "run", config=config, seed=2, device="cpu", quiet=True) as run:
        asset = dreambooth3d(subject, "a [v] kite in the snow", config, run)
        learned = find_learned(run.folder)
    assert len(asset.mesh.faces) > 0 and "2303.13508" in str(asset.provenance["citations"])
    assert {path.name for path in (tmp_path / "run" / "stages").iterdir()} == stages | LEARNING | {"mesh"}
    assert (learned.partial.steps, learned.full.steps) == (1, 2) or name == "chosen checkpoints"
    assert learned.photos.pictures.masks is not None and learned.photos.noun == "kite"


def test_the_multi_view_model_begins_as_the_partial_one(package, subject, tmp_path):
    """After no steps both say the same (acceptance check 2 of the specification)."""
    config = quick(package)
    config = replace(config, multiview=replace(config.multiview, personal=replace(config.personal, steps=0, keep=())))
    with Run.open(tmp_path / "run", seed=2, device="cpu", quiet=True) as run:
        prior = method.load_free_prior("nano", package)
        learned = method.learn_subject(prior, subject, method.picture_encoder(prior, config), config, run)
        multiview = method.learn_sides(prior, learned, None, "a [v] kite", config, run)
    ours, theirs = multiview.network.state_dict(), prior.adapted(learned.partial).network.state_dict()
    base = prior.network.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not all(torch.equal(ours[name], base[name]) for name in base)


def test_a_subject_serves_many_captions(package, subject, tmp_path):
    config = replace(quick(package), variant="initial")
    with Run.open(tmp_path / "one", seed=2, device="cpu", quiet=True) as run:
        dreambooth3d(subject, "a [v] kite", config, run)
    learned = find_learned(tmp_path / "one")
    fields = []
    for caption in ("a [v] kite", "a red [v] kite"):
        with Run.open(tmp_path / caption, seed=2, device="cpu", quiet=True) as run:
            dreambooth3d(learned, caption, config, run)
        assert {path.name for path in (run.folder / "stages").iterdir()} == {"subject", "initial_field", "mesh"}
        fields.append(run.folder / "stages" / "initial_field" / "result" / "scene.safetensors")
    first = tmp_path / "one" / "stages" / "initial_field" / "result" / fields[0].name
    assert fields[0].read_bytes() == first.read_bytes() != fields[1].read_bytes()


def test_a_caption_without_the_subject_is_refused(package, subject, tmp_path):
    with Run.open(tmp_path / "run", device="cpu", quiet=True) as run, pytest.raises(UserError, match="where the subj"):
        dreambooth3d(subject, "a kite", quick(package), run)


def test_a_photo_that_is_not_there_is_refused_before_anything_is_learned(package, subject, tmp_path):
    config = replace(quick(package), first_views=FirstViews(photo=3))
    with (
        Run.open(tmp_path / "run", config=config, device="cpu", quiet=True) as run,
        pytest.raises(UserError, match="counts the 3 photos from 0 to 2, got 3"),
    ):
        dreambooth3d(subject, "a [v] kite", config, run)
    assert not (tmp_path / "run" / "stages").exists() or not any((tmp_path / "run" / "stages").iterdir())


def test_a_photo_for_the_first_views_must_be_cut_out():
    photos = CaptionedImages.from_images(torch.rand(2, 3, 8, 8), ["a", "b"])
    with pytest.raises(UserError, match="cut out"):
        photo_prompt(photos, 0)


@pytest.mark.parametrize(("tolerance", "kinds"), [(9.0, {"views", "photo"}), (0.0, {"views"})])
def test_a_photo_takes_the_place_of_the_view_that_it_is(tolerance, kinds, package, subject, tmp_path):
    first = FirstViews(
        SamplingConfig(steps=2), photo=0, fit=FitConfig(steps=1), keep=PhotometricConfig(),
        match=MatchConfig(tolerance=tolerance),
    )  # fmt: skip
    config = replace(quick(package), first_views=first, variant="initial")
    with Run.open(tmp_path / "run", config=config, seed=2, device="cpu", quiet=True) as run:
        dreambooth3d(subject, "a [v] kite", config, run)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    for stage in ("initial_start", "initial_field"):
        line = next(line for line in log if line["stage"] == stage and line["step"] == 0)
        seen = {key.split(".")[0] for key in line if key.endswith(("psnr", "rgb"))}
        assert seen - {"psnr", "rgb"} == (kinds if stage == "initial_field" or len(kinds) > 1 else set()), stage


def test_first_views_of_a_photo_are_those_of_the_picture_prompt(package, subject, tmp_path):
    """Another photo gives other views, and words alone give others again."""
    made = []
    for index, photo in enumerate((0, 1, None)):
        first = FirstViews(SamplingConfig(steps=2), photo=photo, fit=FitConfig(steps=1))
        config = replace(quick(package), first_views=first, variant="initial")
        with Run.open(tmp_path / str(index), config=config, seed=2, device="cpu", quiet=True) as run:
            dreambooth3d(subject, "a [v] kite", config, run)
        made.append(Views.load(tmp_path / str(index) / "stages" / "initial_views" / "result").images)
    assert not torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])
