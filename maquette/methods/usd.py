"""USD: optimized view and geometry distillation from a multi-view diffuser (Zhang et al., arXiv:2312.06198).

One picture, seen from anywhere, becomes a radiance field by unbiased score distillation from a prior of relative views
and a free 2D prior (section 3). The free prior, specialised to the object in two steps, then takes the blur out of the
field's renderings (section 4.2), and a signed distance is fitted to the refined pictures, from which the textured mesh
is made (section 4.3). `paper()` holds the numbers of the paper, its supplement and its released code.

`nano()` adds four things that the paper does not have, because its priors are small: the field starts from a fit of
the sampled novel views (`warm_start`) and goes on looking like them (`keep_views`), it looks like the picture from the
picture's camera (`prompt_view`), and the picture's pixels are painted onto the mesh (`paint_prompt`). Each is a field
of the config, switched off in the paper's preset.

Everything that the paper compares is a setting, too: `guidance.lambda_`, `guidance.null` and `guidance.omega`
(score distillation, lambda = 0 alone, USD), `reference` against `prompt_view` (the reference view's score, or squared
errors), `refinement` with its `steps` and `negatives`, `recovery` (without it the mesh is that of the field).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from maquette.asset import Asset
from maquette.cameras import Cameras, OrbitSampler, fit_distance, from_angles
from maquette.errors import UserError
from maquette.fields.background import FlatBackgroundConfig
from maquette.fields.encodings import HashGridConfig, TriPlanesConfig
from maquette.fields.normals import FiniteDifferenceNormals
from maquette.fields.radiance import LinearBlob, RadianceConfig
from maquette.guidance.base import NoiseRange
from maquette.guidance.unbiased import (
    NOISE,
    REFERENCE_NOISE,
    ReferenceConfig,
    ReferenceGuidance,
    UnbiasedConfig,
    UnbiasedGuidance,
)
from maquette.images import CameraEstimate, ImagePrompt, Prompt, Views
from maquette.meshing.pipeline import MeshConfig
from maquette.meshing.project import ProjectionConfig
from maquette.priors.adapters import Lora
from maquette.priors.base import AdaptablePrior, Prior
from maquette.priors.hub import load_free_prior, load_view_prior
from maquette.priors.usd_cameras import DISTANCE, ELEVATION, FOVY, input_sampler, training_cameras
from maquette.priors.zero123 import Zero123Prior
from maquette.rendering.patch import PatchConfig, PatchScene
from maquette.rendering.sampling import OccupancyConfig
from maquette.rendering.scene import VolumeConfig, VolumeScene
from maquette.rendering.surface import SurfaceScene
from maquette.run import Run
from maquette.schedules import Constant, Linear, Piecewise
from maquette.stages.class_images import ClassImagesConfig, class_images
from maquette.stages.elevation import ElevationConfig, estimate_elevation
from maquette.stages.fit import FitConfig, fit
from maquette.stages.look import SamplingConfig
from maquette.stages.novel import sample_novel_views
from maquette.stages.objectives import (
    Distillation,
    DistillationConfig,
    Photometric,
    PhotometricConfig,
    RandomRays,
    ShadingConfig,
)
from maquette.stages.personalize import PersonalizeConfig, personalize
from maquette.stages.recovery import RecoveryConfig, quick_recovery
from maquette.stages.refine import Renderings, place_picture, render_around, repaint
from maquette.stages.regularizers import Regularizers
from maquette.stages.specialize import (
    SpecializeConfig,
    class_prompt,
    detail_prompt,
    first_pictures,
    object_prompt,
    second_pictures,
)
from maquette.stages.surface import make_mesh
from maquette.stages.translate import TranslateConfig, Translated, resized, translate_views
from maquette.subjects import CaptionedImages

CITATION = (
    "Youjia Zhang, Zikai Song, Junqing Yu, Yawei Luo and Wei Yang. Optimized View and Geometry Distillation from "
    "Multi-view Diffuser. arXiv:2312.06198, 2023."
)
WHITE = torch.ones(3)
"""Behind everything that a prior is shown: the only background that Zero-1-to-3 knows."""
UNLIT = ShadingConfig(begin=1.0)
"""USD's fields have colours and no light."""


