"""The USD gradient, its ablations and its sampling formula from recorded predictions; schedules written as lists."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maquette.cameras import Cameras
from maquette.diffusion.cfg import guide, guide_rectified
from maquette.diffusion.schedule import NoiseSchedule
from maquette.guidance.base import Draws, GuidanceLoss
from maquette.guidance.unbiased import ReferenceGuidance, UnbiasedConfig, UnbiasedGuidance
from maquette.guidance.view_text import ViewTextConfig, ViewTextGuidance
from maquette.images import ImagePrompt, Prompt
from maquette.priors.base import Condition, Prediction, UnconditionalKind
from maquette.priors.codecs import SpaceToDepth
from maquette.schedules import Constant, Linear
from tests.parity.golden import CAMERA, NETWORK, Checks, Golden, Kind, has

GIVEN = ("latents", "noise", "ref_latents", "ref_sd_uncond", "sd_text", "sd_uncond", "t", "zero123_cond",
         "zero123_uncond")  # fmt: skip
"""Tensors that are not results."""


@dataclass
class RecordedPrior:
    """A prior whose predictions are recorded noise: the captioned one, its twin's, and (for two scenes) any pair."""

    captioned: Tensor
    empty: Tensor
    codec: SpaceToDepth = SpaceToDepth(2, 1)
    noise_schedule: NoiseSchedule = NoiseSchedule.scaled_linear()
    num_views: int | None = None

    def condition(self, prompt: Prompt, background: Tensor) -> Condition:
        return Condition(text=torch.full((1, 1, 1), float(bool(prompt.caption))), negative=torch.zeros(1, 1, 1))

    def unconditional(self, condition: Condition, kind: UnconditionalKind = "zeros") -> Condition:
        assert condition.negative is not None
        return Condition(text=condition.negative)

    def predict(self, latents_t: Tensor, t: Tensor, condition: Condition, cameras: Cameras | None = None) -> Prediction:
        eps = (self.captioned if bool(condition.text.any()) else self.empty)[:, None]
        return Prediction(eps=eps, x0=self.noise_schedule.x0_from_eps(latents_t, eps, t))

    def predict_each(
        self, latents_t: Tensor, t: Tensor, conditions: Mapping[str, Condition], cameras: Cameras | None = None
    ) -> dict[str, Prediction]:
        return {name: self.predict(latents_t, t, condition, cameras) for name, condition in conditions.items()}

    def card(self) -> dict[str, Any]:
        return {"name": "recorded"}


def run_formulas(golden: Golden, checks: Checks) -> None:
    """Each gradient as autograd finds it in a guidance's loss on the recorded latents, times the number of scenes."""
    given = {name: golden.tensors[name] for name in GIVEN}
    schedule, white = NoiseSchedule.scaled_linear(), torch.ones(3)
    eps, t = given["noise"], given["t"]
    draws = Draws(t, eps[:, None])
    checks.compare("alphas_cumprod", schedule.alphas_cumprod.float(), CAMERA)
    checks.compare("render_noisy", schedule.add_noise(given["latents"], eps, t), NETWORK)
    reference = given["ref_latents"].expand_as(eps)
    checks.compare("ref_noisy", schedule.add_noise(reference, eps, t), NETWORK)

    def gradient(loss_of: Callable[[Tensor], GuidanceLoss]) -> Tensor:
        latents = given["latents"][:, None].clone().requires_grad_()
        (grad,) = torch.autograd.grad(loss_of(latents).loss, latents)
        return grad[:, 0] * len(latents)

    view = RecordedPrior(given["zero123_cond"], given["zero123_uncond"])
    free = RecordedPrior(given["sd_text"], given["sd_uncond"])
    words = Prompt(None, "a recorded caption")

    def of_view(config: UnbiasedConfig) -> Tensor:
        guidance = UnbiasedGuidance(view, free, words, config)
        return gradient(lambda latents: guidance.on_latents(latents, None, white, draws))

    def of_text(omega: float, lambda_: float) -> Tensor:
        guidance = ViewTextGuidance(free, words, ViewTextConfig(omega, lambda_, view_words=False))
        return gradient(lambda latents: guidance.on_latents(latents, None, draws))

    recipes: dict[str, Callable[[float], Tensor]] = {
        "usd_grad": lambda s: of_view(UnbiasedConfig(omega=s)),
        "usd_lambda1_grad": lambda s: of_view(UnbiasedConfig(omega=s, lambda_=1.0)),
        "lambda0_zero123_grad": lambda s: of_view(UnbiasedConfig(omega=s, null="own")),
        "sds_zero123_grad": lambda s: of_view(UnbiasedConfig(omega=s, lambda_=1.0, null="own")),
        "t23d_usd_grad": lambda s: of_text(s, 0.0),
        # Recorded as text + s (text - uncond), one more than our scale.
        "t23d_sds_grad": lambda s: of_text(s + 1.0, 1.0),
        "plain_cfg_eps": lambda s: guide(
            eps_cond=given["zero123_cond"], eps_uncond=given["zero123_uncond"], guidance_scale=s
        ),
        "rectified_cfg_eps": lambda s: guide_rectified(
            eps_cond=given["zero123_cond"], eps_free=given["sd_uncond"], guidance_scale=s
        ),
    }
    for name in checks.expected:
        match = re.fullmatch(r"(.+)_gs([0-9.]+)", name)
        if match is not None and match[1] in recipes:
            checks.compare(name, recipes[match[1]](float(match[2])), NETWORK)

    both = RecordedPrior(torch.zeros(()), torch.cat([given["sd_uncond"], given["ref_sd_uncond"]]))
    delta = ReferenceGuidance(both, ImagePrompt(torch.zeros(3, 2, 2), torch.ones(1, 2, 2)))
    target = given["ref_latents"][:, None]
    checks.compare("ref_delta_grad", gradient(lambda latents: delta.on_latents(latents, target, draws)), NETWORK)


