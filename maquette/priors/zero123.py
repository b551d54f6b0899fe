"""Zero-1-to-3 (arXiv:2303.11328), its XL and Stable successors: the object of a picture, seen from another camera.

A 2D U-Net that reads the noisy latents of the wanted view beside the clean latents of the picture (4 + 4 channels) and
one cross-attention token, W [CLIP embedding of the picture; relative pose] + b. With a single token the softmax is 1
everywhere, so the token shifts all pixels alike: where things are comes from the concatenated latents.

All oddities stay here: the concatenated latents are the posterior's mean *without* the factor that scales all other
latents; the released samplers replace the token by zeros *after* the projection and the latents by zeros
(`kind="zeros"`), while training dropped the embedding *before* it and kept the pose (`kind="projected"`); the picture's
own camera is part of the condition, and Stable Zero123 is told its height instead of a distance. The network only ever
saw white backgrounds.
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
from maquette.diffusion.unet import MultiViewUNet, concatenate_prompt
from maquette.errors import UserError
from maquette.images import Prompt
from maquette.priors.base import Codec, Condition, Prediction, PredictsEach, UnconditionalKind
from maquette.priors.codecs import resize_images
from maquette.priors.zero123_pose import POSE_LENGTH, PoseKind, camera_angles, relative_pose
from maquette.run.fingerprints import fingerprint


@dataclass(frozen=True)
class Zero123Config:
    """How a network is used; what it is made of stands in its own config."""

    name: str = "Zero-1-to-3"
    """Shown in messages."""
    pose: PoseKind = "zero123"
    """Fourth number of the relative pose: difference of distances, or the picture's height (Stable Zero123)."""
    elevation: float = 0.0
    """Degrees above the horizon of the picture's camera, where the prompt has no reliable estimate."""
    azimuth: float = 0.0
    """Degrees from the object's front of the picture's camera, where the prompt has no reliable estimate."""
    distance: float | None = None
    """Distance of the picture's camera; none takes it to be every view's own."""
    batch_conditions: bool = True
    """Evaluate conditional and unconditional halves in one batch; False halves the peak memory."""

    def __post_init__(self) -> None:
        if not -90 <= self.elevation <= 90:
            raise UserError(f"the picture's elevation is between -90 and 90 degrees, got {self.elevation}")
        if self.distance is not None and self.distance <= 0:
            raise UserError(f"the picture's distance is positive, got {self.distance}")


