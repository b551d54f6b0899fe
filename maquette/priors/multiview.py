"""MVDream and ImageDream (arXiv:2308.16512, arXiv:2312.02201), published or nano: one class, other weights.

The network sees V views of an object at once and their cameras in a canonical frame; an image prompt reaches it at
three levels: *global* (a pooled embedding as a few tokens), *local* (an encoder's hidden tokens, resampled) and *pixel*
(the prompt's clean latents as one more view in the joint self-attention). With one view and no camera the same network
is a 2D text-to-image model.

All oddities stay here: the extra view is appended and dropped inside `predict_each` and never touches the caller's
latents, its camera is the zero vector, its timestep the views' own; the unconditional twin feeds zeros *before* the
resampler and as the prompt's latents, which is what the released code does (training used images of a flat colour:
`kind="flat"`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from maquette.cameras import Cameras
from maquette.diffusion.schedule import NoiseSchedule
from maquette.diffusion.unet import MultiViewUNet, concatenate_prompt
from maquette.errors import UserError
from maquette.images import Prompt
from maquette.priors.adapters import Adapter, attach
from maquette.priors.base import Codec, Condition, Prediction, PredictsEach, UnconditionalKind, stack_conditions
from maquette.priors.multiview_cameras import append_prompt_camera, mvdream_camera_condition
from maquette.run.fingerprints import fingerprint
from maquette.wording import spell

Tokenizer = Callable[[Sequence[str]], Tensor]
"""Texts -> token indices [B, L]."""

CONTROLS = ("global", "local", "pixel")
KEPT_WORDS = 64
"""Texts whose tokens a prior keeps."""


def parse_control(control: str) -> frozenset[str]:
    """The controllers in a name such as "local+pixel"; "none" for text only. UserError for others.

    >>> sorted(parse_control("pixel+local"))
    ['local', 'pixel']
    """
    if control == "none":
        return frozenset()
    names = control.split("+")
    unknown = [name for name in names if name not in CONTROLS]
    if unknown or len(set(names)) != len(names):
        raise UserError(
            f"control is 'none' or a combination of {', '.join(CONTROLS)} joined by '+', such as 'local+pixel'; "
            f"got {control!r}"
        )
    return frozenset(names)


@dataclass(frozen=True)
class ImageWeight:
    """How much each controller counts: 1 as trained, 0 not at all."""

    global_: float = 1.0
    """Weight of the global tokens in every cross-attention."""
    local: float = 1.0
    """Weight of the local tokens in every cross-attention (the paper's lambda)."""
    pixel: float = 1.0
    """Weight of the prompt's view among the views that self-attention looks at."""

    def __post_init__(self) -> None:
        if min(self.global_, self.local, self.pixel) < 0:
            raise UserError(f"image weights are at least 0 (1 is what the network was trained with), got {self}")


@dataclass(frozen=True)
class MultiViewConfig:
    """How a network is used; what it is made of stands in its own config."""

    name: str = "ImageDream"
    """Shown in messages."""
    num_views: int = 4
    """Views per scene that the network was trained with."""
    control: str = "local+pixel"
    """Image controllers in use, joined by '+', or 'none'."""
    image_weight: ImageWeight = ImageWeight()
    """Strength of each controller."""
    missing_picture: Literal["absent", "zeros"] = "absent"
    """What a prompt of words alone is to the controllers: not there, or zeros, as pictures dropped in training."""
    picture_in_2d: bool = True
    """Whether single views without a camera see the picture; False where they were trained with words alone."""
    batch_conditions: bool = True
    """Evaluate conditional and unconditional halves in one batch; False halves the peak memory."""
    identifiers: tuple[tuple[str, str], ...] = ()
    """(placeholder, word) where the tokenizer has no placeholders such as [v], but a rare word to spare."""

    def __post_init__(self) -> None:
        parse_control(self.control)
        if self.num_views < 1:
            raise UserError(f"a multi-view prior has at least one view, got num_views={self.num_views}")

    @cached_property
    def controls(self) -> frozenset[str]:
        """The controllers in use: those of `control` with a weight above 0."""
        weight = self.image_weight
        weights = {"global": weight.global_, "local": weight.local, "pixel": weight.pixel}
        return frozenset(name for name in parse_control(self.control) if weights[name] > 0)


@dataclass(frozen=True, eq=False)
class MultiViewPrior(PredictsEach):
    """A multi-view network with everything it needs to be asked about images and words."""

    network: MultiViewUNet
    codec: Codec
    noise_schedule: NoiseSchedule
    """Its `predicts` says whether the network gives eps, x0 or v."""
    tokenizer: Tokenizer
    text_encoder: nn.Module
    """Token indices [B, L] -> context [B, L, D]."""
    image_encoder: nn.Module | None = None
    """Float32 images [B, 3, H, W] in [0, 1] of any size -> (local tokens [B, T, E], global embedding [B, G])."""
    config: MultiViewConfig = MultiViewConfig()
    weights: Mapping[str, Any] = field(default_factory=dict)
    """The card of the weights."""

    def __post_init__(self) -> None:
        trained = self.weights.get("trained_control")
        if trained is not None and (strange := parse_control(self.config.control) - parse_control(trained)):
            raise UserError(
                f"these weights of {self.config.name} were trained with control {trained!r}, not with "
                f"{' and '.join(sorted(strange))}; use --control {trained}"
            )
        prompt = self.network.config.image_prompt
        known = {
            "global": prompt is not None and prompt.global_dim > 0,
            "local": prompt is not None and prompt.local_dim > 0,
            "pixel": True,  # an extra view needs no parameters
        }
        missing = sorted(name for name in parse_control(self.config.control) if not known[name])
        if missing:
            raise UserError(
                f"{self.config.name} has no {' and no '.join(missing)} control; it knows "
                f"{', '.join(name for name in CONTROLS if known[name])} and 'none'"
            )
        if parse_control(self.config.control) & {"global", "local"} and self.image_encoder is None:
            raise UserError(f"{self.config.name} needs an image encoder for control {self.config.control!r}")

    # What the prior is

    @property
    def num_views(self) -> int | None:
        return self.config.num_views

    def with_config(self, **changes: Any) -> MultiViewPrior:
        """The same weights used otherwise, for example `prior.with_config(control="none")`."""
        return replace(self, config=replace(self.config, **changes))

    def with_network(self, network: MultiViewUNet) -> MultiViewPrior:
        """The same prior around another network, such as one with adapters; everything else is shared."""
        facts = {key: value for key, value in self.weights.items() if key != "sha256"}  # that of other weights
        return replace(self, network=network, weights=facts)

    def networks(self) -> dict[str, nn.Module]:
        """What can learn a subject, by role."""
        return {"network": self.network, "text_encoder": self.text_encoder}

    def adapted(self, adapter: Adapter) -> MultiViewPrior:
        """The same prior with what was learned of a subject; it shares all other weights with this one."""
        base = self.weights_fingerprint()
        networks = attach(self.networks(), base, adapter)
        network = networks["network"]
        assert isinstance(network, MultiViewUNet)
        facts = {**self.weights, "adapter": adapter.fingerprint(), "adapter_steps": adapter.steps}
        return replace(self, network=network, text_encoder=networks["text_encoder"], weights=facts)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> MultiViewPrior:
        """Move all networks (in place, as modules do); `dtype` is for the U-Net and the encoders, not the codec."""
        for module in (self.network, self.text_encoder, self.image_encoder):
            if module is not None:
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
        """The weights' card, and how they are used."""
        return {**self.weights, "control": self.config.control}

    def fingerprint(self) -> str:
        """Covers the weights (by their sha256 where the card has one) and every setting that changes a prediction."""
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

    def weights_fingerprint(self) -> str:
        """Covers the weights, an adapter's too, however they are used."""
        known = self.weights.get("sha256")
        modules = (self.network, self.text_encoder, self.image_encoder)
        return fingerprint((known, self.weights.get("adapter")) if known else modules)

    # Conditions

    @torch.no_grad()
    def condition(
        self,
        prompt: Prompt,
        background: Float[Tensor, "3"] | None = None,
        *,
        latent_noise: Float[Tensor, "1 c h w"] | None = None,
    ) -> Condition:
        """Caption tokens, image tokens and the prompt's latents on a flat background colour (white if not given).

        The prompt's latents are the posterior's mean; `latent_noise` picks a sample of it, as the released code does
        anew at each step. The condition of a prompt without a picture has no background.
        """
        text, negative = self._words(prompt.caption), self._words(prompt.negative)
        if background is None:
            background = torch.ones(3)
        background = background.to(self.device, torch.float32)
        if prompt.image is None:
            words = Condition(text=text, negative=negative)
            if self.config.missing_picture == "absent":
                return words
            return _without_image(self._with_image(words, self._flat(background), None))
        condition = Condition(text=text, negative=negative, background=background)
        composite = prompt.image.to(self.device).composite(background)
        return self._with_image(condition, composite[None], latent_noise)

    @torch.no_grad()
    def unconditional(self, condition: Condition, kind: UnconditionalKind = "zeros") -> Condition:
        """The negative text, and for the picture zeros (released code) or its flat background colour (training).

        ValueError for "flat" if the condition does not know its background.
        """
        if condition.negative is None:
            raise ValueError(
                f"{self.config.name} cannot make a twin of a condition without negative text; use condition()"
            )
        twin = replace(condition, text=condition.negative)
        if kind == "zeros":
            return _without_image(twin)
        if kind != "flat":
            raise ValueError(f"the unconditional twin is of kind 'zeros' or 'flat', got {kind!r}")
        if condition.background is None:
            if any(bool(value.any()) for value in _image_fields(condition) if value is not None):
                raise ValueError("the 'flat' twin needs the background colour that the condition was made with")
            return twin  # there was no picture to take away
        return self._with_image(twin, self._flat(condition.background), None)

    def _flat(self, colour: Float[Tensor, "3"]) -> Float[Tensor, "1 3 h w"]:
        """An image of one colour, of the codec's size."""
        size = self.codec.image_size
        return colour.to(self.device)[None, :, None, None].expand(1, 3, size, size)

    def encode_text(self, text: str) -> Float[Tensor, "1 l d"]:
        """Context tokens of a text, as in a condition; differentiable in the text encoder's weights."""
        if any(parameter.requires_grad for parameter in self.text_encoder.parameters()):
            self._kept_words.clear()  # it learns, and what it said before is not what it will say
        return self.text_encoder(self.tokenizer([spell(text, self.config.identifiers)]).to(self.device))

    def _words(self, text: str) -> Float[Tensor, "1 l d"]:
        """`encode_text`, kept until the encoder changes: guidance asks again for every colour of the background."""
        kept, parameters = self._kept_words, list(self.text_encoder.parameters())
        if any(parameter.requires_grad for parameter in parameters):
            return self.encode_text(text)
        key = (text, self.device, self.dtype, tuple(parameter._version for parameter in parameters))
        if key not in kept:
            if len(kept) >= KEPT_WORDS:
                kept.clear()
            kept[key] = self.encode_text(text)
        return kept[key]

    @property
    def _kept_words(self) -> dict[object, Tensor]:
        """Tokens of texts; beside the fields and not among them, because it is no part of what the prior is."""
        return self.__dict__.setdefault("_kept", {})

    def _with_image(
        self, condition: Condition, image: Float[Tensor, "1 3 h w"], latent_noise: Tensor | None
    ) -> Condition:
        """The condition with what the controllers in use see of an image in [0, 1]."""
        controls = self.config.controls
        tokens = embedding = latents = None
        if controls & {"global", "local"}:
            assert self.image_encoder is not None  # checked when built
            tokens, embedding = self.image_encoder(image.float())
        if "pixel" in controls:
            small = self.codec.resize_prompt(image[0].float())[None, None]
            noise = None if latent_noise is None else latent_noise[:, None].to(small)
            latents = self.codec.encode(small, noise)[:, 0]
        return replace(
            condition,
            image_tokens=tokens if "local" in controls else None,
            image_embedding=embedding if "global" in controls else None,
            image_latents=latents,
        )

    # Predictions

    def predict_each(
        self,
        latents_t: Float[Tensor, "b v c h w"],
        t: Int[Tensor, " b"],
        conditions: Mapping[str, Condition],
        cameras: Cameras | None = None,
    ) -> dict[str, Prediction]:
        """eps and x0 of every condition for the same noisy latents, in the order given, batched where they look alike.

        `cameras` is a batch [B, V], or [V] for the same in all scenes. Without cameras the network is a 2D model and V
        is 1. ValueError for another number of views than the network was trained with.
        """
        camera = self._camera_condition(latents_t, cameras)
        rows = {name: self._in_use(c, camera).expand(latents_t.shape[0]) for name, c in conditions.items()}
        groups: dict[object, list[str]] = {}
        for name, row in rows.items():
            signature = (row.text.shape[1], *(value is None for value in _image_fields(row)))
            groups.setdefault(signature if self.config.batch_conditions else name, []).append(name)
        outputs: dict[str, Tensor] = {}
        for names in groups.values():
            copies = len(names)
            output = self._evaluate(
                latents_t.repeat(copies, 1, 1, 1, 1),
                t.repeat(copies),
                stack_conditions([rows[name] for name in names]),
                None if camera is None else camera.repeat(copies, 1, 1),
            )
            outputs.update(zip(names, output.chunk(copies), strict=True))
        return {name: Prediction(*self.noise_schedule.split(outputs[name], latents_t, t)) for name in conditions}

    def _in_use(self, condition: Condition, camera: Tensor | None) -> Condition:
        """The condition with only those controllers that are in use, whatever it was made with."""
        controls = self.config.controls if camera is not None or self.config.picture_in_2d else frozenset()
        return replace(
            condition,
            image_tokens=condition.image_tokens if "local" in controls else None,
            image_embedding=condition.image_embedding if "global" in controls else None,
            image_latents=condition.image_latents if "pixel" in controls else None,
        )

    def _camera_condition(self, latents_t: Tensor, cameras: Cameras | None) -> Float[Tensor, "b v 16"] | None:
        batch, views = latents_t.shape[:2]
        if cameras is None:
            if views != 1:
                raise ValueError(
                    f"{self.config.name} without cameras is a 2D model of single views, got V = {views}; pass cameras"
                )
            return None
        if views != self.config.num_views:
            raise ValueError(
                f"{self.config.name} expects V = {self.config.num_views} views, got {views}; "
                f"pass orbit(num_views={self.config.num_views})"
            )
        if tuple(cameras.batch_shape) not in ((views,), (batch, views)):
            raise ValueError(
                f"{self.config.name} expects one camera a view, [{batch}, {views}] or [{views}], "
                f"got {list(cameras.batch_shape)}"
            )
        return mvdream_camera_condition(cameras).to(latents_t).expand(batch, views, -1)

    def _evaluate(
        self,
        latents_t: Float[Tensor, "b v c h w"],
        t: Int[Tensor, " b"],
        condition: Condition,
        camera: Float[Tensor, "b v 16"] | None,
    ) -> Float[Tensor, "b v c h w"]:
        """One call of the network, with the prompt's view appended before and dropped after."""
        views, dtype, weight = latents_t.shape[1], latents_t.dtype, self.config.image_weight
        local, embedding, latents = _image_fields(condition)
        view_weight = None
        x = latents_t
        if latents is not None:
            x = torch.cat([x, latents[:, None].to(x)], dim=1)  # [B, V + 1, C, h, w], a new tensor
            if camera is not None:
                camera = append_prompt_camera(camera)
            if weight.pixel != 1.0:
                view_weight = torch.cat([x.new_ones(views), x.new_full((1,), weight.pixel)])
        # Beside the views, zeros stand for no prompt, so a weaker prompt is one closer to them.
        beside = None if latents is None else latents[:, None] * min(weight.pixel, 1.0)
        x = concatenate_prompt(x, beside, self.network.config.in_channels)
        output = self.network(
            x.to(self.dtype),
            t,
            condition.text.to(self.dtype),
            None if camera is None else camera.to(self.dtype),
            local_features=None if local is None else local.to(self.dtype),
            global_feature=None if embedding is None else embedding.to(self.dtype),
            image_weight=self._image_weight(local, embedding),
            view_weight=view_weight,
        )
        # A copy: a network compiled into CUDA graphs writes its next output where this one lies.
        return output[:, :views].to(dtype, copy=True)

    def _image_weight(self, local: Tensor | None, embedding: Tensor | None) -> float | Float[Tensor, "n 1"]:
        """One weight for all image tokens, or one for each where local and global tokens weigh differently."""
        weight = self.config.image_weight
        if local is None or embedding is None or weight.local == weight.global_:
            return weight.global_ if local is None else weight.local
        prompt = self.network.config.image_prompt
        assert prompt is not None
        num_local = prompt.num_queries if prompt.resample else local.shape[1]
        weights = [weight.local] * num_local + [weight.global_] * prompt.num_global
        return local.new_tensor(weights, dtype=self.dtype)[:, None]


def _image_fields(condition: Condition) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    return condition.image_tokens, condition.image_embedding, condition.image_latents


def _without_image(condition: Condition) -> Condition:
    """The condition with zeros in place of everything that came from a picture."""
    tokens, embedding, latents = (None if x is None else torch.zeros_like(x) for x in _image_fields(condition))
    return replace(condition, image_tokens=tokens, image_embedding=embedding, image_latents=latents)
