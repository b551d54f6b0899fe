"""Views of a field become pictures of the subject (DreamBooth3D, arXiv:2303.13508, stage 2), once or once more.

The paper makes them of the first field. Nothing forbids a second round, of the finished field and gently: its shape is
settled, so its pictures disagree less, and a plain fit may follow their colours at a higher resolution than the
distillation could afford. What is rendered, translated and put back is what USD's refinement is made of.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from maquette.cameras import Cameras, from_angles
from maquette.errors import UserError
from maquette.images import Views
from maquette.priors.base import Prior
from maquette.rendering.scene import VolumeScene
from maquette.rendering.surface import SurfaceScene
from maquette.rendering.views import render_views
from maquette.run import Run, Stage
from maquette.schedules import Constant, Linear
from maquette.stages.fit import FitConfig, fit
from maquette.stages.likeness import PictureEncoder
from maquette.stages.objectives import Photometric, PhotometricConfig, RandomRays
from maquette.stages.refine import repaint
from maquette.stages.regularizers import Ramp
from maquette.stages.translate import TranslateConfig, Translated, translate_views
from maquette.subjects import CaptionedImages
from maquette.wording import view_captions

S = TypeVar("S", bound=VolumeScene | SurfaceScene)


@dataclass(frozen=True)
class PseudoViews:
    """Renderings of a field become pictures of the subject."""

    count: int = 20
    """Views, evenly around the object."""
    elevations: tuple[float, ...] = (0.0, 15.0, 30.0)
    """Degrees above the horizon, taken in turn."""
    fovy: float = 55.0
    """Vertical field of view, degrees; the middle of the training's range."""
    distance: float = 1.75
    """Scene units from the centre; the middle of the training's range."""
    size: int = 512
    """Pixels along the side of a rendering."""
    view_words: bool = True
    """Say in the caption which side a view shows."""
    translate: TranslateConfig = TranslateConfig()
    """Image to image."""

    def __post_init__(self) -> None:
        if self.count < 1 or not self.elevations:
            raise UserError("pseudo views need a count of at least 1 and at least one elevation")

    def cameras(self) -> Cameras:
        """Equal steps of azimuth without the end point, which would be the first again."""
        turns = torch.arange(self.count, dtype=torch.float64) * (360.0 / self.count)
        heights = torch.tensor([self.elevations[k % len(self.elevations)] for k in range(self.count)])
        rest = (torch.full((self.count,), value, dtype=torch.float64) for value in (self.distance, self.fovy))
        return from_angles(turns, heights.double(), *rest, height=self.size, width=self.size).to(torch.float32)


@dataclass(frozen=True)
class Refinement:
    """One more round after the final field, against its softness: pseudo views of it, as those of the first but gently,
    and a fit to them. Not in the paper."""

    strength: float = 0.3
    """How far renderings are painted over; little, since the shape is to stay."""
    size: int | None = None
    """Pixels along the side of a rendering; none: as in stage 2."""
    steps: float = 0.3
    """Steps of the fit as a share of the final field's."""
    rate: Ramp = Linear(0.5, 0.05)
    """Factor on the final field's learning rates over these steps."""
    photometric: PhotometricConfig = PhotometricConfig(pixels=RandomRays(4096), mask=Constant(0.5), measure="l1")
    """How the field follows; absolute differences, since pictures that disagree should not be averaged."""

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1 or self.steps <= 0:
            raise UserError(
                f"strength lies in [0, 1] and steps, a share, is above 0; got {self.strength} and {self.steps}"
            )

    def views(self, first: PseudoViews) -> PseudoViews:
        """What is rendered and painted over, by the settings of the first round."""
        return replace(first, size=self.size or first.size, translate=replace(first.translate, strength=self.strength))

    def fitting(self, final: FitConfig) -> FitConfig:
        """The fit, by the settings of the final field's."""
        return replace(final, steps=max(1, round(self.steps * final.steps)), rate=self.rate)


def render_around(scene: VolumeScene | SurfaceScene, cameras: Cameras, run: Stage) -> Views:
    """Unlit views of a scene: light would be painted into the pictures that are made from them."""
    return render_views(scene, cameras.to(run.device)).to("cpu")


def make_pseudo_views(
    scene: VolumeScene | SurfaceScene,
    painter: Prior,
    caption: str,
    photos: CaptionedImages,
    encoder: PictureEncoder | None,
    config: PseudoViews,
    run: Run,
    stages: tuple[str, str] = ("renderings", "pseudo_views"),
    *,
    base: tuple[Prior, str] | None = None,
) -> tuple[Views, Translated]:
    """(the renderings, what the prior made of them: accepted ones of each side and every attempt), by two stages.

    `base` is the prior before it learned, and its caption of the class, for residual translations.
    """
    rendered: Views = run.stage(stages[0], render_around, scene, config.cameras())

    def said(words: str) -> tuple[str, ...]:
        return view_captions(words, rendered.cameras) if config.view_words else (words,) * len(rendered)

    before = None if base is None else (base[0], said(base[1]))
    painted = run.stage(stages[1], translate_views, painter, rendered, said(caption), config.translate, photos=photos,
                        encoder=encoder, base=before)  # fmt: skip
    return rendered, painted


def refine(
    scene: S,
    painter: Prior,
    caption: str,
    photos: CaptionedImages,
    encoder: PictureEncoder | None,
    config: Refinement | None,
    first: PseudoViews,
    final: FitConfig,
    run: Run,
    *,
    base: tuple[Prior, str] | None = None,
) -> S:
    """The scene with the colours of pseudo views of its own, and the outlines that it has; itself without a config.

    `first` and `final` are the settings of the first round and of the fit that made the scene.
    """
    if config is None:
        return scene
    rendered, painted = make_pseudo_views(
        scene, painter, caption, photos, encoder, config.views(first), run, ("final_renderings", "final_pseudo_views"),
        base=base,
    )  # fmt: skip
    follow = Photometric(repaint(rendered, painted), config.photometric, name="final_pseudo_views")
    return run.stage("refined_field", fit, scene, [follow], config.fitting(final))
