"""What a run does that its method's paper does not, and what it leaves out: read from its settings, in plain words.

`tests/report/test_additions.py` compares every `nano()` with its `paper()`: a setting that differs is named here, or is
a mere size, count or rate there. So the lists cannot fall behind the presets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

METHODS = ("imagedream", "usd", "dreambooth3d")
"""Methods of one paper each, with which their runs can be compared."""
NOTHING = {"kind": "Constant", "value": 0.0}
"""A schedule's value where it is off."""


@dataclass(frozen=True)
class Part:
    """Something that a paper and a run need not have both, and the settings that say whether the run has it."""

    fields: tuple[str, ...]
    """Names of settings, with dots; the first that the method has is shown."""
    title: str
    sentence: str
    off: tuple[Any, ...] = (False,)
    """Values with which it is off, besides none."""
    methods: tuple[str, ...] = ()
    """Only for these methods' runs; none named: for all of `METHODS`."""

    def setting(self, method: str, config: Mapping[str, Any]) -> str | None:
        """The setting that decides in a run of `method`; None where the method knows of no such thing."""
        if method not in (self.methods or METHODS):
            return None
        return next((field for field in self.fields if _value(config, field) is not _UNKNOWN), None)

    def used(self, method: str, config: Mapping[str, Any]) -> bool:
        """Whether a run with this config has it."""
        field = self.setting(method, config)
        value = None if field is None else _value(config, field)
        return value is not None and value not in self.off


def added(method: str, config: Mapping[str, Any]) -> list[tuple[str, Part]]:
    """(setting, what it is) of all that a run has and the paper of its method has not."""
    return [(str(part.setting(method, config)), part) for part in ADDITIONS if part.used(method, config)]


def left_out(method: str, config: Mapping[str, Any]) -> list[tuple[str, Part]]:
    """(setting, what it is) of all that the paper of a run's method has and the run has not."""
    settings = [(part.setting(method, config), part) for part in OMISSIONS]
    return [(field, part) for field, part in settings if field is not None and not part.used(method, config)]


_UNKNOWN = object()


def _value(config: Any, field: str) -> Any:
    """A setting as it is recorded; None below one that is off, _UNKNOWN where the method has none of the name."""
    for name in field.split("."):
        if config is None:
            return None
        if not isinstance(config, Mapping) or name not in config:
            return _UNKNOWN
        config = config[name]
    return config


