"""What a prior is to the rest of the house: a score model that hides its own oddities.

What enters and leaves is ours: images in [0, 1], `Cameras`, latents `[B, V, C, h, w]`, integer timesteps. Extra image
views, camera frames, batch order and latent scales stay inside the prior. A *scene* is one entry of the batch axis B,
the views of a scene are the axis V; all views of a scene share one timestep.

Naming contract: `latents` are clean and already scaled; `latents_t = alpha_t latents + sigma_t eps`;
`eps` is the noise that was added, `x0` the clean latents; a `Prediction` holds both, whatever the network predicts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from maquette.cameras import Cameras
from maquette.diffusion.schedule import NoiseSchedule
from maquette.images import Prompt
from maquette.priors.adapters import Adapter

UnconditionalKind = Literal["zeros", "flat", "projected"]
"""What stands for no condition: zeros, a picture of one colour, or Zero-1-to-3's zero token with the pose projected."""


@runtime_checkable
class Codec(Protocol):
    """Images to latents and back. Each prior owns one; `encode` is differentiable in the images."""

    @property
    def image_size(self) -> int:
        """Height and width in pixels of the images that the latents stand for."""
        ...

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one view's latents."""
        ...

    @property
    def scale(self) -> float:
        """What the encoder's own latents are multiplied by."""
        ...

    @property
    def stochastic(self) -> bool:
        """Whether `encode` has a posterior to sample from, so that its `noise` matters."""
        ...

    def encode(
        self, images: Float[Tensor, "b v 3 h w"], noise: Float[Tensor, "b v c lh lw"] | None = None
    ) -> Float[Tensor, "b v c lh lw"]:
        """Scaled latents of images in [0, 1] of any size (resized to `image_size`, differentiably).

        `noise` is unit Gaussian and picks a sample of the posterior; without it the result is the posterior's mean.
        """
        ...

    def resize_prompt(self, image: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 s s"]:
        """A picture in [0, 1] of any size at `image_size`, filtered as the prior's training pictures were."""
        ...

    def decode(self, latents: Float[Tensor, "b v c lh lw"]) -> Float[Tensor, "b v 3 h w"]:
        """Images, clamped to [0, 1], of scaled latents."""
        ...

    def identity(self) -> str:
        """Equal exactly for codecs whose latents may be exchanged: kind, scale, shape and weights in one string."""
        ...


@dataclass(frozen=True)
class Condition:
    """What a prior knows about the wanted object. Opaque to guidance; made by `Prior.condition`.

    The leading axis N is 1 (shared by all scenes) or the number of scenes. A field that a prior does not use is None.
    """

    text: Float[Tensor, "n l d"]
    """Context tokens of the caption."""
    image_tokens: Float[Tensor, "n k e"] | None = None
    """Local features of the image prompt, before the resampler."""
    image_embedding: Float[Tensor, "n g"] | None = None
    """Global feature of the image prompt."""
    image_latents: Float[Tensor, "n c h w"] | None = None
    """Clean latents of the image prompt, scaled (Zero-1-to-3 reads them unscaled)."""
    camera: Float[Tensor, "n k"] | None = None
    """The image prompt's own camera: elevation and azimuth in degrees and, where k = 3, distance."""
    background: Float[Tensor, "3"] | None = None
    """Flat colour behind the image prompt, in [0, 1]."""
    negative: Float[Tensor, "n l d"] | None = None
    """Context tokens of the negative text; an unconditional twin has them as its `text`."""

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Condition:
        """The same condition on another device or in another precision; angles keep theirs, since a degree counts."""
        moved = self._map(lambda tensor: tensor.to(device=device, dtype=dtype))
        return moved if self.camera is None else replace(moved, camera=self.camera.to(device))

    def expand(self, num_scenes: int) -> Condition:
        """The same condition with N = `num_scenes` rows; ValueError if N is neither 1 nor `num_scenes`."""
        if self.text.shape[0] not in (1, num_scenes):
            raise ValueError(
                f"the condition holds {self.text.shape[0]} rows but the latents {num_scenes} scenes; "
                "pass one condition for all scenes, or one row for each"
            )

        return self._map(lambda tensor: tensor if tensor.ndim == 1 else tensor.expand(num_scenes, *tensor.shape[1:]))

    def _map(self, function: Any) -> Condition:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: function(value) for name, value in values.items() if value is not None})


