"""Views of an object from a picture or from words, by any prior that can draw them: nothing is fitted.

A *multi-view* prior (MVDream, ImageDream, nano) draws four views at right angles at once, in its canonical frame. A
*novel-view* prior (Zero-1-to-3, nano-zero123) draws each view for itself, counted from the picture's own camera, which
is taken to see the object's front. Views go by their names: "front", "left", "back", "right", "front left", "overhead".
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from maquette.cameras import Cameras, fit_distance, from_angles, orbit
from maquette.errors import UserError
from maquette.images import Prompt, Views
from maquette.methods import imagedream, text
from maquette.priors.base import Condition, Prior
from maquette.priors.hub import find_card, load_free_prior, load_prior, load_view_prior
from maquette.priors.multiview import ImageWeight
from maquette.priors.published import MODELS as MULTI_VIEW_MODELS
from maquette.priors.registry import ALIASES
from maquette.priors.single_view import STABLE_DIFFUSION_MODELS, ZERO123_MODELS
from maquette.run import Run, Stage
from maquette.stages.look import (
    SIDES,
    SamplingConfig,
    revise_views,
    sample_candidates,
    sample_from_words,
)
from maquette.stages.novel import sample_novel_views
from maquette.stages.outlines import OutlineConfig, agreed_outlines
from maquette.wording import Additional

ZERO123 = "Ruoshi Liu et al. Zero-1-to-3: Zero-shot One Image to 3D Object. arXiv:2303.11328, 2023."
STEEP = 75.0
"""Elevation of "overhead", degrees; "underneath" is as far below."""
WORDS_ALONE = ("mvdream", "mvdream-sd15")
"""Multi-view priors that do not look at pictures."""


@dataclass(frozen=True)
class Config:
    """Everything that decides the views, apart from the prompt and the seed."""

    prior: str = "imagedream"
    """Which prior: multi-view (nano, imagedream, mvdream ...) or novel-view (nano-zero123, zero123, stable-zero123)."""
    weights: Path | None = None
    """File or folder of the prior's weights."""
    views: tuple[str, ...] = ("front", "left", "back", "right")
    """Which views, in which order; a multi-view prior draws them at right angles to each other."""
    control: str = "local+pixel"
    """Image controllers in use, joined by '+': global, local, pixel; or 'none' (multi-view priors)."""
    image_weight: ImageWeight = ImageWeight()
    """Strength of each controller."""
    view_elevation: float = 5.0
    """Elevation of the views, degrees."""
    fovy: float = 40.0
    """Vertical field of view that the views are taken to have, degrees."""
    background: Literal["key", "white", "grey"] = "key"
    """Behind the views: the colour that differs most from the object, or a fixed one; novel-view priors know white."""
    sampling: SamplingConfig = SamplingConfig()
    """Diffusion sampling."""
    view_words: Additional = Additional()
    """Words beside the prompt's own."""
    outlines: OutlineConfig | None = None
    """Cut off what one of two opposite views alone covers (nano only)."""
    free: str | None = None
    """Guide a novel-view prior away from the null of this prior, not its own (rectified guidance of USD)."""
    free_weights: Path | None = None
    """File or folder of that prior's weights."""
    init: Path | None = None
    """Begin from these views instead of noise (img2img): a folder with a transforms.json, such as a run's views/."""
    strength: float = 0.5
    """With --init: share of the steps that run; 0 keeps the views, 1 replaces them."""
    seeds: int = 1
    """Draw so many candidates, a row each in candidates.png; --sampling.pick K then takes that of row K, from 0."""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise UserError(f"seeds is the number of candidates, at least 1; got {self.seeds}")
        if not 0 <= self.strength <= 1:
            raise UserError(f"strength is the share of the steps to run and lies in [0, 1], got {self.strength}")
        if not self.views:
            raise UserError("at least one view is drawn; name some, such as --views front back")
        for name in self.views:
            angles_of(name, 0.0)


NAMES = (
    "prior", "weights", "control", "image_weight", "view_elevation", "fovy", "background", "sampling", "view_words",
    "outlines",
)  # fmt: skip
"""Settings that are ImageDream's own."""


