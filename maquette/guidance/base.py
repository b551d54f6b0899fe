"""Score distillation once: a guidance says a *direction* in latent space, the rest of the step is here.

A distillation step is always the same six lines: render, encode, noise, predict, take a direction, form the surrogate.
The render is given; `draw` makes the step's random numbers, `distill` does the last four lines for any direction, and
each guidance in this folder is one `direction` of a few lines. Since

    x - x0_pred = sigma_t / alpha_t (eps_pred - eps),

directions in eps and in x0 differ by a weight only, so every formula stands under the same surrogate loss.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from maquette.cameras import Cameras
from maquette.diffusion.schedule import NoiseSchedule
from maquette.errors import UserError
from maquette.images import Prompt
from maquette.priors.base import Condition, PredictionPair, Prior, UnconditionalKind, predict_pair
from maquette.schedules import Constant, Linear, Piecewise, extremes, timestep_bounds

BackgroundAlignment = Literal["none", "grey", "colour"]
"""What the prompt's background copies from the render's: nothing, its brightness (released code), or its colour."""


@dataclass(frozen=True)
class GuidanceLoss:
    """A scalar whose gradient is the guidance, and what is worth logging.

    The loss of a surrogate is no convergence signal; `metrics["grad_norm"]` is.
    """

    loss: Float[Tensor, ""]
    metrics: dict[str, float] = field(default_factory=dict)


@runtime_checkable
class Guidance(Protocol):
    """What an objective asks about its render."""

    def __call__(
        self,
        images: Float[Tensor, "b v 3 h w"],
        cameras: Cameras | None,
        background: Float[Tensor, "3"],
        noise_range: tuple[float, float],
        generator: torch.Generator | None = None,
    ) -> GuidanceLoss:
        """Loss of B scenes of V rendered views in [0, 1].

        `cameras` is a batch [B, V], or None for a 2D prior. `background` is the colour behind the object, in [0, 1]:
        the mean of the rendered background. `noise_range` bounds t as fractions of the schedule's steps.
        """
        ...


@dataclass(frozen=True)
class NoiseRange:
    """Bounds of the noise level over a run, as fractions of the noise schedule's T steps.

    The defaults are ImageDream's: low falls from 0.98 to 0.02 and high from 0.98 to 0.50 over the first 64 % of the run
    (8000 of 12 500 steps), then both stay.
    """

    low: Constant | Linear | Piecewise = Linear(0.98, 0.02, 0.64)
    """Least noise."""
    high: Constant | Linear | Piecewise = Linear(0.98, 0.50, 0.64)
    """Most noise."""

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            lowest, highest = extremes(getattr(self, name))
            if not 0 <= lowest <= highest <= 1:
                raise UserError(f"NoiseRange.{name} is a fraction in [0, 1] throughout, got {getattr(self, name)}")
        for moment in (0, 1):
            low, high = self.at(moment, 1)
            if low > high:
                raise UserError(f"NoiseRange.low is at most high throughout, got {low} and {high}")

    def at(self, step: int, total: int) -> tuple[float, float]:
        """(low, high) at `step` of `total`."""
        return self.low.at(step, total), self.high.at(step, total)


@dataclass(frozen=True)
class Draws:
    """The random numbers of one step, so that a step can be repeated exactly."""

    t: Int[Tensor, " b"]
    """Integer timesteps, one per scene."""
    eps: Float[Tensor, "b v c h w"]
    """Diffusion noise."""
    codec_noise: Float[Tensor, "b v c h w"] | None = None
    """Picks the sample of the encoder's posterior; None takes its mean."""


@dataclass(frozen=True)
class Noised:
    """What a direction may look at: clean latents (detached), the noise, and their mixture."""

    latents: Float[Tensor, "b v c h w"]
    eps: Float[Tensor, "b v c h w"]
    latents_t: Float[Tensor, "b v c h w"]
    t: Int[Tensor, " b"]
    cameras: Cameras | None
    schedule: NoiseSchedule

    @property
    def alpha_t(self) -> Float[Tensor, "b 1 1 1 1"]:
        """sqrt(alphas_cumprod[t]), to broadcast against latents."""
        return self.schedule.alpha(self.t, self.latents)

    @property
    def sigma_t(self) -> Float[Tensor, "b 1 1 1 1"]:
        """sqrt(1 - alphas_cumprod[t]), to broadcast against latents."""
        return self.schedule.sigma(self.t, self.latents)


def surrogate(latents: Float[Tensor, "b v c h w"], direction: Float[Tensor, "b v c h w"]) -> Float[Tensor, ""]:
    """A loss whose gradient with respect to `latents` is exactly `direction / (B V)`, at any value of the latents.

        L = 1/2 |z - stopgrad(z - direction)|^2_sum / (B V) = 1/2 |direction|^2 / (B V)

    `direction` points away from where the latents should go.
    """
    num_images = latents.shape[0] * latents.shape[1]
    direction = direction.detach()
    # Written out, because z - (z - direction) loses the low bits of a small direction, in half precision nearly all.
    slope = (latents * direction).sum() / num_images
    return 0.5 * direction.square().sum() / num_images + (slope - slope.detach())


