"""Novel views of a picture's object, each sampled for itself by a prior that knows one view at a time.

With a free prior guidance leaves *its* null (rectified guidance, arXiv:2312.06198, supplement 1): better views without
any optimisation.
"""

from __future__ import annotations

import torch

from maquette.cameras import Cameras
from maquette.errors import UserError
from maquette.images import Views
from maquette.priors.base import Condition, Prior
from maquette.priors.guided import guided_x0, rectified_x0
from maquette.run import Stage
from maquette.stages.look import SamplingConfig, key_views, sample_latents


@torch.no_grad()
def sample_novel_views(
    prior: Prior,
    free: Prior | None,
    condition: Condition,
    cameras: Cameras,
    config: SamplingConfig,
    run: Stage,
    *,
    start: Views | None = None,
    strength: float = 1.0,
) -> Views:
    """The object of a condition from cameras [V], each view with noise of its own, all in one batch.

    Masks are keyed from the condition's flat background (none without one). With `free` guidance is rectified, and
    `config.unconditional` has no say. With `start`, views from these cameras, only the last `strength` share of the
    steps runs, from there (img2img). UserError for a prior that makes several views at once; KeyboardInterrupt when
    the person asked to stop.
    """
    if prior.num_views not in (None, 1):
        raise UserError(
            f"novel views are sampled one by one, and this prior makes {prior.num_views} at once; use sample_views"
        )
    device = condition.text.device
    generators = [
        run.generator(step=config.pick, purpose=f"novel view {index}", device="cpu") for index in range(len(cameras))
    ]
    like = torch.empty(len(cameras), 1, *prior.codec.latent_shape, device=device)
    posed = cameras.to(device).reshape(-1, 1)
    guided = {"guidance_scale": config.guidance_scale, "rescale": config.rescale}
    if free is None:
        twin = prior.unconditional(condition, config.unconditional)
        predict = guided_x0(prior, cond=condition, uncond=twin, cameras=posed, **guided)
    else:
        predict = rectified_x0(prior, free, cond=condition, cameras=posed, **guided)
    image = None
    if start is not None:
        background = torch.ones(3) if condition.background is None else condition.background.cpu()
        image = prior.codec.encode(start.composite(background).to(device)[:, None])
    images = sample_latents(prior, predict, like, config, generators, run, image=image, strength=strength)[:, 0]
    cameras = cameras.to("cpu").with_size(*images.shape[-2:])
    if condition.background is None:
        return Views(images, None, cameras)
    return Views(*key_views(images, condition.background), cameras)
