"""Networks by themselves: the resampler, the global projection, the autoencoder, OpenCLIP."""

from __future__ import annotations

import torch

from maquette.diffusion.clip import CLIP
from maquette.diffusion.image_prompt import GlobalProjection, Resampler
from maquette.priors import layout_ldm
from tests.parity.golden import NETWORK, Checks, Golden, Kind, has, needs
from tests.parity.imagedream.models import autoencoder_of, filled


@torch.no_grad()
def run_resampler(golden: Golden, checks: Checks) -> None:
    """Image tokens in, prompt tokens out; also for zeros, the unconditional branch."""
    c = golden.config(golden.name)
    resampler = Resampler(
        c["embedding_dim"], c["output_dim"], dim=c["dim"], depth=c["depth"], heads=c["heads"], head_width=c["dim_head"],
        num_queries=c["num_queries"], ff_mult=c["ff_mult"],
    )  # fmt: skip
    filled(resampler, golden.tensors, layout_ldm.resampler(c["depth"]), golden.name, "weights.")
    x = needs(golden.tensors, "in.x")
    checks.compare("out.y", resampler(x), NETWORK)
    checks.compare_if_expected("out.y_zero_input", lambda: resampler(torch.zeros_like(x)), NETWORK)


@torch.no_grad()
def run_projection(golden: Golden, checks: Checks) -> None:
    """The pooled embedding in, a few prompt tokens out."""
    c = golden.config(golden.name)
    projection = GlobalProjection(c["clip_embeddings_dim"], c["cross_attention_dim"], c["clip_extra_context_tokens"])
    filled(projection, golden.tensors, layout_ldm.global_projection(), golden.name, "weights.")
    checks.compare("out.y", projection(needs(golden.tensors, "in.x")), NETWORK)


@torch.no_grad()
def run_autoencoder(golden: Golden, checks: Checks) -> None:
    """Posterior of an image, and an image of latents, without the scale of the latents."""
    autoencoder = autoencoder_of(golden)
    image, z = needs(golden.tensors, "in.image"), needs(golden.tensors, "in.z")
    mean, std = autoencoder.encode(image)
    checks.compare("out.moments", autoencoder.moments(image), NETWORK)
    checks.compare("out.mean", mean, NETWORK)
    checks.compare("out.std", std, NETWORK)
    checks.compare("out.decoded", autoencoder.decode(z), NETWORK)


@torch.no_grad()
def run_openclip(golden: Golden, checks: Checks) -> None:
    """What ImageDream reads from both towers."""
    vision, text = layout_ldm.openclip_configs(golden.config(golden.name))
    clip = filled(CLIP(vision, text), golden.tensors, layout_ldm.openclip(vision, text), golden.name, "weights.")
    features = clip.image_features(needs(golden.tensors, "in.image"))
    checks.compare("out.local_tokens", features.local_tokens, NETWORK)
    checks.compare("out.global_embedding", features.global_embedding, NETWORK)
    checks.compare("out.text_context", clip.text_context(needs(golden.tensors, "in.tokens")), NETWORK)


KINDS = [
    Kind("resampler", has("in.x", "weights.latents"), run_resampler),
    Kind("image projection", has("in.x", "weights.proj.weight", "weights.norm.weight"), run_projection),
    Kind("autoencoder", has("in.z", "weights.quant_conv.weight"), run_autoencoder),
    Kind("openclip", has("in.tokens", "weights.token_embedding.weight"), run_openclip),
]
