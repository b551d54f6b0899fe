"""DreamBooth3D: subject-driven text-to-3D generation (Raj et al., arXiv:2303.13508).

A few casual photos of a subject and a sentence about it become the subject in 3D. A text-to-image prior that has half
learned the subject makes a first radiance field (stage 1); the one that has learned it fully turns renderings of that
field into pictures of the subject (stage 2); from these, a third model learns all sides, and makes the final field,
which also resembles the pictures, weakly (stage 3). `paper()` holds the numbers of the paper, where it gives them, and
else those that the method's specification recommends for Stable Diffusion. `nano()` is the same method, shorter.

What the paper compares with is one setting each: `variant` one-stage is DreamBooth+Fusion, latent-nerf a field of
latents under a full DreamBooth. So is what can be left out: `pseudo_views` none is the method without stage 2,
`reconstruction` none that without the weak reconstruction. `final_scene` surface makes the last field a NeuS surface.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from maquette.asset import Asset, Mesh
from maquette.cameras import OrbitSampler, fit_distance
from maquette.errors import UserError
from maquette.evaluation.published import ClipEncoder
from maquette.fields.background import FlatBackgroundConfig
from maquette.guidance.base import Guidance, NoiseRange
from maquette.guidance.recon import ReconConfig, ReconGuidance
from maquette.guidance.score import from_dreamfusion
from maquette.guidance.view_noise_free import NoiseFreeConfig, NoiseFreeGuidance
from maquette.guidance.view_perp_neg import PerpNegConfig, PerpNegGuidance
from maquette.guidance.view_text import ViewTextConfig, ViewTextGuidance
from maquette.images import Prompt
from maquette.meshing.pipeline import MeshConfig
from maquette.priors.adapters import Full
from maquette.priors.base import AdaptablePrior
from maquette.priors.hub import load_free_prior
from maquette.priors.multiview import MultiViewPrior
from maquette.rendering.latent import LatentConfig, LatentScene
from maquette.rendering.presets import imagedream_volume
from maquette.rendering.scene import VolumeConfig, VolumeScene
from maquette.rendering.surface import SurfaceConfig, SurfaceScene
from maquette.run import Run
from maquette.schedules import Constant, Linear, Piecewise
from maquette.stages.balance import Balance
from maquette.stages.choose import ChooseConfig, choose_checkpoints
from maquette.stages.class_images import ClassImagesConfig, class_images
from maquette.stages.first_views import FirstViews, begin_with_views, require_photo
from maquette.stages.fit import FitConfig, fit
from maquette.stages.latent import LatentDistillation, decode_views
from maquette.stages.learned import (
    LearnedSubject,
    Photos,
    PhotosConfig,
    keep_learned,
    prepare_photos,
    sample_sides,
)
from maquette.stages.likeness import OwnEncoder, PictureEncoder
from maquette.stages.look import SamplingConfig
from maquette.stages.match import MatchConfig
from maquette.stages.objectives import (
    Distillation,
    DistillationConfig,
    Photometric,
    PhotometricConfig,
    ShadingConfig,
)
from maquette.stages.personalize import PersonalizeConfig, personalize
from maquette.stages.pseudo_views import PseudoViews, Refinement, make_pseudo_views, refine
from maquette.stages.regularizers import Regularizers
from maquette.stages.surface import make_mesh
from maquette.stages.translate import TranslateConfig, Translated
from maquette.stages.weak import WeakConfig, WeakReconstruction
from maquette.subjects import CaptionedImages, Subject
from maquette.wording import require_subject, view_captions

CITATION = (
    "Amit Raj, Srinivas Kaza, Ben Poole, Michael Niemeyer, Nataniel Ruiz, Ben Mildenhall, Shiran Zada, Kfir Aberman, "
    "Michael Rubinstein, Jonathan Barron, Yuanzhen Li and Varun Jampani. DreamBooth3D: Subject-Driven Text-to-3D "
    "Generation. ICCV 2023, arXiv:2303.13508."
)
DREAMBOOTH = (
    "Nataniel Ruiz, Yuanzhen Li, Varun Jampani, Yael Pritch, Michael Rubinstein and Kfir Aberman. DreamBooth: Fine "
    "Tuning Text-to-Image Diffusion Models for Subject-Driven Generation. CVPR 2023, arXiv:2208.12242."
)
DREAMFUSION = (
    "Ben Poole, Ajay Jain, Jonathan T. Barron and Ben Mildenhall. DreamFusion: Text-to-3D using 2D Diffusion. ICLR "
    "2023, arXiv:2209.14988."
)


GuidanceConfig = ViewTextConfig | NoiseFreeConfig | PerpNegConfig | ReconConfig


@dataclass(frozen=True)
class MultiviewConfig:
    """Stage 3a: the partial model goes on with pseudo views and photos."""

    personal: PersonalizeConfig = PersonalizeConfig(steps=150)
    """How it learns; its adapter is the partial model's, so none is chosen here."""
    captions: Literal["instance", "context", "context and view"] = "context and view"
    """What pseudo views are called: as the photos, the wish, or the wish with the word of their side. The photos keep
    the instance prompt, or the context would become a part of what [v] means."""
    real_fraction: float | None = None
    """How often a photo is drawn; without, every picture equally often."""


