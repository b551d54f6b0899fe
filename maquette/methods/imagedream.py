"""ImageDream: image-prompt multi-view diffusion for 3D generation (Wang and Shi, arXiv:2312.02201).

One picture and a caption become four canonical views by multi-view diffusion with an image prompt (sections 3.1 to
3.3), and a radiance field by image-prompt score distillation (section 3.4); a textured mesh is made of it. `paper()`
holds the numbers of the paper and of its released configuration. `nano()` adds things that the paper does not have,
because its prior is small: the field starts from a fit of the sampled views (`warm_start`), these are painted onto the
surface (`paint_views`), the field keeps the prompt's own view, whose pixels are painted over the others
(`prompt_view`), and the views that are handed out share outlines (`outlines`). Each is a field of the config, switched
off in the paper's preset; `report/additions.py` has the whole list.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from maquette.asset import Asset, Mesh
from maquette.cameras import Cameras, OrbitSampler, fit_distance, orbit
from maquette.errors import UserError
from maquette.fields.encodings import TriPlanesConfig
from maquette.fields.radiance import RadianceConfig
from maquette.guidance.base import NoiseRange
from maquette.guidance.recon import ReconConfig, ReconGuidance
from maquette.images import Prompt, Views
from maquette.meshing.pipeline import MeshConfig
from maquette.meshing.project import ProjectionConfig
from maquette.priors.base import Prior
from maquette.priors.hub import load_prior
from maquette.priors.multiview import ImageWeight, MultiViewPrior, parse_control
from maquette.rendering.presets import imagedream_volume
from maquette.rendering.scene import VolumeConfig, VolumeScene
from maquette.run import Run
from maquette.schedules import Constant, Linear
from maquette.stages.fit import FitConfig, fit
from maquette.stages.locate import LocateConfig, Located, locate_prompt
from maquette.stages.look import SamplingConfig, key_colour, sample_views
from maquette.stages.match import MatchConfig, match_prompt, other_views
from maquette.stages.objectives import (
    Distillation,
    DistillationConfig,
    Photometric,
    PhotometricConfig,
    RandomRays,
    ShadingConfig,
)
from maquette.stages.outlines import OutlineConfig, agreed_outlines
from maquette.stages.regularizers import Regularizers
from maquette.stages.surface import make_mesh
from maquette.wording import DEMO_NEGATIVE, NEGATIVE, SUFFIX, Additional

CITATION = (
    "Peng Wang and Yichun Shi. ImageDream: Image-Prompt Multi-view Diffusion for 3D Generation. arXiv:2312.02201, 2023."
)


@dataclass(frozen=True)
class WarmStart:
    """A first field, fitted to sampled views. Not in the paper."""

    rings: int = 2
    """Sets of four views that are sampled, turned against each other; 2 gives a view every 45 degrees."""
    fit: FitConfig = FitConfig(steps=250, rate=Linear(1.0, 0.1))
    photometric: PhotometricConfig = PhotometricConfig(mask=Constant(0.5))

    def __post_init__(self) -> None:
        if self.rings < 1:
            raise UserError(f"a warm start needs at least one ring of views, got rings={self.rings}")


@dataclass(frozen=True)
class PromptView:
    """What is done with the prompt's own camera, once it is estimated. Not in the paper."""

    match: MatchConfig | None = MatchConfig()
    """The camera of a sampled view that is the prompt, and the prompt in its place from the first fit on; None only
    searches."""
    locate: LocateConfig = LocateConfig()
    """How the camera is searched where no view is the prompt, or its elevation is given."""
    photometric: PhotometricConfig = PhotometricConfig(mask=Constant(0.5))
    """The field looks like the prompt from there."""
    projection: ProjectionConfig = ProjectionConfig()
    """The prompt's pixels are painted onto the mesh from there."""
    outline: bool = True
    """The mesh is held to the prompt's outline (`meshing/outline.py`)."""
    cover: Literal["none", "told", "found"] = "told"
    """Widen the distillation's elevations to hold the prompt's own, if its camera is reliable: never, where it was told
    (`--elevation`), or where it was found, too. What is found was 18 to 20 degrees off (docs/results.md)."""
    cover_limits: tuple[float, float] = (-10.0, 40.0)
    """Degrees beyond which they are not widened: the prior must have seen objects from there. Nano's range."""

    def __post_init__(self) -> None:
        low, high = self.cover_limits
        if not -90 <= low <= high <= 90:
            raise UserError(f"prompt_view.cover_limits is a range (low, high) within -90 and 90, got {low}, {high}")


