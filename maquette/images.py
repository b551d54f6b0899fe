"""Pictures as values: prompts with their cut-out, posed views, sheets of them.

Images are float tensors [3, H, W] in [0, 1] in display (sRGB) values, masks [1, H, W] in [0, 1]. Colours are
*straight*: not multiplied by the mask; where the mask is 0 they repeat the nearest covered pixel, so that no later
resize drags a fringe in. Files of `Views` are PNG images and a transforms.json; the same values always give the same
bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from maquette.cameras import Cameras, read_transforms, write_transforms
from maquette.errors import UserError
from maquette.imagefiles import decode, read_image, save_image
from maquette.imagesizes import MIN_SIDE
from maquette.matting import CutOut, Matting, Pixels, cut_out, spread_colour

MAX_ASPECT = 32


@dataclass(frozen=True)
class ImagePrompt:
    """A picture of one object and the mask of that object."""

    image: Float[Tensor, "3 h w"]
    """Straight colours in [0, 1]."""
    mask: Float[Tensor, "1 h w"]
    """Coverage in [0, 1]."""

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or self.image.shape[0] != 3 or self.mask.shape != (1, *self.image.shape[1:]):
            raise ValueError(
                f"an image prompt has image [3, H, W] and mask [1, H, W], got {tuple(self.image.shape)} and "
                f"{tuple(self.mask.shape)}"
            )

    @property
    def height(self) -> int:
        """Rows."""
        return self.image.shape[1]

    @property
    def width(self) -> int:
        """Columns."""
        return self.image.shape[2]

    def composite(self, background: Float[Tensor, "3"]) -> Float[Tensor, "3 h w"]:
        """The object on a flat background colour: mask image + (1 - mask) background."""
        return self.mask * self.image + (1 - self.mask) * background.to(self.image)[:, None, None]

    def resized(self, height: int, width: int | None = None) -> ImagePrompt:
        """Resampled to `height` x `width` (square if only one is given), colours weighted by their coverage."""
        size = (height, height if width is None else width)
        if size == (self.height, self.width):
            return self
        premultiplied = torch.cat([self.image * self.mask, self.mask])
        small = functional.interpolate(premultiplied[None], size, mode="bilinear", align_corners=False, antialias=True)[
            0
        ]
        return _straighten(small)

    def to(self, *args: Any, **kwargs: Any) -> ImagePrompt:
        """Moved or converted, with the arguments of `Tensor.to`."""
        return ImagePrompt(self.image.to(*args, **kwargs), self.mask.to(*args, **kwargs))

    def rgba(self) -> Float[Tensor, "4 h w"]:
        """Straight colours and mask in one tensor, as image files hold them."""
        return torch.cat([self.image, self.mask])


@dataclass(frozen=True)
class CameraEstimate:
    """Where the prompt itself seems to have been taken from, and how far to believe it."""

    azimuth: float
    """Degrees from the object's front."""
    elevation: float
    """Degrees above the horizon."""
    scale: float
    """Size of the prompt's object relative to the object in the views."""
    error: float
    """Remaining disagreement of the fit in [0, 1]; 0 is perfect."""
    reliable: bool
    """Whether the fit is good enough to be used."""


@dataclass(frozen=True)
class Prompt:
    """What a person asks for: a picture, words, or both."""

    image: ImagePrompt | None
    """The cut-out picture, if there is one."""
    caption: str = ""
    """What it shows."""
    negative: str = ""
    """What it must not look like."""
    camera: CameraEstimate | None = None
    """The picture's own camera, once estimated."""
    cutout: CutOut | None = None
    """How the object was separated from its background, for the report."""

    def with_camera(self, camera: CameraEstimate | None) -> Prompt:
        """The same prompt with a camera estimate."""
        return replace(self, camera=camera)


