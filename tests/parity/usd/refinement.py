"""A rendering refined by image to image: encode, noise, the rest of DDIM with guidance, decode."""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F

from maquette.diffusion.sampling import SamplingSteps, translate
from maquette.images import Prompt
from maquette.priors.guided import guided_x0
from tests.parity.golden import EXACT, Checks, Golden, Kind, has, needs
from tests.parity.usd.distillation import only
from tests.parity.usd.models import beside, codec_of, diffusers_parts, stable_diffusion_of
from tests.parity.usd.zero123_networks import LOOP

PICTURE = re.compile(r"image_(\d+)x\1avg")
"""The picture, averaged over squares. (`add_noise` is the noise that was added.)"""


@torch.no_grad()
def run(golden: Golden, checks: Checks) -> None:
    """Settings from the metadata; the recorded texts are [negative; positive], and `strength` is what is skipped."""
    given = golden.tensors
    parts = diffusers_parts(beside(golden, "sd.unet.conv_in.weight"))
    posterior = needs(given, "posterior_eps")
    codec = codec_of(parts["sd.vae"], posterior.shape[-1] * parts["sd.vae"].module.downsampling)  # type: ignore[operator]
    negative, positive = needs(given, "neg_pos_embeddings").chunk(2)
    prior = stable_diffusion_of(parts["sd.unet"].module, codec, torch.cat([positive, negative]))
    cond = prior.condition(Prompt(None, "a text"))
    listed = SamplingSteps.released(prior.noise_schedule, int(golden.metadata["steps"]))
    steps = listed.skipping(float(golden.metadata["strength"]))
    checks.compare("timesteps", steps.t, EXACT)

    latents = codec.encode(only(given, "render_low")[:, None], posterior[:, None])
    predict = guided_x0(
        prior, cond=cond, uncond=prior.unconditional(cond), guidance_scale=float(needs(given, "guidance_scale"))
    )
    found = translate(predict, latents, needs(given, "add_noise")[:, None], steps, predicts="x0")
    checks.compare("final_latents", found[:, 0], LOOP)
    for name in checks.expected:
        if averaged := PICTURE.fullmatch(name):
            checks.compare(name, F.avg_pool2d(codec.decode(found)[:, 0], int(averaged[1])), LOOP)


KINDS = [
    Kind(
        "refinement",
        has("final_latents", "posterior_eps", "neg_pos_embeddings"),
        run,
        lambda golden: Checks(
            {
                name: value
                for name, value in golden.tensors.items()
                if name in ("final_latents", "timesteps") or PICTURE.fullmatch(name)
            }
        ),
    )
]
