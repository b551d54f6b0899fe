"""Text to 3D: a radiance field from words alone, by the score distillation of three papers.

- *MVDream* (Shi et al., arXiv:2308.16512): a multi-view prior, the base of ImageDream and its baseline. `mvdream()`
  holds the numbers of its released configuration (`mvdream-sd21-shading`).
- *DreamFusion* (Poole et al., arXiv:2209.14988): a 2D prior, and the side that a view shows said in words.
  `dreamfusion()` holds the paper's numbers; where they belong to its own image model or field, those of public code.
- *USD's text-to-3D* (arXiv:2312.06198, `usd-text-to-3D`): the same with lambda = 0, classifier scores alone, and
  renders in patches; then a surface of its own (`geometry`), and colours that are distilled onto it (`texture`).
  `unbiased()` holds the three stages.

`nano()` is MVDream's way with the embedded prior, `nano_unbiased()` USD's. Both add what a small prior needs: the field
starts from a fit of sampled views (`warm_start`), and keeps looking like them (`keep_views`). These are off in the
papers' recipes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from maquette.asset import Asset, Mesh
from maquette.cameras import OrbitSampler, orbit
from maquette.errors import UserError
from maquette.guidance.base import NoiseRange
from maquette.guidance.recon import ReconConfig, ReconGuidance
from maquette.guidance.score import from_dreamfusion
from maquette.guidance.unbiased import NOISE, UnbiasedConfig, UnbiasedGuidance
from maquette.guidance.view_text import ViewTextConfig, ViewTextGuidance
from maquette.images import Prompt, Views
from maquette.meshing.pipeline import MeshConfig
from maquette.methods import imagedream, usd
from maquette.priors.base import Prior
from maquette.priors.hub import load_free_prior
from maquette.priors.registry import ALIASES
from maquette.priors.single_view import STABLE_DIFFUSION_MODELS
from maquette.rendering.painted import PaintedScene
from maquette.rendering.patch import PatchConfig, PatchScene
from maquette.rendering.presets import imagedream_volume
from maquette.rendering.scene import VolumeConfig, VolumeScene
from maquette.rendering.surface import SurfaceScene
from maquette.run import Run
from maquette.schedules import Constant, Linear, Piecewise
from maquette.stages.fit import FitConfig, fit
from maquette.stages.look import SamplingConfig, sample_from_words
from maquette.stages.normals import NormalDistillation
from maquette.stages.objectives import (
    Distillation,
    DistillationConfig,
    Photometric,
    PhotometricConfig,
    ShadingConfig,
)
from maquette.stages.recovery import RecoveryConfig
from maquette.stages.refine import Renderings, render_around
from maquette.stages.regularizers import Regularizers
from maquette.stages.surface import make_mesh, paint_mesh
from maquette.wording import NEGATIVE, SUFFIX

MVDREAM = "Yichun Shi et al. MVDream: Multi-view Diffusion for 3D Generation. arXiv:2308.16512, 2023."
DREAMFUSION = "Ben Poole et al. DreamFusion: Text-to-3D using 2D Diffusion. arXiv:2209.14988, 2022."


@dataclass(frozen=True)
class FirstViews:
    """Views of the object that are drawn before anything is fitted, to look at the prior's idea of the words."""

    sampling: SamplingConfig = SamplingConfig(guidance_scale=10.0)
    """Diffusion sampling; the defaults are those of MVDream's released script."""
    frames: tuple[tuple[float, float, float], ...] = ()
    """Background colours to hold along the borders, tried in order until the object shows (nano only)."""
    suffix: str = SUFFIX
    """Appended to the words for these views alone."""
    elevation: float = 15.0
    """Degrees above the horizon."""
    fovy: float = 40.0
    """Vertical field of view that the views are taken to have, degrees; the prior does not know it."""


@dataclass(frozen=True)
class WarmStart:
    """A first field, fitted to the first views. Not in the papers."""

    fit: FitConfig = FitConfig(steps=250, rate=Linear(1.0, 0.1))
    photometric: PhotometricConfig = PhotometricConfig(mask=Constant(0.5))


@dataclass(frozen=True)
class Sculpting:
    """The prior judges the surface by its normals alone."""

    guidance: ViewTextConfig = ViewTextConfig(omega=from_dreamfusion(100.0), lambda_=1.0)
    """Plain score distillation; the released scale of 100 counts as DreamFusion's."""
    distillation: DistillationConfig = DistillationConfig(
        noise_range=NOISE, resolution=Constant(256), scenes=Constant(1), shading=ShadingConfig(begin=1.0),
        regularizers=Regularizers(eikonal=Constant(0.1)),
    )  # fmt: skip
    """How it is asked."""
    fit: FitConfig = FitConfig(steps=15_000, other_rate=0.0, rate=Constant(0.1))
    """The optimisation; the surface stays as sharp as it is."""