@dataclass(frozen=True)
class Config:
    """Everything that decides a result, apart from the picture, the words and the seed."""

    prior: str = "imagedream"
    """Which prior: "nano" is inside the package, others come with --weights."""
    weights: Path | None = None
    """File or folder of the prior's weights."""
    control: str = "local+pixel"
    """Image controllers in use, joined by '+': global, local, pixel; or 'none'."""
    image_weight: ImageWeight = ImageWeight()
    """Strength of each controller."""
    view_elevation: float = 5.0
    """Elevation of the canonical views, degrees."""
    fovy: float = 40.0
    """Vertical field of view of the canonical views, degrees; the prior does not know it, the fit must assume one."""
    background: Literal["key", "white", "grey"] = "key"
    """Behind the sampled views: the colour that differs most from the object, or a fixed one."""
    sampling: SamplingConfig = SamplingConfig()
    """Diffusion sampling of the canonical views."""
    view_words: Additional = Additional(DEMO_NEGATIVE, SUFFIX)
    """Words for the canonical views, beside the prompt's own; the defaults are those of the released demo."""
    outlines: OutlineConfig | None = None
    """Cut off what one of two opposite views alone covers, in the views that are handed out; the field is fitted to
    them as they were drawn (nano only)."""
    guidance: ReconConfig = ReconConfig()
    """Image-prompt score distillation."""
    words: Additional = Additional(NEGATIVE)
    """Words for the distillation, beside the prompt's own; the default is that of the released configuration."""
    cameras: OrbitSampler = OrbitSampler()
    """Cameras of the distillation ("camera alignment")."""
    distillation: DistillationConfig = DistillationConfig()
    """Schedules and regularisers of the distillation."""
    warm_start: WarmStart | None = None
    """Begin with a fit of sampled views (nano only)."""
    keep_views: PhotometricConfig | None = None
    """Keep looking like the sampled views during the distillation (nano only)."""
    paint_views: ProjectionConfig | None = None
    """Paint the sampled views onto the mesh (nano only)."""
    prompt_view: PromptView | None = None
    """Use the prompt's own camera (nano only)."""
    scene: VolumeConfig = VolumeConfig()
    """The radiance field."""
    fit: FitConfig = FitConfig()
    """Optimisation of the radiance field."""
    mesh: MeshConfig = MeshConfig()
    """Extraction of the mesh."""

    def __post_init__(self) -> None:
        parse_control(self.control)
        if not -90 <= self.view_elevation <= 90:
            raise UserError(f"view_elevation is from -90 to 90 degrees, got {self.view_elevation}")
        if not 0 < self.fovy < 180:
            raise UserError(f"fovy is between 0 and 180 degrees, got {self.fovy}")


def paper() -> Config:
    """The paper's and the released configuration's numbers (reference: sections 3 and 4 of the paper,
    `imagedream-sd21`)."""
    return Config(scene=imagedream_volume())


