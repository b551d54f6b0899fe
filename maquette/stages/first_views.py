"""Beginning a field with views that its own prior draws: nano's help for score distillation.

Score distillation from a young 2D prior alone gives a blob of the right colour. A multi-view prior can also draw four
sides at once, with cameras; a field that begins as a fit of them has less to find. One with controllers for pictures
draws them of a caption and a photo, and then they have the photo's shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from maquette.cameras import Cameras, orbit
from maquette.errors import UserError
from maquette.images import ImagePrompt, Prompt, Views
from maquette.priors.base import AdaptablePrior
from maquette.priors.multiview import MultiViewPrior, parse_control
from maquette.rendering.scene import VolumeScene
from maquette.rendering.surface import SurfaceScene
from maquette.run import Run, Stage
from maquette.schedules import Constant, Linear
from maquette.stages.fit import FitConfig, fit
from maquette.stages.locate import Located
from maquette.stages.look import SamplingConfig, key_colour, sample_from_words, sample_views
from maquette.stages.match import MatchConfig, match_prompt, other_views
from maquette.stages.objectives import Photometric, PhotometricConfig
from maquette.subjects import CaptionedImages

S = TypeVar("S", bound=VolumeScene | SurfaceScene)


@dataclass(frozen=True)
class FirstViews:
    """Four views that a multi-view prior draws of the caption, with cameras; a field begins as a fit of them.

    Not in the paper, whose prior knows no cameras.
    """

    sampling: SamplingConfig = SamplingConfig()
    """How they are drawn."""
    photo: int | None = None
    """The photo, counted from 0 in the order of their names, that goes to the prior's controllers for pictures, best
    one of the front; none: words alone."""
    control: str | None = None
    """For a photo, the controllers for pictures in use, joined by '+'; none: those that the prior has."""
    match: MatchConfig | None = None
    """Put the photo in the place of the view that is the photo, if there is one."""
    frames: tuple[tuple[float, float, float], ...] = ((1.0, 1.0, 1.0),)
    """For words alone, background colours to hold along the borders, tried in order until the object shows."""
    elevation: float = 5.0
    """Degrees above the horizon."""
    fovy: float = 40.0
    """Vertical field of view that the views are taken to have, degrees."""
    photometric: PhotometricConfig = PhotometricConfig(mask=Constant(0.5))
    """How the field is compared with them."""
    fit: FitConfig = FitConfig(steps=200, rate=Linear(1.0, 0.1))
    """Optimisation of the beginning."""
    keep: PhotometricConfig | None = None
    """Afterwards the field goes on looking like them, compared so."""

    def __post_init__(self) -> None:
        if self.control is not None:
            parse_control(self.control)


def begin_with_views(
    scene: S,
    teacher: AdaptablePrior,
    caption: str,
    photos: CaptionedImages,
    config: FirstViews | None,
    name: str,
    run: Run,
) -> tuple[S, list[Photometric]]:
    """The scene fitted to first views of its teacher, by stages `<name>_views`, `<name>_match` and `<name>_start`, and
    the objectives that hold it to them where the config asks for that; itself and none without a config.

    UserError for a prior that draws single pictures, and for a photo that was not cut out.
    """
    if config is None:
        return scene, []
    if not isinstance(teacher, MultiViewPrior):
        raise UserError("this prior draws single pictures, not views with cameras; leave --first-views none")
    size = teacher.codec.image_size
    cameras = orbit(teacher.num_views or 4, elevation=config.elevation, fovy=config.fovy, height=size, width=size)
    matched: Located | None = None
    if config.photo is None:
        views: Views = run.stage(f"{name}_views", sample_from_words, teacher, Prompt(None, caption), cameras,
                                 config.sampling, config.frames)  # fmt: skip
    else:
        photo = photo_prompt(photos, config.photo)
        drawing = teacher if config.control is None else teacher.with_config(control=config.control)
        views = run.stage(f"{name}_views", sample_from_photo, drawing, Prompt(photo, caption), cameras, config.sampling)
        if config.match is not None:
            behind = photo_background(drawing, photo)
            found: Located = run.stage(f"{name}_match", match_prompt, views, photo, behind, config.match)
            matched = found if found.estimate.reliable else None
    seen = {"views": other_views(views, matched), **({} if matched is None else {"photo": matched.view})}
    targets = [Photometric(pictures, config.photometric, name=kind) for kind, pictures in seen.items()]
    begun = run.stage(f"{name}_start", fit, scene, targets, config.fit)
    if config.keep is None:
        return begun, []
    return begun, [Photometric(pictures, config.keep, name=kind) for kind, pictures in seen.items()]


def require_photo(config: FirstViews | None, photos: CaptionedImages) -> None:
    """UserError where the photo that a config asks for is not there."""
    if config is not None and config.photo is not None and not 0 <= config.photo < len(photos):
        raise UserError(
            f"first_views.photo counts the {len(photos)} photos from 0 to {len(photos) - 1}, got {config.photo}"
        )


def photo_prompt(photos: CaptionedImages, index: int) -> ImagePrompt:
    """One cut-out photo as a picture prompt. UserError where it has no mask."""
    if photos.masks is None:
        raise UserError(
            "first_views.photo needs photos whose object is cut out: set --photos.cut-out auto, give --masks, or leave "
            "--first-views.photo None"
        )
    return ImagePrompt(photos.images([index])[0], photos.masks[index].float() / 255)


def sample_from_photo(
    prior: MultiViewPrior, prompt: Prompt, cameras: Cameras, config: SamplingConfig, *, run: Stage
) -> Views:
    """`sample_views` of a prompt with a picture, before `photo_background`."""
    assert prompt.image is not None
    condition = prior.condition(prompt, photo_background(prior, prompt.image))
    return sample_views(prior, condition, cameras, config, run)


def photo_background(prior: MultiViewPrior, photo: ImagePrompt) -> Float[Tensor, "3"]:
    """The colour that shows the outline of a photo best, of those that the prior's codec keeps as they are."""
    return torch.ones(3) if prior.codec.stochastic else key_colour(photo)
