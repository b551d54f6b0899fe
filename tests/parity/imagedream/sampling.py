"""DDIM loops: a closed-form network, and small networks behind the prior that people use."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from maquette.cameras import Cameras
from maquette.diffusion.cfg import guide
from maquette.diffusion.sampling import Predict, SamplingSteps, ddim_updates
from maquette.diffusion.schedule import NoiseSchedule
from maquette.priors.base import Condition, predict_pair
from tests.parity.golden import EXACT, LOOP, Checks, Golden, Kind, has, needs
from tests.parity.imagedream.models import LoadedUNet, load_unet
from tests.parity.imagedream.priors import latent_prior


@torch.no_grad()
def sample(golden: Golden, checks: Checks, predict: Predict, x: Tensor, noise: Callable[[int], Tensor]) -> None:
    """Run the released sampler from x [B, V, C, h, w] and compare it with the recording's [B * V, C, h, w]."""
    steps = SamplingSteps.released(NoiseSchedule.scaled_linear(), int(golden.metadata["steps"]))
    final = x
    for state in ddim_updates(predict, x, steps, eta=float(golden.metadata["eta"]), noise=noise):
        final = state.x
        checks.compare(f"out.step{state.index}.t", state.t.repeat_interleave(x.shape[1]), EXACT)
        checks.compare(f"out.step{state.index}.x", final.flatten(0, 1), LOOP)
        checks.compare(f"out.step{state.index}.pred_x0", state.x0_pred.flatten(0, 1), LOOP)
    checks.compare("out.final", final.flatten(0, 1), LOOP)


def run_toy(golden: Golden, checks: Checks) -> None:
    """eps = mix @ x + 0.5 sin(x) t / 1000 + context, which tests the sampler alone."""
    given, scale = golden.under("in."), float(golden.metadata["guidance_scale"])
    x_T = needs(given, "x_T")[:, None]  # [B, V = 1, C, h, w]
    channels = x_T.shape[2]

    def network(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        mixed = torch.einsum("oc,bvchw->bvohw", given["mix"], x)
        return mixed + 0.5 * x.sin() * (t / 1000.0)[:, None, None, None, None] + context[:, :1, :channels, None, None]

    def predict(x: Tensor, t: Tensor) -> Tensor:
        cond, uncond = network(x, t, given["context"]), network(x, t, given["uncond_context"])
        return guide(eps_cond=cond, eps_uncond=uncond, guidance_scale=scale)

    sample(golden, checks, predict, x_T, lambda k: needs(given, f"noise{k}")[:, None])


def run_network(golden: Golden, checks: Checks) -> None:
    """The loop through `MultiViewPrior`, which drops the prompt's frame, and once more with that frame's own drift."""
    facts = golden.metadata
    model = load_unet(golden, facts["model"])
    given, scale, frames = golden.under("in."), float(facts["guidance_scale"]), int(facts["num_frames"])
    views = frames - 1 if facts["mode"] == "pixel" else frames
    x = needs(given, "x_T").unflatten(0, (-1, frames))  # [S, F, C, h, w]
    camera, cameras = None, None  # the 2D mode
    if "camera" in given:
        camera = given["camera"].unflatten(0, (-1, frames)).expand(len(x), -1, -1)
        c2w = camera[:, :views].unflatten(-1, (4, 4))
        cameras = Cameras(c2w, torch.full((len(x), views), 40.0), 1, 1)
    prior = latent_prior(model, views=views, mode=facts["mode"])
    cond, uncond = (condition.expand(len(x)) for condition in conditions(model, given))

    def noise(k: int) -> Tensor:
        return needs(given, f"noise{k}").unflatten(0, (-1, frames))

    def from_prior(x_t: Tensor, t: Tensor) -> Tensor:
        if scale == 1.0:
            return prior.predict(x_t, t, cond, cameras).eps
        pair = predict_pair(prior, x_t, t, cond=cond, uncond=uncond, cameras=cameras)
        return guide(eps_cond=pair.cond.eps, eps_uncond=pair.uncond.eps, guidance_scale=scale)

    if views == frames:
        sample(golden, checks, from_prior, x, noise)
        return
    of_views = Checks({
        name: value.unflatten(0, (-1, frames))[:, :views].flatten(0, 1) for name, value in checks.expected.items()
    })  # fmt: skip
    sample(golden, of_views, from_prior, x[:, :views], lambda k: noise(k)[:, :views])

    def all_frames(x_t: Tensor, t: Tensor) -> Tensor:
        def network(condition: Condition) -> Tensor:
            assert condition.image_latents is not None
            shown = torch.cat([x_t[:, :views], condition.image_latents[:, None]], dim=1)
            ip = condition.image_tokens if condition.image_embedding is None else condition.image_embedding
            return model.network(
                shown, t, condition.text, camera, image_weight=model.image_weight, **model.features(ip)
            )

        if scale == 1.0:
            return network(cond)
        return guide(eps_cond=network(cond), eps_uncond=network(uncond), guidance_scale=scale)

    sample(golden, checks, all_frames, x, noise)
    for name, error in of_views.errors.items():
        checks.errors[name] = max(checks.errors[name], error)


def conditions(model: LoadedUNet, given: dict[str, Tensor]) -> tuple[Condition, Condition]:
    """(conditional, unconditional): the negative text, and zeros for the image wherever the model has one."""
    features = {
        {"local_features": "image_tokens", "global_feature": "image_embedding"}[name]: value
        for name, value in model.features(given.get("ip")).items()
    }
    if "ip_img" in given:
        features["image_latents"] = given["ip_img"]
    zeros = {name: torch.zeros_like(value) for name, value in features.items()}
    return Condition(text=given["context"], **features), Condition(text=given["uncond_context"], **zeros)


KINDS = [
    Kind("ddim of a formula", has("in.x_T", "in.mix"), run_toy),
    Kind("ddim of a network", lambda g: "in.x_T" in g.tensors and "model" in g.metadata, run_network),
]
