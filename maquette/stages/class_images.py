"""What a prior thinks of a class before it learns a subject: pictures sampled once and kept, to be shown to it then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from maquette.errors import UserError
from maquette.priors.base import Prior
from maquette.run import Stage
from maquette.stages.look import SamplingConfig, draw_scenes
from maquette.stages.personalize import words
from maquette.subjects import CaptionedImages


@dataclass(frozen=True)
class ClassImagesConfig:
    """How pictures of a class are sampled."""

    count: int = 200
    """Pictures altogether."""
    sampling: SamplingConfig = SamplingConfig(steps=50, guidance_scale=7.5)
    """The sampler; 6.5 is USD's guidance scale."""
    batch: int = 4
    """Pictures sampled at once."""
    negative: str = ""
    """What they must not look like."""

    def __post_init__(self) -> None:
        if min(self.count, self.batch) < 1:
            raise UserError(f"count and batch are at least 1, got {self.count} and {self.batch}")


def class_images(prior: Prior, captions: Sequence[str], config: ClassImagesConfig, *, run: Stage) -> CaptionedImages:
    """`config.count` single pictures of the captions in turn, from the prior as it is.

    Picture number k depends on its caption and k alone, so that asking for more keeps the first ones. As the result of
    a stage they are cached; an interrupted stage goes on after its last batch.
    """
    if not captions:
        raise ValueError("class_images needs at least one caption")
    size = prior.codec.image_size
    pixels = torch.zeros(config.count, 3, size, size, dtype=torch.uint8)
    order = [index for c in range(len(captions)) for index in range(c, config.count, len(captions))]
    begin = 0
    if (found := run.load_checkpoint()) is not None:
        begin, pixels = found[0], found[1]["pixels"]
    conditions = [words(prior, caption, config.negative) for caption in captions]
    done = begin
    while done < config.count:
        caption = order[done] % len(captions)
        batch = [index for index in order[done : done + config.batch] if index % len(captions) == caption]
        generators = [run.generator(index, "picture", "cpu") for index in batch]
        images = draw_scenes(prior, conditions[caption], None, config.sampling, generators, run)
        pixels[batch] = (images[:, 0] * 255).round().to(torch.uint8)
        done += len(batch)
        run.log(done, pictures=done)
        run.checkpoint(done, lambda: {"pixels": pixels})
    return CaptionedImages(pixels, tuple(captions[index % len(captions)] for index in range(config.count)))
