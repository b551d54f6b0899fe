"""Judging pictures of a subject without a person: how like the photos they are, and which side they show.

The encoder is whatever maps pictures and texts to unit vectors of one space: CLIP, DINO for the pictures alone, or the
encoders that a nano prior was trained with. Numbers of different encoders never compare, and an encoder that chose a
result should not also grade it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from maquette.errors import UserError
from maquette.priors.multiview import MultiViewPrior
from maquette.priors.nano.encoders import NanoTextEncoder
from maquette.subjects import CaptionedImages
from maquette.wording import VIEWS, with_view, without_subject


@runtime_checkable
class PictureEncoder(Protocol):
    """Pictures and captions to unit vectors of one space."""

    @property
    def name(self) -> str:
        """Stands beside every number."""
        ...

    def embed_images(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Of pictures in [0, 1] of any size."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Of captions."""
        ...


class OwnEncoder:
    """The encoders that a nano prior brings along, which were trained on each other. UserError for other priors."""

    def __init__(self, prior: MultiViewPrior) -> None:
        if prior.image_encoder is None or not isinstance(prior.text_encoder, NanoTextEncoder):
            raise UserError(
                f"{prior.config.name} has no encoders that put pictures and words into one space; give others"
            )
        self.prior, self.image_encoder, self.text_encoder = prior, prior.image_encoder, prior.text_encoder

    @property
    def name(self) -> str:
        return f"{self.prior.config.name}'s own"

    @torch.no_grad()
    def embed_images(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        return self.image_encoder(images.to(self.prior.device))[1].float().cpu()

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        return self.text_encoder.embed(self.prior.tokenizer(texts).to(self.prior.device)).float().cpu()

    def fingerprint(self) -> str:
        """That of the weights."""
        return self.prior.weights_fingerprint()


def on_white(pictures: CaptionedImages) -> Float[Tensor, "n 3 s s"]:
    """Photos as they are compared: masked objects on white."""
    return pictures.composite(range(len(pictures)), torch.ones(len(pictures), 3))


def likeness(
    encoder: PictureEncoder, images: Float[Tensor, "n 3 h w"], photos: Float[Tensor, "k d"]
) -> Float[Tensor, " n"]:
    """Mean cosine of each picture to the photos' unit vectors."""
    return (encoder.embed_images(images) @ photos.T).mean(dim=1)


def sides(encoder: PictureEncoder, images: Float[Tensor, "n 3 h w"], caption: str) -> list[str]:
    """Which of `VIEWS` each picture shows: the nearest of the caption's four, asked of the class, without [v]."""
    texts = encoder.embed_texts([with_view(without_subject(caption), view) for view in VIEWS])
    return [VIEWS[index] for index in (encoder.embed_images(images) @ texts.T).argmax(dim=1).tolist()]


def diversity(embedded: Float[Tensor, "n d"]) -> float:
    """Mean of 1 - cosine over all pairs of pictures; 0 for one picture or equal ones."""
    if len(embedded) < 2:
        return 0.0
    count, cosine = len(embedded), embedded @ embedded.T
    return 1.0 - float(cosine.sum() - cosine.diagonal().sum()) / (count * (count - 1))