ADDITIONS = (
    Part(
        ("first_views",),
        "Fields that begin with imagined views",
        "The paper's fields begin empty. Here each is first fitted to four views that its own model imagines, from the "
        "words or from one of the photos, and may be held to their outline afterwards.",
    ),
    Part(
        ("first_views.sampling.sampler", "novel.sampling.sampler", "sampling.sampler"),
        "Views that are averages",
        "The paper draws each view from one noise. Here several are drawn at once and averaged, step by step, since "
        "what a small prior gets wrong depends on the noise.",
        off=("ddim",),
    ),
    Part(
        ("warm_start",),
        "A first shape from the imagined views",
        "The paper starts from an empty cloud. Here it is first fitted to the views that the prior imagined.",
        methods=("imagedream", "usd"),
    ),
    Part(
        ("keep_views",),
        "Holding on to the imagined views",
        "While the cloud is refined it is also asked to keep looking like these views; the paper asks only the prior.",
    ),
    Part(
        ("keep_views.between", "first_views.photometric.between"),
        "Looking between the pixels",
        "The views have few pixels. Lines of sight go through any place of a pixel, not its centre alone, so that "
        "nothing grows between them.",
    ),
    Part(
        ("fit.total_variation",),
        "Smooth planes",
        "Neighbouring values of the cloud differ only as far as the pictures ask for it; views that contradict each "
        "other would carve ridges.",
        off=(NOTHING,),
    ),
    Part(
        ("scene.field.radius",),
        "Matter inside a ball only",
        "The cloud stays in the ball that the object fills; matter beyond hides behind it where no view looks.",
        off=(2.0,),
    ),
    Part(
        ("outlines",),
        "Outlines of opposite views",
        "An object casts one shadow from the front and from behind, and one from the left and from the right. What "
        "only one of two opposite views covers is cut off in the views that are shown.",
    ),
    Part(
        ("paint_views",),
        "Painting the imagined views onto the surface",
        "The paper's colours are the cloud's own. Here the views that the prior imagined are painted over them.",
    ),
    Part(
        ("prompt_view",),
        "Using the picture itself",
        "Once its viewpoint is known, the object is asked to look like the picture from there, its surface is held to "
        "the picture's outline, and the picture's own pixels are painted onto what they show. The paper does not know "
        "the viewpoint.",
    ),
    Part(
        ("paint_prompt",),
        "Painting the picture onto the surface",
        "The paper's texture comes from the cleaned pictures alone. Here the given picture is painted over them.",
    ),
    Part(
        ("mesh.blur",),
        "A blurred border",
        "What is finer than the imagined views' pixels is their noise, so inside and outside are blurred by as much "
        "before the surface is drawn.",
        off=(0.0,),
    ),
    Part(
        ("mesh.fill_pits",),
        "Pits filled from above",
        "No imagined view looks from above. Hollows that are closed all around at their own height are filled.",
    ),
    Part(
        ("renderings.hardening",),
        "Hard outlines of the cloud's pictures",
        "A small cloud has a blurred rim. Its pictures' outlines are sharpened before the surface is fitted to them.",
        off=(1.0,),
    ),
    Part(
        ("refinement.specialize.first.weighting", "personal.weighting"),
        "Learning at the noise that is used",
        "Errors are weighted by the noise as in the papers' own loss, which a prior of another kind would not do.",
        off=("uniform",),
    ),
    Part(
        ("pseudo_views.translate.residual", "refinement.translate.residual"),
        "Only what was learned is painted",
        "Pictures of the cloud change by the difference that learning the subject made, so that what the prior does to "
        "any picture cancels.",
    ),
    Part(
        ("distillation.regularizers.opaque",),
        "No fog",
        "The cloud is asked to be solid or empty at every place.",
        off=(NOTHING,),
        methods=("imagedream", "dreambooth3d"),
    ),
)
"""What is not in the papers, in the order of a run."""

OMISSIONS = (
    Part(
        ("distillation.shading.begin",),
        "Light",
        "The paper lights the cloud while it forms, so that its shape shows in its shading. Here colours are all.",
        off=(1.0,),
        methods=("imagedream", "dreambooth3d"),
    ),
    Part(
        ("distillation.regularizers.orientation",),
        "Surfaces that face the camera",
        "The paper asks what is seen to face the camera, which is of use only where it is lit.",
        off=(NOTHING,),
        methods=("imagedream", "dreambooth3d"),
    ),
    Part(
        ("distillation.regularizers.sparsity",),
        "Little matter",
        "The paper asks the cloud to cover as little of a picture as it can.",
        off=(NOTHING,),
        methods=("imagedream", "usd", "dreambooth3d"),
    ),
    Part(
        ("distillation.regularizers.opaque",),
        "Full or empty pixels",
        "The paper asks late in the run that pictures of the cloud be covered or not, and nowhere in part.",
        off=(NOTHING,),
        methods=("usd",),
    ),
    Part(
        ("patch",),
        "One sharp window a picture",
        "The paper shows the prior coarse pictures with one window at full sharpness. Here pictures are small enough "
        "to be sharp all over.",
    ),
    Part(
        ("surface_reference",),
        "The prior's opinion of the picture's own side, for the surface",
        "The paper keeps asking for it while the surface is fitted. Here the picture's own colours hold that side.",
    ),
)
"""What is in the papers, and may be left out."""