@dataclass(frozen=True)
class Config:
    """Everything that decides a result, apart from the photos, the words and the seed."""

    prior: str = "stable-diffusion-2.1-base"
    """Which prior of words: a Stable Diffusion, or the 2D half of "nano", which is inside the package."""
    weights: Path | None = None
    """File or folder of the prior's weights."""
    variant: Literal["full", "initial", "one-stage", "latent-nerf"] = "full"
    """The method; its stage 1 alone; DreamBooth+Fusion, one fit under the full model; a field of latents under it."""
    encoder: str = "none"
    """Who judges pictures on the way: own (the prior's encoders), none, or the folder of a CLIP model."""
    photos: PhotosConfig = PhotosConfig()
    """How photos are made into what the prior is shown."""
    class_pictures: ClassImagesConfig | None = ClassImagesConfig()
    """Pictures of the class that keep the prior from forgetting it; none: plain fine-tuning."""
    personal: PersonalizeConfig = PersonalizeConfig(keep=(150,), steps=800)
    """DreamBooth: the first state that is kept is the partial model, the last the full one."""
    choose: ChooseConfig | None = None
    """Choose partial and full model among the kept states by a test instead (needs an encoder)."""
    samples: int = 2
    """Pictures that both models paint for each view word, for the report; 0 leaves them out."""
    sampling: SamplingConfig = SamplingConfig(guidance_scale=7.5)
    """How they are drawn."""
    guidance: GuidanceConfig = ViewTextConfig(omega=from_dreamfusion(100.0), lambda_=1.0, front=45.0)
    """Score distillation with words for the sides (lambda 0 leaves the classifier score alone). Not in the paper:
    noise-free at an ordinary scale; perp-neg, also away from other sides; recon, where a multi-view prior, personalised
    by its 2D half, sees four cameras at once."""
    cameras: OrbitSampler = OrbitSampler()
    """Cameras of the distillation."""
    distillation: DistillationConfig = DistillationConfig()
    """Schedules, light and regularisers of the distillation."""
    first_views: FirstViews | None = None
    """Begin every field with views that its own model draws, of words or of a photo (nano only)."""
    scene: VolumeConfig = VolumeConfig()
    """The first radiance field."""
    initial_fit: FitConfig = FitConfig()
    """Stage 1."""
    pseudo_views: PseudoViews | None = PseudoViews()
    """Stage 2; none leaves it out: the partial model goes on with the photos alone, and nothing is reconstructed."""
    multiview: MultiviewConfig = MultiviewConfig()
    """Stage 3a."""
    reconstruction: WeakConfig | None = WeakConfig()
    """Stage 3b resembles the pseudo views; none is score distillation alone."""
    balance: Balance | None = Balance()
    """How weak that is; none: as `reconstruction.weight` says."""
    final_scene: VolumeConfig | SurfaceConfig = VolumeConfig()
    """The final field."""
    warm_start: bool = False
    """Begin the final field as a copy of the first: faster, and it inherits that one's faults."""
    fit: FitConfig = FitConfig()
    """Stage 3b."""
    refinement: Refinement | None = None
    """Stage 2 once more, of the final field and gently, and a fit of it at a higher resolution. Not in the paper."""
    mesh: MeshConfig = MeshConfig()
    """Extraction of the mesh."""

    def __post_init__(self) -> None:
        if self.warm_start and type(self.final_scene) is not type(self.scene):
            raise UserError("warm_start copies a radiance field; it cannot begin a surface, so leave it off")
        if self.multiview.personal.adapter not in (Full(), self.personal.adapter):
            raise UserError("multiview.personal.adapter is the partial model's, so leave it to personal.adapter")
        if self.choose is not None and self.encoder == "none":
            raise UserError("choosing the checkpoints needs an encoder: set encoder to own or to a folder of CLIP")
        if self.variant == "latent-nerf" and not isinstance(self.guidance, ViewTextConfig):
            raise UserError("latent-nerf is a baseline of words for sides; leave --guidance as it is, view-text")
        if self.samples < 0:
            raise UserError(f"samples counts pictures, so it is at least 0, got {self.samples}")