@dataclass(frozen=True)
class Geometry:
    """USD's second stage, shape alone.

    Differs from paper: its deformable tetrahedra (DMTet), taken from the field's density, are a signed distance (NeuS)
    here, fitted to pictures of the field as in image-to-3D.
    """

    renderings: Renderings = Renderings()
    """Pictures of the field."""
    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)
    """The surface, its fit to them, and its mesh; nothing is painted on it."""
    sculpting: Sculpting | None = Sculpting()
    """Distillation of its normals; none leaves the surface as it was fitted."""


@dataclass(frozen=True)
class Texture:
    """USD's third stage: the mesh stays as it is, and its colours are distilled by the guidance of the first.

    They begin as those of the field.
    """

    distillation: DistillationConfig
    """Schedules of the distillation."""
    samples: int = 2
    """Rays along each side of a pixel."""
    fit: FitConfig = FitConfig(steps=15_000)
    """The optimisation."""


@dataclass(frozen=True)
class Config:
    """Everything that decides a result, apart from the words and the seed. The defaults are MVDream's."""

    prior: str = "mvdream"
    """Which prior: a multi-view one (nano, mvdream, imagedream ...) or one of single images (sd, sd15)."""
    weights: Path | None = None
    """File or folder of the prior's weights."""
    negative: str = NEGATIVE
    """What the result must not look like."""
    first_views: FirstViews | None = FirstViews()
    """Views to look at first; only multi-view priors can draw them."""
    guidance: ReconConfig | ViewTextConfig | UnbiasedConfig = ReconConfig(guidance_scale=50.0, rescale=0.5)
    """MVDream's distillation of all views at once (recon), DreamFusion's of single views with words for their sides
    (view-text), or USD's of all views at once (unbiased)."""
    cameras: OrbitSampler = OrbitSampler(elevation=(0.0, 30.0), fovy=(15.0, 60.0), relative_distance=(0.8, 1.0))
    """Cameras of the distillation."""
    distillation: DistillationConfig = DistillationConfig(
        noise_range=NoiseRange(low=Linear(0.98, 0.02, 0.8), high=Linear(0.98, 0.50, 0.8)),
        resolution=Piecewise((64, 256), (0.5,)),
        scenes=Piecewise((2, 1), (0.5,)),
        shading=ShadingConfig(begin=0.5),
        regularizers=Regularizers(orientation=Linear(10.0, 1000.0, 0.5), orientation_per="hits"),
    )
    """Schedules and regularisers of the distillation."""
    patches: PatchConfig | None = None
    """Render views coarsely with one sharp window, for large renders (USD)."""
    warm_start: WarmStart | None = None
    """Begin with a fit of the first views (nano only)."""
    keep_views: PhotometricConfig | None = None
    """Keep looking like the first views during the distillation (nano only)."""
    scene: VolumeConfig = imagedream_volume()
    """The radiance field."""
    fit: FitConfig = FitConfig(steps=10_000)
    """Optimisation of the radiance field."""
    geometry: Geometry | None = None
    """A surface of its own in place of the field's (USD's second stage)."""
    texture: Texture | None = None
    """Colours distilled onto the mesh (USD's third stage)."""
    mesh: MeshConfig = MeshConfig()
    """Extraction of the field's mesh."""

    def __post_init__(self) -> None:
        if not isinstance(self.guidance, ViewTextConfig) and not knows_views(self.prior):
            raise UserError(
                f"{self.prior} makes single images and cannot judge views together; take --guidance view-text, as "
                "--preset dreamfusion does"
            )
        if self.first_views is not None and not knows_views(self.prior):
            raise UserError(f"{self.prior} makes single images, so it has no first views; pass --first-views none")


def mvdream() -> Config:
    """MVDream's released configuration."""
    return Config()


def dreamfusion(prior: str = "sd") -> Config:
    """DreamFusion's numbers (sections 3 and appendix A) with Stable Diffusion as the prior."""
    return Config(
        prior=prior,
        negative="",
        first_views=None,
        # The paper counts omega from (1 + omega) eps_text - omega eps_null; t is uniform in [0.02, 0.98] throughout.
        guidance=ViewTextConfig(omega=from_dreamfusion(100.0), lambda_=1.0, front=45.0),
        cameras=OrbitSampler(elevation=(-10.0, 90.0), fovy=(40.6, 71.1), distance=(1.0, 1.5), num_views=1),
        distillation=DistillationConfig(
            noise_range=NoiseRange(Constant(0.02), Constant(0.98)),
            resolution=Constant(64),
            # One view on each of the paper's four devices.
            scenes=Constant(4),
            shading=ShadingConfig(begin=1000 / 15_000, soft=False),
            # Differs from paper: its weights belong to Imagen's pixels. These are of public code for latents, where the
            # distillation is a sum.
            regularizers=Regularizers(
                orientation=Linear(10.0, 1000.0, 1 / 3), sparsity=Constant(1.0), orientation_per="hits"
            ),
        ),
        fit=FitConfig(steps=15_000),
    )


