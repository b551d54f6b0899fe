"""Beginning a field with views that its own prior draws of a caption: nano's help for score distillation.

Score distillation from a young 2D prior alone gives a blob of the right colour. A multi-view prior can also draw four
sides at once, with cameras; a field that begins as a fit of them has less to find.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from maquette.cameras import orbit
from maquette.errors import UserError
from maquette.images import Prompt
from maquette.priors.base import AdaptablePrior
from maquette.priors.multiview import MultiViewPrior
from maquette.rendering.scene import VolumeScene
from maquette.rendering.surface import SurfaceScene
from maquette.run import Run
from maquette.schedules import Constant, Linear
from maquette.stages.fit import FitConfig, fit
from maquette.stages.look import SamplingConfig, sample_from_words
from maquette.stages.objectives import Photometric, PhotometricConfig

S = TypeVar("S", bound=VolumeScene | SurfaceScene)


@dataclass(frozen=True)
class FirstViews:
    """Four views that a multi-view prior draws of the caption, with cameras; a field begins as a fit of them.

    Not in the paper, whose prior knows no cameras.
    """

    sampling: SamplingConfig = SamplingConfig()
    """How they are drawn."""
    frames: tuple[tuple[float, float, float], ...] = ((1.0, 1.0, 1.0),)
    """Background colours to hold along the borders, tried in order until the object shows."""
    elevation: float = 5.0
    """Degrees above the horizon."""
    fovy: float = 40.0
    """Vertical field of view that the views are taken to have, degrees."""
    photometric: PhotometricConfig = PhotometricConfig(mask=Constant(0.5))
    """How the field is compared with them."""
    fit: FitConfig = FitConfig(steps=200, rate=Linear(1.0, 0.1))
    """Optimisation of the beginning."""


def begin_with_views(
    scene: S, teacher: AdaptablePrior, caption: str, config: FirstViews | None, name: str, run: Run
) -> S:
    """The scene fitted to first views of its teacher, by stages `<name>_views` and `<name>_start`; itself without a
    config. UserError for a prior that draws single pictures.
    """
    if config is None:
        return scene
    if not isinstance(teacher, MultiViewPrior):
        raise UserError("this prior draws single pictures, not views with cameras; leave --first-views none")
    size = teacher.codec.image_size
    cameras = orbit(teacher.num_views or 4, elevation=config.elevation, fovy=config.fovy, height=size, width=size)
    views = run.stage(f"{name}_views", sample_from_words, teacher, Prompt(None, caption), cameras, config.sampling,
                      config.frames)  # fmt: skip
    target = Photometric(views, config.photometric, name="views")
    return run.stage(f"{name}_start", fit, scene, [target], config.fit)