def dreambooth3d(subject: Subject | LearnedSubject, caption: str, config: Config, run: Run) -> Asset:
    """The subject in 3D as the caption says; a subject that another run learned is not learned again."""
    require_subject(caption)
    require_photo(
        config.first_views, subject.photos.pictures if isinstance(subject, LearnedSubject) else subject.photos
    )
    prior = load_free_prior(config.prior, config.weights, run.device)
    run.record_prior(prior.card())
    run.cite(CITATION, DREAMBOOTH, DREAMFUSION)
    encoder = picture_encoder(prior, config)

    learned = learn_subject(prior, subject, encoder, config, run)
    partial, full, photos = prior.adapted(learned.partial), prior.adapted(learned.full), learned.photos.pictures
    if config.samples:
        models = {"base": prior, "partial": partial, "full": full}
        run.stage("samples", sample_sides, models, learned.photos.prompt, config.samples,
                  config.sampling)  # fmt: skip

    if config.variant == "latent-nerf":
        return latent_nerf(full, caption, config, run)

    # Stage 1: DreamFusion with the partial model (section 4.1); with the full one it is the baseline.
    if config.variant == "one-stage":
        return finished(first_field(full, caption, photos, config, run), None, config, run)
    if config.variant == "initial":
        return finished(first_field(partial, caption, photos, config, run), None, config, run)
    initial = first_field(partial, caption, photos, config, run) if config.pseudo_views or config.warm_start else None

    before = (prior, learned.photos.class_prompt)
    # Stage 2: views of it, noised in part and denoised by the full model, each for itself (section 4.2).
    pseudo = None
    if config.pseudo_views is not None:
        assert initial is not None, "stage 2 needs stage 1"
        _, pseudo = make_pseudo_views(initial, full, caption, photos, encoder, config.pseudo_views, run, base=before)

    # Stage 3a: the partial model goes on with pseudo views and photos (section 4.3).
    multiview = learn_sides(prior, learned, pseudo, caption, config, run)

    # Stage 3b: a second field, by score distillation and a weak reconstruction of the pseudo views (equation 4).
    kept: list[Photometric] = []
    if initial is not None and config.warm_start:
        scene: VolumeScene | SurfaceScene = initial
    else:
        blank = new_scene(config, run)
        scene, kept = begin_with_views(blank, multiview, caption, photos, config.first_views, "final", run)
    objectives: list[Distillation | Photometric | WeakReconstruction] = [distil(multiview, caption, config), *kept]
    balance = None
    if pseudo is not None and config.reconstruction is not None:
        objectives.append(WeakReconstruction.of(pseudo, config.reconstruction))
        balance = config.balance
    final = run.stage("final_field", fit, scene, objectives, config.fit, balance)

    # Not in the paper: stage 2 once more, of the final field, whose colours then follow.
    again = config.pseudo_views or PseudoViews()
    final = refine(final, multiview, caption, photos, encoder, config.refinement, again, config.fit, run,
                   base=before)  # fmt: skip
    return finished(final, pseudo, config, run)


