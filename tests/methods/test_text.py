"""Text to 3D as a whole: its recipes against the published numbers, and every variant from words to a mesh."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from maquette.asset import Asset, Mesh
from maquette.errors import UserError
from maquette.fields.encodings import TriPlanesConfig
from maquette.fields.radiance import LinearBlob, RadianceConfig
from maquette.guidance.recon import ReconConfig
from maquette.guidance.unbiased import UnbiasedConfig
from maquette.guidance.view_text import ViewTextConfig
from maquette.images import Prompt
from maquette.methods import text, usd
from maquette.priors.hub import save_prior
from maquette.rendering import OccupancyConfig, VolumeConfig
from maquette.rendering.patch import PatchConfig
from maquette.run import Run
from maquette.schedules import Constant
from maquette.stages.fit import FitConfig
from maquette.stages.look import SamplingConfig
from maquette.stages.objectives import PhotometricConfig, RandomRays
from maquette.stages.recovery import RecoveryConfig
from maquette.stages.refine import Renderings
from maquette.stages.regularizers import Regularizers
from tests.priors.tiny import tiny_config, tiny_prior, tiny_stable_diffusion

WORDS = Prompt(None, caption="a wooden barrel")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """The package of a tiny random prior."""
    folder = tmp_path_factory.mktemp("weights")
    save_prior(folder / "nano", tiny_prior(), tiny_config(), {"name": "nano", "licence": "Apache-2.0"})
    return folder / "nano"


@pytest.fixture
def quick(weights) -> text.Config:
    """The draft preset with next to no work."""
    whole = text.nano("draft")
    assert whole.first_views is not None
    sampling = SamplingConfig(steps=2, guidance_scale=2.0, spacing="exact", clip=True)
    nothing, rays = FitConfig(steps=2), PhotometricConfig(pixels=RandomRays(16), mask=Constant(0.5))
    return replace(
        whole,
        weights=weights,
        first_views=replace(whole.first_views, sampling=sampling),
        warm_start=text.WarmStart(nothing, rays),
        keep_views=rays,
        distillation=replace(whole.distillation, resolution=Constant(16)),
        scene=VolumeConfig(
            field=RadianceConfig(encoding=TriPlanesConfig(resolutions=(8,), features=4), hidden=8),
            occupancy=OccupancyConfig(resolution=16),
            samples=Constant(24),
        ),
        fit=nothing,
        mesh=replace(whole.mesh, resolution=16, texture_size=64, unwrap_seconds=0, threshold="auto"),
    )


def make(config: text.Config, folder: Path, words: Prompt = WORDS) -> Asset:
    with Run.open(folder, config=config, method="text", quiet=True) as run:
        return text.text_to_3d(words, config, run)


def stages(folder: Path) -> set[str]:
    return {path.name for path in (folder / "stages").iterdir()}


# Recipes


def test_mvdream_s_released_numbers():
    """imagedream.md, the columns of MVDream in section 4."""
    config = text.mvdream()
    guidance, views = config.guidance, config.distillation
    assert isinstance(guidance, ReconConfig)
    assert (guidance.guidance_scale, guidance.rescale, guidance.form) == (50.0, 0.5, "x0")
    bounds = [views.noise_range.at(step, 10_000) for step in (0, 4000, 8000, 9999)]
    assert bounds == [pytest.approx(pair) for pair in ((0.98, 0.98), (0.5, 0.74), (0.02, 0.5), (0.02, 0.5))]
    assert [views.resolution.at(step, 10_000) for step in (4999, 5000)] == [64, 256]
    assert [views.scenes.at(step, 10_000) for step in (4999, 5000)] == [2, 1]
    cameras = config.cameras
    assert (cameras.elevation, cameras.fovy, cameras.relative_distance) == ((0, 30), (15, 60), (0.8, 1.0))
    assert cameras.num_views == 4
    penalties = views.regularizers
    assert [penalties.orientation.at(step, 10_000) for step in (0, 5000, 9999)] == [10, 1000, 1000]
    assert penalties.sparsity.at(0, 1) == 0 and penalties.orientation_per == "hits"
    assert views.shading.begin * config.fit.steps == 5000 and config.fit.steps == 10_000
    assert config.negative.startswith("ugly, bad anatomy") and config.first_views is not None
    assert config.first_views.sampling.guidance_scale == 10 and config.first_views.suffix == ", 3d asset"
    assert config.first_views.elevation == 15
    assert config.warm_start is None and config.keep_views is None, "not in the paper"


def test_dreamfusion_s_numbers():
    """dreamfusion.md, sections 1.2, 2.2 and 2.3."""
    config = text.dreamfusion()
    guidance, views = config.guidance, config.distillation
    assert isinstance(guidance, ViewTextConfig)
    # s = 1 + omega with omega = 100; SDS is lambda = 1.
    assert (guidance.omega, guidance.lambda_, guidance.front, guidance.overhead) == (101.0, 1.0, 45.0, 60.0)
    assert views.noise_range.at(0, 1) == (0.02, 0.98) and views.resolution.at(0, 1) == 64
    cameras = config.cameras
    assert (cameras.elevation, cameras.distance, cameras.num_views) == ((-10.0, 90.0), (1.0, 1.5), 1)
    # Focal lengths of 0.7 to 1.35 widths.
    for fovy, focal in zip(cameras.fovy, (1.35, 0.7), strict=True):
        assert fovy == pytest.approx(2 * torch.rad2deg(torch.atan(torch.tensor(0.5 / focal))).item(), abs=0.1)
    shading = views.shading
    assert (shading.begin * config.fit.steps, shading.albedo, shading.textureless, shading.soft) == (
        pytest.approx(1000), 0.25, 0.5, False,
    )  # fmt: skip
    assert config.fit.steps == 15_000 and text.configure("paper", "default", "sd15").prior == "sd15"


def test_usd_s_numbers():
    """usd.md, section 2.8, the column of the first stage."""
    config = text.unbiased()
    guidance, views = config.guidance, config.distillation
    assert isinstance(guidance, ViewTextConfig)
    assert (guidance.omega, guidance.lambda_, guidance.front, guidance.overhead) == (7.5, 0.0, 30.0, 60.0)
    assert [views.noise_range.at(step, 25_000)[1] for step in (0, 5000, 5001, 24_999)] == [
        pytest.approx(high) for high in (0.98, 0.98, 0.5, 0.5)
    ]
    assert views.resolution.at(0, 1) == 512 and config.patches == PatchConfig(128, 4)
    assert views.random_background == 0.5 and views.regularizers.sparsity.at(0, 1) == 10
    assert [views.regularizers.opaque.at(step, 25_000) for step in (9_999, 10_000)] == [0, 1000]
    cameras = config.cameras
    assert (cameras.elevation, cameras.fovy, cameras.distance) == ((-10, 45), (40, 70), (1.0, 1.5))
    assert config.fit.steps == 25_000 and config.scene.field.bias == LinearBlob(10.0, 0.5)
    assert config.mesh.threshold == 25.0


def test_usd_s_further_stages():
    """usd.md, section 2.8, the second and third column."""
    config = text.unbiased()
    geometry, texture = config.geometry, config.texture
    assert geometry is not None and geometry.recovery == RecoveryConfig() and geometry.sculpting is not None
    sculpting = geometry.sculpting
    # threestudio's scale of 100 is text + 100 (text - null).
    assert (sculpting.guidance.omega, sculpting.guidance.lambda_) == (101.0, 1.0)
    assert sculpting.fit.steps == 15_000 and sculpting.distillation.regularizers.eikonal.at(0, 1) == 0.1
    assert texture is not None and texture.fit == FitConfig(steps=15_000)
    views = texture.distillation
    assert [views.noise_range.at(step, 15_000)[1] for step in (5000, 5001)] == [pytest.approx(0.98), pytest.approx(0.5)]
    assert views.resolution.at(0, 1) == 512 and views.random_background == 0.5 and views.regularizers == Regularizers()
    for recipe in (text.mvdream(), text.dreamfusion()):
        assert (recipe.geometry, recipe.texture) == (None, None)


def test_nano_has_usd_s_stages_too():
    config, usual = text.configure("usd", "draft", "nano"), text.nano("draft")
    guidance = config.guidance
    assert isinstance(guidance, UnbiasedConfig) and (guidance.lambda_, guidance.null) == (0.0, "own")
    assert config.geometry is not None and config.geometry.sculpting is None and config.texture is not None
    assert (config.first_views, config.warm_start, config.fit) == (usual.first_views, usual.warm_start, usual.fit)
    with pytest.raises(UserError, match="draft, default or high"):
        text.configure("usd", "best", "nano")


def test_recipes_follow_the_prior():
    assert text.configure("paper", "default") == text.mvdream()
    assert text.configure("paper", "default", "imagedream") == replace(text.mvdream(), prior="imagedream")
    assert text.configure("paper", "default", "sd") == text.dreamfusion()
    assert text.configure("usd", "default").guidance == text.unbiased().guidance
    assert text.configure("nano", "draft").fit.steps < text.configure("nano", "high").fit.steps
    with pytest.raises(UserError, match="draft, default or high"):
        text.configure("nano", "best")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"prior": "sd"}, "cannot judge views together.*view-text"),
        ({"prior": "sd", "guidance": UnbiasedConfig(null="own")}, "cannot judge views together.*view-text"),
        ({"prior": "sd", "guidance": ViewTextConfig()}, "no first views.*--first-views none"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes, match):
    with pytest.raises(UserError, match=match):
        replace(text.mvdream(), **changes)


# Runs


def test_words_become_a_mesh(tmp_path, quick):
    asset = make(quick, tmp_path / "run")
    assert stages(tmp_path / "run") == {"views", "warm_start", "radiance_field", "mesh"}
    assert asset.mesh.faces.shape[0] > 0 and asset.views is not None and len(asset.views) == 4
    assert [card["name"] for card in asset.provenance["priors"]] == ["nano"]
    again = make(quick, tmp_path / "run")
    torch.testing.assert_close(torch.as_tensor(again.mesh.vertices), torch.as_tensor(asset.mesh.vertices))


@pytest.fixture
def staged(quick) -> text.Config:
    """USD's three stages with next to no work."""
    whole = text.nano_unbiased("draft")
    assert whole.geometry is not None and whole.texture is not None
    recovery = whole.geometry.recovery
    surface = replace(
        recovery.scene, samples=Constant(24), occupancy=OccupancyConfig(resolution=16),
        field=replace(recovery.scene.field, encoding=TriPlanesConfig(resolutions=(8,), features=4), hidden=8),
    )  # fmt: skip
    photometric = replace(recovery.photometric, pixels=RandomRays(16))
    recovery = replace(recovery, scene=surface, photometric=photometric, fit=quick.fit, mesh=quick.mesh)
    return replace(
        quick, guidance=whole.guidance, geometry=text.Geometry(Renderings(2, 20), recovery, sculpting=None),
        texture=text.Texture(quick.distillation, fit=quick.fit),
    )  # fmt: skip