def unbiased(prior: str = "sd") -> Config:
    """USD's text-to-3D: lambda = 0, omega = 7.5, views of 512 px rendered in patches; its surface; its texture."""
    views = DistillationConfig(
        noise_range=NoiseRange(Constant(0.02), Linear(0.98, 0.5, 5001 / 25_000, 5000 / 25_000)),
        resolution=Constant(512),
        scenes=Constant(1),
        shading=ShadingConfig(begin=1.0),
        regularizers=Regularizers(sparsity=Constant(10.0), opaque=Piecewise((0.0, 1000.0), (10_000 / 25_000,))),
    )
    return Config(
        prior=prior,
        negative="",
        first_views=None,
        guidance=ViewTextConfig(omega=7.5, lambda_=0.0, front=30.0),
        cameras=OrbitSampler(elevation=(-10.0, 45.0), fovy=(40.0, 70.0), distance=(1.0, 1.5), num_views=1),
        distillation=views,
        patches=PatchConfig(),
        fit=FitConfig(steps=25_000),
        geometry=Geometry(),
        texture=Texture(replace(views, noise_range=NOISE, regularizers=Regularizers()), samples=1),
        mesh=MeshConfig(threshold=25.0),
    )


def nano(quality: Literal["draft", "default", "high"] = "default") -> Config:
    """The embedded prior on a CPU; `quality` decides how long. The numbers are those of `imagedream.nano`."""
    image = imagedream.nano(quality)
    assert image.warm_start is not None and image.keep_views is not None
    return Config(
        prior="nano",
        negative="",
        first_views=FirstViews(
            replace(image.sampling, guidance_scale=3.0),
            # Left to itself the prior paints strong colours that bleed into the object.
            frames=((1.0, 1.0, 1.0), (0.0, 0.0, 0.0)),
            suffix="",
            elevation=5.0,
        ),
        guidance=replace(image.guidance, guidance_scale=3.0),
        cameras=image.cameras,
        distillation=image.distillation,
        warm_start=WarmStart(image.warm_start.fit, image.warm_start.photometric),
        keep_views=image.keep_views,
        scene=image.scene,
        fit=image.fit,
        mesh=image.mesh,
    )


def nano_unbiased(quality: Literal["draft", "default", "high"] = "default") -> Config:
    """USD's three stages with the embedded prior: all views at once, and its own null with lambda = 0.

    Its normals are not sculpted: the embedded prior never saw a picture of normals.
    """
    start = nano(quality)
    steps = {"draft": 40, "default": 100, "high": 300}[quality]
    return replace(
        start,
        guidance=UnbiasedConfig(omega=3.0, null="own"),
        geometry=Geometry(
            Renderings(count=10 if quality == "draft" else 18, size=96, hardening=2.0),
            usd.nano_recovery(quality),
            sculpting=None,
        ),
        texture=Texture(start.distillation, fit=replace(start.fit, steps=steps)),
    )


def configure(preset: str, quality: str, prior: str | None = None) -> Config:
    """The config that a command line starts from: `preset` is nano, paper (that of the prior), dreamfusion or usd."""
    if preset == "nano":
        return nano(checked(quality))
    if preset == "dreamfusion" or (preset == "paper" and prior is not None and not knows_views(prior)):
        return dreamfusion(prior or "sd")
    if preset == "usd" and prior == "nano":
        return nano_unbiased(checked(quality))
    if preset == "usd":
        return unbiased(prior or "sd")
    return mvdream() if prior is None else replace(mvdream(), prior=prior)


def checked(quality: str) -> Literal["draft", "default", "high"]:
    """A quality, if it is one; UserError otherwise."""
    if quality not in ("draft", "default", "high"):
        raise UserError(f"quality is draft, default or high, got {quality!r}")
    return quality  # type: ignore[return-value]


def knows_views(prior: str) -> bool:
    """Whether a prior of that name makes several views at once; names that are not published are of nano packages."""
    return ALIASES.get(prior, prior) not in STABLE_DIFFUSION_MODELS