def stack_conditions(conditions: Sequence[Condition]) -> Condition:
    """Conditions of the same kind, one below the other along N, without a common background or negative.

    ValueError where one has a field that another lacks.
    """

    def join(name: str) -> Tensor | None:
        values = [getattr(condition, name) for condition in conditions]
        present = [value for value in values if value is not None]
        if len(present) not in (0, len(values)):
            raise ValueError(f"only conditions of the same kind can be stacked; some have no {name}")
        return torch.cat(present) if present else None

    named = {
        field.name: join(field.name) for field in fields(Condition) if field.name not in ("background", "negative")
    }
    return Condition(**named)  # type: ignore[arg-type]  # every condition has a text


@dataclass(frozen=True)
class Prediction:
    """The two faces of one network output: `latents_t = alpha_t x0 + sigma_t eps`."""

    eps: Float[Tensor, "b v c h w"]
    x0: Float[Tensor, "b v c h w"]


@dataclass(frozen=True)
class PredictionPair:
    """Conditional and unconditional predictions of the same noisy latents, by name, never by position."""

    cond: Prediction
    uncond: Prediction


@runtime_checkable
class Prior(Protocol):
    """A loaded score model with its encoders, codec and noise schedule."""

    @property
    def codec(self) -> Codec: ...

    @property
    def noise_schedule(self) -> NoiseSchedule: ...

    @property
    def num_views(self) -> int | None:
        """Views per scene that the network was made for with cameras; None if any number will do."""
        ...

    def condition(self, prompt: Prompt, background: Float[Tensor, "3"]) -> Condition:
        """Caption and image prompt, composited on a flat background colour in [0, 1], as the network wants them."""
        ...

    def unconditional(self, condition: Condition, kind: UnconditionalKind = "zeros") -> Condition:
        """The condition's twin for classifier-free guidance: negative text, no image."""
        ...

    def predict(
        self,
        latents_t: Float[Tensor, "b v c h w"],
        t: Int[Tensor, " b"],
        condition: Condition,
        cameras: Cameras | None = None,
    ) -> Prediction:
        """The network's opinion on noisy latents at integer timesteps t, one per scene."""
        ...

    def predict_each(
        self,
        latents_t: Float[Tensor, "b v c h w"],
        t: Int[Tensor, " b"],
        conditions: Mapping[str, Condition],
        cameras: Cameras | None = None,
    ) -> dict[str, Prediction]:
        """`predict` for several conditions at once, batched if memory allows; results carry the conditions' names."""
        ...

    def card(self) -> dict[str, Any]:
        """Name, sha256, licence and, where known, recipe and measured quality of the weights."""
        ...


class PredictsEach(ABC):
    """What priors have in common that answer for several conditions in one batch."""

    def predict(
        self,
        latents_t: Float[Tensor, "b v c h w"],
        t: Int[Tensor, " b"],
        condition: Condition,
        cameras: Cameras | None = None,
    ) -> Prediction:
        """eps and x0 for noisy latents under one condition; see `predict_each`."""
        return self.predict_each(latents_t, t, {"condition": condition}, cameras)["condition"]

    @abstractmethod
    def predict_each(
        self,
        latents_t: Float[Tensor, "b v c h w"],
        t: Int[Tensor, " b"],
        conditions: Mapping[str, Condition],
        cameras: Cameras | None = None,
    ) -> dict[str, Prediction]:
        """As a `Prior` does it."""


@runtime_checkable
class AdaptablePrior(Prior, Protocol):
    """A prior whose networks can learn a subject (see `adapters`)."""

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        ...

    def networks(self) -> Mapping[str, nn.Module]:
        """What can learn, by role: "network", the score model, and "text_encoder"."""
        ...

    def weights_fingerprint(self) -> str:
        """Equal exactly for priors of the same weights, however they are used."""
        ...

    def adapted(self, adapter: Adapter) -> AdaptablePrior:
        """The same prior with what was learned; it shares all other weights with this one, which stays as it is."""
        ...

    def encode_text(self, text: str) -> Float[Tensor, "1 l d"]:
        """The context tokens of a text that `condition` would give; differentiable in the text encoder's weights."""
        ...

    def fingerprint(self) -> str:
        """Covers everything that changes a prediction."""
        ...


def predict_pair(
    prior: Prior,
    latents_t: Float[Tensor, "b v c h w"],
    t: Int[Tensor, " b"],
    *,
    cond: Condition,
    uncond: Condition,
    cameras: Cameras | None = None,
) -> PredictionPair:
    """Both halves of classifier-free guidance in one batch, conditional first.

    The only place where the two are stacked is the prior's `predict_each`; here and above they have names.
    """
    predictions = prior.predict_each(latents_t, t, {"cond": cond, "uncond": uncond}, cameras)
    return PredictionPair(cond=predictions["cond"], uncond=predictions["uncond"])