def picture_encoder(prior: AdaptablePrior, config: Config) -> PictureEncoder | None:
    """Who judges pictures on the way."""
    if config.encoder == "none":
        return None
    if config.encoder != "own":
        if not Path(config.encoder).is_dir():
            raise UserError(f"encoder is own, none, or the folder of a CLIP model; there is no folder {config.encoder}")
        return ClipEncoder(Path(config.encoder), device=str(prior.device))
    if not isinstance(prior, MultiViewPrior):
        raise UserError(f"{config.prior} has no encoders of its own to judge pictures; set encoder to a folder of CLIP")
    return OwnEncoder(prior)


def learn_subject(
    prior: AdaptablePrior,
    subject: Subject | LearnedSubject,
    encoder: PictureEncoder | None,
    config: Config,
    run: Run,
) -> LearnedSubject:
    """DreamBooth, once for all captions: the partial and the full model of a subject, which this run keeps, too."""
    if isinstance(subject, LearnedSubject):
        parts = (subject.photos, subject.partial, subject.full, subject.class_pictures)
        return run.stage("subject", keep_learned, *parts)
    photos: Photos = run.stage("photos", prepare_photos, subject, config.photos, prior.codec.image_size, encoder)
    others = None
    if config.class_pictures is not None:
        others = run.stage("class_pictures", class_images, prior, [photos.class_prompt], config.class_pictures)
    states = run.stage("dreambooth", personalize, prior, photos.pictures, others, config.personal)
    first, last = min(states), max(states)
    if config.choose is not None:
        assert encoder is not None, "the config says so"
        chosen = run.stage("choice", choose_checkpoints, prior, states, photos.subject, encoder, config.choose)
        first, last = chosen.partial, chosen.full
    return run.stage("subject", keep_learned, photos, states[first], states[last], others)


def distil(model: AdaptablePrior, caption: str, config: Config) -> Distillation:
    """DreamFusion's objective under a model that knows the subject: the wish, with the word of each view's side."""
    prompt = Prompt(None, caption)
    return Distillation(new_guidance(model, prompt, config.guidance), config.cameras, config.distillation)


def new_guidance(model: AdaptablePrior, prompt: Prompt, config: GuidanceConfig) -> Guidance:
    """The estimator that a config belongs to."""
    if isinstance(config, ReconConfig):
        return ReconGuidance(model, prompt, config)
    if isinstance(config, NoiseFreeConfig):
        return NoiseFreeGuidance(model, prompt, config)
    if isinstance(config, PerpNegConfig):
        return PerpNegGuidance(model, prompt, config)
    return ViewTextGuidance(model, prompt, config)


def first_field(
    teacher: AdaptablePrior, caption: str, photos: CaptionedImages, config: Config, run: Run
) -> VolumeScene:
    """A field by plain score distillation."""
    scene = VolumeScene(config.scene, seed=run.seed)
    scene, kept = begin_with_views(scene, teacher, caption, photos, config.first_views, "initial", run)
    return run.stage("initial_field", fit, scene, [distil(teacher, caption, config), *kept], config.initial_fit)


def learn_sides(
    prior: AdaptablePrior,
    learned: LearnedSubject,
    pseudo: Translated | None,
    caption: str,
    config: Config,
    run: Run,
) -> AdaptablePrior:
    """The multi-view model: the partial one, shown pseudo views and photos (photos alone without stage 2)."""
    pictures = learned.photos.pictures
    if pseudo is not None:
        # Where photos are cut out, pseudo views are too, so that one half does not bring a background along.
        views = pseudo.views if pictures.masks is None else pseudo.cut_out()
        captions = {
            "instance": (learned.photos.prompt,) * len(views),
            "context": (caption,) * len(views),
            "context and view": view_captions(caption, views.cameras),
        }[config.multiview.captions]
        imagined = CaptionedImages.from_views(views, captions)
        if pictures.masks is None:
            imagined = CaptionedImages(imagined.pixels, imagined.captions)
        pictures = pictures.joined(imagined, share=config.multiview.real_fraction)
    settings = replace(config.multiview.personal, adapter=config.personal.adapter)
    states = run.stage("multiview_model", personalize, prior, pictures, learned.class_pictures, settings,
                       learned.partial)  # fmt: skip
    return prior.adapted(states[settings.steps])