def test_usd_s_stages_give_a_surface_of_its_own_and_paint_it(tmp_path, staged):
    asset = make(staged, tmp_path / "run")
    added = {"renderings", "geometry", "mesh", "texture", "painted"}
    assert stages(tmp_path / "run") == {"views", "warm_start", "radiance_field"} | added
    before = Mesh.load(tmp_path / "run" / "stages" / "mesh" / "result")
    assert torch.equal(torch.as_tensor(before.vertices), torch.as_tensor(asset.mesh.vertices)), "its shape stays"
    assert before.texture is not None and asset.mesh.texture is not None
    assert before.texture.shape == asset.mesh.texture.shape and (before.texture != asset.mesh.texture).any()
    assert usd.CITATION in asset.provenance["citations"]


def test_lost_stages_come_back_the_same(tmp_path, staged):
    first = make(staged, tmp_path / "run")
    for name in ("geometry", "texture", "painted"):
        shutil.rmtree(tmp_path / "run" / "stages" / name)
    again = make(staged, tmp_path / "run")
    assert (again.mesh.vertices == first.mesh.vertices).all() and (again.mesh.texture == first.mesh.texture).all()


def test_a_surface_is_sculpted_by_its_normals_and_a_field_s_own_mesh_painted(tmp_path, staged):
    assert staged.geometry is not None
    sculpting = text.Sculpting(
        distillation=replace(text.Sculpting().distillation, resolution=Constant(12)), fit=staged.fit
    )
    sculpted = replace(staged, texture=None, geometry=replace(staged.geometry, sculpting=sculpting))
    make(sculpted, tmp_path / "sculpted")
    assert {"sculpting", "mesh"} <= stages(tmp_path / "sculpted") and "texture" not in stages(tmp_path / "sculpted")
    log = [json.loads(line) for line in (tmp_path / "sculpted" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if line["stage"] == "sculpting" and "guidance" in line] == [0, 1]
    make(replace(staged, geometry=None, patches=PatchConfig(8, 2)), tmp_path / "painted")
    assert stages(tmp_path / "painted") >= {"mesh", "texture", "painted"} and "geometry" not in stages(
        tmp_path / "painted"
    )


@pytest.mark.parametrize("lambda_", [0.0, 1.0])
def test_the_2d_half_of_a_prior_needs_no_views(tmp_path, quick, lambda_):
    """DreamFusion, and USD with its patches, on single views with words for their sides."""
    config = replace(
        quick, first_views=None, warm_start=None, keep_views=None, guidance=ViewTextConfig(lambda_=lambda_),
        cameras=replace(quick.cameras, num_views=1), patches=PatchConfig(8, 2) if lambda_ == 0 else None,
    )  # fmt: skip
    asset = make(config, tmp_path / "run")
    assert stages(tmp_path / "run") == {"radiance_field", "mesh"} and asset.views is None


def test_a_prior_of_single_images(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(text, "load_free_prior", lambda *_: tiny_stable_diffusion())
    config = replace(
        text.dreamfusion(), scene=quick.scene, fit=quick.fit, mesh=quick.mesh,
        distillation=replace(quick.distillation, scenes=Constant(2)),
    )  # fmt: skip
    assert make(config, tmp_path / "run").mesh.faces.shape[0] > 0


def test_words_are_needed(tmp_path, quick):
    with pytest.raises(UserError, match="needs words"):
        make(quick, tmp_path / "run", Prompt(None, caption="  "))
    with pytest.raises(UserError, match="need first_views"):
        make(replace(quick, first_views=None), tmp_path / "other")


def test_the_words_decide(tmp_path, quick):
    config = replace(quick, warm_start=None, keep_views=None)
    one, other = (
        make(config, tmp_path / name, Prompt(None, caption=caption)).views
        for name, caption in (("one", "a red car"), ("other", "a blue chair"))
    )
    assert one is not None and other is not None and not torch.equal(one.images, other.images)