# Schedules

LISTS: dict[str, list[float]] = {
    "max_step_percent": [5000, 0.98, 0.5, 5001],
    "lambda_opaque": [10000, 0.0, 1000.0, 10001],
    "three": [0.0, 1.0, 2000],
}
"""Lists whose values the recording holds, where the published configuration or their short form says them."""


def schedule_of(published: float | Sequence[float]) -> Constant | Linear:
    """The schedule that is published as a number, [first, last, end] or [begin, first, last, end]."""
    if isinstance(published, int | float):
        return Constant(float(published))
    begin, first, last, end = published if len(published) == 4 else (0, *published)
    return Linear(first, last, end=end, begin=begin, unit="step")


def recovered(steps: Sequence[int], values: Sequence[float]) -> list[float]:
    """The list of a single ramp with these values: through the points inside, or from flat end to flat end."""
    first, last = values[0], values[-1]
    inside = [(s, v) for s, v in zip(steps, values, strict=True) if min(first, last) < v < max(first, last)]
    before = max(s for s, v in zip(steps, values, strict=True) if v == first)
    after = min(s for s, v in zip(steps, values, strict=True) if v == last)
    if len(inside) < 2:
        return [before, first, last, after]
    (s0, v0), (s1, v1) = inside[0], inside[-1]
    slope = (v1 - v0) / (s1 - s0)
    return [s0 - (v0 - first) / slope, first, last, s0 + (last - v0) / slope]


def expected_values(golden: Golden) -> Checks:
    """Every list of numbers but the steps."""
    facts = golden.facts
    return Checks({name: torch.tensor(v, dtype=torch.float64) for name, v in facts.items()
                   if isinstance(v, list) and name != "steps"})  # fmt: skip


def run_schedules(golden: Golden, checks: Checks) -> None:
    """The values at the recorded steps."""
    steps = [int(step) for step in golden.facts["steps"]]
    for name, values in checks.expected.items():
        schedule = schedule_of(LISTS.get(name) or recovered(steps, values.tolist()))
        checks.compare(name, torch.tensor([schedule(step) for step in steps], dtype=torch.float64), CAMERA)


def is_schedules(golden: Golden) -> bool:
    """A JSON file with steps and values of scalar schedules."""
    if golden.path.suffix != ".json":
        return False
    facts = golden.facts
    return isinstance(facts, dict) and "steps" in facts and "max_step_percent" in facts


KINDS = [
    Kind(
        "USD's gradients",
        has("zero123_cond", "sd_uncond", "latents"),
        run_formulas,
        lambda golden: Checks({name: value for name, value in golden.tensors.items() if name not in GIVEN}),
    ),
    Kind("scalar schedules", is_schedules, run_schedules, expected_values),
]
