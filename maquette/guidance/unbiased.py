"""Unbiased score distillation: a view prior's prediction against the unconditional one of a prior that kept its own
(USD, arXiv:2312.06198).

Score distillation with classifier-free guidance falls into two parts,

    direction = w(t) ( omega (eps_cond - eps_null) + lambda (eps_null - eps) ),

of which the first says what the condition adds and the second pulls towards whatever the null believes; lambda = 1 is
SDS. A network that was finetuned to see views has a bad null: it met few empty conditions, and not in the form that
inference gives it. So USD leaves the second part out (lambda = 0) and takes the null of the *free* prior, the 2D
network that the view prior descends from. Both see the same x_t and t.

Whose codec is whose: `UnbiasedGuidance` works in the view prior's latents, at its size, and shows them to the free
prior as they are; `ReferenceGuidance` works in the free prior's own latents, at its own size.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from maquette.cameras import Cameras
from maquette.guidance.base import (
    AlignedCondition,
    BackgroundAlignment,
    Draws,
    GuidanceLoss,
    Noised,
    NoiseRange,
    distill,
    draw,
)
from maquette.images import ImagePrompt, Prompt
from maquette.priors.base import Prediction, Prior, UnconditionalKind
from maquette.priors.guided import check_shared_latents, free_condition, predict_singly
from maquette.run.fingerprints import fingerprint
from maquette.schedules import Constant, Linear

NOISE = NoiseRange(Constant(0.02), Linear(0.98, 0.5, begin=5000 / 15000, end=5001 / 15000))
"""t of USD: from 20 to 980, and to 500 from step 5001 of 15 000 on (written by the released code as a ramp of one
step)."""
REFERENCE_NOISE = NoiseRange(Constant(0.02), Constant(0.98))
"""t of the reference view: the released code never anneals it."""


def direction(
    *,
    eps_cond: Float[Tensor, "*b"],
    eps_null: Float[Tensor, "*b"],
    eps: Float[Tensor, "*b"],
    weight: Float[Tensor, "*#b"],
    omega: float = 7.5,
    lambda_: float = 0.0,
) -> Float[Tensor, "*b"]:
    """w(t) (omega (eps_cond - eps_null) + lambda (eps_null - eps)).

    With the free prior's null and lambda = 0 it is USD; with the prior's own null lambda = 1 is SDS at guidance scale
    omega, and lambda = 0 classifier score distillation, which is also USD's text-to-3D.
    """
    conditional = omega * (eps_cond - eps_null)
    return weight * (conditional if lambda_ == 0.0 else conditional + lambda_ * (eps_null - eps))


def reference_direction(
    *, eps_render: Float[Tensor, "*b"], eps_input: Float[Tensor, "*b"], weight: Float[Tensor, "*#b"]
) -> Float[Tensor, "*b"]:
    """w(t) (eps_free(render_t) - eps_free(input_t)), one t and one noise for both: zero where render equals input."""
    return weight * (eps_render - eps_input)


@dataclass(frozen=True)
class UnbiasedConfig:
    """Settings of the guidance; the defaults are the released ones of USD."""

    omega: float = 7.5
    """Weight of the conditional prediction against the null (hard-coded in the released code)."""
    lambda_: float = 0.0
    """Weight of the null against the added noise: 0 is USD, 1 SDS."""
    null: Literal["free", "own"] = "free"
    """Whose unconditional prediction is the null: that of the free prior, or the view prior's own."""
    unconditional: UnconditionalKind = "zeros"
    """What the view prior's own null is fed with, where it is used."""
    alignment: BackgroundAlignment = "none"
    """How the prompt's background follows the render's; Zero-1-to-3 only ever saw white."""
    sample_posterior: bool = True
    """Encode renders to a sample of the autoencoder's posterior, not its mean."""
    background_step: float = 1 / 16
    """Prompt backgrounds are rounded to multiples of this before encoding, so that encodings can be kept; 0: exact."""

    def __post_init__(self) -> None:
        if self.omega < 0 or self.lambda_ < 0:
            raise ValueError(f"omega and lambda are at least 0, got {self.omega} and {self.lambda_}")
        if self.omega == 0 and self.lambda_ == 0:
            raise ValueError("omega and lambda are both 0, which asks nothing of the prior; USD is omega=7.5, lambda=0")
        if self.null not in ("free", "own"):
            raise ValueError(f"null is 'free' or 'own', got {self.null!r}")

    @property
    def predictions(self) -> tuple[str, ...]:
        """What is evaluated, of 'cond', 'uncond' (the prior's own) and 'free'; terms that cancel are left out."""
        null = "free" if self.null == "free" else "uncond"
        if self.omega == 0:
            return (null,)
        return ("cond",) if self.omega == self.lambda_ else ("cond", null)