@dataclass(frozen=True)
class NovelViews:
    """Views sampled from the view prior alone: what refinement learns the object from, and what it is compared with."""

    count: int = 6
    """Views around the object at the picture's height, the first from the picture's own place."""
    rectified: bool = False
    """Guide them away from the free prior's null, as the supplement does, and not from the view prior's own."""
    sampling: SamplingConfig = SamplingConfig(guidance_scale=3.0, eta=1.0)
    """The sampler; Zero-1-to-3's own guidance."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"at least one novel view is sampled, got count={self.count}")


@dataclass(frozen=True)
class WarmStart:
    """A first field, fitted to the novel views. Not in the paper."""

    fit: FitConfig = FitConfig(steps=250, rate=Linear(1.0, 0.1))
    """The optimisation."""
    photometric: PhotometricConfig = PhotometricConfig(mask=Constant(0.5))
    """How views are compared."""


@dataclass(frozen=True)
class Refinement:
    """The free prior learns the object and cleans the renderings (section 4.2)."""

    specialize: SpecializeConfig = field(default_factory=SpecializeConfig)
    """What is learned in the two steps."""
    steps: Literal[1, 2] = 2
    """1 stops after the object and its generated views; 2 goes on to the picture against those views."""
    negatives: bool = True
    """Show what the marker words must not explain: the class in the first step, generated views in the second."""
    translate: TranslateConfig = TranslateConfig(
        strength=0.2, sampling=SamplingConfig(guidance_scale=6.5), retries=0, min_mask_iou=0.0, keep_likeness=False,
        refuse_fronts=False,
    )  # fmt: skip
    """How far renderings are noised (10 of 50 steps, t = 181) and how they are denoised."""


def views_distillation(regularizers: Regularizers) -> DistillationConfig:
    """The released way of asking the view prior, one patch-rendered view of 512 px a step."""
    return DistillationConfig(
        noise_range=NOISE, resolution=Constant(512), scenes=Constant(1), random_background=0.0, shading=UNLIT,
        regularizers=regularizers,
    )  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Everything that decides a result, apart from the picture, the words and the seed."""

    prior: str = "zero123-xl"
    """The view prior, one picture and a relative camera: "nano-zero123", or a published Zero-1-to-3."""
    weights: Path | None = None
    """File or folder of its weights."""
    free_prior: str = "stable-diffusion-2.1-base"
    """The free prior, single pictures from words: "nano" (its 2D half), or a published Stable Diffusion."""
    free_weights: Path | None = None
    """File or folder of its weights."""
    noun: str = ""
    """What the object is, for the specialisation; by default the caption without its article, or "object"."""
    pose: ElevationConfig | None = ElevationConfig()
    """How the picture's elevation is estimated where --elevation does not say it; none does not."""
    default_elevation: float = ELEVATION
    """Degrees, where it is neither given nor found (the released code takes it for every picture)."""
    fovy: float = FOVY
    """Vertical field of view of all cameras, degrees."""
    distance: float | None = DISTANCE
    """Of all cameras from the centre, scene units; none: a normalised object fills 80 % of the height."""
    novel: NovelViews = NovelViews()
    """Views of the view prior."""
    guidance: UnbiasedConfig = UnbiasedConfig()
    """Unbiased score distillation."""
    cameras: OrbitSampler = training_cameras()
    """Cameras of the distillation."""
    distillation: DistillationConfig = views_distillation(
        Regularizers(sparsity=Constant(10.0), opaque=Piecewise((0.0, 1000.0), (2 / 3,)))
    )
    """Schedules and regularisers of the distillation."""
    reference: DistillationConfig | None = replace(views_distillation(Regularizers()), noise_range=REFERENCE_NOISE)
    """Score distillation of the picture's own view."""
    reference_guidance: ReferenceConfig = ReferenceConfig()
    """How that view is compared."""
    warm_start: WarmStart | None = None
    """Begin with a fit of the novel views (nano only)."""
    keep_views: PhotometricConfig | None = None
    """Keep looking like the novel views during the distillation (nano only)."""
    prompt_view: PhotometricConfig | None = None
    """The field has the picture's colours and outline from the picture's camera (nano only)."""
    scene: VolumeConfig = VolumeConfig()
    """The radiance field."""
    patch: PatchConfig | None = PatchConfig()
    """Render training views coarsely with one sharp window; none renders every pixel."""
    fit: FitConfig = FitConfig(steps=15_000)
    """Optimisation of the radiance field."""
    renderings: Renderings = Renderings()
    """Pictures of the field."""
    refinement: Refinement | None = Refinement()
    """The free prior cleans them; none leaves them as they are."""
    recovery: RecoveryConfig | None = RecoveryConfig()
    """A surface is fitted to them; none takes the radiance field's own."""
    surface_reference: DistillationConfig | None = replace(
        views_distillation(Regularizers()), noise_range=REFERENCE_NOISE, weight=Constant(0.01), every=10,
        resolution=Constant(128),
    )  # fmt: skip
    """Score distillation of the picture's own view while the surface is fitted."""
    mesh: MeshConfig = MeshConfig(threshold=25.0)
    """Extraction of the mesh where there is no recovery."""
    projection: ProjectionConfig = ProjectionConfig()
    """How pictures are painted onto the mesh."""
    paint_prompt: bool = False
    """Paint the given picture over the refined ones (nano only)."""

    @property
    def camera_distance(self) -> float:
        """Distance of all cameras, scene units."""
        return fit_distance(self.fovy) if self.distance is None else self.distance


