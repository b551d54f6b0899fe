"""Words that captions share everywhere: the placeholder of a personal subject, and the names of views.

A caption names the view that its picture shows by a suffix, "a red chair, back view". The limits are DreamFusion's
(arXiv:2209.14988): overhead above 60 degrees of elevation, else front within 45 degrees of azimuth 0, back within 45
of 180, side between. `training` writes its captions with the same words. Recipes for other priors may ask with
narrower sides (`guidance/view_text.py`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from maquette.cameras import Cameras
from maquette.errors import UserError

SUBJECT = "[v]"
"""Stands for the person's own subject in a caption; a prior knows which of its words that is."""
NEGATIVE = (
    "ugly, bad anatomy, blurry, pixelated obscure, unnatural colors, poor lighting, dull, and unclear, cropped, "
    "lowres, low quality, artifacts, duplicate, morbid, mutilated, poorly drawn face, deformed, dehydrated, "
    "bad proportions"
)
"""What MVDream's and ImageDream's released configurations keep away from in the distillation."""
DEMO_NEGATIVE = (
    "uniform low no texture ugly, boring, bad anatomy, blurry, pixelated,  obscure, unnatural colors, poor lighting, "
    "dull, and unclear."
)
"""What ImageDream's released demo keeps away from when it draws views."""
SUFFIX = ", 3d asset"
"""What both released scripts append to the words for views; training appended it to captions of 3D objects."""
VIEWS = ("front", "side", "back", "overhead")
OVERHEAD_ABOVE = 60.0
FRONT_WITHIN = 45.0


@dataclass(frozen=True)
class Additional:
    """Words beside a person's own."""

    negative: str = ""
    """What to keep away from, where the person names nothing."""
    suffix: str = ""
    """Appended to the caption."""

    def join(self, caption: str, negative: str) -> tuple[str, str]:
        """(caption, negative text) for the prior. A suffix to no words at all loses its comma.

        >>> Additional("blurry", ", 3d asset").join("a cup", "")
        ('a cup, 3d asset', 'blurry')
        """
        return (caption + self.suffix).removeprefix(", "), negative or self.negative


def view_word(azimuth: float, elevation: float) -> str:
    """One of `VIEWS` for a camera at these angles in degrees.

    >>> [view_word(azimuth, 0.0) for azimuth in (-30.0, 90.0, 190.0)], view_word(0.0, 75.0)
    (['front', 'side', 'back'], 'overhead')
    """
    if elevation > OVERHEAD_ABOVE:
        return "overhead"
    turned = abs((azimuth + 180) % 360 - 180)
    if turned < FRONT_WITHIN:
        return "front"
    return "back" if turned > 180 - FRONT_WITHIN else "side"


def with_view(caption: str, view: str) -> str:
    """The caption of a picture from that side; "" leaves it as it is.

    >>> with_view("a photo of a [v] dog", "back")
    'a photo of a [v] dog, back view'
    """
    if view and view not in VIEWS:
        raise ValueError(f"a view is one of {', '.join(VIEWS)}, got {view!r}")
    return f"{caption}, {view} view" if view else caption


def without_view(caption: str) -> str:
    """The caption without the word of its view.

    >>> without_view("a cup, blue, back view")
    'a cup, blue'
    """
    return re.sub(rf", ({'|'.join(VIEWS)}) view$", "", caption)


def view_captions(caption: str, cameras: Cameras) -> tuple[str, ...]:
    """The caption with the word of each camera [V] of an object that faces +x."""
    angles = zip(cameras.azimuth.tolist(), cameras.elevation.tolist(), strict=True)
    return tuple(with_view(caption, view_word(azimuth, elevation)) for azimuth, elevation in angles)


def without_subject(caption: str) -> str:
    """The caption of any object of the subject's class: placeholders such as [v] and [v2] left out.

    >>> without_subject("a photo of a [v] [v2] dog")
    'a photo of a dog'
    """
    return " ".join(re.sub(r"\[v\d?\]", " ", caption).split())


def spell(text: str, identifiers: Sequence[tuple[str, str]]) -> str:
    """The text with each placeholder replaced by the word that a network reads in its place.

    >>> spell("a photo of a [V] dog", (("[v]", "sks"),))
    'a photo of a sks dog'
    """
    for placeholder, word in identifiers:
        text = re.sub(re.escape(placeholder), word.replace("\\", r"\\"), text, flags=re.IGNORECASE)
    return text


def require_subject(caption: str) -> None:
    """UserError for a caption in which the subject does not occur."""
    if not re.search(r"\[v\d?\]", caption.lower()):
        example = f'"a {SUBJECT} dog asleep"'
        raise UserError(f'the caption "{caption}" does not say where the subject is: write {SUBJECT}, as in {example}')
