"""Stable Diffusion 1 and 2 (arXiv:2112.10752): single images and words, nothing else.

The free prior of USD and the prior of text-to-3D: it never saw cameras, so the side that a view shows can only be said
in words (see `maquette.guidance.view_text`). The unconditional twin has the negative text, the empty one if none was
given, and no kind of twin differs from another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from maquette.cameras import Cameras
from maquette.diffusion.schedule import NoiseSchedule
from maquette.diffusion.unet import MultiViewUNet
from maquette.errors import UserError
from maquette.images import Prompt
from maquette.priors.adapters import Adapter, attach
from maquette.priors.base import Codec, Condition, Prediction, PredictsEach, UnconditionalKind
from maquette.priors.codecs import KLCodec
from maquette.priors.multiview import Tokenizer
from maquette.run.fingerprints import fingerprint
from maquette.wording import spell


@dataclass(frozen=True)
class StableDiffusionConfig:
    """How a network is used; what it is made of stands in its own config."""

    name: str = "Stable Diffusion"
    """Shown in messages."""
    batch_conditions: bool = True
    """Evaluate conditional and unconditional halves in one batch; False halves the peak memory."""
    identifiers: tuple[tuple[str, str], ...] = (("[v]", "sks"), ("[v2]", "itu@t"))
    """Rare words of the tokenizer that stand for a personal subject; the second is that of USD's notebook."""


@dataclass(frozen=True, eq=False)
class StableDiffusionPrior(PredictsEach):
    """A text-to-image network with everything it needs to be asked about words."""

    network: MultiViewUNet
    codec: Codec
    noise_schedule: NoiseSchedule
    """Its `predicts` says whether the network gives eps (1.5, 2.1-base) or v (2.1)."""
    tokenizer: Tokenizer
    text_encoder: nn.Module
    """Token indices [B, L] -> context [B, L, D]."""
    config: StableDiffusionConfig = StableDiffusionConfig()
    weights: Mapping[str, Any] = field(default_factory=dict)
    """The card of the weights."""

    def __post_init__(self) -> None:
        channels, wanted = self.codec.latent_shape[0], self.network.config.in_channels
        if wanted != channels:
            raise UserError(
                f"{self.config.name} reads latents of {channels} channels alone; this network reads {wanted}, so it is "
                "another model"
            )

    # What the prior is

    @property
    def num_views(self) -> int | None:
        return 1

    def with_config(self, **changes: Any) -> StableDiffusionPrior:
        """The same weights used otherwise, for example `prior.with_config(batch_conditions=False)`."""
        return replace(self, config=replace(self.config, **changes))

    def with_image_size(self, image_size: int) -> StableDiffusionPrior:
        """The same weights for images of another size than the 512 px of training; all networks are shared.

        UserError where the codec has but one size.
        """
        if not isinstance(self.codec, KLCodec):
            raise UserError(f"the codec of {self.config.name} has one image size, {self.codec.image_size} px")
        return replace(self, codec=self.codec.at(image_size))

    def networks(self) -> dict[str, nn.Module]:
        """What can learn a subject, by role."""
        return {"network": self.network, "text_encoder": self.text_encoder}

    def adapted(self, adapter: Adapter) -> StableDiffusionPrior:
        """The same prior with what was learned of a subject; it shares all other weights with this one."""
        networks = attach(self.networks(), self.weights_fingerprint(), adapter)
        network = networks["network"]
        assert isinstance(network, MultiViewUNet)
        facts = {**self.weights, "adapter": adapter.fingerprint(), "adapter_steps": adapter.steps}
        return replace(self, network=network, text_encoder=networks["text_encoder"], weights=facts)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> StableDiffusionPrior:
        """Move all networks (in place, as modules do); `dtype` is for all but the codec."""
        for module in (self.network, self.text_encoder):
            module.to(device=device, dtype=dtype)
        if isinstance(self.codec, nn.Module):
            self.codec.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Precision in which the network computes."""
        return next(self.network.parameters()).dtype

    def card(self) -> dict[str, Any]:
        """The weights' card."""
        return {"name": self.config.name, **self.weights}

    def weights_fingerprint(self) -> str:
        """Covers the weights, an adapter's too, however they are used."""
        known = self.weights.get("sha256")
        return fingerprint((known, self.weights.get("adapter")) if known else (self.network, self.text_encoder))

    def fingerprint(self) -> str:
        """Covers the weights and every setting that changes a prediction."""
        return fingerprint(
            (
                self.weights_fingerprint(),
                self.network.config,
                self.codec.identity(),
                self.noise_schedule.alphas_cumprod,
                self.noise_schedule.predicts,
                replace(self.config, batch_conditions=True),
            )
        )

    # Conditions

    @torch.no_grad()
    def condition(self, prompt: Prompt, background: Float[Tensor, "3"] | None = None) -> Condition:
        """Context tokens of the caption and of the negative text; neither picture nor background is looked at."""
        return Condition(text=self.encode_text(prompt.caption), negative=self.encode_text(prompt.negative))

    @torch.no_grad()
    def unconditional(self, condition: Condition, kind: UnconditionalKind = "zeros") -> Condition:
        """The negative text, whatever the kind: there is no picture to take away."""
        if condition.negative is None:
            raise ValueError(
                f"{self.config.name} cannot make a twin of a condition without negative text; use condition()"
            )
        return replace(condition, text=condition.negative)

    def encode_text(self, text: str) -> Float[Tensor, "1 l d"]:
        """Context tokens of a text, as in a condition; differentiable in the text encoder's weights."""
        return self.text_encoder(self.tokenizer([spell(text, self.config.identifiers)]).to(self.device))

    # Predictions

    def predict_each(
        self,
        latents_t: Float[Tensor, "b v c h w"],
        t: Int[Tensor, " b"],
        conditions: Mapping[str, Condition],
        cameras: Cameras | None = None,
    ) -> dict[str, Prediction]:
        """eps and x0 of every condition for the same noisy latents of one image a scene, batched where texts have one
        length. `cameras` is not looked at. ValueError for more than one view.
        """
        if latents_t.shape[1] != 1:
            raise ValueError(
                f"{self.config.name} knows single images, V = 1, got {latents_t.shape[1]} views; make every view a "
                "scene of its own (latents_t.flatten(0, 1)[:, None])"
            )
        texts = {name: condition.expand(latents_t.shape[0]).text for name, condition in conditions.items()}
        groups: dict[object, list[str]] = {}
        for name, text in texts.items():
            groups.setdefault(text.shape[1] if self.config.batch_conditions else name, []).append(name)
        outputs: dict[str, Tensor] = {}
        for names in groups.values():
            x = latents_t.repeat(len(names), 1, 1, 1, 1)
            context = torch.cat([texts[name] for name in names])
            output = self.network(x.to(self.dtype), t.repeat(len(names)), context.to(self.dtype))
            # A copy: a network compiled into CUDA graphs writes its next output where this one lies.
            output = output.to(latents_t.dtype, copy=True)
            outputs.update(zip(names, output.chunk(len(names)), strict=True))
        return {name: Prediction(*self.noise_schedule.split(outputs[name], latents_t, t)) for name in conditions}