def configure(preset: str, quality: str, prior: str | None = None) -> Config:
    """Settings of a preset for a prior: ImageDream's for its views, MVDream's for words, Zero-1-to-3's for poses."""
    whole = imagedream.configure(preset, quality)
    config = Config(**{name: getattr(whole, name) for name in NAMES})
    prior = config.prior if prior is None else ALIASES.get(prior, prior)
    if prior == "nano" or prior in MULTI_VIEW_MODELS:
        if prior != "nano":
            control = MULTI_VIEW_MODELS[prior]().use.control
            config = replace(config, control=control, sampling=SamplingConfig(), outlines=None)
            config = replace(config, view_words=imagedream.Config().view_words)
        if prior in WORDS_ALONE:
            first = text.FirstViews()
            config = replace(config, sampling=first.sampling, view_elevation=first.elevation, fovy=first.fovy)
            config = replace(config, view_words=Additional(suffix=first.suffix))
    elif prior in ZERO123_MODELS:
        config = replace(config, sampling=SamplingConfig(guidance_scale=3.0, eta=1.0), background="white")
        config = replace(config, view_words=Additional())
    else:  # a package, by its name the embedded novel-view prior's
        config = replace(config, background="white", view_words=Additional())
    return replace(config, prior=prior)


def angles_of(name: str, elevation: float) -> tuple[float, float]:
    """(azimuth, elevation) in degrees of a view by its name, written with spaces or dashes; UserError for others.

    >>> angles_of("front-left", 5.0), angles_of("overhead", 5.0)
    ((45.0, 5.0), (0.0, 75.0))
    """
    plain = name.replace("-", " ")
    if plain in ("overhead", "underneath"):
        return 0.0, STEEP if plain == "overhead" else -STEEP
    if plain not in SIDES:
        raise UserError(f"there is no view {name!r}; views are {', '.join(SIDES)}, overhead and underneath")
    return 45.0 * SIDES.index(plain), elevation


def sample_any_views(prompt: Prompt, config: Config, run: Run) -> list[Views]:
    """Every candidate's views, in the order in which they were named."""
    name = ALIASES.get(config.prior, config.prior)
    if name in STABLE_DIFFUSION_MODELS:
        raise UserError(f"{config.prior} makes single images of words and knows no views; see `maquette text`")
    if prompt.image is None and not prompt.caption.strip():
        raise UserError("views need a picture, or words: name IMAGE, or pass --caption")
    start = None if config.init is None else Views.load(config.init)
    if name in ZERO123_MODELS or (
        name not in MULTI_VIEW_MODELS and find_card(config.prior, config.weights).kind == "nano-zero123"
    ):
        return novel_views(prompt, start, config, run)
    return canonical_views(prompt, start, config, run)


def canonical_views(prompt: Prompt, start: Views | None, config: Config, run: Run) -> list[Views]:
    """By a multi-view prior: a ring of four, of which the named ones are kept."""
    prior = load_prior(config.prior, config.weights, run.device)
    prior = prior.with_config(control=config.control, image_weight=config.image_weight)
    run.record_prior(prior.card())
    run.cite(text.MVDREAM if config.prior in WORDS_ALONE else imagedream.CITATION)
    first, order = ring_of(config)
    size = prior.codec.image_size
    cameras = orbit(4, elevation=config.view_elevation, azimuth=first, fovy=config.fovy, height=size, width=size)
    prompt = imagedream.worded(prompt, config.view_words)
    frames: tuple[tuple[float, float, float], ...] = ()
    if prompt.image is None or config.prior in WORDS_ALONE:
        prompt = replace(prompt, image=None)
        frames = () if prior.codec.stochastic else text.nano().first_views.frames  # type: ignore[union-attr]
        if start is None:
            return [
                views[order]
                for views in run.stage(
                    "views", candidates_of_words, prior, prompt, cameras, config.sampling, frames, config.seeds
                )
            ]
    background = torch.ones(3)
    if prompt.image is not None:
        method = imagedream.Config(**{name: getattr(config, name) for name in NAMES})
        background = imagedream.background_colour(prompt, method)
    condition = prior.condition(prompt, background)
    found: list[Views]
    if start is None:
        found = run.stage("views", sample_candidates, prior, condition, cameras, config.sampling, config.seeds)
        if config.outlines is not None:
            found = [agreed_outlines(views, config.outlines) for views in found]
        return [views[order] for views in found]
    found = run.stage("views", revised, prior, condition, start, config.strength, config.sampling, config.seeds)
    return found


