"""Zero-1-to-3 in motion: its training step, and DDIM loops over the released list of steps and the full one."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from maquette.diffusion.cfg import guide
from maquette.diffusion.sampling import SamplingSteps, ddim_updates
from maquette.priors.base import Condition, predict_pair
from maquette.training.zero123 import TrainingBatch, training_step
from tests.parity.golden import EXACT, Checks, Golden, Kind, has, needs
from tests.parity.usd.models import small_autoencoder, small_zero123
from tests.parity.usd.zero123_networks import LOOP, NETWORK, all_but

STEP_LISTS = {"official": SamplingSteps.zero123, "full": SamplingSteps.released}
TRAINING_INPUTS = ("T", "clip_token", "image_cond", "image_target", "noise", "posterior_eps", "random", "t")


@torch.no_grad()
def run_training(golden: Golden, checks: Checks) -> None:
    """Dropped conditions, latents, noised latents and the loss."""
    given = {name: needs(golden.tensors, name) for name in TRAINING_INPUTS}
    prior, autoencoder = small_zero123(golden), small_autoencoder(golden)
    # Images are HWC in [-1, 1] and of any aspect, which the autoencoder itself takes.
    mean, std = autoencoder.encode(given["image_target"].movedim(-1, 1))
    latents = prior.codec.scale * (mean + std * given["posterior_eps"])
    picture, _ = autoencoder.encode(given["image_cond"].movedim(-1, 1))
    step = training_step(prior, TrainingBatch(
        latents=latents, picture=picture, embedding=given["clip_token"][:, 0], pose=given["T"], t=given["t"],
        eps=given["noise"], uniform=given["random"],
    ))  # fmt: skip
    checks.compare("z", latents, NETWORK)
    checks.compare("x_noisy", step.latents_t, NETWORK)
    checks.compare("c_crossattn", step.context, NETWORK)
    checks.compare("c_concat", step.picture, NETWORK)
    checks.compare("loss", step.loss[None], LOOP)


def expected_loops(golden: Golden) -> Checks:
    """All of the loops but their noise."""
    return Checks({
        name: value for name, value in golden.tensors.items()
        if name.split(".")[0] in STEP_LISTS and not name.endswith(".noise")
    })  # fmt: skip


@torch.no_grad()
def run_ddim(golden: Golden, checks: Checks) -> None:
    """Every loop of the file, through the prior; the list of steps is a named one of the sampler."""
    given = golden.tensors
    x = needs(given, "x_T")[:, None]  # [B, 1, C, h, w]
    prior = small_zero123(golden)
    cond = Condition(text=needs(given, "context"), image_latents=needs(given, "c_concat"))
    uncond = Condition(text=torch.zeros_like(cond.text), image_latents=torch.zeros_like(given["c_concat"]))
    scale = float(needs(given, "guidance_scale"))

    def predict(x_t: Tensor, t: Tensor) -> Tensor:
        pair = predict_pair(prior, x_t, t, cond=cond, uncond=uncond)
        return guide(eps_cond=pair.cond.eps, eps_uncond=pair.uncond.eps, guidance_scale=scale)

    for loop in sorted({match[0] for name in given if (match := re.match(r"(official|full)\.eta[0-9.]+(?=\.)", name))}):
        kind, _, eta = loop.partition(".eta")
        noise = given[f"{loop}.noise"]
        steps = STEP_LISTS[kind](prior.noise_schedule, _requested(given, prior.noise_schedule.num_steps))
        checks.compare(f"{loop}.timesteps", steps.t, EXACT)
        checks.compare(f"{loop}.alphas", steps.alphas_cumprod.flip(0), NETWORK)
        checks.compare(f"{loop}.alphas_prev", steps.previous.flip(0), NETWORK)
        checks.compare(f"{loop}.sigmas", steps.sigmas(float(eta)).flip(0), NETWORK)
        states = list(ddim_updates(predict, x, steps, eta=float(eta), noise=lambda k, n=noise: n[k][:, None]))
        checks.compare(f"{loop}.x_inter", torch.stack([state.x[:, 0] for state in states]), LOOP)
        checks.compare(f"{loop}.pred_x0", torch.stack([state.x0_pred[:, 0] for state in states]), LOOP)
        checks.compare(f"{loop}.sample", states[-1].x[:, 0], LOOP)


def _requested(given: dict[str, Tensor], total: int) -> int:
    """How many steps were asked for, from the distance of the listed ones."""
    lists = [value for name, value in given.items() if name.endswith(".timesteps")]
    longest = max(lists, key=len)
    return total // int(longest[0] - longest[1]) if len(longest) > 1 else 1


KINDS = [
    Kind("zero123 training", has("random", "T", "clip_token"), run_training, all_but(*TRAINING_INPUTS)),
    Kind("zero123 sampling", has("x_T", "c_concat", "context"), run_ddim, expected_loops),
]