def nano(quality: Literal["draft", "default", "high"] = "default") -> Config:
    """The embedded prior on a CPU; `quality` decides how long."""
    steps = {"draft": 60, "default": 150, "high": 600}[quality]
    distance = fit_distance(40.0)
    # Three times the released learning rates: a CPU has hundreds of steps, not thousands (29.4 against 25.5 dB on
    # unseen views after 250 steps on eight views of a horse).
    # The views of a small prior disagree; total variation keeps the planes from carving that into ridges (0.4 dB less
    # on the sampled views, and a surface instead of gravel).
    rates = FitConfig(encoding_rate=0.03, network_rate=0.003, total_variation=Constant(3.0))
    # Between pixel centres too: they are 0.06 apart, and finer planes grew combs between them.
    seen = PhotometricConfig(mask=Constant(0.5), between=True)
    return Config(
        prior="nano",
        # Without the global controller: with it, silhouettes of sampled views overlap by .576 instead of .589 (24 val
        # objects), at 18.9 instead of 19.6 dB.
        control="local+pixel",
        sampling=SamplingConfig(
            # A young network's errors depend on the noise, and averages over noises leave them out (docs/results.md,
            # "Averaging over noises"). Many noises and few steps: each step blurs what the one before had settled.
            sampler="averaged",
            steps=2,
            draws=16,
            guidance_scale=1.7,
            spacing="exact",
            clip=True,
        ),
        # Words that nano was not taught.
        view_words=Additional(),
        words=Additional(),
        # 0.36 dB more on 24 val objects, as pictures; objects from fields fitted to views so cut had 0.9 dB less (three
        # others, 13.3 against 14.1).
        outlines=OutlineConfig(),
        guidance=ReconConfig(guidance_scale=2.0, rescale=0.2),
        cameras=OrbitSampler(elevation=(-5.0, 30.0), fovy=(40.0, 40.0), distance=(distance, distance)),
        distillation=DistillationConfig(
            noise_range=NoiseRange(low=Linear(0.3, 0.02, 0.8), high=Linear(0.6, 0.25, 0.8)),
            resolution=Constant(64),
            scenes=Constant(1),
            weight=Constant(1e-4),
            random_background=1.0,
            shading=ShadingConfig(begin=1.0),
            regularizers=Regularizers(sparsity=Constant(0.0)),
        ),
        # One ring: with a second one between the canonical four, boxes came out round (volume IoU .31 against .33 on
        # the twelve objects on which this was chosen, docs/results.md).
        warm_start=WarmStart(
            rings=1,
            fit=replace(rates, steps=200 if quality == "draft" else 300, rate=Linear(1.0, 0.1)),
            photometric=seen,
        ),
        keep_views=replace(seen, pixels=RandomRays(1024), weight=Constant(1.0)),
        # By eye: where four views leave the field free, its colours are the planes' own, in plaids.
        # Their pixels are large, and half of one is as far as they fade towards an outline.
        paint_views=ProjectionConfig(grazing=85.0, feather=0.5),
        prompt_view=PromptView(photometric=seen),
        # Its objects fit into a ball of 0.75; beyond, cameras see little, and matter hides behind the object. Coarser
        # planes than the default's, by eye: smoother where no view of 32 px says anything.
        scene=VolumeConfig(
            field=RadianceConfig(TriPlanesConfig(resolutions=(48, 96)), radius=0.8), samples=Constant(96)
        ),
        # Gently: what the warm start settled, disagreeing views and a noisy guidance would carve up again; the longer,
        # the more, up to a crown of spikes on the demo's armchair.
        fit=replace(
            rates, steps=steps, rate=Linear(0.15, 0.02), total_variation=Constant(6.0 if quality == "draft" else 12.0)
        ),
        # By eye; a pixel of the prior's views is 0.06 wide. What is thinner the prompt's outline brings back. No view
        # looks from above.
        mesh=MeshConfig(resolution=128, blur=0.015, fill_pits=True, smoothing=20),
    )


def configure(preset: str, quality: str) -> Config:
    """The config that a command line starts from."""
    if preset == "paper":
        return paper()
    if quality not in ("draft", "default", "high"):
        raise UserError(f"quality is draft, default or high, got {quality!r}")
    return nano(quality)  # type: ignore[arg-type]


def imagedream(prompt: Prompt, config: Config, run: Run) -> Asset:
    """The textured asset of one picture. Stages are kept in the run's folder and reused."""
    if prompt.image is None:
        raise UserError("ImageDream needs a picture; for words alone use a text-to-3D method")
    prior = prior_of(config, run)
    if prior.num_views not in (None, config.cameras.num_views):
        wanted = config.cameras.num_views
        raise UserError(f"{config.prior} judges {prior.num_views} views at once, and cameras.num_views is {wanted}")
    run.cite(CITATION)

    views = canonical_views(prior, prompt, config, run)
    located = match(views, prompt, config, run)
    scene = first_scene(views, located, config, run)
    located = located or locate(scene, prompt, config, run)
    others = other_views(join_views(views), located)

    # Section 3.4: image-prompt score distillation, with background and camera alignment.
    guidance = ReconGuidance(prior, worded(replace(prompt, cutout=None), config.words), config.guidance)
    cameras = judged_from(prompt, located, config, run)
    objectives: list[Distillation | Photometric] = [Distillation(guidance, cameras, config.distillation)]
    if config.keep_views:
        objectives.append(Photometric(others, config.keep_views, name="views"))
    if config.prompt_view and located and located.estimate.reliable:
        objectives.append(Photometric(located.view, config.prompt_view.photometric, name="prompt_view"))
    scene = run.stage("radiance_field", fit, scene, objectives, config.fit)

    pictures, ways = painted_views(others, located, config)
    held = config.prompt_view and config.prompt_view.outline and located and located.estimate.reliable
    outline = located.view if located and held else None
    mesh: Mesh = run.stage("mesh", make_mesh, scene, config.mesh, pictures, ways, outline)
    shown = views[0] if config.outlines is None else agreed_outlines(views[0], config.outlines)
    return Asset(mesh, views=shown, provenance=run.provenance())


def prior_of(config: Config, run: Run) -> MultiViewPrior:
    """The prior with the controllers that the config wants, noted for the provenance."""
    prior = load_prior(config.prior, config.weights, run.device)
    prior = prior.with_config(control=config.control, image_weight=config.image_weight)
    run.record_prior(prior.card())
    return prior