def new_scene(config: Config, run: Run) -> VolumeScene | SurfaceScene:
    """The second field, with parameters of its own."""
    if isinstance(config.final_scene, SurfaceConfig):
        return SurfaceScene(config.final_scene, seed=run.seed + 1)
    return VolumeScene(config.final_scene, seed=run.seed + 1)


def finished(scene: VolumeScene | SurfaceScene, pseudo: Translated | None, config: Config, run: Run) -> Asset:
    """The textured mesh of a field."""
    mesh: Mesh = run.stage("mesh", make_mesh, scene, config.mesh, None, None)
    return Asset(mesh, views=None if pseudo is None else pseudo.cut_out(), provenance=run.provenance())


# The baseline of latents


def latent_nerf(full: AdaptablePrior, caption: str, config: Config, run: Run) -> Asset:
    """Latent-NeRF under the full model: a field of latents, whose decoded views then colour its density.

    Differs from paper: the authors refine in colours through a linear map of the latents, of which there is one for
    Stable Diffusion only.
    """
    assert isinstance(config.guidance, ViewTextConfig), "the config says so"
    start = LatentScene(LatentConfig(config.scene, full.codec.latent_shape[0]), seed=run.seed)
    guidance = ViewTextGuidance(full, Prompt(None, caption), config.guidance)
    settings = replace(config.distillation, regularizers=Regularizers(sparsity=Constant(5e-4)))
    objective = LatentDistillation(guidance, config.cameras, settings)
    field = run.stage("latent_field", fit, start, [objective], config.initial_fit)
    views = (config.pseudo_views or PseudoViews()).cameras()
    decoded = run.stage("decoded_views", decode_views, field, full, views)
    colours = Photometric(decoded, PhotometricConfig(mask=Constant(0.5)), name="decoded_views")
    coloured = run.stage("coloured_field", fit, field.volume, [colours], config.fit)
    return finished(coloured, None, config, run)


# Presets


def paper() -> Config:
    """The paper's numbers where it gives them, for Stable Diffusion the recommended ones elsewhere."""
    cameras = OrbitSampler(elevation=(-10.0, 45.0), fovy=(40.0, 70.0), distance=(1.5, 2.0), num_views=4)
    distillation = DistillationConfig(
        noise_range=NoiseRange(low=Constant(0.02), high=Constant(0.98)),
        resolution=Piecewise((64, 128), (0.5,)),
        scenes=Constant(1),
        random_background=0.5,
        shading=ShadingConfig(begin=0.2, soft=False),
        # Orientation and opacity in the normalisation of the sum over latents, as public code of this family has them.
        regularizers=Regularizers(
            orientation=Linear(10.0, 1000.0, 0.5), sparsity=Constant(1.0), orientation_per="hits"
        ),
    )
    scene = replace(imagedream_volume(), levels=Linear(0.5, 1.0, 0.6, begin=0.2))
    steps = FitConfig(steps=10_000, encoding_rate=0.01, network_rate=0.01, background_rate=0.001)
    # All weights and AdamW's moments are ten gigabytes: written every half minute, they would cost more than the steps.
    return Config(
        personal=PersonalizeConfig(keep=(150,), steps=800, checkpoint_seconds=300.0),
        multiview=MultiviewConfig(PersonalizeConfig(steps=150, checkpoint_seconds=300.0)),
        cameras=cameras,
        distillation=distillation,
        scene=scene,
        final_scene=scene,
        initial_fit=steps,
        fit=steps,
        pseudo_views=PseudoViews(translate=TranslateConfig(matting="auto")),
    )