@dataclass(frozen=True)
class Views:
    """Pictures of one object with their cameras."""

    images: Float[Tensor, "v 3 h w"]
    """Straight colours in [0, 1]."""
    masks: Float[Tensor, "v 1 h w"] | None
    """Coverage in [0, 1], or nothing is known."""
    cameras: Cameras
    """One camera a picture, of the pictures' size."""

    def __post_init__(self) -> None:
        views, _, height, width = self.images.shape
        if self.images.shape[1] != 3:
            raise ValueError(f"views have images [V, 3, H, W], got {tuple(self.images.shape)}")
        if self.masks is not None and self.masks.shape != (views, 1, height, width):
            raise ValueError(f"masks of these views are {(views, 1, height, width)}, got {tuple(self.masks.shape)}")
        expected = (torch.Size([views]), height, width)
        if (self.cameras.batch_shape, self.cameras.height, self.cameras.width) != expected:
            raise ValueError(
                f"these views need {views} cameras of {height}x{width} px, got {tuple(self.cameras.batch_shape)} of "
                f"{self.cameras.height}x{self.cameras.width}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: slice | Sequence[int] | Tensor) -> Views:
        """Some of the views; the index keeps the leading axis."""
        return Views(self.images[index], None if self.masks is None else self.masks[index], self.cameras[index])

    def composite(self, background: Float[Tensor, "3"]) -> Float[Tensor, "v 3 h w"]:
        """The objects on a flat background colour; the images themselves where there are no masks."""
        if self.masks is None:
            return self.images
        return self.masks * self.images + (1 - self.masks) * background.to(self.images)[:, None, None]

    def to(self, *args: Any, **kwargs: Any) -> Views:
        """Moved or converted, with the arguments of `Tensor.to`."""
        masks = None if self.masks is None else self.masks.to(*args, **kwargs)
        return Views(self.images.to(*args, **kwargs), masks, self.cameras.to(*args, **kwargs))

    def save(self, folder: str | Path) -> None:
        """Write NNN.png (RGBA where there are masks, 8 bits a channel) and transforms.json."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        pictures = self.images if self.masks is None else torch.cat([self.images, self.masks], dim=1)
        files = [f"{index:03d}.png" for index in range(len(self))]
        for file, picture in zip(files, pictures, strict=True):
            save_image(folder / file, picture)
        write_transforms(folder / "transforms.json", self.cameras, files)

    @classmethod
    def load(cls, folder: str | Path) -> Views:
        """Read what `save` wrote, or any folder with a transforms.json whose images share one size."""
        folder = Path(folder)
        cameras, files = read_transforms(folder / "transforms.json")
        pictures = [read_image(folder / file) for file in files]
        if {picture.shape for picture in pictures} - {
            (3, cameras.height, cameras.width),
            (4, cameras.height, cameras.width),
        }:
            raise UserError(
                f"{folder}: the images are not all {cameras.width}x{cameras.height} px as transforms.json says"
            )
        masks = None
        if any(len(picture) == 4 for picture in pictures):
            masks = torch.stack(
                [picture[3:] if len(picture) == 4 else torch.ones_like(picture[:1]) for picture in pictures]
            )
        return cls(torch.stack([picture[:3] for picture in pictures]), masks, cameras)


def sheet(
    images: Float[Tensor, "n c h w"], columns: int | None = None, *, gap: int = 0, background: float = 1.0
) -> Float[Tensor, "c H W"]:
    """Images side by side, row by row, `gap` pixels apart; empty places show `background`. By default one row."""
    count, channels, height, width = images.shape
    columns = count if columns is None else columns
    if count < 1 or columns < 1:
        raise ValueError(f"a sheet has at least one image and one column, got {count} images and {columns} columns")
    rows = -(-count // columns)
    out = images.new_full((channels, rows * (height + gap) - gap, columns * (width + gap) - gap), background)
    for index, image in enumerate(images):
        y, x = (index // columns) * (height + gap), (index % columns) * (width + gap)
        out[:, y : y + height, x : x + width] = image
    return out


# The prompt


def read_prompt(
    path: str | Path,
    *,
    mask: str | Path | None = None,
    caption: str = "",
    negative: str = "",
    size: int = 256,
    margin: float = 0.1,
    matting: Matting = "auto",
    crop: bool = True,
) -> Prompt:
    """Read a picture of an object, cut the object out, and frame it: centred in a square of `size` px.

    The mask comes from `mask` (an image file whose bright, or opaque, part is the object), else as `matting` says:

    - "auto": the alpha channel if it is used; else "plain" if the picture's border has one smooth colour; else "photo"
    - "alpha"; "plain", a border-colour key; "photo", GrabCut seeded from the border
    - "rembg", that network, if its package is installed; it is fetched when it is first used

    The longer side of the object's bounding box then takes 1 - 2 `margin` of the square. `crop=False` keeps the
    picture's own framing and only pads it to a square. `Prompt.cutout` says what was done and what looks doubtful.
    Raises UserError where the file, the mask or the object cannot be used.
    """
    if size < MIN_SIDE:
        raise UserError(f"a prompt is at least {MIN_SIDE} px, got size={size}")
    if not 0 <= margin < 0.5:
        raise UserError(f"margin is a fraction of the side from 0 to below 0.5, got {margin}")
    longest = max(1024, 2 * size)
    pixels = decode(Path(path), longest)
    shorter, longer = sorted(pixels.shape[:2])
    if shorter < MIN_SIDE or longer > MAX_ASPECT * shorter:
        raise UserError(
            f"{path} has {pixels.shape[1]}x{pixels.shape[0]} px; a prompt needs at least {MIN_SIDE} px a side, and a "
            f"longer side of at most {MAX_ASPECT} times the shorter one"
        )
    if mask is None:
        rgb, alpha, done = cut_out(_shrink(pixels, longest), matting, name=str(path))
    else:
        given = read_mask(Path(mask), pixels.shape[:2])
        pixels = _shrink(np.concatenate([pixels[..., :3], given[..., None]], axis=-1), longest)
        rgb, alpha, done = cut_out(pixels, "alpha", name=str(mask))
        done = replace(done, method="file")
    prompt = _frame(torch.from_numpy(rgb).permute(2, 0, 1), torch.from_numpy(alpha)[None], size, margin, crop)
    return Prompt(prompt, caption, negative, cutout=done)


def read_mask(path: Path, shape: tuple[int, int]) -> Pixels:
    """A mask file [H, W] in [0, 1] at the size of its picture."""
    pixels = decode(path, max(shape))
    values = pixels[..., 3] if pixels.shape[-1] == 4 and pixels[..., 3].min() < 1 else pixels[..., :3].mean(axis=-1)
    height, width = shape
    if values.shape != shape:
        # One pixel of slack: sizes are rounded when a picture is scaled.
        if abs(values.shape[1] * height - values.shape[0] * width) > max(*shape, *values.shape):
            raise UserError(
                f"the mask {path} has {values.shape[1]}x{values.shape[0]} px, another aspect than its picture's "
                f"{width}x{height}; make them match"
            )
        tensor = torch.from_numpy(np.ascontiguousarray(values))[None, None]
        values = functional.interpolate(tensor, shape, mode="bilinear", align_corners=False, antialias=True)[
            0, 0
        ].numpy()
    if values.max() < 0.5:
        raise UserError(f"the mask {path} is empty; the object must be white (or opaque) in it")
    if values.min() > 0.5:
        raise UserError(
            f"the mask {path} covers the whole picture; the background must be black (or transparent) in it"
        )
    return values


def _shrink(pixels: Pixels, longest: int) -> Pixels:
    """The picture [H, W, 3 or 4] with its longer side at most `longest`, colours weighted by alpha."""
    height, width = pixels.shape[:2]
    scale = longest / max(height, width)
    if scale >= 1:
        return pixels
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    if len(tensor) == 3:
        small = functional.interpolate(tensor[None], size, mode="bilinear", align_corners=False, antialias=True)[0]
    else:
        small = ImagePrompt(tensor[:3], tensor[3:]).resized(*size).rgba()
    return small.permute(1, 2, 0).contiguous().numpy()


def frame_object(
    image: Float[Tensor, "3 h w"], mask: Float[Tensor, "1 h w"], size: int, margin: float = 0.1
) -> ImagePrompt:
    """A masked object centred in a square of `size` px, the longer side of its bounding box 1 - 2 `margin` of it."""
    return _frame(image, mask, size, margin, crop=True)


def _frame(
    image: Float[Tensor, "3 h w"], mask: Float[Tensor, "1 h w"], size: int, margin: float, crop: bool
) -> ImagePrompt:
    """The object centred in a square of `size` px, or the whole picture padded to one."""
    height, width = mask.shape[1:]
    if crop:
        # Half coverage is where the outline is; faint feathering must not move the box.
        solid = mask[0] >= min(0.5, 0.5 * float(mask.max()))
        rows, columns = torch.nonzero(solid.any(dim=1))[:, 0], torch.nonzero(solid.any(dim=0))[:, 0]
        top, bottom = int(rows[0]), int(rows[-1]) + 1
        left, right = int(columns[0]), int(columns[-1]) + 1
        side = max(bottom - top, right - left) / (1 - 2 * margin)
    else:
        top, bottom, left, right = 0, height, 0, width
        side = float(max(height, width))
    # Sampled on the output's grid straight from the picture: any fractional offset and scale, one resampling.
    centre_y, centre_x = (top + bottom) / 2, (left + right) / 2
    step = side / size
    premultiplied = torch.cat([image * mask, mask])
    out = _resample(premultiplied, centre_y - side / 2, centre_x - side / 2, step, size)
    return _straighten(out)


def _resample(image: Float[Tensor, "c h w"], y0: float, x0: float, step: float, size: int) -> Float[Tensor, "c s s"]:
    """Values of `size` x `size` cells of `step` px from (y0, x0): triangle-weighted means, zero outside the image.

    The triangle has half-width max(step, 1) px, as in antialiased bilinear resizing.
    """

    reach = max(step, 1.0)

    def weights(start: float, length: int) -> Tensor:
        centres = start + (torch.arange(size, dtype=torch.float64) + 0.5) * step
        first, last = min(0, math.floor(start - reach)), max(length, math.ceil(start + size * step + reach))
        pixels = torch.arange(first, last, dtype=torch.float64) + 0.5
        raw = (1 - (pixels - centres[:, None]).abs() / reach).clamp(min=0)
        # Normalised over the endless grid, of which the image is a part, since beyond its edge there is nothing to see.
        return (raw / raw.sum(dim=1, keepdim=True))[:, -first : length - first].to(image.dtype)

    rows, columns = weights(y0, image.shape[1]), weights(x0, image.shape[2])
    return torch.einsum("ih,chw,jw->cij", rows, image, columns).clamp(0, 1)


def _straighten(premultiplied: Float[Tensor, "4 h w"]) -> ImagePrompt:
    """Straight colours from premultiplied ones; uncovered pixels take the nearest covered colour."""
    mask = premultiplied[3:].clamp(0, 1)
    covered = mask > 1 / 512
    mask = torch.where(covered, mask, torch.zeros_like(mask))
    image = torch.where(covered, premultiplied[:3] / mask.clamp(min=1 / 512), torch.zeros_like(mask)).clamp(0, 1)
    filled = spread_colour(image.permute(1, 2, 0).numpy(), covered[0].numpy())
    return ImagePrompt(torch.from_numpy(filled).permute(2, 0, 1).contiguous(), mask)