def novel_views(prompt: Prompt, start: Views | None, config: Config, run: Run) -> list[Views]:
    """By a novel-view prior: each view for itself, from the picture's own camera on."""
    if prompt.image is None:
        raise UserError(f"{config.prior} draws other views of a picture and cannot read words; name IMAGE")
    prior = load_view_prior(config.prior, config.weights, run.device)
    run.record_prior(prior.card())
    run.cite(ZERO123)
    free = None
    if config.free is not None:
        free = load_free_prior(config.free, config.free_weights, run.device)
        run.record_prior(free.card())
    colour = {"white": 1.0, "grey": 0.5}.get(config.background)
    background = imagedream.key_colour(prompt.image) if colour is None else torch.full((3,), colour)
    condition = prior.condition(prompt, background)
    cameras = named_cameras(config, prior.codec.image_size) if start is None else start.cameras
    return run.stage(
        "views", novel_candidates, prior, free, condition, cameras, config.sampling, config.seeds, start,
        config.strength,
    )  # fmt: skip


def candidates_of_words(
    prior: Prior,
    prompt: Prompt,
    cameras: Cameras,
    config: SamplingConfig,
    frames: tuple[tuple[float, float, float], ...],
    count: int,
    run: Stage,
) -> list[Views]:
    """Candidates `config.pick`, `pick + 1`, ... of `sample_from_words`."""
    picks = range(config.pick, config.pick + count)
    return [sample_from_words(prior, prompt, cameras, replace(config, pick=pick), frames, run) for pick in picks]


def revised(
    prior: Prior, condition: Condition, start: Views, strength: float, config: SamplingConfig, count: int, run: Stage
) -> list[Views]:
    """Candidates `config.pick`, `pick + 1`, ... of `revise_views`."""
    picks = range(config.pick, config.pick + count)
    return [revise_views(prior, condition, start, strength, replace(config, pick=pick), run) for pick in picks]


def novel_candidates(
    prior: Prior,
    free: Prior | None,
    condition: Condition,
    cameras: Cameras,
    config: SamplingConfig,
    count: int,
    start: Views | None,
    strength: float,
    run: Stage,
) -> list[Views]:
    """Candidates `config.pick`, `pick + 1`, ... of `sample_novel_views`."""
    picks = range(config.pick, config.pick + count)
    return [
        sample_novel_views(
            prior, free, condition, cameras, replace(config, pick=pick), run, start=start, strength=strength
        )
        for pick in picks
    ]  # fmt: skip


def ring_of(config: Config) -> tuple[float, list[int]]:
    """Azimuth of the first of four views at right angles, and which of them the named views are.

    >>> ring_of(Config(views=("back", "front")))
    (0.0, [2, 0])
    """
    angles = [angles_of(name, config.view_elevation) for name in config.views]
    first = angles[0][0] % 90.0
    if any(elevation != config.view_elevation or azimuth % 90.0 != first for azimuth, elevation in angles):
        raise UserError(
            f"{config.prior} draws four views at right angles and one height: name some of front, left, back, right, "
            f"or some of front-left, back-left, back-right, front-right; got {', '.join(config.views)}"
        )
    return first, [int(azimuth // 90.0) for azimuth, _ in angles]


def named_cameras(config: Config, size: int) -> Cameras:
    """A camera for each named view, far enough that a normalised object fills 80 % of the picture."""
    azimuth, elevation = torch.tensor([angles_of(name, config.view_elevation) for name in config.views]).T
    distance, fovy = torch.full_like(azimuth, fit_distance(config.fovy)), torch.full_like(azimuth, config.fovy)
    return from_angles(azimuth, elevation, distance, fovy, height=size, width=size)


def draw_views(prompt: Prompt, config: Config, run: Run) -> Views:
    """The named views of the prompt's object; with several candidates, the first of them."""
    return sample_any_views(prompt, config, run)[0]
