"""The product's multi-view prior around a network of a goldens folder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from maquette.diffusion.schedule import NoiseSchedule
from maquette.priors.base import Codec
from maquette.priors.codecs import KLCodec, SpaceToDepth
from maquette.priors.multiview import ImageWeight, MultiViewConfig, MultiViewPrior
from tests.parity.imagedream.models import LoadedUNet


class RecordedText(nn.Module):
    """In place of a text encoder: token 0 is the recorded caption, token 1 the recorded negative text."""

    def __init__(self, caption: Tensor, negative: Tensor) -> None:
        super().__init__()
        self.rows = (caption, negative)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.rows[int(tokens)]


class RecordedImage(nn.Module):
    """In place of an image encoder: the recorded features, whatever is shown."""

    def __init__(self, features: Tensor | None) -> None:
        super().__init__()
        self.features = features

    def forward(self, images: Tensor) -> tuple[Tensor | None, Tensor | None]:
        return self.features, self.features


def recorded_tokens(texts: Sequence[str]) -> Tensor:
    """The caption is any text, the negative text is empty."""
    return torch.tensor([[0 if text else 1] for text in texts])


def recorded_prior(
    model: LoadedUNet, codec: Codec, *, views: int, mode: str, caption: Tensor, negative: Tensor, ip: Tensor | None
) -> MultiViewPrior:
    """A prior whose encoders answer with recorded features; `mode` is none, local, global or pixel."""
    prompt = model.network.config.image_prompt
    tokens = [] if prompt is None or mode == "none" else ["local" if prompt.local_dim else "global"]
    control = "+".join([*tokens, "pixel"] if mode == "pixel" else tokens) or "none"
    weight = ImageWeight(global_=model.image_weight, local=model.image_weight)
    return MultiViewPrior(
        model.network, codec, NoiseSchedule.scaled_linear(), recorded_tokens, RecordedText(caption, negative),
        RecordedImage(ip), MultiViewConfig(num_views=views, control=control, image_weight=weight),
    )  # fmt: skip


def latent_prior(model: LoadedUNet, *, views: int, mode: str) -> MultiViewPrior:
    """A prior that is only asked for predictions, with conditions made elsewhere."""
    nothing = torch.zeros(1, 1, model.network.config.context_dim)
    return recorded_prior(model, SpaceToDepth(), views=views, mode=mode, caption=nothing, negative=nothing, ip=None)


def kl_codec(autoencoder: nn.Module, image_size: int) -> KLCodec:
    """The published codec around a small autoencoder."""
    return KLCodec(autoencoder, image_size=image_size)