class UnbiasedGuidance:
    """Any conditional prior with any free prior of the same latents (USD, section 3).

    The conditional prior gets the renders' views and cameras; the free one gets every view for itself, without a camera
    and without words. `free` may be None where the config's null is the prior's own. ValueError where the two cannot
    share noisy latents.
    """

    def __init__(
        self, prior: Prior, free: Prior | None, prompt: Prompt, config: UnbiasedConfig = UnbiasedConfig()
    ) -> None:
        if free is None and config.null == "free":
            raise ValueError("null='free' needs a free prior; pass one, or take null='own'")
        if free is not None:
            check_shared_latents(prior, free)
        self.prior, self.free, self.prompt, self.config = prior, free, prompt, config
        self.condition = AlignedCondition(
            prior, prompt, config.alignment, unconditional=config.unconditional, step=config.background_step
        )
        self.nothing = None if free is None else free_condition(free)

    def __call__(
        self,
        images: Float[Tensor, "b v 3 h w"],
        cameras: Cameras | None,
        background: Float[Tensor, "3"],
        noise_range: tuple[float, float],
        generator: torch.Generator | None = None,
    ) -> GuidanceLoss:
        """Loss of rendered views in [0, 1]; one t and one noise tensor for the step, t shared by all scenes."""
        draws = draw(self.prior, images, noise_range, generator, sample_posterior=self.config.sample_posterior)
        return self.on_latents(self.prior.codec.encode(images, draws.codec_noise), cameras, background, draws)

    def fingerprint(self) -> str:
        """Covers both priors with their weights, the prompt and every setting."""
        return fingerprint((self.prior, self.free, self.prompt, self.config))

    def on_latents(
        self,
        latents: Float[Tensor, "b v c h w"],
        cameras: Cameras | None,
        background: Float[Tensor, "3"],
        draws: Draws,
    ) -> GuidanceLoss:
        """The same for latents and given random numbers."""

        def along(noised: Noised) -> Tensor:
            found = {name: value.eps for name, value in self.predict(noised, background).items()}
            # A part that is not evaluated has no weight; any tensor will do in its place.
            any_eps = next(iter(found.values()))
            null = "free" if self.config.null == "free" else "uncond"
            return direction(
                eps_cond=found.get("cond", any_eps),
                eps_null=found.get(null, any_eps),
                eps=noised.eps,
                weight=noised.sigma_t.square(),
                omega=self.config.omega,
                lambda_=self.config.lambda_,
            )

        return distill(latents, cameras, self.prior.noise_schedule, draws, along)

    def predict(
        self, noised: Noised, background: Float[Tensor, "3"], names: Iterable[str] | None = None
    ) -> dict[str, Prediction]:
        """Predictions by name, those that the config needs or the ones asked for: one call of each network.

        'cond' and 'uncond' are the prior's own, 'free' is the free prior's.
        """
        names = self.config.predictions if names is None else tuple(names)
        cond, uncond = self.condition.at(background)
        own = {name: {"cond": cond, "uncond": uncond}[name] for name in names if name != "free"}
        x_t, t, cameras = noised.latents_t, noised.t, noised.cameras
        if "free" not in names:
            return self.prior.predict_each(x_t, t, own, cameras)
        if self.free is None or self.nothing is None:
            raise ValueError("there is no free prior to ask; build the guidance with one")
        if self.free is self.prior and cameras is None and x_t.shape[1] == 1:
            return self.prior.predict_each(x_t, t, {**own, "free": self.nothing}, None)
        found = self.prior.predict_each(x_t, t, own, cameras) if own else {}
        return {**found, "free": predict_singly(self.free, x_t, t, self.nothing)}


