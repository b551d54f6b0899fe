"""Faster samplers than DDIM: diffusers' schedulers behind the same kind of callable, from the extra `published`.

A scheduler gets the noise schedule of the prior and predictions of the noise; which steps it visits and how it goes
from one to the next is its own. What a prior, guidance or a caller sees stays as in `sampling`: the prediction is asked
at the scale of the forward process at the step's t, and may be of any kind; every scene has its own generator.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from maquette.diffusion.sampling import Predict, SamplingState
from maquette.diffusion.schedule import NoiseSchedule, Parametrisation
from maquette.errors import UserError

SchedulerName = Literal["dpm++", "unipc", "euler", "euler-ancestral"]
CLASSES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "unipc": ("UniPCMultistepScheduler", {"solver_order": 2}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-ancestral": ("EulerAncestralDiscreteScheduler", {}),
}
"""Our name -> (class of diffusers, its settings): DPM-Solver++(2M) of arXiv:2211.01095, UniPC of arXiv:2302.04867, and
the samplers of arXiv:2206.00364 and of k-diffusion."""


def make_scheduler(
    name: str,
    schedule: NoiseSchedule,
    steps: int,
    spacing: Literal["leading", "trailing"] = "trailing",
    **settings: Any,
) -> Any:
    """A scheduler of diffusers with our noise levels, ready for one run of `steps`; `name` is ours, or its class's.

    "trailing" begins at the noisiest step, "leading" is the spacing of the released models. UserError where diffusers
    is not installed, or knows no such class.
    """
    try:
        import diffusers
    except ModuleNotFoundError as error:
        raise UserError(
            f"the sampler {name!r} is diffusers', which is not installed: pip install 'maquette[published]', or take "
            "the sampler ddim"
        ) from error
    kind, own = CLASSES.get(name, (name, {}))
    make = getattr(diffusers, kind, None)
    if make is None:
        raise UserError(f"there is no sampler {name!r}; known are ddim, {', '.join(CLASSES)}")
    offset = {"steps_offset": 1} if spacing == "leading" else {}
    scheduler = make(
        num_train_timesteps=schedule.num_steps,
        trained_betas=schedule.betas.float().numpy(),
        prediction_type="epsilon",
        timestep_spacing=spacing,
        **{**offset, **own, **settings},
    )
    scheduler.set_timesteps(steps, device="cpu")
    return scheduler


def count_steps(scheduler: Any, strength: float = 1.0) -> int:
    """How many steps of its list a scheduler runs for img2img of that strength, rounded down."""
    return int(strength * len(scheduler.timesteps))


def scheduler_updates(
    predict: Predict,
    noise: Float[Tensor, "b *sample"],
    schedule: NoiseSchedule,
    scheduler: Any,
    *,
    generators: Sequence[torch.Generator],
    predicts: Parametrisation = "eps",
    correct_x0: Callable[[Tensor, Tensor], Tensor] | None = None,
    image: Float[Tensor, "b *sample"] | None = None,
    strength: float = 1.0,
) -> Iterator[SamplingState]:
    """Run a scheduler of `make_scheduler` from unit noise and yield the state after every update.

    With `image`, clean latents, only the last `strength` share of the steps runs, from the image noised to the first of
    them (img2img); with none left nothing is yielded. `correct_x0(x0_pred, t)` may change every estimate of the clean
    sample. Fresh noise, where a sampler wants it, comes from the generators, one for each scene.
    """
    timesteps = scheduler.timesteps
    skipped = 0 if image is None else len(timesteps) - count_steps(scheduler, strength)
    if hasattr(scheduler, "set_begin_index"):  # one without memory has none, and needs none
        scheduler.set_begin_index(skipped)
    x: Tensor | None = None
    for index, step in enumerate(timesteps[skipped:]):
        t = step.round().long().to(noise.device).expand(noise.shape[0])
        if x is None:
            start = noise if image is None else schedule.add_noise(image, noise, t)
            # Some schedulers keep samples in another scale; what they divide by at this step says in which.
            x = start / scheduler.scale_model_input(noise.new_ones(()), step)
        x_t = scheduler.scale_model_input(x, step)
        prediction = predict(x_t, t)
        eps, x0 = NoiseSchedule(schedule.alphas_cumprod, predicts).split(prediction, x_t, t)
        if correct_x0 is not None:
            x0 = correct_x0(x0, t)
            eps = schedule.eps_from_x0(x_t, x0, t)
        x = _step(scheduler, eps, step, x, generators)
        yield SamplingState(index, t, x, x0)


def _step(scheduler: Any, eps: Tensor, step: Tensor, x: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """One update in float32; schedulers that add no noise take no generators."""
    keywords: dict[str, Any] = {}
    if "generator" in inspect.signature(scheduler.step).parameters:
        keywords["generator"] = list(generators)
    return scheduler.step(eps.float(), step, x.float(), return_dict=False, **keywords)[0].to(eps)
