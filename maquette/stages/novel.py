"""Novel views of a picture's object, each sampled for itself by a prior that knows one view at a time.

With a free prior guidance leaves *its* null (rectified guidance, arXiv:2312.06198, supplement 1): better views without
any optimisation.
"""

from __future__ import annotations

from functools import partial

import torch

from maquette.cameras import Cameras
from maquette.diffusion.sampling import SamplingSteps, ddim_updates, unit_noise
from maquette.errors import UserError
from maquette.images import Views
from maquette.priors.base import Condition, Prior
from maquette.priors.guided import guided_x0, rectified_x0
from maquette.run import Stage
from maquette.stages.look import SamplingConfig, key_views


@torch.no_grad()
def sample_novel_views(
    prior: Prior, free: Prior | None, condition: Condition, cameras: Cameras, config: SamplingConfig, run: Stage
) -> Views:
    """The object of a condition from cameras [V], each view with noise of its own, all in one batch.

    Masks are keyed from the condition's flat background (none without one). With `free` guidance is rectified, and
    `config.unconditional` has no say. UserError for a prior that makes several views at once; KeyboardInterrupt when
    the person asked to stop.
    """
    if prior.num_views not in (None, 1):
        raise UserError(
            f"novel views are sampled one by one, and this prior makes {prior.num_views} at once; use sample_views"
        )
    if config.clip and prior.codec.stochastic:
        raise UserError("clip needs a codec whose latents are pixels; this prior's are not, so leave clip off")
    device = condition.text.device
    generators = [
        run.generator(step=config.pick, purpose=f"novel view {index}", device="cpu") for index in range(len(cameras))
    ]
    shape = (len(cameras), 1, *prior.codec.latent_shape)
    noise = unit_noise(generators, torch.empty(shape, device=device))
    make = SamplingSteps.released if config.spacing == "released" else SamplingSteps.exact
    steps = make(prior.noise_schedule, config.steps)
    posed = cameras.to(device).reshape(-1, 1)
    strength = {"guidance_scale": config.guidance_scale, "rescale": config.rescale}
    if free is None:
        twin = prior.unconditional(condition, config.unconditional)
        predict = guided_x0(prior, cond=condition, uncond=twin, cameras=posed, **strength)
    else:
        predict = rectified_x0(prior, free, cond=condition, cameras=posed, **strength)

    def clip(x0: torch.Tensor, _t: torch.Tensor) -> torch.Tensor:
        return prior.codec.encode(prior.codec.decode(x0))

    def decoded(latents: torch.Tensor) -> torch.Tensor:
        return prior.codec.decode(latents)[:, 0].float().cpu()

    latents = noise(0)
    updates = ddim_updates(
        predict, latents, steps, eta=config.eta, noise=noise, predicts="x0", correct_x0=clip if config.clip else None
    )
    with run.progress(len(steps)) as progress:
        for state in updates:
            latents = state.x
            progress.update(state.index + 1)
            run.preview(state.index, partial(decoded, state.x0_pred))
            if not run.keep_going():
                raise KeyboardInterrupt
    images = decoded(latents)
    cameras = cameras.to("cpu").with_size(*images.shape[-2:])
    if condition.background is None:
        return Views(images, None, cameras)
    return Views(*key_views(images, condition.background), cameras)