def draw_timesteps(
    noise_range: tuple[float, float],
    num_steps: int,
    num_scenes: int,
    generator: torch.Generator | None = None,
    *,
    shared: bool = True,
) -> Int[Tensor, " b"]:
    """Integer steps, uniform over the range's truncated bounds, both included; one for all scenes, or one for each.

    ValueError unless 0 <= low <= high <= 1; the schedule's last step bounds both.
    """
    low, high = (
        min(bound, num_steps - 1)
        for bound in timestep_bounds(Constant(noise_range[0]), Constant(noise_range[1]), 0, 1, num_steps)
    )
    device = "cpu" if generator is None else generator.device
    t = torch.randint(low, high + 1, (1 if shared else num_scenes,), generator=generator, device=device)
    return t.expand(num_scenes)


def draw(
    prior: Prior,
    images: Float[Tensor, "b v c h w"],
    noise_range: tuple[float, float],
    generator: torch.Generator | None = None,
    *,
    sample_posterior: bool = True,
    shared_t: bool = True,
) -> Draws:
    """The random numbers of a step for `images` [B, V, ...]: t, then the noise, then the codec's.

    They are drawn on the generator's device and moved to the images', so a CPU generator gives every machine the same.
    """
    shape = (*images.shape[:2], *prior.codec.latent_shape)
    device = "cpu" if generator is None else generator.device

    def gaussian() -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=torch.float32).to(images)

    t = draw_timesteps(noise_range, prior.noise_schedule.num_steps, shape[0], generator, shared=shared_t)
    eps = gaussian()
    codec_noise = gaussian() if sample_posterior and prior.codec.stochastic else None
    return Draws(t.to(images.device), eps, codec_noise)


def distill(
    latents: Float[Tensor, "b v c h w"],
    cameras: Cameras | None,
    schedule: NoiseSchedule,
    draws: Draws,
    direction: Callable[[Noised], Float[Tensor, "b v c h w"]],
) -> GuidanceLoss:
    """Noise the latents, ask for a direction, form the surrogate. No gradient passes through the network.

    `metrics`: `grad_norm` = |direction| / (B V), the norm of the gradient with respect to the latents, and `t`.
    """
    with torch.no_grad():
        clean = latents.detach()
        noised = Noised(clean, draws.eps, schedule.add_noise(clean, draws.eps, draws.t), draws.t, cameras, schedule)
        step = direction(noised)
    loss = surrogate(latents, step)
    num_images = latents.shape[0] * latents.shape[1]
    metrics = {"grad_norm": float(step.norm()) / num_images, "t": float(draws.t.float().mean())}
    return GuidanceLoss(loss, metrics)


class AlignedCondition:
    """A prior's conditions for one prompt, with the prompt on the background that the render has.

    The render's background is random; a prompt on another one makes the prior paint its own background into the scene
    as floaters (ImageDream, arXiv:2312.02201, section 3.4). Pairs are kept by the colour that the prompt was composited
    on, so encoders run once per colour, not once per step.
    """

    def __init__(
        self,
        prior: Prior,
        prompt: Prompt,
        alignment: BackgroundAlignment = "colour",
        *,
        unconditional: UnconditionalKind = "zeros",
        fixed: tuple[float, float, float] = (1.0, 1.0, 1.0),
        step: float = 1 / 16,
        capacity: int = 512,
    ) -> None:
        """`fixed` is the prompt's background where nothing is aligned; colours are rounded to multiples of `step`
        (0: not at all, and nothing is kept); at most `capacity` pairs are kept, the least recently used go first.
        """
        if alignment not in ("none", "grey", "colour"):
            raise ValueError(f"background alignment is 'none', 'grey' or 'colour', got {alignment!r}")
        if not 0.0 <= step <= 1.0:
            raise ValueError(f"the colour step lies in [0, 1], got {step}")
        self.prior, self.prompt, self.alignment, self.kind = prior, prompt, alignment, unconditional
        self.fixed, self.step, self.capacity = fixed, step, capacity
        self._pairs: OrderedDict[tuple[float, ...], tuple[Condition, Condition]] = OrderedDict()

    def colour(self, background: Float[Tensor, "3"]) -> tuple[float, float, float]:
        """The prompt's background for a render's: aligned, then rounded to `step`."""
        if self.prompt.image is None or self.alignment == "none":
            return self.fixed
        values = background.detach().float().cpu()
        if self.alignment == "grey":
            # Differs from paper: the released code matches only the brightness of its RGB background.
            values = values.mean().expand(3)
        if self.step:
            values = (values / self.step).round() * self.step
        red, green, blue = values.clamp(0, 1).tolist()
        return red, green, blue

    def at(self, background: Float[Tensor, "3"]) -> tuple[Condition, Condition]:
        """(conditional, unconditional) for a render on `background`."""
        key = self.colour(background)
        pair = self._pairs.get(key)
        if pair is None:
            with torch.no_grad():
                cond = self.prior.condition(self.prompt, background.new_tensor(key))
                pair = cond, self.prior.unconditional(cond, self.kind)
            if self.step == 0 and self.alignment != "none":
                return pair
            self._pairs[key] = pair
            if len(self._pairs) > self.capacity:
                self._pairs.popitem(last=False)
        self._pairs.move_to_end(key)
        return pair

    def predict(self, noised: Noised, background: Float[Tensor, "3"], *, guided: bool = True) -> PredictionPair:
        """Both halves of classifier-free guidance for a step's noisy latents.

        Without guidance (scale 1) nobody looks at the unconditional half: `guided=False` evaluates the conditional one
        alone and gives it twice.
        """
        cond, uncond = self.at(background)
        if not guided:
            alone = self.prior.predict(noised.latents_t, noised.t, cond, noised.cameras)
            return PredictionPair(cond=alone, uncond=alone)
        return predict_pair(self.prior, noised.latents_t, noised.t, cond=cond, uncond=uncond, cameras=noised.cameras)