def canonical_views(prior: Prior, prompt: Prompt, config: Config, run: Run) -> list[Views]:
    """Section 3.1: the canonical views, whatever the viewpoint of the prompt; one set of four a ring."""
    condition = prior.condition(worded(prompt, config.view_words), background_colour(prompt, config))
    size = prior.codec.image_size
    return [
        run.stage("views" if ring == 0 else f"views_{ring}", sample_views, prior, condition,
                  ring_cameras(config, size, azimuth), config.sampling)
        for ring, azimuth in enumerate(ring_azimuths(config))
    ]  # fmt: skip


def match(views: list[Views], prompt: Prompt, config: Config, run: Run) -> Located | None:
    """The prompt in the frame of the view that it is; None where no view is, or where its elevation was told."""
    asked = config.prompt_view
    if asked is None or asked.match is None or prompt.image is None or prompt.camera is not None:
        return None
    background = background_colour(prompt, config)
    found: Located = run.stage("match", match_prompt, join_views(views), prompt.image, background, asked.match)
    return found if found.estimate.reliable else None


def first_scene(views: list[Views], matched: Located | None, config: Config, run: Run) -> VolumeScene:
    """What the distillation begins with: an empty scene, or one fitted to the views, the prompt among them."""
    scene = VolumeScene(config.scene, seed=run.seed)
    if config.warm_start is None:
        return scene
    targets = [Photometric(other_views(join_views(views), matched), config.warm_start.photometric, name="views")]
    if config.prompt_view and matched:
        targets.append(Photometric(matched.view, config.prompt_view.photometric, name="prompt_view"))
    return run.stage("warm_start", fit, scene, targets, config.warm_start.fit)


def locate(scene: VolumeScene, prompt: Prompt, config: Config, run: Run) -> Located | None:
    """The prompt in the frame of its own camera; None where the config does not want it."""
    if config.prompt_view is None or prompt.image is None:
        return None
    known = prompt.camera.elevation if prompt.camera is not None else None
    return run.stage("locate", locate_prompt, scene, prompt.image, known, config.prompt_view.locate)


def judged_from(prompt: Prompt, located: Located | None, config: Config, run: Run) -> OrbitSampler:
    """Cameras of the distillation, their elevations widened to the prompt's own as the config wants it. The widening is
    not in the paper."""
    asked = config.prompt_view
    if asked is None or located is None or not located.estimate.reliable:
        return config.cameras
    own, cameras = located.estimate.elevation, config.cameras
    if asked.cover == "found" or (asked.cover == "told" and prompt.camera is not None):
        cameras = cameras.covering(own, asked.cover_limits)
    low, high = cameras.elevation
    run.log(event="camera_range", low=low, high=high, own=own, widened=cameras != config.cameras)
    return cameras


def painted_views(
    views: Views, located: Located | None, config: Config
) -> tuple[tuple[Views, ...], tuple[ProjectionConfig, ...]]:
    """What is painted onto the mesh, and how: the sampled views, then the prompt over them. Not in the paper."""
    painted: list[tuple[Views, ProjectionConfig]] = []
    if config.paint_views:
        painted.append((views, config.paint_views))
    if config.prompt_view and located and located.estimate.reliable:
        painted.append((located.view, config.prompt_view.projection))
    return tuple(pictures for pictures, _ in painted), tuple(way for _, way in painted)


def ring_azimuths(config: Config) -> list[float]:
    """Where the first camera of each set of four stands, degrees."""
    rings = config.warm_start.rings if config.warm_start else 1
    return [90.0 * ring / rings for ring in range(rings)]


def ring_cameras(config: Config, size: int, azimuth: float) -> Cameras:
    """Four canonical cameras of `size` px, the first at `azimuth` degrees."""
    return orbit(4, elevation=config.view_elevation, azimuth=azimuth, fovy=config.fovy, height=size, width=size)


def join_views(rings: list[Views]) -> Views:
    """All views of all rings."""
    masks = [views.masks for views in rings if views.masks is not None]
    return Views(
        torch.cat([views.images for views in rings]),
        torch.cat(masks) if len(masks) == len(rings) else None,
        Cameras.cat([views.cameras for views in rings]),
    )


def worded(prompt: Prompt, words: Additional) -> Prompt:
    """The prompt with further words."""
    caption, negative = words.join(prompt.caption, prompt.negative)
    return replace(prompt, caption=caption, negative=negative)


def background_colour(prompt: Prompt, config: Config) -> torch.Tensor:
    """The flat colour behind the sampled views."""
    assert prompt.image is not None
    if config.background == "key":
        return key_colour(prompt.image)
    return torch.full((3,), 1.0 if config.background == "white" else 0.5)
