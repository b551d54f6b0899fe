"""USD's two-step specialisation (arXiv:2312.06198, section 4): what each of two calls of `personalize` is shown.

First the prior learns the object from the input and a few generated views of it: "[v]" is what they have in common,
against pictures of the class. Generated views are blurred and wrong in detail, so a second, very short step tells the
input's own look, "[v2]", apart from theirs: the input is the subject, and the generated views are what it is not.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from maquette.priors.adapters import Lora
from maquette.stages.class_images import ClassImagesConfig
from maquette.stages.look import SamplingConfig
from maquette.stages.personalize import PersonalizeConfig
from maquette.subjects import CaptionedImages

OBJECT, DETAIL = "[v]", "[v2]"


@dataclass(frozen=True)
class SpecializeConfig:
    """Both steps; the defaults are those of the released notebook, on Stable Diffusion 2.1-base."""

    class_images: ClassImagesConfig = ClassImagesConfig(200, SamplingConfig(steps=50, guidance_scale=6.5))
    """Pictures of the class for the first step."""
    first: PersonalizeConfig = field(default_factory=lambda: _released(600))
    """Object against class: three passes over 200 class images."""
    second: PersonalizeConfig = field(default_factory=lambda: _released(5))
    """Input against generated views: one pass over five of them. Very sensitive to the learning rate."""


def _released(steps: int) -> PersonalizeConfig:
    # Differs from the notebook: it takes the mean over both halves, we their sum, as in DreamBooth's equation. AdamW
    # does not notice a factor on the loss; the clipping of the gradient does.
    return PersonalizeConfig(adapter=Lora(rank=4), steps=steps, learning_rate=2e-4)


def class_prompt(noun: str) -> str:
    """Any object of the class."""
    return f"photo of a {noun}"


def object_prompt(noun: str) -> str:
    """The object, as the generated views show it."""
    return f"photo of a {OBJECT} {noun}"


def detail_prompt(noun: str) -> str:
    """The object as the input shows it; what renderings are refined with."""
    return f"photo of a {DETAIL} {OBJECT} {noun}"


def first_pictures(
    picture: CaptionedImages, views: CaptionedImages, class_pictures: CaptionedImages, noun: str
) -> tuple[CaptionedImages, CaptionedImages]:
    """(subject, others) of the first step: input and generated views against the class."""
    return picture.joined(views).captioned(object_prompt(noun)), class_pictures.captioned(class_prompt(noun))


def second_pictures(
    picture: CaptionedImages, views: CaptionedImages, noun: str
) -> tuple[CaptionedImages, CaptionedImages]:
    """(subject, others) of the second step: the input against the generated views."""
    return picture.captioned(detail_prompt(noun)), views.captioned(object_prompt(noun))
