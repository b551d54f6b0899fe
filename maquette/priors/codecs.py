"""Codecs: how a prior's latents stand for images.

`SpaceToDepth` is exact and free, and serves the nano priors; `KLCodec` wraps the autoencoder of the published models.
Both take images in [0, 1] of any size and resize them to the prior's own; both are differentiable in the images.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from maquette.diffusion.autoencoder import Autoencoder
from maquette.diffusion.clip_pixels import vae_pixels

# Brings the latents of Stable Diffusion's autoencoder to about unit variance; part of every published model.
SD_LATENT_SCALE = 0.18215


def resize_images(
    images: Float[Tensor, "b v 3 h w"], size: int, *, antialias: bool = False
) -> Float[Tensor, "b v 3 {size} {size}"]:
    """Images of another size, bilinear with half-pixel centres (`align_corners=False`); the aspect is not kept."""
    if images.shape[-2:] == (size, size):
        return images
    flat = images.flatten(0, 1)
    # antialias only matters when shrinking; torch applies it to enlargements as the identity.
    resized = F.interpolate(flat, size=(size, size), mode="bilinear", align_corners=False, antialias=antialias)
    return resized.reshape(*images.shape[:3], size, size)


@dataclass(frozen=True)
class SpaceToDepth:
    """Exact codec: every `patch` x `patch` block of pixels becomes the channels of one latent pixel.

    Channels are ordered colour slowest, then row, then column inside the patch (`torch.pixel_unshuffle`), values are
    `scale` times the colour in [-1, 1]. Renders larger than `image_size` are shrunk with an antialiasing filter, so
    that no pixel of the field is left without a gradient.
    """

    image_size: int = 64
    patch: int = 4
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.image_size % self.patch:
            raise ValueError(
                f"SpaceToDepth needs an image size divisible by the patch, got {self.image_size} px and patch "
                f"{self.patch}"
            )

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        side = self.image_size // self.patch
        return 3 * self.patch**2, side, side

    @property
    def stochastic(self) -> bool:
        return False

    def encode(
        self, images: Float[Tensor, "b v 3 h w"], noise: Float[Tensor, "b v c lh lw"] | None = None
    ) -> Float[Tensor, "b v c lh lw"]:
        """Latents of images in [0, 1]. `noise` is ignored: the code has no posterior."""
        images = resize_images(images, self.image_size, antialias=True)
        return F.pixel_unshuffle(images * 2 - 1, self.patch) * self.scale

    def resize_prompt(self, image: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 s s"]:
        """A picture at `image_size`, antialiased."""
        return resize_images(image[None, None], self.image_size, antialias=True)[0, 0]

    def decode(self, latents: Float[Tensor, "b v c lh lw"]) -> Float[Tensor, "b v 3 h w"]:
        """Images of latents, clamped to [0, 1]; the exact inverse of `encode` at `image_size`."""
        return (F.pixel_shuffle(latents / self.scale, self.patch) * 0.5 + 0.5).clamp(0, 1)

    def identity(self) -> str:
        return f"space-to-depth image={self.image_size} patch={self.patch} scale={self.scale:g}"


class KLCodec(nn.Module):
    """The published models' autoencoder: images in [0, 1] -> [-1, 1] -> posterior -> latents times `scale`.

    `chunk` bounds how many images pass through the autoencoder at once (None: all), which bounds its memory. A gradient
    needs what lies between the layers of all images at once, unless it is `recompute`d on the way back.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        image_size: int = 256,
        scale: float = SD_LATENT_SCALE,
        chunk: int | None = None,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        if chunk is not None and chunk < 1:
            raise ValueError(f"KLCodec expects a chunk of at least one image, got {chunk}; pass None for no limit")
        self.autoencoder = autoencoder
        self.image_size = image_size
        self.scale = scale
        self.chunk = chunk
        self.recompute = recompute

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        side = self.image_size // self.autoencoder.downsampling
        return self.autoencoder.latent_channels, side, side

    @property
    def stochastic(self) -> bool:
        return True

    def encode(
        self, images: Float[Tensor, "b v 3 h w"], noise: Float[Tensor, "b v c lh lw"] | None = None
    ) -> Float[Tensor, "b v c lh lw"]:
        """Scaled latents: `scale * (mean + std * noise)`, or `scale * mean` without noise.

        Resizing is plain bilinear as in the released code, which only ever enlarges renders.
        """
        batch, views = images.shape[:2]
        flat = (resize_images(images, self.image_size) * 2 - 1).flatten(0, 1)  # [B*V, 3, H, W]
        flat_noise = None if noise is None else noise.flatten(0, 1)
        step = self.chunk or flat.shape[0]
        latents = []
        for start in range(0, flat.shape[0], step):
            mean, std = self._posterior(flat[start : start + step])
            latents.append(mean if flat_noise is None else mean + std * flat_noise[start : start + step])
        return torch.cat(latents).unflatten(0, (batch, views)) * self.scale

    def _posterior(self, images: Float[Tensor, "n 3 h w"]) -> tuple[Tensor, Tensor]:
        if self.recompute and images.requires_grad:
            return checkpoint(self.autoencoder.encode, images, use_reentrant=False)
        return self.autoencoder.encode(images)

    def at(self, image_size: int) -> KLCodec:
        """The same autoencoder for images of another size; its weights are shared."""
        return KLCodec(self.autoencoder, image_size, self.scale, self.chunk, self.recompute)

    def resize_prompt(self, image: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 s s"]:
        """A picture at `image_size` as the released code makes it: truncated to 8 bits, Pillow's bilinear filter."""
        return vae_pixels(image, self.image_size)

    def decode(self, latents: Float[Tensor, "b v c lh lw"]) -> Float[Tensor, "b v 3 h w"]:
        """Images, clamped to [0, 1], of scaled latents."""
        batch, views = latents.shape[:2]
        flat = latents.flatten(0, 1) / self.scale
        images = [self.autoencoder.decode(part) for part in flat.split(self.chunk or flat.shape[0])]
        return (torch.cat(images).unflatten(0, (batch, views)) * 0.5 + 0.5).clamp(0, 1)

    def identity(self) -> str:
        digest = hashlib.sha256()
        for name, tensor in sorted(self.autoencoder.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
        return f"kl image={self.image_size} scale={self.scale:g} weights={digest.hexdigest()[:16]}"