def text_to_3d(prompt: Prompt, config: Config, run: Run) -> Asset:
    """The textured asset of a sentence. Stages are kept in the run's folder and reused."""
    if not prompt.caption.strip():
        raise UserError("text-to-3D needs words: say what the object is")
    if config.first_views is None and (config.warm_start is not None or config.keep_views is not None):
        raise UserError("warm_start and keep_views need first_views; switch them off together")
    prompt = Prompt(None, caption=prompt.caption, negative=config.negative)
    prior = load_free_prior(config.prior, config.weights, run.device)
    run.record_prior(prior.card())
    run.cite(MVDREAM if isinstance(config.guidance, ReconConfig) else DREAMFUSION)
    if config.geometry or config.texture or isinstance(config.guidance, UnbiasedConfig):
        run.cite(usd.CITATION)

    # The prior's idea of the words; MVDream's authors advise to look at it before hours of distillation.
    views: Views | None = None
    if (first := config.first_views) is not None:
        size = prior.codec.image_size
        ring = orbit(4, elevation=first.elevation, fovy=first.fovy, height=size, width=size)
        spoken = replace(prompt, caption=prompt.caption + first.suffix)
        views = run.stage("views", sample_from_words, prior, spoken, ring, first.sampling, first.frames)

    scene = VolumeScene(config.scene, seed=run.seed)
    if config.warm_start and views is not None:
        target = Photometric(views, config.warm_start.photometric, name="views")
        scene = run.stage("warm_start", fit, scene, [target], config.warm_start.fit)

    # Score distillation: MVDream's Eq. 7 with rescaled contrast, DreamFusion's Eq. 3 with a view in words, or USD's.
    guidance = guidance_of(prior, prompt, config.guidance)
    objectives: list[Distillation | Photometric] = [Distillation(guidance, config.cameras, config.distillation)]
    if config.keep_views and views is not None:
        objectives.append(Photometric(views, config.keep_views, name="views"))
    if config.patches is not None:
        scene = run.stage("radiance_field", fit, PatchScene(scene, config.patches), objectives, config.fit).scene
    else:
        scene = run.stage("radiance_field", fit, scene, objectives, config.fit)

    # USD's second and third stage: a surface of its own, and colours that are distilled onto it.
    if config.geometry is None:
        mesh: Mesh = run.stage("mesh", make_mesh, scene, config.mesh, None, None)
    else:
        mesh = shape(prior, prompt, scene, views, config, config.geometry, run)
    if (texture := config.texture) is not None:
        wanted = [Distillation(guidance, config.cameras, texture.distillation)]
        painted = PaintedScene.over(mesh, scene, texture.samples)
        if config.patches is not None:
            painted = run.stage("texture", fit, PatchScene(painted, config.patches), wanted, texture.fit).scene
        else:
            painted = run.stage("texture", fit, painted, wanted, texture.fit)
        mesh = run.stage("painted", paint_mesh, painted)
    return Asset(mesh, views=views, provenance=run.provenance())


def guidance_of(
    prior: Prior, prompt: Prompt, config: ReconConfig | ViewTextConfig | UnbiasedConfig
) -> ReconGuidance | ViewTextGuidance | UnbiasedGuidance:
    """The guidance that a config describes; the free prior of the unbiased one is the prior's own 2D half."""
    if isinstance(config, ReconConfig):
        return ReconGuidance(prior, prompt, config)
    if isinstance(config, ViewTextConfig):
        return ViewTextGuidance(prior, prompt, config)
    return UnbiasedGuidance(prior, prior, prompt, config)


def shape(
    prior: Prior, prompt: Prompt, scene: VolumeScene, views: Views | None, config: Config, geometry: Geometry,
    run: Run,
) -> Mesh:  # fmt: skip
    """The mesh of a surface that is fitted to pictures of the field, and then sculpted by its normals."""
    around = orbit(4, elevation=15.0, fovy=40.0, height=64, width=64) if views is None else views.cameras
    rendered: Views = run.stage("renderings", render_around, scene, around, geometry.renderings)
    recovery, sculpting = geometry.recovery, geometry.sculpting
    target = Photometric(rendered, recovery.photometric, name="renderings")
    surface = run.stage("geometry", fit, SurfaceScene(recovery.scene, run.seed), [target], recovery.fit)
    if sculpting is not None:
        guidance = ViewTextGuidance(prior, prompt, sculpting.guidance)
        judge = NormalDistillation(Distillation(guidance, config.cameras, sculpting.distillation))
        surface = run.stage("sculpting", fit, surface.unfolded(), [judge], sculpting.fit)
    mesh: Mesh = run.stage("mesh", make_mesh, surface, recovery.mesh, None, None)
    return mesh
