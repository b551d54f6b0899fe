"""The nano multi-view prior put together from its configuration, before or after training.

The same classes as the published priors', smaller: only the encoders, the codec and the parametrisation are its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from maquette.diffusion.schedule import NoiseSchedule, Parametrisation
from maquette.diffusion.unet import MultiViewUNet, UNetConfig
from maquette.priors.codecs import SpaceToDepth
from maquette.priors.multiview import MultiViewConfig, MultiViewPrior
from maquette.priors.nano.encoders import ImageEncoderConfig, NanoImageEncoder, NanoTextEncoder, TextEncoderConfig
from maquette.priors.nano.vocabulary import tokenize


@dataclass(frozen=True)
class NoiseConfig:
    """A noise schedule by its formula, and what the network says about the noise."""

    kind: Literal["scaled_linear", "cosine"] = "scaled_linear"
    """Stable Diffusion's schedule, or the cosine one."""
    predicts: Parametrisation = "x0"
    """What the network puts out. At 64 px and few channels x0 trains where eps and v fail."""
    num_steps: int = 1000
    """T."""

    def build(self) -> NoiseSchedule:
        """The schedule itself."""
        if self.kind == "cosine":
            return NoiseSchedule.cosine(self.num_steps, predicts=self.predicts)
        return NoiseSchedule.scaled_linear(self.num_steps, predicts=self.predicts)

    def check(self, network: UNetConfig) -> None:
        """ValueError if the network was built for other noise: its mixture of seen and added is that of the default."""
        if network.data_deviation is not None and self != NoiseConfig():
            raise ValueError(
                "a network with data_deviation predicts x0 under the scaled-linear schedule of 1000 steps, got "
                f"noise={self}"
            )


@dataclass(frozen=True)
class NanoConfig:
    """Everything a nano prior is made of, apart from its weights."""

    network: UNetConfig
    """The multi-view U-Net; its channels fit the codec's, its context the text encoder's."""
    text_encoder: TextEncoderConfig = TextEncoderConfig()
    image_encoder: ImageEncoderConfig = ImageEncoderConfig()
    codec: SpaceToDepth = SpaceToDepth()
    noise: NoiseConfig = NoiseConfig()
    use: MultiViewConfig = MultiViewConfig(
        name="nano", control="global+local+pixel", missing_picture="zeros", picture_in_2d=False
    )
    """Its training drops pictures by zeros, and shows single views words alone."""

    def __post_init__(self) -> None:
        self.noise.check(self.network)
        channels, prompt = self.codec.latent_shape[0], self.network.image_prompt
        wanted = {
            # Twice the codec's where the prompt's latents also lie beside every view.
            "network.in_channels": (
                self.network.in_channels,
                channels * (2 if self.network.in_channels > channels else 1),
            ),
            "network.out_channels": (self.network.out_channels, channels),
            "network.context_dim": (self.network.context_dim, self.text_encoder.width),
        }
        if prompt is not None and prompt.local_dim:
            wanted["network.image_prompt.local_dim"] = (prompt.local_dim, self.image_encoder.width)
        if prompt is not None and prompt.global_dim:
            wanted["network.image_prompt.global_dim"] = (prompt.global_dim, self.image_encoder.embedding_dim)
        for name, (value, expected) in wanted.items():
            if value != expected:
                raise ValueError(f"{name} must be {expected} to fit the codec and the encoders, got {value}")


def build_nano(config: NanoConfig) -> MultiViewPrior:
    """The prior with freshly initialised weights (from torch's global generator)."""
    return MultiViewPrior(
        network=MultiViewUNet(config.network),
        codec=config.codec,
        noise_schedule=config.noise.build(),
        tokenizer=tokenize,
        text_encoder=NanoTextEncoder(config.text_encoder),
        image_encoder=NanoImageEncoder(config.image_encoder),
        config=config.use,
    )


def parts(prior: MultiViewPrior) -> dict[str, nn.Module]:
    """The networks of a prior under the names that their tensors have in a weights package."""
    named = {"network": prior.network, "text_encoder": prior.text_encoder, "image_encoder": prior.image_encoder}
    return {name: module for name, module in named.items() if module is not None}
