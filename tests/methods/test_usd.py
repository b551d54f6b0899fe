"""USD as a whole: its presets against the published numbers, and every variant from a picture to a mesh."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from maquette.asset import Asset
from maquette.errors import UserError
from maquette.fields.encodings import HashGridConfig, TriPlanesConfig
from maquette.fields.radiance import LinearBlob, RadianceConfig
from maquette.images import CameraEstimate, Prompt, Views
from maquette.methods import usd
from maquette.priors.hub import save_prior
from maquette.rendering import OccupancyConfig, VolumeConfig
from maquette.rendering.patch import PatchConfig
from maquette.run import Run
from maquette.schedules import Constant
from maquette.stages.class_images import ClassImagesConfig
from maquette.stages.elevation import ElevationConfig
from maquette.stages.fit import FitConfig
from maquette.stages.look import SamplingConfig
from maquette.stages.objectives import PhotometricConfig, RandomRays
from maquette.stages.personalize import personalize
from maquette.stages.refine import Renderings, place_picture
from maquette.stages.translate import resized
from maquette.subjects import CaptionedImages
from tests.priors.tiny import picture, prompt, tiny_config, tiny_prior, tiny_view_config, tiny_view_prior

SAMPLING = SamplingConfig(steps=2, guidance_scale=2.0, spacing="exact", clip=True)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> tuple[Path, Path]:
    """Packages of a tiny view prior and of a tiny free prior, both random."""
    folder = tmp_path_factory.mktemp("weights")
    save_prior(folder / "view", tiny_view_prior(), tiny_view_config(), {"name": "nano-zero123", "licence": "CC0-1.0"})
    save_prior(folder / "free", tiny_prior(), tiny_config(), {"name": "nano", "licence": "Apache-2.0"})
    return folder / "view", folder / "free"


@pytest.fixture
def quick(weights) -> usd.Config:
    """The draft preset with next to no work."""
    whole = usd.nano("draft")
    nothing, rays = FitConfig(steps=2), PhotometricConfig(pixels=RandomRays(16), mask=Constant(0.5))
    mesh = replace(whole.mesh, resolution=16, texture_size=64, unwrap_seconds=0, threshold="auto")
    planes = TriPlanesConfig(resolutions=(8,), features=4)
    assert whole.refinement and whole.recovery and whole.warm_start and whole.reference
    special = whole.refinement.specialize
    surface = replace(
        whole.recovery.scene, samples=Constant(24), occupancy=OccupancyConfig(resolution=16),
        field=replace(whole.recovery.scene.field, encoding=planes, hidden=8),
    )  # fmt: skip
    look = replace(whole.distillation, resolution=Constant(16))
    return replace(
        whole, weights=weights[0], free_weights=weights[1], fit=nothing, keep_views=rays, prompt_view=rays,
        pose=ElevationConfig((-90.0, 90.0), (30.0,), 0.0, 30.0, 15.0, sampling=SAMPLING, size=16, samples=8),
        novel=replace(whole.novel, count=3, sampling=SAMPLING),
        warm_start=usd.WarmStart(nothing, rays), distillation=look, reference=replace(look, every=1), mesh=mesh,
        scene=VolumeConfig(
            field=RadianceConfig(encoding=planes, hidden=8), background=whole.scene.background,
            occupancy=OccupancyConfig(resolution=16), samples=Constant(24),
        ),
        renderings=Renderings(2, 20),
        refinement=replace(
            whole.refinement,
            specialize=replace(
                special, class_images=ClassImagesConfig(2, SAMPLING), first=replace(special.first, steps=2, batch=1),
                second=replace(special.second, steps=1, batch=1),
            ),
            translate=replace(
                whole.refinement.translate, sampling=replace(SAMPLING, steps=4, clip=False), residual=True
            ),
        ),
        recovery=replace(whole.recovery, scene=surface, fit=nothing, mesh=mesh, photometric=rays),
    )  # fmt: skip


def make(config: usd.Config, folder: Path, shown: Prompt | None = None, **options) -> Asset:
    with Run.open(folder, config=config, method="usd", quiet=True, **options) as run:
        return usd.usd(shown or prompt(), config, run)


LEARNED: list[tuple[CaptionedImages, CaptionedImages | None]] = []


def remembering(prior, subject, others, config, start=None, *, run):
    LEARNED.append((subject, others))
    return personalize(prior, subject, others, config, start, run=run)


def stages(folder: Path) -> set[str]:
    return {path.name for path in (folder / "stages").iterdir()}


# Presets


def test_the_paper_s_preset_has_the_released_numbers():
    """usd.md, sections 2.3 to 3."""
    config = usd.paper()
    guidance, views, fit = config.guidance, config.distillation, config.fit
    assert (guidance.omega, guidance.lambda_, guidance.null) == (7.5, 0.0, "free")
    assert [views.noise_range.at(step, 15_000) for step in (0, 5000, 5001, 14_999)] == [
        pytest.approx(bounds) for bounds in ((0.02, 0.98), (0.02, 0.98), (0.02, 0.5), (0.02, 0.5))
    ]
    assert views.resolution.at(0, 1) == 512 and views.scenes.at(0, 1) == 1 and views.random_background == 0
    assert [views.regularizers.opaque.at(step, 15_000) for step in (9_999, 10_000)] == [0, 1000]
    assert views.regularizers.sparsity.at(0, 1) == 10 and not views.regularizers.need_normals(0, 1)
    assert views.shading.begin == 1.0
    reference = config.reference
    assert reference is not None and reference.noise_range.at(14_999, 15_000) == (0.02, 0.98)
    assert reference.weight == views.weight == Constant(1.0)
    rates = (fit.steps, fit.encoding_rate, fit.network_rate, fit.weight_decay, fit.betas, fit.eps)
    assert rates == (15_000, 0.01, 0.001, 0.01, (0.9, 0.99), 1e-15)
    assert config.scene.field.encoding == HashGridConfig(16, 2, 19, 16, 1.447269237440378)
    assert config.scene.field.bias == LinearBlob(10.0, 0.5) and config.scene.field.hidden == 64
    assert config.scene.occupancy.resolution == 32 and config.scene.samples.at(0, 1) == 512
    assert config.patch == PatchConfig(128, 4)
    assert (config.fovy, config.camera_distance, config.default_elevation) == (39.597755, 1.5, 15.0)
    assert config.cameras.elevation == (-10.0, 45.0) and config.cameras.distance == (1.5, 1.5)
    assert config.renderings == Renderings(120, 512)


def test_the_paper_s_preset_specialises_and_refines_as_the_notebook_does():
    refinement = usd.paper().refinement
    assert refinement is not None and refinement.steps == 2 and refinement.negatives
    special, translate = refinement.specialize, refinement.translate
    assert (special.first.steps, special.second.steps, special.class_images.count) == (600, 5, 200)
    assert special.first.learning_rate == special.second.learning_rate == 2e-4
    steps = round(translate.strength * translate.sampling.steps)
    assert (steps, translate.sampling.guidance_scale, translate.sampling.eta) == (10, 6.5, 0.0)
    assert translate.retries == 0 and translate.min_mask_iou == 0
    assert usd.paper().novel.count == 1 + 5 and usd.paper().novel.sampling.guidance_scale == 3.0


def test_what_the_paper_does_not_have_is_off_in_its_preset():
    config = usd.paper()
    assert (config.warm_start, config.keep_views, config.prompt_view, config.paint_prompt) == (None, None, None, False)
    small = usd.nano()
    assert small.warm_start and small.keep_views and small.prompt_view and small.paint_prompt
    assert (small.guidance.lambda_, small.guidance.null) == (config.guidance.lambda_, config.guidance.null)
    with pytest.raises(UserError, match="quality is draft"):
        usd.configure("nano", "best")


# From a picture to a mesh


def test_a_picture_becomes_a_mesh_in_the_order_of_the_paper(quick, tmp_path):
    asset = make(quick, tmp_path / "run")
    assert len(asset.mesh.faces) > 0 and asset.mesh.texture is not None
    assert asset.views is not None and len(asset.views) == 3
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in log if line.get("event") == "finished" and line["stage"]] == [
        "elevation", "views", "warm_start", "radiance_field", "renderings", "class_pictures", "object", "detail",
        "refined", "surface", "mesh",
    ]  # fmt: skip
    provenance = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert {card["name"] for card in provenance["priors"]} >= {"nano-zero123"}
    assert provenance["citations"] == [usd.CITATION]


def test_what_is_finished_is_not_made_again_and_what_is_lost_comes_back_the_same(quick, tmp_path):
    first = make(quick, tmp_path / "run")
    import shutil

    for name in ("radiance_field", "refined", "mesh"):
        shutil.rmtree(tmp_path / "run" / "stages" / name)
    again = make(quick, tmp_path / "run")
    elsewhere = make(quick, tmp_path / "other")
    for asset in (again, elsewhere):
        assert (asset.mesh.vertices == first.mesh.vertices).all() and (asset.mesh.texture == first.mesh.texture).all()
    events = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in events if line.get("event") == "reused"} >= {"views", "warm_start"}


VARIANTS = {
    "sds": {"guidance.null": "own", "guidance.lambda_": 1.0},
    "no replacement": {"guidance.null": "own"},
    "free null kept": {"guidance.lambda_": 1.0},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_variants_of_the_guidance_give_other_fields(quick, tmp_path, changes):
    bare = replace(quick, refinement=None, recovery=None, pose=None)
    named = {name.removeprefix("guidance."): value for name, value in changes.items()}
    other = replace(bare, guidance=replace(bare.guidance, **named))
    fields = []
    for name, config in (("usd", bare), ("other", other)):
        make(config, tmp_path / name)
        assert stages(tmp_path / name) == {"views", "warm_start", "radiance_field", "renderings", "mesh"}
        fields.append((tmp_path / name / "stages" / "radiance_field" / "stage.json").read_text())
    assert json.loads(fields[0])["fingerprint"] != json.loads(fields[1])["fingerprint"]


def test_one_step_without_negatives_is_less_work(quick, tmp_path):
    assert quick.refinement is not None
    config = replace(quick, pose=None, refinement=replace(quick.refinement, steps=1, negatives=False))
    make(config, tmp_path / "run")
    assert not stages(tmp_path / "run") & {"elevation", "class_pictures", "detail"}
    attempts = json.loads((tmp_path / "run" / "stages" / "refined" / "result" / "attempts.json").read_text())
    assert {entry["caption"] for entry in attempts["attempts"]} == {"photo of a [v] red barrel"}
    assert len({entry["seed"] for entry in attempts["attempts"]}) == 5


def test_the_paper_s_own_objectives_run_without_the_additions(quick, tmp_path):
    config = replace(
        quick, pose=None, warm_start=None, keep_views=None, prompt_view=None, paint_prompt=False,
        patch=PatchConfig(size=8, factor=2), surface_reference=quick.reference,
    )  # fmt: skip
    asset = make(config, tmp_path / "run")
    assert len(asset.mesh.faces) > 0
    log = (tmp_path / "run" / "log.jsonl").read_text()
    assert "distillation.grad_norm" in log and "reference.grad_norm" in log and "prompt_view.psnr" not in log


# The picture's camera


def test_an_elevation_that_is_given_is_believed(quick, tmp_path):
    known = prompt().with_camera(CameraEstimate(40.0, 25.0, 1.0, 0.0, True))
    asset = make(replace(quick, refinement=None, recovery=None), tmp_path / "run", known)
    assert "elevation" not in stages(tmp_path / "run") and asset.views is not None
    torch.testing.assert_close(asset.views.cameras.elevation, torch.full((3,), 25.0), atol=1e-3, rtol=0)
    torch.testing.assert_close(asset.views.cameras.azimuth[0], torch.tensor(0.0), atol=1e-3, rtol=0)


def test_the_picture_is_placed_at_the_size_of_the_first_view():
    """Twice as near, the object takes twice as much of the picture; the prior draws it at one size."""
    near = picture(64)  # a disc of radius 21 in 64 px
    y, x = torch.meshgrid(torch.arange(32) - 15.5, torch.arange(32) - 15.5, indexing="ij")
    mask = ((x**2 + y**2) < 8.0**2).float()[None, None]
    cameras = usd.ring_cameras(usd.nano(), 10.0, 32)[:1]
    shown = place_picture(near, Views(torch.zeros(1, 3, 32, 32), mask, cameras), size=64)
    assert shown.masks is not None
    width = (shown.masks[0, 0] > 0.5).any(dim=0).sum()
    assert abs(int(width) - 32) <= 3


def test_refinement_learns_the_picture_as_the_views_show_it(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(usd, "personalize", remembering)
    LEARNED.clear()
    make(quick, tmp_path / "run")
    (first, classes), (second, against) = LEARNED
    views = Views.load(tmp_path / "run" / "stages" / "views" / "result")
    size = first.pixels.shape[-1]
    shown = resized(place_picture(prompt().image, views).composite(torch.ones(3)), size)
    expected = (shown * 255).round().to(torch.uint8)
    others = (resized(views.composite(torch.ones(3))[1:], size) * 255).round().to(torch.uint8)
    # On white, all of them: a mask would be lost beside pictures that have none.
    assert all(pictures.masks is None for pictures in (first, classes, second, against))
    assert torch.equal(first.pixels, torch.cat([expected, others])) and first.pixels[0, :, 0, 0].tolist() == [255] * 3
    assert torch.equal(second.pixels, expected) and torch.equal(against.pixels, others)


def test_words_alone_are_refused(quick, tmp_path):
    with pytest.raises(UserError, match="needs a picture"):
        make(quick, tmp_path / "run", Prompt(None, "a red barrel"))


# Refinement


def test_the_class_is_the_caption_without_its_article():
    config = usd.nano()
    assert usd.class_word(prompt("A red barrel"), config) == "A red barrel".removeprefix("A ")
    assert usd.class_word(prompt("apple"), config) == "apple"
    assert usd.class_word(prompt(""), config) == "object"
    assert usd.class_word(prompt("a red barrel"), replace(config, noun="barrel")) == "barrel"
