"""DDIM (arXiv:2010.02502): from noise to a sample along a short list of steps, or from an image to a variation of it.

    x0_pred = (x_t - sigma_t eps) / alpha_t
    x_prev  = sqrt(a_prev) x0_pred + sqrt(1 - a_prev - s^2) eps + s n          (Eq. 12)
    s       = eta sqrt((1 - a_prev) / (1 - a)) sqrt(1 - a / a_prev)            (Eq. 16)

where a = alphas_cumprod[t], a_prev belongs to the next step of the list, and n is unit noise. eta = 0 is deterministic.

A sampler knows no prior: it is given a callable `(x_t, t) -> prediction`, in which guidance, cameras and prompts are
hidden. Randomness comes in through `noise`, so that whoever calls decides what a sample depends on; `unit_noise`
draws every scene from its own generator, which makes a scene independent of the batch it is sampled in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from maquette.diffusion.schedule import NoiseSchedule, Parametrisation

Predict = Callable[[Tensor, Tensor], Tensor]
"""(x_t [B, *], t [B] int64) -> eps, x0 or v, shaped like x_t."""


@dataclass(frozen=True, eq=False)
class SamplingSteps:
    """The steps a sampler visits, from the noisiest to the cleanest, and how clean each leaves the sample.

    `previous[k]` is the alphas_cumprod reached by update k (the a_prev of Eq. 12), float64.
    """

    schedule: NoiseSchedule
    t: Int[Tensor, " S"]
    previous: Float[Tensor, " S"]

    def __post_init__(self) -> None:
        if len(self.t) != len(self.previous):
            raise ValueError(
                f"one previous alphas_cumprod per step is needed, got {len(self.t)} and {len(self.previous)}."
            )
        if bool((self.t.diff() >= 0).any()):
            raise ValueError(f"sampling steps must fall, from the noisiest to the cleanest; got {self.t.tolist()}.")
        if len(self.t) and not 0 <= int(self.t[-1]) <= int(self.t[0]) < self.schedule.num_steps:
            raise ValueError(f"sampling steps must lie in [0, {self.schedule.num_steps}), got {self.t.tolist()}.")

    @classmethod
    def released(cls, schedule: NoiseSchedule, steps: int) -> SamplingSteps:
        """The list of the released samplers of Stable Diffusion, MVDream and ImageDream for `steps` requested steps.

        Every c-th step, c = floor(T / steps), shifted by one: 50 of 1000 gives 981, 961, ..., 1. If `steps` does not
        divide T there are more steps than requested (30 gives 31). The last update ends at alphas_cumprod[0], which is
        not 1, so a trace of noise is left. Raises ValueError where the rule steps out of the schedule (3, 9, 300, 1000,
        ... of 1000; the released code fails with an index error there).
        """
        total = schedule.num_steps
        if not 1 <= steps <= total:
            raise ValueError(f"DDIM needs between 1 and {total} steps, got {steps}.")
        t = torch.arange(0, total, total // steps) + 1
        if int(t[-1]) >= total:
            raise ValueError(
                f"the released rule for {steps} steps ends at t = {int(t[-1])}, outside the schedule's {total} steps; "
                f"use another number, or SamplingSteps.exact, which takes any number."
            )
        a = schedule.alphas_cumprod
        return cls(schedule, t.flip(0), torch.cat([a[:1], a[t[:-1]]]).flip(0))

    @classmethod
    def zero123(cls, schedule: NoiseSchedule, steps: int) -> SamplingSteps:
        """The list that Zero-1-to-3's released sampler runs: `released` without its noisiest step.

        Its code cuts one entry off the wrong end of the list, so that 50 requested steps are 49, and the first of them,
        t = 961, is shown pure noise. For `steps` = 1 nothing is left.
        """
        full = cls.released(schedule, steps)
        return full.last(len(full) - 1)

    @classmethod
    def leading(cls, schedule: NoiseSchedule, steps: int) -> SamplingSteps:
        """The list of diffusers' DDIM for these models: exactly `steps` steps, every floor(T / steps)-th, shifted by
        one.

        Where `steps` divides T it is `released`; elsewhere it begins lower (75 of 1000 begin at 963, not 989). Raises
        ValueError for the few numbers whose list steps out of the schedule (1000 of 1000).
        """
        total = schedule.num_steps
        if not 1 <= steps <= total:
            raise ValueError(f"DDIM needs between 1 and {total} steps, got {steps}.")
        t = torch.arange(steps) * (total // steps) + 1
        if int(t[-1]) >= total:
            raise ValueError(f"this spacing of {steps} steps ends at t = {int(t[-1])}, outside the schedule's {total}.")
        a = schedule.alphas_cumprod
        return cls(schedule, t.flip(0), torch.cat([a[:1], a[t[:-1]]]).flip(0))

    @classmethod
    def exact(cls, schedule: NoiseSchedule, steps: int) -> SamplingSteps:
        """Exactly `steps` steps, evenly spread from T - 1 down, whose last update ends at the clean sample.

        t_k = round(T - k T / steps) - 1, the "trailing" spacing of arXiv:2305.08891, table 2: sampling starts where the
        schedule is noisiest, which is what pure noise x_T claims to be.
        """
        total = schedule.num_steps
        if not 1 <= steps <= total:
            raise ValueError(f"DDIM needs between 1 and {total} steps, got {steps}.")
        t = torch.linspace(0, total, steps + 1, dtype=torch.float64)[1:].round().long().flip(0) - 1
        a = schedule.alphas_cumprod
        return cls(schedule, t, torch.cat([a[t[1:]], a.new_ones(1)]))

    def __len__(self) -> int:
        return len(self.t)

    @property
    def alphas_cumprod(self) -> Float[Tensor, " S"]:
        """alphas_cumprod at each visited step, float64."""
        return self.schedule.alphas_cumprod[self.t]

    def sigmas(self, eta: float) -> Float[Tensor, " S"]:
        """The scale of the fresh noise that each update adds (Eq. 16), float64; zero for eta = 0."""
        a, previous = self.alphas_cumprod, self.previous
        return eta * ((1 - previous) / (1 - a) * (1 - a / previous)).sqrt()

    def last(self, count: int) -> SamplingSteps:
        """Only the `count` cleanest steps: what is left to do for a sample that is noised to `.t[0]` of the result."""
        if not 0 <= count <= len(self):
            raise ValueError(f"there are {len(self)} steps, so between 0 and {len(self)} can be kept; got {count}.")
        return SamplingSteps(self.schedule, self.t[len(self) - count :], self.previous[len(self) - count :])

    def partial(self, strength: float) -> SamplingSteps:
        """The last `strength` share of the steps, for img2img: 0 keeps the image, 1 replaces it altogether.

        Their number is rounded down, as in the published pipelines: 0.75 of 50 steps are 37.
        """
        if not 0.0 <= strength <= 1.0:
            raise ValueError(f"strength is the share of the steps to run and must lie in [0, 1], got {strength}.")
        return self.last(int(strength * len(self)))

    def skipping(self, share: float) -> SamplingSteps:
        """What is left after the noisiest `share` of the steps, whose number is rounded down: 0.8 of 50 leaves 10.

        USD calls this share the strength, which elsewhere is what is *not* skipped; and 1 - 0.8 rounds to 9 steps.
        """
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"the skipped share of the steps must lie in [0, 1], got {share}.")
        return self.last(len(self) - int(share * len(self)))


@dataclass(frozen=True, eq=False)
class SamplingState:
    """What one update of a sampler leaves behind: its number from 0, its step t, the new sample, and x0_pred at t."""

    index: int
    t: Int[Tensor, " b"]
    x: Float[Tensor, "b *sample"]
    x0_pred: Float[Tensor, "b *sample"]


def ddim_updates(
    predict: Predict,
    x: Float[Tensor, "b *sample"],
    steps: SamplingSteps,
    *,
    eta: float = 0.0,
    noise: Callable[[int], Tensor] | None = None,
    predicts: Parametrisation = "eps",
    correct_x0: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Iterator[SamplingState]:
    """Run DDIM from `x`, which is noisy to steps.t[0], and yield the state after every update.

    `predicts` names what `predict` returns. `noise(k)` gives the unit noise of update k and is required when eta > 0.
    `correct_x0(x0_pred, t)` may clip or rescale each estimate of the clean sample; eps is then recomputed to agree with
    it, so that x_prev stays a mixture that the corrected pair explains. Nothing is differentiated: call it under
    `torch.no_grad()` unless gradients through the whole chain are wanted.
    """
    if eta < 0.0:
        raise ValueError(f"eta scales the added noise and cannot be negative, got {eta}.")
    if eta > 0.0 and noise is None:
        raise ValueError("eta > 0 adds fresh noise at every step; pass `noise`, for example unit_noise(generators, x).")
    schedule = steps.schedule
    as_network = NoiseSchedule(schedule.alphas_cumprod, predicts)
    updates = zip(steps.t.tolist(), steps.previous.tolist(), steps.sigmas(eta).tolist(), strict=True)
    for k, (step, previous, s) in enumerate(updates):
        t = torch.full((x.shape[0],), step, dtype=torch.int64, device=x.device)
        eps, x0_pred = as_network.split(predict(x, t), x, t)
        if correct_x0 is not None:
            x0_pred = correct_x0(x0_pred, t)
            eps = schedule.eps_from_x0(x, x0_pred, t)
        # Rounding can bring 1 - a_prev - s^2 just below zero when eta = 1 and a_prev is close to 1.
        x = previous**0.5 * x0_pred + max(1.0 - previous - s * s, 0.0) ** 0.5 * eps
        if s > 0.0 and noise is not None:
            x = x + s * noise(k)
        yield SamplingState(k, t, x, x0_pred)


def averaged_updates(
    predict: Predict,
    x0: Float[Tensor, "b *sample"],
    steps: SamplingSteps,
    *,
    draws: int,
    noise: Callable[[int], Tensor],
    predicts: Parametrisation = "eps",
    correct_x0: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Iterator[SamplingState]:
    """Sharpen an estimate of the clean sample step by step: x0 <- mean over `draws` noises of E[x0 | x_t].

    Every step noises the estimate `x0` anew, as multistep consistency sampling does (arXiv:2303.01469, algorithm 1),
    and takes the mean of what `predict` makes of several such noisy versions. That is the fixed-point iteration which
    score distillation runs on images, without a field. It gives up variety: what depends on the noise is averaged away,
    which an inexact network's own mistakes mostly do. `x0` only matters as far as steps.t[0] leaves it visible. Both
    `x` and `x0_pred` of a state are the estimate; `noise(k)` is called `draws` times in step k.
    """
    if draws < 1:
        raise ValueError(f"an average needs at least one draw, got draws={draws}.")
    schedule = steps.schedule
    as_network = NoiseSchedule(schedule.alphas_cumprod, predicts)
    for k, step in enumerate(steps.t.tolist()):
        t = torch.full((x0.shape[0],), step, dtype=torch.int64, device=x0.device)
        estimates = []
        for _ in range(draws):
            x_t = schedule.add_noise(x0, noise(k), t)
            estimates.append(as_network.split(predict(x_t, t), x_t, t)[1])
        x0 = torch.stack(estimates).mean(dim=0)
        if correct_x0 is not None:
            x0 = correct_x0(x0, t)
        yield SamplingState(k, t, x0, x0)


def ddim(
    predict: Predict,
    x: Float[Tensor, "b *sample"],
    steps: SamplingSteps,
    *,
    eta: float = 0.0,
    noise: Callable[[int], Tensor] | None = None,
    predicts: Parametrisation = "eps",
    correct_x0: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Float[Tensor, "b *sample"]:
    """The sample at the end of `ddim_updates`; `x` itself when there are no steps."""
    for state in ddim_updates(predict, x, steps, eta=eta, noise=noise, predicts=predicts, correct_x0=correct_x0):
        x = state.x
    return x


def noise_to(
    x0: Float[Tensor, "b *sample"], eps: Float[Tensor, "b *sample"], steps: SamplingSteps
) -> Float[Tensor, "b *sample"]:
    """Where img2img starts: x0 noised to the first of `steps`, often `steps.partial(strength)`; or x0 itself."""
    if len(steps) == 0:
        return x0
    return steps.schedule.add_noise(x0, eps, steps.t[0].expand(x0.shape[0]))


def translate(
    predict: Predict,
    x0: Float[Tensor, "b *sample"],
    eps: Float[Tensor, "b *sample"],
    steps: SamplingSteps,
    *,
    eta: float = 0.0,
    noise: Callable[[int], Tensor] | None = None,
    predicts: Parametrisation = "eps",
    correct_x0: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Float[Tensor, "b *sample"]:
    """Image to image: noise `x0` with `eps` to the first of `steps`, then run DDIM over them.

    `steps` is a part of a list, as `steps.partial(strength)` or `steps.skipping(share)` give it; with none left x0
    itself comes back. The rest as in `ddim_updates`.
    """
    start = noise_to(x0, eps, steps)
    return ddim(predict, start, steps, eta=eta, noise=noise, predicts=predicts, correct_x0=correct_x0)


def spawn_generators(generator: torch.Generator, count: int) -> list[torch.Generator]:
    """`count` CPU generators seeded from one; the i-th does not depend on how many are asked for."""
    seeds = torch.randint(2**62, (count,), generator=generator, dtype=torch.int64, device=generator.device)
    return [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]


def unit_noise(
    generators: Sequence[torch.Generator], like: Float[Tensor, "b *sample"]
) -> Callable[[int], Float[Tensor, "b *sample"]]:
    """A `noise` for the samplers that draws scene i of the batch from generators[i], in order of the calls.

    The numbers are drawn on the generator's own device and in float32, then moved, so CPU generators give the same
    noise wherever the network runs. Raises ValueError unless there is one generator per scene.
    """
    if len(generators) != like.shape[0]:
        raise ValueError(f"one generator per scene is needed: got {len(generators)} for a batch of {like.shape[0]}.")

    def draw(_: int) -> Tensor:
        return torch.stack([torch.randn(like.shape[1:], generator=g, device=g.device).to(like) for g in generators])

    return draw