def paper() -> Config:
    """The released configuration (`usd-patch.yaml` and the code around it); instant-nsr-pl's for the surface."""
    field_ = RadianceConfig(encoding=HashGridConfig(), bias=LinearBlob(10.0, 0.5), hidden=64)
    occupancy = OccupancyConfig(resolution=32, interval=16, warmup=256, decay=0.95, share=0.25, threshold=0.01)
    return Config(
        scene=VolumeConfig(field=field_, background=FlatBackgroundConfig(), occupancy=occupancy, samples=Constant(512))
    )


def nano(quality: Literal["draft", "default", "high"] = "default") -> Config:
    """The embedded priors on a CPU; `quality` decides how long."""
    draft = quality == "draft"
    steps = {"draft": 80, "default": 400, "high": 1000}[quality]
    distance, fovy = fit_distance(40.0), 40.0
    # Averages over noises, as in `imagedream.nano`: ancestral sampling in 12 steps leaves its noise in the raw views,
    # and these rose from 17.7 to 20.7 dB for a satellite dish, from 20.4 to 20.7 for an armchair.
    sampling = SamplingConfig(sampler="averaged", steps=5, draws=4, guidance_scale=1.5, spacing="exact", clip=True)
    painting = SamplingConfig(steps=12 if draft else 20, guidance_scale=3.0, eta=1.0, spacing="exact", clip=True)
    rates = FitConfig(encoding_rate=0.03, network_rate=0.003, total_variation=Constant(1.0))
    pictures = PhotometricConfig(pixels=RandomRays(768), mask=Constant(0.5), between=True)
    distillation = DistillationConfig(
        noise_range=NoiseRange(low=Linear(0.3, 0.02, 0.8), high=Linear(0.6, 0.25, 0.8)),
        resolution=Constant(32), scenes=Constant(1), weight=Constant(1e-4), random_background=0.0, shading=UNLIT,
        regularizers=Regularizers(),
    )  # fmt: skip
    # The paper's loss is of eps; uniform errors of x0 would teach high noise, where nothing is refined.
    learning = PersonalizeConfig(
        adapter=Lora(rank=8), steps=40 if draft else 80, batch=4, learning_rate=2e-3, weighting="min-snr-both"
    )
    return Config(
        prior="nano-zero123",
        free_prior="nano",
        pose=ElevationConfig(sampling=sampling),
        default_elevation=15.0,
        fovy=fovy,
        distance=None,
        novel=NovelViews(6, sampling=sampling),
        guidance=UnbiasedConfig(omega=2.0),
        cameras=replace(training_cameras(distance, fovy), elevation=(-10.0, 45.0)),
        distillation=distillation,
        reference=replace(distillation, every=2),
        warm_start=WarmStart(replace(rates, steps=150 if draft else 300, rate=Linear(1.0, 0.1)), pictures),
        keep_views=replace(pictures, weight=Linear(1.0, 0.3)),
        prompt_view=replace(pictures, pixels=RandomRays(256), weight=Constant(0.3)),
        scene=VolumeConfig(samples=Constant(96), background=FlatBackgroundConfig()),
        patch=None,
        fit=replace(rates, steps=steps, rate=Linear(0.15, 0.02), total_variation=Constant(3.0)),
        renderings=Renderings(count=10 if draft else 18, size=96, hardening=2.0),
        refinement=Refinement(
            SpecializeConfig(
                ClassImagesConfig(8, painting, batch=8),
                first=learning,
                second=replace(learning, steps=5 if draft else 10),
            ),
            translate=replace(
                Refinement().translate,
                # t = 40. Latents that are pixels have nothing coarse that survives the paper's t = 181: the blurred
                # views of an armchair lost 5 dB at 200, 3 dB at 100.
                strength=0.04,
                # One noise leaves its grain in what was smooth: 21.0 dB against 21.1 over four (20.8 unrefined).
                # Sixteen show less of it than four, by eye on one object; no table was made with them.
                sampling=SamplingConfig(sampler="averaged", steps=50, draws=16, guidance_scale=1.0, spacing="exact"),
            ),
        ),
        recovery=nano_recovery(quality),
        surface_reference=None,
        mesh=MeshConfig(resolution=96 if draft else 128),
        paint_prompt=True,
    )  # fmt: skip


