"""The nano Zero-1-to-3 put together from its configuration, before or after training.

The class of the published prior with a small network, an exact codec, and the nano image encoder in place of CLIP's.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from maquette.diffusion.unet import MultiViewUNet, UNetConfig
from maquette.priors.codecs import SpaceToDepth
from maquette.priors.nano.assembly import NoiseConfig
from maquette.priors.nano.encoders import ImageEncoderConfig, NanoImageEncoder
from maquette.priors.zero123 import Zero123Config, Zero123Prior, new_projection


@dataclass(frozen=True)
class NanoViewConfig:
    """Everything a nano Zero-1-to-3 is made of, apart from its weights."""

    network: UNetConfig
    """A U-Net without cameras; it reads twice the codec's channels, and one context token."""
    image_encoder: ImageEncoderConfig = ImageEncoderConfig()
    codec: SpaceToDepth = SpaceToDepth()
    noise: NoiseConfig = NoiseConfig()
    use: Zero123Config = Zero123Config(name="nano-zero123")

    def __post_init__(self) -> None:
        self.noise.check(self.network)
        channels = self.codec.latent_shape[0]
        for name, value, expected in (
            ("network.in_channels", self.network.in_channels, 2 * channels),
            ("network.out_channels", self.network.out_channels, channels),
            ("network.camera_dim", self.network.camera_dim, None),
        ):
            if value != expected:
                raise ValueError(f"{name} must be {expected} for a Zero-1-to-3 with this codec, got {value}")


class PooledImage(nn.Module):
    """Of an image encoder's answers only the pooled embedding."""

    def __init__(self, encoder: NanoImageEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b e"]:
        return self.encoder(images)[1]


def build_nano_view(config: NanoViewConfig) -> Zero123Prior:
    """The prior with freshly initialised weights (from torch's global generator)."""
    return Zero123Prior(
        network=MultiViewUNet(config.network),
        codec=config.codec,
        noise_schedule=config.noise.build(),
        image_encoder=PooledImage(NanoImageEncoder(config.image_encoder)),
        projection=new_projection(config.image_encoder.embedding_dim, config.network.context_dim),
        config=config.use,
    )


def view_parts(prior: Zero123Prior) -> dict[str, nn.Module]:
    """The networks of a prior under the names that their tensors have in a weights package."""
    return {"network": prior.network, "projection": prior.projection, "image_encoder": prior.image_encoder}