def nano(quality: Literal["draft", "default", "high"] = "default") -> Config:
    """The 2D half of the embedded prior on a CPU; `quality` decides how long."""
    steps = {"draft": 120, "default": 600, "high": 1800}[quality]
    learning_steps = {"draft": 80, "default": 150, "high": 300}[quality]
    distance = fit_distance(40.0)
    # A young network overshoots under strong guidance: the armchair of the example went from orange to dark red between
    # scales 2 and 10, in samples and in fields alike.
    # What such a network gets wrong depends on the noise, and means over noises leave it out: drawn ancestrally, the
    # example's armchair is a mosaic of its colours, on average a box of them.
    quick = SamplingConfig(sampler="averaged", steps=5, draws=4, guidance_scale=2.0, spacing="exact", clip=True)
    learning = PersonalizeConfig(
        adapter=Full(), steps=learning_steps, keep=(learning_steps // 2,), batch=4, learning_rate=5e-4
    )
    scene = VolumeConfig(background=FlatBackgroundConfig(), samples=Constant(96))
    # Gently: what the first views settled, a noisy guidance would carve up again.
    fitting = FitConfig(
        steps=steps, encoding_rate=0.03, network_rate=0.003, rate=Linear(0.3, 0.03), total_variation=Constant(2.0)
    )
    white = replace(quick, frame=(1.0, 1.0, 1.0))
    seen = PhotometricConfig(mask=Constant(0.5), between=True)
    return Config(
        prior="nano",
        encoder="own",
        photos=PhotosConfig(cut_out="auto", margin=0.15, prompt="a [v] {noun}"),
        class_pictures=ClassImagesConfig(count=8, sampling=white, batch=8),
        personal=learning,
        sampling=white,
        first_views=FirstViews(
            # As in ImageDream's nano (docs/results.md, "Averaging over noises").
            sampling=replace(quick, steps=2, draws=16, guidance_scale=1.7),
            photo=0,
            control="local+pixel",
            # The outline is held; the colours are let go, since the caption may ask for others.
            match=MatchConfig(),
            photometric=seen,
            keep=replace(seen, rgb=Linear(1.0, 0.1)),
            frames=((1.0, 1.0, 1.0), (0.0, 0.0, 0.0)),
            fit=replace(fitting, steps=100 if quality == "draft" else 200, rate=Linear(1.0, 0.1)),
        ),
        guidance=ViewTextConfig(omega=1.5, lambda_=1.0, front=45.0),
        cameras=OrbitSampler(elevation=(-5.0, 40.0), fovy=(40.0, 40.0), distance=(distance, distance), num_views=4),
        distillation=DistillationConfig(
            noise_range=NoiseRange(low=Linear(0.3, 0.1, 0.8), high=Linear(0.6, 0.3, 0.8)),
            resolution=Constant(32),
            scenes=Constant(1),
            weight=Constant(3e-4),
            random_background=0.0,
            shading=ShadingConfig(begin=1.0),
            regularizers=Regularizers(sparsity=Constant(3.0), opaque=Linear(0.0, 10.0)),
        ),
        scene=scene,
        final_scene=scene,
        initial_fit=fitting,
        fit=fitting,
        pseudo_views=PseudoViews(
            elevations=(5.0, 15.0, 30.0), fovy=40.0, distance=distance, size=64,
            # The small encoder tells neither likeness nor sides well enough to refuse by it; it only takes the better.
            # What such a network does to any picture, grain on the white and lost edges, cancels in the residual.
            translate=TranslateConfig(strength=0.5, sampling=quick, candidates=2, retries=1, min_mask_iou=0.4,
                                      keep_likeness=False, refuse_fronts=False, residual=True),
        ),
        multiview=MultiviewConfig(personal=replace(learning, steps=learning_steps // 2, keep=())),
        reconstruction=WeakConfig(resolution=Constant(32), count=2),
        balance=Balance(every=10),
        mesh=MeshConfig(resolution=96 if quality == "draft" else 128, blur=0.025),
    )  # fmt: skip


def configure(preset: str, quality: str) -> Config:
    """The config that a command line starts from."""
    if preset == "paper":
        return paper()
    if quality not in ("draft", "default", "high"):
        raise UserError(f"quality is draft, default or high, got {quality!r}")
    return nano(quality)  # type: ignore[arg-type]