def nano_recovery(quality: Literal["draft", "default", "high"]) -> RecoveryConfig:
    """`quick_recovery` for renderings of a small field: somewhat coarser planes and more say for the outlines.

    Finer planes leave a comb in surfaces of one colour, coarser or stiffer ones lose a horse's legs (0.55 and 0.33 of
    volume overlap, where the field itself has 0.63 and these settings too).
    """
    quick, draft = quick_recovery(), quality == "draft"
    field_ = replace(
        quick.scene.field,
        encoding=TriPlanesConfig(resolutions=(48, 96), initial_scale=0.01),
        normals=FiniteDifferenceNormals(0.025),
    )
    regularizers = Regularizers(eikonal=Constant(0.1), curvature=Linear(5e-5, 1.7e-5))
    return replace(
        quick,
        scene=replace(quick.scene, field=field_, samples=Constant(128)),
        photometric=replace(quick.photometric, pixels=RandomRays(768), mask=Constant(1.0), regularizers=regularizers),
        fit=replace(quick.fit, steps={"draft": 250, "default": 600, "high": 1200}[quality]),
        mesh=replace(quick.mesh, resolution=96 if draft else 128),
    )


def configure(preset: str, quality: str) -> Config:
    """The config that a command line starts from."""
    if preset == "paper":
        return paper()
    if quality not in ("draft", "default", "high"):
        raise UserError(f"quality is draft, default or high, got {quality!r}")
    return nano(quality)  # type: ignore[arg-type]


def usd(prompt: Prompt, config: Config, run: Run) -> Asset:
    """The textured asset of one picture. Stages are kept in the run's folder and reused.

    The side that the picture shows faces +x, whatever side of the object it is: nobody asks where its front is.
    """
    if prompt.image is None:
        raise UserError("USD needs a picture; for words alone use a text-to-3D method")
    view = load_view_prior(config.prior, config.weights, run.device)
    free = load_free_prior(config.free_prior, config.free_weights, run.device)
    run.record_prior(view.card())
    run.record_prior(free.card())
    run.cite(CITATION)
    prompt = replace(prompt, camera=find_camera(view, free, prompt, config, run), cutout=None)
    picture, camera = prompt.image, prompt.camera
    assert picture is not None and camera is not None

    # What the view prior gives without any optimisation; rectified guidance is that of the supplement, section 1.
    condition = view.condition(prompt, WHITE)
    around = ring_cameras(config, camera.elevation, view.codec.image_size)
    views: Views = run.stage(
        "views", sample_novel_views, view, free if config.novel.rectified else None, condition, around,
        config.novel.sampling,
    )  # fmt: skip
    shown = place_picture(picture, views)

    # Section 3: a radiance field by unbiased score distillation, and by the score of the picture's own view.
    scene = VolumeScene(config.scene, seed=run.seed)
    if config.warm_start:
        targets = [Photometric(views, config.warm_start.photometric, name="views")]
        targets += [Photometric(shown, config.prompt_view, name="prompt_view")] if config.prompt_view else []
        scene = run.stage("warm_start", fit, scene, targets, config.warm_start.fit)
    guidance = UnbiasedGuidance(view, free, prompt, config.guidance)
    objectives: list[Distillation | Photometric] = [Distillation(guidance, config.cameras, config.distillation)]
    if config.reference:
        objectives.append(reference_view(free, shown, config, config.reference))
    if config.keep_views:
        objectives.append(Photometric(views, config.keep_views, name="views"))
    if config.prompt_view:
        objectives.append(Photometric(shown, config.prompt_view, name="prompt_view"))
    scene = run.stage("radiance_field", fit, patched(scene, config.patch), objectives, config.fit)
    scene = scene.scene if isinstance(scene, PatchScene) else scene

    # Section 4.2: the free prior, specialised in two steps, refines renderings of the field.
    rendered: Views = run.stage("renderings", render_around, scene, around, config.renderings)
    refined = rendered
    if config.refinement:
        refined = refine(free, prompt, shown, views, rendered, config.refinement, config, run)
    painted = (refined, shown) if config.paint_prompt else (refined,)
    if config.recovery is None:
        mesh = run.stage("mesh", make_mesh, scene, config.mesh, painted, config.projection)
        return Asset(mesh, views=views, provenance=run.provenance())

    # Section 4.3: geometry recovery by NeuS, and the texture from the refined pictures.
    recovery = config.recovery
    wanted: list[Distillation | Photometric] = [Photometric(refined, recovery.photometric, name="refined")]
    if config.surface_reference:
        wanted.append(reference_view(free, shown, config, config.surface_reference))
    if config.prompt_view:
        wanted.append(Photometric(shown, config.prompt_view, name="prompt_view"))
    surface = run.stage("surface", fit, SurfaceScene(recovery.scene, run.seed), wanted, recovery.fit)
    mesh = run.stage("mesh", make_mesh, surface, recovery.mesh, painted, config.projection)
    return Asset(mesh, views=views, provenance=run.provenance())