@dataclass(frozen=True)
class ReferenceConfig:
    """Settings of the reference view's guidance; the defaults are the released ones."""

    sample_posterior: bool = True
    """Encode render and input to samples of the posterior, anew at each step; else to its mean."""


class ReferenceGuidance:
    """A render from the picture's own camera pleases a free prior exactly as much as the picture does.

    The delta of two scores takes the place of colour and mask losses on the input view: it moves the render only where
    the free prior, too, sees a difference from the input. Every view given is compared with the one picture, which is
    composited on the render's background.
    """

    def __init__(self, free: Prior, picture: ImagePrompt, config: ReferenceConfig = ReferenceConfig()) -> None:
        self.free, self.picture, self.config = free, picture, config
        self.nothing = free_condition(free)
        self._kept: tuple[tuple[float, ...], Tensor] | None = None

    def __call__(
        self,
        images: Float[Tensor, "b v 3 h w"],
        cameras: Cameras | None,
        background: Float[Tensor, "3"],
        noise_range: tuple[float, float],
        generator: torch.Generator | None = None,
    ) -> GuidanceLoss:
        """Loss of renders in [0, 1] from the picture's camera; `cameras` is not looked at."""
        sampled = self.config.sample_posterior
        draws = draw(self.free, images, noise_range, generator, sample_posterior=sampled)
        noise = draw(self.free, images, noise_range, generator, sample_posterior=sampled).codec_noise
        latents = self.free.codec.encode(images, draws.codec_noise)
        return self.on_latents(latents, self.target(background, noise).to(latents), draws)

    def fingerprint(self) -> str:
        """Covers the prior with its weights, the picture and every setting."""
        return fingerprint((self.free, self.picture, self.config))

    @torch.no_grad()
    def target(
        self, background: Float[Tensor, "3"], noise: Float[Tensor, "b v c h w"] | None = None
    ) -> Float[Tensor, "#b #v c h w"]:
        """Latents of the picture on a background: one for each posterior noise, or the mean, which is remembered."""
        key = tuple(background.detach().float().cpu().tolist())
        if noise is None and self._kept is not None and self._kept[0] == key:
            return self._kept[1]
        picture = self.picture.to(background.device)
        shown = picture.composite(background.to(picture.image.dtype))[None, None]
        if noise is not None:
            return self.free.codec.encode(shown.expand(*noise.shape[:2], -1, -1, -1), noise)
        self._kept = key, self.free.codec.encode(shown)
        return self._kept[1]

    def on_latents(
        self, latents: Float[Tensor, "b v c h w"], target: Float[Tensor, "#b #v c h w"], draws: Draws
    ) -> GuidanceLoss:
        """The same for latents of the render and of the input, and given random numbers."""
        schedule = self.free.noise_schedule

        def along(noised: Noised) -> Tensor:
            input_t = schedule.add_noise(target.expand_as(noised.latents), noised.eps, noised.t)
            both = torch.cat([noised.latents_t, input_t])
            eps_render, eps_input = predict_singly(self.free, both, noised.t.repeat(2), self.nothing).eps.chunk(2)
            return reference_direction(eps_render=eps_render, eps_input=eps_input, weight=noised.sigma_t.square())

        return distill(latents, None, schedule, draws, along)