@dataclass(frozen=True, eq=False)
class Zero123Prior(PredictsEach):
    """A novel-view network with everything it needs to be asked about a picture."""

    network: MultiViewUNet
    codec: Codec
    noise_schedule: NoiseSchedule
    """Its `predicts` says whether the network gives eps, x0 or v."""
    image_encoder: nn.Module
    """Float32 images [B, 3, H, W] in [0, 1] -> embeddings [B, G]."""
    projection: nn.Linear
    """[embedding, relative pose] [*, G + 4] -> context token [*, D]."""
    config: Zero123Config = Zero123Config()
    weights: Mapping[str, Any] = field(default_factory=dict)
    """The card of the weights."""

    def __post_init__(self) -> None:
        channels, wanted = self.codec.latent_shape[0], self.network.config.in_channels
        if wanted != 2 * channels:
            raise UserError(
                f"{self.config.name} reads noisy latents beside those of a picture, {2 * channels} channels for this "
                f"codec; this network reads {wanted}, so it is another model"
            )
        if self.projection.out_features != self.network.config.context_dim:
            raise UserError(
                f"the projection of {self.config.name} makes tokens of {self.projection.out_features} numbers, and its "
                f"network reads {self.network.config.context_dim}; they are of different models"
            )

    # What the prior is

    @property
    def num_views(self) -> int | None:
        return 1

    def with_config(self, **changes: Any) -> Zero123Prior:
        """The same weights used otherwise, for example `prior.with_config(elevation=30.0)`."""
        return replace(self, config=replace(self.config, **changes))

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Zero123Prior:
        """Move all networks (in place, as modules do); `dtype` is for all but the codec."""
        for module in (self.network, self.image_encoder, self.projection):
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
        return {"name": self.config.name, **self.weights, "pose": self.config.pose}

    def weights_fingerprint(self) -> str:
        """Covers the weights (by their sha256 where the card has one), however they are used."""
        return fingerprint(self.weights.get("sha256") or (self.network, self.image_encoder, self.projection))

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
    def condition(
        self,
        prompt: Prompt,
        background: Float[Tensor, "3"] | None = None,
        *,
        camera: Cameras | None = None,
        latent_noise: Float[Tensor, "1 c h w"] | None = None,
    ) -> Condition:
        """The picture's embedding, unscaled latents and camera, on a flat background colour (white if not given).

        The camera is `camera` (one, with its distance), or the prompt's estimate if that is reliable, or the config's.
        The latents are the posterior's mean; `latent_noise` picks a sample of it instead, as USD's code does anew at
        each step. Words are not looked at. UserError for a prompt without a picture.
        """
        if prompt.image is None:
            raise UserError(f"{self.config.name} needs a picture and cannot read words; give an image prompt")
        background = (torch.ones(3) if background is None else background).to(self.device, torch.float32)
        image = prompt.image.to(self.device).composite(background).float()
        small = resize_images(image[None, None], self.codec.image_size, antialias=True)  # [1, 1, 3, s, s]
        noise = None if latent_noise is None else latent_noise[:, None].to(small)
        return Condition(
            text=torch.zeros(1, 1, self.projection.out_features, device=self.device),
            image_embedding=self.image_encoder(small[0]),
            image_latents=self.codec.encode(small, noise)[:, 0] / self.codec.scale,
            background=background,
            camera=self._picture_camera(prompt, camera),
        )

    def _picture_camera(self, prompt: Prompt, camera: Cameras | None) -> Float[Tensor, "1 k"]:
        if camera is not None:
            return camera_angles(camera).reshape(1, 3).to(self.device, torch.float32)
        known, config = prompt.camera, self.config
        angles = [config.elevation, config.azimuth]
        if known is not None and known.reliable:
            angles = [known.elevation, known.azimuth]
        if config.distance is not None:
            angles.append(config.distance)
        return torch.tensor([angles], device=self.device)

    @torch.no_grad()
    def unconditional(self, condition: Condition, kind: UnconditionalKind = "zeros") -> Condition:
        """No picture: a zero token and zero latents as in the released samplers ("zeros"), or what training saw, zeros
        for the embedding with the pose still projected ("projected"). ValueError for another kind.
        """
        if condition.image_embedding is None or condition.image_latents is None:
            raise ValueError(f"{self.config.name} cannot make a twin of a condition without a picture")
        if kind not in ("zeros", "projected"):
            raise ValueError(
                f"the unconditional twin of {self.config.name} is of kind 'zeros' or 'projected', got {kind!r}"
            )
        embedding = torch.zeros_like(condition.image_embedding) if kind == "projected" else None
        latents = torch.zeros_like(condition.image_latents)
        return replace(condition, image_embedding=embedding, image_latents=latents)

    def context(self, embedding: Float[Tensor, "*b g"], pose: Float[Tensor, "*b 4"]) -> Float[Tensor, "*b 1 d"]:
        """The cross-attention token of image embeddings and relative poses (see `zero123_pose`)."""
        return self.projection(torch.cat([embedding, pose], dim=-1).to(self.projection.weight.dtype))[..., None, :]

    # Predictions

    def predict_each(
        self,
        latents_t: Float[Tensor, "b v c h w"],
        t: Int[Tensor, " b"],
        conditions: Mapping[str, Condition],
        cameras: Cameras | None = None,
    ) -> dict[str, Prediction]:
        """eps and x0 of every condition for the same noisy latents of one view a scene.

        `cameras` is a batch [B, 1], or [1] for all scenes; only conditions of kind "zeros" can do without. A condition
        whose embedding is None has its token in `text`. ValueError for more than one view, or where a pose is needed
        and the cameras or the picture's own are missing.
        """
        views = self._view_angles(latents_t, cameras)
        contexts, pictures = {}, {}
        for name, condition in conditions.items():
            rows = condition.expand(latents_t.shape[0])
            contexts[name] = self._token(rows, views)
            pictures[name] = (
                torch.zeros_like(latents_t) if rows.image_latents is None else rows.image_latents[:, None].to(latents_t)
            )
        outputs: dict[str, Tensor] = {}
        for names in [list(conditions)] if self.config.batch_conditions else [[name] for name in conditions]:
            copies = len(names)
            output = self.denoise(
                latents_t.repeat(copies, 1, 1, 1, 1),
                t.repeat(copies),
                torch.cat([contexts[name] for name in names]),
                torch.cat([pictures[name] for name in names]),
            )
            outputs.update(zip(names, output.chunk(copies), strict=True))
        return {name: Prediction(*self.noise_schedule.split(outputs[name], latents_t, t)) for name in conditions}

    def denoise(
        self,
        latents_t: Float[Tensor, "b 1 c h w"],
        t: Int[Tensor, " b"],
        context: Float[Tensor, "b l d"],
        picture: Float[Tensor, "b 1 c h w"],
    ) -> Float[Tensor, "b 1 c h w"]:
        """One call of the network: noisy latents beside the picture's unscaled ones, with ready context tokens."""
        x = concatenate_prompt(latents_t, picture, self.network.config.in_channels)
        # A copy: a network compiled into CUDA graphs writes its next output where this one lies.
        return self.network(x.to(self.dtype), t, context.to(self.dtype)).to(latents_t.dtype, copy=True)

    def _view_angles(self, latents_t: Tensor, cameras: Cameras | None) -> Float[Tensor, "b 3"] | None:
        batch, views = latents_t.shape[:2]
        name = self.config.name
        if views != 1:
            raise ValueError(
                f"{name} expects V = 1 view of a scene, got {views}; make every view a scene of its own "
                "(latents_t.flatten(0, 1)[:, None], and cameras alike)"
            )
        if cameras is None:
            return None
        if tuple(cameras.batch_shape) not in ((1,), (batch, 1)):
            raise ValueError(f"{name} expects one camera a view, [{batch}, 1] or [1], got {list(cameras.batch_shape)}")
        # Angles in float32, also for half-precision latents: a degree counts.
        return camera_angles(cameras.to(latents_t.device, torch.float32)).reshape(-1, 3).expand(batch, 3)

    def _token(self, condition: Condition, views: Float[Tensor, "b 3"] | None) -> Float[Tensor, "b 1 d"]:
        if condition.image_embedding is None:
            return condition.text.to(self.dtype)
        if views is None or condition.camera is None:
            what = "cameras of the views" if views is None else "the picture's own camera in the condition"
            raise ValueError(f"{self.config.name} needs {what}, from which it takes the relative pose")
        pose = relative_pose(views, condition.camera.to(views), self.config.pose)
        # Poses of half precision are those of the released code in half precision, too.
        return self.context(condition.image_embedding, pose.to(condition.image_embedding))


def new_projection(embedding_dim: int = 768, context_dim: int = 768) -> nn.Linear:
    """The projection before training: the embedding as it is, the pose without effect (first columns the identity)."""
    projection = nn.Linear(embedding_dim + POSE_LENGTH, context_dim)
    with torch.no_grad():
        projection.weight.zero_()
        projection.weight.fill_diagonal_(1.0)
        projection.bias.zero_()
    return projection