def find_camera(view: Zero123Prior, free: AdaptablePrior, prompt: Prompt, config: Config, run: Run) -> CameraEstimate:
    """The picture's camera: as the person says, or as estimated where that is reliable, or the config's default."""
    if prompt.camera is not None and prompt.camera.reliable:
        return replace(prompt.camera, azimuth=0.0)
    if config.pose is not None:
        rectifying = free if config.novel.rectified else None
        found = run.stage("elevation", estimate_elevation, view, rectifying, replace(prompt, cutout=None), config.pose)
        if found.camera.reliable:
            return found.camera
    return CameraEstimate(azimuth=0.0, elevation=config.default_elevation, scale=1.0, error=0.0, reliable=True)


def ring_cameras(config: Config, elevation: float, size: int) -> Cameras:
    """Cameras evenly around at the picture's height, the first in the picture's own place."""
    count = config.novel.count
    angles = (torch.tensor(value) for value in (elevation, config.camera_distance, config.fovy))
    return from_angles(torch.arange(count) * (360.0 / count), *angles, height=size, width=size)


def patched(scene: VolumeScene, config: PatchConfig | None) -> VolumeScene | PatchScene:
    """The scene, rendered in patches where the config says so."""
    return scene if config is None else PatchScene(scene, config)


def reference_view(free: Prior, shown: Views, config: Config, distillation: DistillationConfig) -> Distillation:
    """The objective that the picture's own view pleases the free prior as the picture does (equation of L_ref)."""
    assert shown.masks is not None
    elevation, distance = float(shown.cameras.elevation[0]), config.camera_distance
    sampler = input_sampler(elevation, float(shown.cameras.azimuth[0]), distance=distance, fovy=config.fovy)
    guidance = ReferenceGuidance(free, ImagePrompt(shown.images[0], shown.masks[0]), config.reference_guidance)
    return Distillation(guidance, sampler, distillation, name="reference")


def refine(
    free: AdaptablePrior,
    prompt: Prompt,
    shown: Views,
    views: Views,
    rendered: Views,
    settings: Refinement,
    config: Config,
    run: Run,
) -> Views:
    """Renderings as the free prior paints them once it has learned the object, seeds fixed view by view.

    It learns the picture as `shown`, on white and no larger than views and renderings show the object, so that neither
    is a difference between the input and what it is told apart from.
    """
    noun, size = class_word(prompt, config), free.codec.image_size
    mine = CaptionedImages.from_images(resized(shown.composite(WHITE), size), [""])
    generated = CaptionedImages.from_images(resized(views.composite(WHITE)[1:], size), [""] * (len(views) - 1))
    others = None
    if settings.negatives:
        classes = settings.specialize.class_images
        others = run.stage("class_pictures", class_images, free, [class_prompt(noun)], classes)
    subject, against = first_pictures(mine, generated, others or mine, noun)
    first = settings.specialize.first
    learned = run.stage("object", personalize, free, subject, against if others else None, first)[first.steps]
    caption = object_prompt(noun)
    if settings.steps == 2:
        subject, against = second_pictures(mine, generated, noun)
        second, against_ = settings.specialize.second, against if settings.negatives else None
        learned = run.stage("detail", personalize, free, subject, against_, second, learned)[second.steps]
        caption = detail_prompt(noun)
    painted: Translated = run.stage(
        "refined", translate_views, free.adapted(learned), rendered, [caption] * len(rendered), settings.translate,
        base=(free, [class_prompt(noun)] * len(rendered)),
    )  # fmt: skip
    return repaint(rendered, painted)


def class_word(prompt: Prompt, config: Config) -> str:
    """What the object is, in a few words."""
    return config.noun or re.sub(r"^(an?|the)\s+", "", prompt.caption.strip(), flags=re.IGNORECASE) or "object"
