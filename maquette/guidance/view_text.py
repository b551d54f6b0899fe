"""Text-to-3D with a 2D prior: words for the side that a view shows, and classifier scores without the rest of SDS.

A 2D prior knows no cameras, so the caption says where a view is taken from ("..., back view"; DreamFusion,
arXiv:2209.14988, section 3.2). Every view is a scene of its own for the network.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Generic, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from maquette.cameras import Cameras
from maquette.guidance.base import Draws, GuidanceLoss, Noised, distill, draw
from maquette.guidance.unbiased import direction
from maquette.images import Prompt
from maquette.priors.base import Condition, Prior
from maquette.run.fingerprints import fingerprint

VIEW_WORDS = ("front view", "side view", "back view", "overhead view")
"""Appended to the caption after a comma."""


@dataclass(frozen=True)
class ViewTextConfig:
    """Settings of the guidance; the defaults are those of USD's text-to-3D."""

    omega: float = 7.5
    """Weight of the text's prediction against the null."""
    lambda_: float = 0.0
    """Weight of the null against the added noise: 0 is USD's text-to-3D, 1 SDS at guidance scale omega."""
    view_words: bool = True
    """Say in the caption which side a view shows."""
    front: float = 30.0
    """Degrees of azimuth around the front that count as front, and around the back as back. USD's recipe says 30;
    nano's captions were written with DreamFusion's usual 45 (`wording.FRONT_WITHIN`), so ask it with that.
    """
    overhead: float = 60.0
    """Degrees of elevation above which a view is overhead."""
    sample_posterior: bool = True
    """Encode renders to a sample of the autoencoder's posterior, not its mean."""

    def __post_init__(self) -> None:
        if self.omega <= 0 or self.lambda_ < 0:
            raise ValueError(f"omega is above 0 and lambda at least 0, got {self.omega} and {self.lambda_}")


@runtime_checkable
class EncodesImages(Protocol):
    """What the settings of every guidance of single views say."""

    @property
    def sample_posterior(self) -> bool: ...


Config = TypeVar("Config", bound=EncodesImages)


def view_word_index(cameras: Cameras, front: float = 30.0, overhead: float = 60.0) -> Int[Tensor, "*b"]:
    """Which of `VIEW_WORDS` belongs to each camera."""
    away = cameras.azimuth.abs()
    index = torch.ones_like(away, dtype=torch.int64)
    index[away < front] = 0
    index[away > 180 - front] = 2
    index[cameras.elevation > overhead] = 3
    return index


class SingleViewGuidance(ABC, Generic[Config]):
    """What guidances of a 2D prior have in common: images become latents, and these a loss, view by view."""

    def __init__(self, prior: Prior, prompt: Prompt, config: Config) -> None:
        self.prior, self.prompt, self.config = prior, prompt, config

    def __call__(
        self,
        images: Float[Tensor, "b v 3 h w"],
        cameras: Cameras | None,
        background: Float[Tensor, "3"],
        noise_range: tuple[float, float],
        generator: torch.Generator | None = None,
    ) -> GuidanceLoss:
        """Loss of rendered views in [0, 1]; ValueError without cameras where words depend on them."""
        draws = draw(self.prior, images, noise_range, generator, sample_posterior=self.config.sample_posterior)
        return self.on_latents(self.prior.codec.encode(images, draws.codec_noise), cameras, draws)

    def fingerprint(self) -> str:
        """Covers the prior with its weights, the prompt and every setting."""
        return fingerprint((self.prior, self.prompt, self.config))

    @abstractmethod
    def on_latents(self, latents: Float[Tensor, "b v c h w"], cameras: Cameras | None, draws: Draws) -> GuidanceLoss:
        """The same for latents and given random numbers."""


class ViewTextGuidance(SingleViewGuidance[ViewTextConfig]):
    """w(t) (omega (eps_text - eps_null) + lambda (eps_null - eps)) of a 2D prior, each view with its own words.

    Text and null are evaluated in one batch. The null is the prior's unconditional twin: the prompt's negative text.
    """

    def __init__(self, prior: Prior, prompt: Prompt, config: ViewTextConfig = ViewTextConfig()) -> None:
        super().__init__(prior, prompt, config)
        # One for each of `VIEW_WORDS`, or one without.
        self.conditions = [self._condition(word) for word in (VIEW_WORDS if config.view_words else ("",))]

    def _condition(self, word: str) -> Condition:
        caption = ", ".join(part for part in (self.prompt.caption, word) if part)
        return self.prior.condition(replace(self.prompt, image=None, caption=caption), torch.ones(3))

    def on_latents(self, latents: Float[Tensor, "b v c h w"], cameras: Cameras | None, draws: Draws) -> GuidanceLoss:
        """The same for latents and given random numbers."""
        scenes, views = latents.shape[:2]
        condition = self.at(cameras, scenes, views)
        twin = self.prior.unconditional(condition)

        def along(noised: Noised) -> Tensor:
            eps = predict_views(self.prior, noised, {"text": condition, "null": twin})
            return direction(
                eps_cond=eps["text"],
                eps_null=eps["null"],
                eps=noised.eps,
                weight=noised.sigma_t.square(),
                omega=self.config.omega,
                lambda_=self.config.lambda_,
            )

        return distill(latents, cameras, self.prior.noise_schedule, draws, along)

    def at(self, cameras: Cameras | None, scenes: int, views: int) -> Condition:
        """One row of words for each of `scenes` x `views` views."""
        if not self.config.view_words:
            return self.conditions[0].expand(scenes * views)
        if cameras is None:
            raise ValueError("words for views need the views' cameras; pass them, or set view_words=False")
        words = view_word_index(cameras, self.config.front, self.config.overhead)
        return rows_of(self.conditions, words.expand(scenes, views).flatten())


def predict_views(
    prior: Prior, noised: Noised, conditions: Mapping[str, Condition]
) -> dict[str, Float[Tensor, "b v c h w"]]:
    """eps of every condition for a step's noisy latents, each view as a scene of its own; conditions have a row a view
    (scene after scene), or one for all.
    """
    scenes, views = noised.latents_t.shape[:2]
    x_t, t = noised.latents_t.flatten(0, 1)[:, None], noised.t.repeat_interleave(views)
    found = prior.predict_each(x_t, t, conditions)
    return {name: prediction.eps[:, 0].unflatten(0, (scenes, views)) for name, prediction in found.items()}


def rows_of(conditions: Sequence[Condition], index: Int[Tensor, " n"]) -> Condition:
    """Row i is that of `conditions[index[i]]`; each of them has one row, and all know of the same things."""
    chosen = {}
    for field in fields(Condition):
        values = [getattr(condition, field.name) for condition in conditions]
        if values[0] is not None:
            chosen[field.name] = values[0] if values[0].ndim == 1 else torch.cat(values)[index.to(values[0].device)]
    return Condition(**chosen)
